//! What `doctor` says of this machine, which runs all the other tests.

use moat_engine_linux::doctor::{Finding, Place, facts};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

#[test]
fn the_machine_that_runs_these_tests_is_fit_and_what_is_missing_has_a_command() {
    let state = tempfile::tempdir().unwrap();
    let (run, not_yet) = (Path::new("/run/moat"), state.path().join("not/yet/there"));
    let facts = facts(Place { run, state: &not_yet, oci_runtime: None });
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
        // All the tests of images need it.
        let images = facts.iter().find(|fact| fact.name == "images").unwrap();
        assert!(images.ok, "{images:?}");
    } else {
        println!("not root: what is required is not judged");
    }
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0, "what was tried is left");
}

#[test]
fn the_runtime_that_moat_is_told_to_use_is_the_one_that_is_judged_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (state, run) = (folder.path().join("state"), folder.path().join("run"));
    let old = folder.path().join("runc");
    fs::write(&old, "#!/bin/sh\necho 'runc version 1.1.5'\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    let judged = |runtime: &Path| -> Finding {
        let name = runtime.file_name().unwrap().to_str().unwrap().to_owned();
        facts(Place { run: &run, state: &state, oci_runtime: Some(runtime) }).into_iter().find(|fact| fact.name == name).unwrap()
    };
    let finding = judged(&old);
    assert!(finding.required && !finding.ok && finding.found.contains("CVE-2024-21626"), "{finding:?}");
    assert!(judged(&folder.path().join("nothing")).found.contains("MOAT_OCI_RUNTIME"));
    if nix::unistd::geteuid().is_root() {
        let config = moat_engine_linux::Config { oci_runtime: Some(old), ..crate::bed::config(&state, &run) };
        let error = moat_engine_linux::LinuxEngine::open(config).err().unwrap();
        assert!(error.to_string().contains("1.1.5, older than 1.1.12") && error.hint.is_some(), "{error}");
    }
}
