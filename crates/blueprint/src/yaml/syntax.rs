//! Syntax errors in words.

use super::Places;
use crate::codes::{E0101, E0104, E0107};
use crate::report::{Path, Report};
use moat_model::Span;
use saphyr_parser::ScanError;

/// Says what the parser stumbled over.
pub(super) fn say(error: &ScanError, places: &Places<'_>, report: &mut Report) {
    let at = error.marker().index();
    let span = places.span(at, at + 1);
    if let Some(tab) = tab_of_indentation(places, at) {
        report.say(E0107, tab, &Path::Root, "a tab indents this line", "YAML indents with spaces: replace each tab with two".to_owned());
        return;
    }
    let info = error.info();
    if info.contains("recursion limit") {
        let help = "a blueprint needs fewer than ten: check the brackets".to_owned();
        report.say(E0104, span, &Path::Root, "too many brackets inside each other", help);
        return;
    }
    let (message, help) = words(info);
    let help = help_of_line(places, at).unwrap_or(help);
    report.say(E0101, span, &Path::Root, message, help.to_owned());
}

/// What the line of a syntax error and the one above it tell.
fn help_of_line(places: &Places<'_>, at: usize) -> Option<&'static str> {
    let before = places.text().get(..places.byte(at))?;
    let mut lines = before.lines().rev().filter(|line| !line.trim().is_empty());
    let (line, above) = (lines.next()?, lines.next()?);
    if [line, above].iter().any(|line| line.trim_start().starts_with("//")) {
        return Some("comments begin with `#`, not with `//`");
    }
    let indent = |line: &str| line.len() - line.trim_start_matches([' ', '-']).len();
    let has_value = above.split_once(": ").is_some_and(|(_, value)| !value.trim().is_empty());
    (indent(line) > indent(above) && has_value && !above.trim_end().ends_with(['|', '>']))
        .then_some("this line is indented deeper than the one above, which has a value already: align the two")
}

/// The tab in the indentation of the line of a syntax error, the line before or the line after.
fn tab_of_indentation(places: &Places<'_>, at: usize) -> Option<Span> {
    let text = places.text();
    let at = places.byte(at);
    let line_of = |byte: usize| text.get(..byte).map(|t| t.rfind('\n').map_or(0, |n| n + 1));
    let line = line_of(at)?;
    let before = line.checked_sub(1).and_then(line_of);
    let after = text.get(at..)?.find('\n').map(|end| at + end + 1);
    [Some(line), before, after].into_iter().flatten().find_map(|start| {
        let rest = text.get(start..)?;
        let indent = rest.len() - rest.trim_start_matches([' ', '\t', '-']).len();
        let tab = rest.get(..indent)?.find('\t')?;
        Some(places.bytes(start + tab, start + tab + 1))
    })
}

/// The parser's finding in words, and what helps.
fn words(info: &str) -> (String, &'static str) {
    let quotes = "check the indentation of this line and the one above; a text that holds `: ` or ` #`, or begins with one of `{[&*!|>%@`, needs quotes";
    let has = |needle: &str| info.contains(needle);
    if has("mapping values are not allowed") {
        ("a key can't begin here".to_owned(), quotes)
    } else if has("unknown anchor") {
        ("this alias has no anchor before it".to_owned(), "write `&name` at the value first, or quote a text that begins with `*`")
    } else if has("unexpected end of stream") || has("unexpected eof") {
        ("the text ends too early".to_owned(), "close the quote or bracket that is still open")
    } else {
        (format!("this is not YAML: {}", info.trim()), quotes)
    }
}
