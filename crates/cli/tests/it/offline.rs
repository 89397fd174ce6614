//! Verbs that need no daemon and no root.

use std::process::{Command, Output};

fn moat(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_moat")).args(args).env("NO_COLOR", "1").env("MOAT_RUN_DIR", "/nonexistent/moat").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn check_says_everything_at_once_with_place_and_fix() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("render.yaml");
    std::fs::write(&file, "services:\n  - type: web\n    name: a\n    runtime: python\n    buildCommand: x\n    startCommand: y\n    healthcheckPath: /x\n  - type: pserv\n    name: b\n    runtime: pyton\n    buildCommand: x\n    startCommand: y\n").unwrap();
    let out = moat(&["check", file.to_str().unwrap()]);
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("healthCheckPath") && said.contains(":7:5"), "{said}");
    assert!(said.contains("python") && said.contains(":10:"), "{said}");
    let json: serde_json::Value = serde_json::from_slice(&moat(&["check", "--output", "json", file.to_str().unwrap()]).stdout).unwrap();
    assert_eq!(json[0]["valid"], false);
}

#[test]
fn the_examples_are_fine_and_can_be_explained_without_running() {
    for name in ["hello", "shop"] {
        let file = format!("{}/../../examples/{name}/render.yaml", env!("CARGO_MANIFEST_DIR"));
        let out = moat(&["check", &file]);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
        let out = moat(&["plan", &file]);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        assert!(text(&out.stdout).contains("start"), "{}", text(&out.stdout));
    }
    let shop = format!("{}/../../examples/shop/render.yaml", env!("CARGO_MANIFEST_DIR"));
    let out = moat(&["explain", "mailer", "catalog:8080", "--file", &shop]);
    assert!(text(&out.stdout).starts_with("allow:"), "{}", text(&out.stdout));
    let out = moat(&["explain", "catalog", "mailer:80", "--file", &shop]);
    assert!(text(&out.stdout).starts_with("deny:"), "{}", text(&out.stdout));
}

#[test]
fn schema_completions_and_help_are_printed() {
    let schema: serde_json::Value = serde_json::from_slice(&moat(&["schema"]).stdout).unwrap();
    assert!(schema["properties"]["services"].is_object() || schema["$defs"].is_object() || schema["definitions"].is_object());
    assert!(text(&moat(&["completions", "bash"]).stdout).contains("_moat"));
    let help = text(&moat(&["--help"]).stdout);
    for verb in ["up", "down", "ps", "logs", "exec", "reach", "explain", "verify", "check", "plan", "schema", "doctor", "completions"] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}:\n{help}");
    }
}

#[test]
fn asking_where_nothing_runs_says_so() {
    for args in [&["ps"][..], &["reach"], &["verify"], &["logs"]] {
        let out = moat(args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        assert!(text(&out.stderr).contains("nothing of Moat runs here"), "{}", text(&out.stderr));
    }
}

#[test]
fn a_plan_for_programs_holds_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("render.yaml");
    let blueprint = "services:\n  - type: web\n    name: a\n    runtime: image\n    image: {url: docker.io/library/nginx:1, creds: {fromRegistryCreds: {name: hub}}}\n    envVars:\n      - {key: TOKEN, value: kept-to-itself}\n      - {key: DB, fromDatabase: {name: db, property: password}}\n    x-moat: {secretFiles: {token: token}}\ndatabases:\n  - name: db\n";
    std::fs::write(&file, blueprint).unwrap();
    std::fs::write(folder.path().join("token"), "kept-to-itself").unwrap();
    let out = moat(&["plan", "--output", "json", "--set", "registry.hub=me:kept-to-itself", file.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let said = text(&out.stdout);
    assert!(!said.contains("kept-to-itself"), "{said}");
    let plan: serde_json::Value = serde_json::from_str(&said).unwrap();
    let started: Vec<&serde_json::Value> =
        plan["plan"]["steps"].as_array().unwrap().iter().map(|step| &step["instance"]).filter(|instance| !instance.is_null()).collect();
    assert_eq!(started.len(), 2, "{said}");
    assert!(started.iter().any(|instance| instance["env"]["TOKEN"] == "***"), "{said}");
    assert!(started.iter().any(|instance| instance["workload"]["password"] == "***"), "{said}");
}

#[test]
fn a_plan_is_refused_where_up_would_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("render.yaml");
    let blueprint = "services:\n  - type: worker\n    name: w\n    runtime: node\n    buildCommand: \"true\"\n    startCommand: sleep 1\n    envVars:\n      - key: PEER\n        fromService: {type: pserv, name: somewhere, property: host}\n";
    std::fs::write(&file, blueprint).unwrap();
    // Another file may have it, as far as one file can say.
    let check = moat(&["check", file.to_str().unwrap()]);
    assert!(check.status.success() && text(&check.stdout).contains("N0301"), "{}", text(&check.stdout));
    let plan = moat(&["plan", file.to_str().unwrap()]);
    assert_eq!(plan.status.code(), Some(2));
    assert!(text(&plan.stderr).contains("E0301") && text(&plan.stdout).is_empty(), "{}", text(&plan.stderr));
}
