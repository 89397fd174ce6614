//! Golden cases: `tests/cases/NAME/render.yaml` and what is printed about it. `UPDATE=1` rewrites what is expected.

use moat_blueprint::{read_bytes, render};
use std::fmt::Write as _;
use std::path::Path;

#[test]
fn what_is_printed_is_what_was_agreed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let update = std::env::var_os("UPDATE").is_some();
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert!(names.len() >= 5, "cases are missing: {names:?}");
    let mut wrong = String::new();
    for name in names {
        let case = folder.join(&name);
        let bytes = std::fs::read(case.join("render.yaml")).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let read = read_bytes(&bytes);
        let mut shown = String::new();
        for diagnostic in &read.diagnostics {
            writeln!(shown, "{}", render(diagnostic, "render.yaml", &text, false)).unwrap();
        }
        let services: Vec<&str> = read.blueprint.services.iter().map(|s| s.name.value.as_str()).collect();
        writeln!(shown, "services: {}", services.join(", ")).unwrap();
        let expected = case.join("expect.txt");
        if update {
            std::fs::write(&expected, &shown).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        if expected != shown {
            writeln!(wrong, "== {}: expected\n{expected}\n-- printed\n{shown}", name.to_string_lossy()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}UPDATE=1 takes what is printed");
}
