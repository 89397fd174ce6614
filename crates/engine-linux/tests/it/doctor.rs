//! What `doctor` says of this machine, which runs all the other tests.

#[test]
fn the_machine_that_runs_these_tests_is_fit_and_what_is_missing_has_a_command() {
    let facts = moat_engine_linux::doctor::facts(std::path::Path::new("/run/moat"));
    for fact in &facts {
        println!("{:18} {:5} {} {}", fact.name, fact.ok, fact.found, fact.hint.as_deref().unwrap_or_default());
        assert!(!fact.found.is_empty());
        assert_eq!(fact.hint.is_some(), !fact.ok, "{}", fact.name);
    }
    let names: std::collections::BTreeSet<_> = facts.iter().map(|fact| fact.name.as_str()).collect();
    assert_eq!(names.len(), facts.len(), "a name is there twice");
    if nix::unistd::geteuid().is_root() {
        let broken: Vec<_> = facts.iter().filter(|fact| fact.required && !fact.ok).collect();
        assert!(broken.is_empty(), "{broken:?}");
    } else {
        println!("not root: what is required is not judged");
    }
}
