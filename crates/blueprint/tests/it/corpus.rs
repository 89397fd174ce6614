//! Real blueprints from public repositories, and what is known to be wrong with them.

use moat_blueprint::{Diagnostic, Read, Severity, read_bytes};
use std::path::{Path, PathBuf};

/// The folder of the corpus: `MOAT_CORPUS`, or beside the workspace.
fn folder() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = std::env::var_os("MOAT_CORPUS").map_or_else(|| root.join("../shared/corpus"), PathBuf::from);
    folder.join("VERDICTS.tsv").is_file().then_some(folder)
}

struct Row {
    file: String,
    verdict: String,
    places: Vec<(String, String)>,
    bytes: Vec<u8>,
}

/// The corpus, or none with a message.
fn rows() -> Option<Vec<Row>> {
    let Some(folder) = folder() else {
        println!("skipped: no corpus here; name its folder by MOAT_CORPUS");
        return None;
    };
    let table = std::fs::read_to_string(folder.join("VERDICTS.tsv")).unwrap();
    let mut rows = Vec::new();
    for line in table.lines().skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        let [file, _, _, _, verdict, places @ ..] = cells.as_slice() else { panic!("{line}") };
        let places = places.first().copied().unwrap_or_default();
        let places = places
            .split(" | ")
            .filter_map(|place| place.split_once(": "))
            .map(|(pointer, why)| (pointer.to_owned(), why.to_owned()))
            .collect();
        rows.push(Row {
            file: (*file).to_owned(),
            verdict: (*verdict).to_owned(),
            places,
            bytes: std::fs::read(folder.join("blueprints").join(file)).unwrap(),
        });
    }
    assert!(rows.len() > 200, "the corpus has {} rows only", rows.len());
    Some(rows)
}

fn errors(read: &Read) -> Vec<&Diagnostic> {
    read.diagnostics.iter().filter(|d| d.severity == Severity::Error).collect()
}

/// Names that a schema validator calls unexpected: `('port', 'x' was unexpected)`; the list may be cut short.
fn unexpected(why: &str) -> Vec<String> {
    let Some((_, list)) = why.split_once("not allowed (") else { return Vec::new() };
    let list = list.split(" w").next().unwrap_or(list);
    list.split(", ").filter_map(|name| Some(name.strip_prefix('\'')?.strip_suffix('\'')?.to_owned())).collect()
}

/// Where a diagnostic must be for a place of the table.
fn wanted(pointer: &str, why: &str) -> Vec<String> {
    let names = unexpected(why);
    if names.is_empty() {
        return vec![pointer.to_owned()];
    }
    let join = |name: &String| if pointer.is_empty() { name.clone() } else { format!("{pointer}/{name}") };
    names.iter().map(join).collect()
}

fn is_at_or_below(pointer: &str, place: &str) -> bool {
    pointer == place || pointer.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))
}

/// A validator that took another branch names other fields of the same object than the wrong one.
fn is_child(pointer: &str, place: &str) -> bool {
    let rest = if place.is_empty() { Some(pointer) } else { pointer.strip_prefix(place).and_then(|r| r.strip_prefix('/')) };
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
}

#[test]
fn verdicts_hold() {
    let Some(rows) = rows() else { return };
    let mut wrong = Vec::new();
    for row in &rows {
        let read = read_bytes(&row.bytes);
        let errors = errors(&read);
        match row.verdict.as_str() {
            "valid" | "lenient" => {
                for error in errors {
                    wrong.push(format!("{} ({}): {error:?}", row.file, row.verdict));
                }
            }
            "yaml-error" => {
                if !errors.iter().any(|e| e.span.line > 0 && e.span.column > 0 && e.code < "E0200") {
                    wrong.push(format!("{}: no YAML error", row.file));
                }
            }
            "error" => {
                for (pointer, why) in &row.places {
                    for place in wanted(pointer, why) {
                        let found = read.diagnostics.iter().any(|d| is_at_or_below(&d.pointer, &place))
                            || errors.iter().any(|d| is_child(&d.pointer, pointer));
                        if !found {
                            wrong.push(format!("{}: nothing at `{place}`: {why}", row.file));
                        }
                    }
                }
            }
            other => panic!("verdict {other}"),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The lines of a file on which something is written leniently, found without a YAML reader: `env:` of a service, a
/// `value:` of true or false, a plain number for `postgresMajorVersion`.
fn lenient_lines(text: &str) -> Vec<u32> {
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split(" #").next().unwrap_or(line).trim().trim_start_matches("- ").trim();
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let lenient = match key {
            "env" | "afterFirstDeployCommand" => value.bytes().all(|b| b.is_ascii_alphanumeric()) && !value.is_empty(),
            "value" => matches!(value, "true" | "false" | "True" | "False" | "TRUE" | "FALSE"),
            "postgresMajorVersion" => !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()),
            _ => false,
        };
        if lenient {
            lines.push(u32::try_from(index + 1).unwrap());
        }
    }
    lines
}

#[test]
fn every_lenient_thing_is_said() {
    let Some(rows) = rows() else { return };
    let mut seen = 0;
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row.verdict == "lenient") {
        let text = String::from_utf8(row.bytes.clone()).unwrap();
        let read = read_bytes(&row.bytes);
        let notices: Vec<&Diagnostic> = read.diagnostics.iter().filter(|d| matches!(d.code, "E0207" | "E0208")).collect();
        let lines = lenient_lines(&text);
        seen += lines.len();
        for line in &lines {
            if !notices.iter().any(|d| d.span.line == *line) {
                wrong.push(format!("{}: nothing at line {line}", row.file));
            }
        }
        let lists_missing = read
            .blueprint
            .services
            .iter()
            .filter(|s| s.kind.value == moat_blueprint::spec::TypeSpec::Kind(moat_model::ServiceKind::KeyValue))
            .filter(|s| s.ip_allow_list.is_none());
        for service in lists_missing {
            seen += 1;
            if !notices.iter().any(|d| d.pointer == service.pointer && d.message.contains("ipAllowList")) {
                wrong.push(format!("{}: nothing about ipAllowList of {}", row.file, service.name.value));
            }
        }
        if notices.is_empty() {
            wrong.push(format!("{}: no notice at all", row.file));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(seen > 100, "the search finds {seen} lenient things only");
}
