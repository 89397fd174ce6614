//! Real blueprints from public repositories: what is right there is not called wrong, and nothing panics.

use super::support::counter;
use moat_blueprint::Severity;
use moat_model::state::ObservedState;
use moat_planner::check::check;
use moat_planner::diff::diff;
use moat_planner::memory::Memory;
use moat_planner::policy::net_policy;
use moat_planner::reach::reach;
use moat_planner::resolve::{GitFacts, Input, Settings, resolve};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The folder of the corpus: `MOAT_CORPUS`, or beside the workspace.
fn folder() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = std::env::var_os("MOAT_CORPUS").map_or_else(|| root.join("../shared/corpus"), PathBuf::from);
    folder.join("VERDICTS.tsv").is_file().then_some(folder)
}

/// (file, verdict, text) of every row, or none with a message.
fn rows() -> Option<Vec<(String, String, String)>> {
    let Some(folder) = folder() else {
        println!("skipped: no corpus here; name its folder by MOAT_CORPUS");
        return None;
    };
    let table = std::fs::read_to_string(folder.join("VERDICTS.tsv")).unwrap();
    let rows: Vec<_> = table
        .lines()
        .skip(1)
        .map(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            let text = std::fs::read(folder.join("blueprints").join(cells[0])).unwrap();
            (cells[0].to_owned(), cells[4].to_owned(), String::from_utf8_lossy(&text).into_owned())
        })
        .collect();
    assert!(rows.len() > 200, "the corpus has {} rows only", rows.len());
    Some(rows)
}

#[test]
fn what_is_valid_has_no_errors() {
    let Some(rows) = rows() else { return };
    let mut wrong = Vec::new();
    for (file, verdict, text) in &rows {
        for d in check(&moat_blueprint::read(text).blueprint) {
            if d.severity == Severity::Error && matches!(verdict.as_str(), "valid" | "lenient") {
                wrong.push(format!("{file}:{}: {} {} ({:?})", d.span.line, d.code, d.message, d.help));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn all_of_it_is_resolved_and_planned() {
    let Some(rows) = rows() else { return };
    let (mut services, mut starts) = (0, 0);
    for (file, _, text) in &rows {
        let blueprint = moat_blueprint::read(text).blueprint;
        let (given, files) = (BTreeMap::new(), BTreeMap::new());
        let input = Input {
            path: Path::new("/b/render.yaml"),
            source: Path::new("/b"),
            blueprint: &blueprint,
            given: &given,
            files: &files,
            git: GitFacts::default(),
        };
        let mut memory = Memory::default();
        let first = resolve(std::slice::from_ref(&input), &mut memory, &mut counter(1), &Settings::default());
        let second = resolve(std::slice::from_ref(&input), &mut memory, &mut counter(9_999), &Settings::default());
        assert_eq!(first.state, second.state, "{file}: not stable");
        services += first.state.services.len();
        assert!(reach(&first.state).rows().count() >= 9);
        net_policy(&first.state, &[]);
        let releases = first.state.services.keys().map(|slug| (slug.clone(), "r".to_owned())).collect();
        let plan = diff(&first.state, &ObservedState::default(), &releases, &BTreeSet::new(), &mut memory, &mut counter(7));
        starts += plan.steps.len();
    }
    assert!(services > 200 && starts > services / 2, "{services} services, {starts} steps");
}
