//! Blueprints that were pushed.

use crate::support::{Given, resolve_files, service, value};
use moat_model::Slug;
use moat_model::state::Source;
use moat_planner::memory::Memory;
use moat_planner::push::{Held, PathFilter, PushRule, Trigger};
use moat_planner::resolve::Resolved;
use std::collections::BTreeMap;

const TEXT: &str = r#"
services:
  - {type: web, name: Site, runtime: python, buildCommand: x, startCommand: y, rootDir: ./site/, buildFilter: {paths: ["site/**"], ignoredPaths: ["**/*.md"]}}
  - {type: worker, name: old, runtime: python, buildCommand: x, startCommand: y, autoDeploy: false}
  - {type: worker, name: checked, runtime: docker, autoDeployTrigger: checksPass}
  - {type: worker, name: theirs, runtime: python, repo: "git@example.com:them/mailer.git", branch: live, buildCommand: x, startCommand: y}
  - {type: pserv, name: cache, runtime: image, image: {url: "redis:7"}}
  - {type: keyvalue, name: store, ipAllowList: []}
"#;

fn resolved(pins: &[(&str, &str)]) -> Resolved {
    let pins: BTreeMap<_, _> = pins.iter().map(|(name, commit)| ((*name).to_owned(), (*commit).to_owned())).collect();
    resolve_files(&[("/state/git/shop.git/render.yaml", TEXT)], &Given { pins: Some(pins), ..Given::default() }, &mut Memory::default())
}

fn source(resolved: &Resolved, slug: &str) -> Source {
    service(&resolved.state, slug).workload.source().unwrap().clone()
}

#[test]
fn each_service_has_the_pushed_commit_or_the_one_it_keeps() {
    let ours = |commit: &str| Source::Repository { url: "/state/git/shop.git".to_owned(), branch: None, commit: Some(commit.to_owned()) };
    let theirs = |commit: Option<&str>| Source::Repository {
        url: "git@example.com:them/mailer.git".to_owned(),
        branch: Some("live".to_owned()),
        commit: commit.map(str::to_owned),
    };
    let all = resolved(&[]);
    let held = resolved(&[("Site", "0ld"), ("theirs", "abc")]);
    assert_eq!((source(&all, "site"), source(&held, "site")), (ours("c0ffee"), ours("0ld")));
    assert_eq!((source(&all, "checked"), source(&held, "checked")), (ours("c0ffee"), ours("c0ffee")));
    assert_eq!((source(&all, "theirs"), source(&held, "theirs")), (theirs(None), theirs(Some("abc"))));
    assert_eq!(value(&held.state, "site", "RENDER_GIT_COMMIT"), "0ld");
    assert_eq!(value(&held.state, "old", "RENDER_GIT_COMMIT"), "c0ffee");

    // What is kept is made of the same, but for what the commit is part of.
    let print = |resolved: &Resolved, slug: &str| service(&resolved.state, slug).fingerprint.clone();
    assert_ne!(print(&all, "site"), print(&held, "site"));
    for same in ["old", "theirs", "cache", "store"] {
        assert_eq!(print(&all, same), print(&held, same), "{same}");
    }

    // Of another repository's history only its place is known.
    for (key, want) in [("RENDER_GIT_BRANCH", "live"), ("RENDER_GIT_COMMIT", ""), ("RENDER_GIT_REPO_SLUG", "them/mailer")] {
        assert_eq!(value(&held.state, "theirs", key), want, "{key}");
    }
}

#[test]
fn rules_are_read_from_the_blueprint() {
    let rules = resolved(&[]).push_rules;
    let rule = |slug: &str| rules.get(&Slug::new(slug).unwrap()).unwrap().clone();
    let filter = PathFilter { paths: vec!["site/**".to_owned()], ignored_paths: vec!["**/*.md".to_owned()], root_dir: "site".to_owned() };
    assert_eq!(rule("site"), PushRule::Source { trigger: Trigger::Commit, filter });
    assert_eq!(rule("old"), PushRule::Source { trigger: Trigger::Off, filter: PathFilter::default() });
    assert_eq!(rule("checked").held(None), Some(Held::ChecksPass));
    for slug in ["theirs", "cache", "store"] {
        assert_eq!(rule(slug), PushRule::Settings, "{slug}");
    }
}

#[test]
fn a_pattern_that_is_no_glob_is_said_at_its_place() {
    let text = "services:\n  - type: worker\n    name: w\n    runtime: python\n    buildCommand: x\n    startCommand: y\n    buildFilter:\n      paths: ['src/**', 'src/[a-z.py']\n";
    let resolved = resolve_files(&[("/b/render.yaml", text)], &Given::default(), &mut Memory::default());
    let said: Vec<_> = resolved.diagnostics.iter().filter(|(_, d)| d.code == "W0308").map(|(_, d)| (d.span.line, d.span.column)).collect();
    assert_eq!(said, [(8, 25)]);
}
