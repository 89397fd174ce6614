//! The guides and the examples say what is so: every blueprint is fine and can be planned, every `moat explain` answers what the page says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// What a command prints, started in the root of the repository; it must succeed.
fn moat(args: &[&str]) -> String {
    let mut moat = Command::new(env!("CARGO_BIN_EXE_moat"));
    let out = moat.args(args).current_dir(root()).env("NO_COLOR", "1").env("MOAT_RUN_DIR", "/nonexistent/moat").output().unwrap();
    let said = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
    assert!(out.status.success(), "moat {}: {said}", args.join(" "));
    said
}

fn check_and_plan(file: &Path) {
    let file = file.to_str().unwrap();
    let checked: serde_json::Value = serde_json::from_str(&moat(&["check", "--output", "json", file])).unwrap();
    assert_eq!(checked[0]["valid"], true, "{checked}");
    let told: Vec<_> = checked[0]["diagnostics"].as_array().unwrap().iter().filter(|said| said["severity"] != "notice").collect();
    assert!(told.is_empty(), "{file}: {told:?}");
    let plan = moat(&["plan", file]);
    assert!(plan.contains("start") || plan.contains("publish"), "{file}: {plan}");
}

fn pages() -> Vec<(String, String)> {
    let folder = root().join("docs/guide");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| (file.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(file).unwrap())).collect()
}

/// The fenced blocks of a page that are blueprints.
fn blueprints(page: &str) -> impl Iterator<Item = &str> {
    let blocks = page.split("\n```yaml\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    blocks.filter(|block| ["services:", "databases:"].iter().any(|start| block.starts_with(start)))
}

/// The files that a page shows beside its blueprints: blocks that a line with the name in back-ticks precedes.
fn beside(page: &str) -> impl Iterator<Item = (&str, &str)> {
    page.split("\n```ini\n").zip(page.split("\n```ini\n").skip(1)).filter_map(|(before, rest)| {
        let name = before.trim_end().lines().last()?.split('`').nth(1)?;
        Some((name, rest.split("\n```").next()?))
    })
}

#[test]
fn every_example_is_fine_and_can_be_planned() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        check_and_plan(&entry.unwrap().path().join("render.yaml"));
        seen += 1;
    }
    assert!(seen >= 11, "{seen} examples");
}

#[test]
fn every_blueprint_of_a_guide_is_fine_and_can_be_planned() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for (page, text) in pages() {
        for blueprint in blueprints(&text) {
            let file = folder.path().join("render.yaml");
            fs::write(&file, blueprint).unwrap();
            for (name, content) in beside(&text) {
                fs::write(folder.path().join(name), content).unwrap();
            }
            println!("{page}:\n{blueprint}");
            check_and_plan(&file);
            seen += 1;
        }
    }
    assert!(seen >= 10, "{seen} blueprints");
}

#[test]
fn what_a_guide_shows_of_explain_is_what_it_answers() {
    let mut seen = 0;
    for (page, text) in pages() {
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(args) = line.strip_prefix("    $ moat ") else { continue };
            let args: Vec<&str> = args.split_whitespace().collect();
            let mut explain = Command::new(env!("CARGO_BIN_EXE_moat"));
            let out =
                explain.args(&args).current_dir(root()).env("NO_COLOR", "1").env("MOAT_RUN_DIR", "/nonexistent/moat").output().unwrap();
            let shown = lines.next().unwrap().trim();
            assert_eq!(String::from_utf8_lossy(&out.stdout).lines().next(), Some(shown), "{page}: {line}");
            seen += 1;
        }
    }
    assert!(seen >= 14, "{seen} answers");
}

#[test]
fn every_system_s_page_is_in_the_index_and_no_link_leads_nowhere() {
    let index = fs::read_to_string(root().join("docs/guide/README.md")).unwrap();
    for (page, text) in pages() {
        assert!(page == "README.md" || index.contains(&format!("]({page})")), "{page} is not in the index");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|target| !target.contains("://")) {
            let file = target.split('#').next().unwrap();
            assert!(root().join("docs/guide").join(file).exists(), "{page}: {target}");
        }
    }
}
