//! Diagnostics as people read them: code, place, the source line with a caret, and what to write instead.

use moat_model::{Diagnostic, Severity, Span};
use std::fmt::Write as _;
use unicode_width::UnicodeWidthChar;

/// Cells that a tab takes.
const TAB: usize = 4;
/// A line longer than this is cut round the place, in cells.
const MAX_CELLS: usize = 100;
/// What stays before the place when a line is cut.
const BEFORE: usize = 30;

/// The colours of one look, as SGR sequences (ECMA-48); empty without colour.
struct Look {
    severity: &'static str,
    bold: &'static str,
    frame: &'static str,
    help: &'static str,
    reset: &'static str,
}

impl Look {
    const fn of(severity: Severity, color: bool) -> Self {
        if !color {
            return Self { severity: "", bold: "", frame: "", help: "", reset: "" };
        }
        Self {
            severity: match severity {
                Severity::Error => "\x1b[1;31m",
                Severity::Unsupported => "\x1b[1;35m",
                Severity::Warning => "\x1b[1;33m",
                Severity::Notice => "\x1b[1;36m",
            },
            bold: "\x1b[1m",
            frame: "\x1b[1;34m",
            help: "\x1b[1;32m",
            reset: "\x1b[0m",
        }
    }
}

/// Prints one diagnostic over several lines, the last one ended. `text` is what was read from `file`.
///
/// ```text
/// error[E0201]: a web service has no field `port`
///   --> render.yaml:7:5
///    |
///  7 |     port: 3000
///    |     ^^^^
///    = help: set the variable `PORT` under `envVars`
/// ```
pub fn render(d: &Diagnostic, file: &str, text: &str, color: bool) -> String {
    let look = Look::of(d.severity, color);
    let Look { severity, bold, frame, help, reset } = look;
    let word = match d.severity {
        Severity::Error => "error",
        Severity::Unsupported => "unsupported",
        Severity::Warning => "warning",
        Severity::Notice => "notice",
    };
    let number = d.span.line.to_string();
    let gutter = number.len().max(2);
    let mut out = String::new();
    // Writing to a `String` can't fail.
    let _ = writeln!(out, "{severity}{word}[{}]{reset}{bold}: {}{reset}", d.code, d.message);
    let place = format!("{file}:{}:{}", d.span.line, d.span.column);
    let _ = writeln!(out, "{:gutter$}{frame}-->{reset} {place}", "");
    if let Some(excerpt) = excerpt(d.span, text) {
        let Excerpt { line, before, marked } = excerpt;
        let _ = writeln!(out, "{:gutter$} {frame}|{reset}", "");
        let _ = writeln!(out, "{frame}{number:>gutter$} |{reset} {line}");
        let carets = "^".repeat(marked);
        let _ = writeln!(out, "{:gutter$} {frame}|{reset} {:before$}{severity}{carets}{reset}", "", "");
    }
    if let Some(text) = &d.help {
        let _ = writeln!(out, "{:gutter$} {frame}={reset} {help}help:{reset} {text}", "");
    }
    out
}

/// A source line as it is shown, and the cells under which the carets stand.
struct Excerpt {
    line: String,
    before: usize,
    marked: usize,
}

/// The greatest character boundary at or before an offset.
fn boundary(text: &str, offset: usize) -> usize {
    let offset = offset.min(text.len());
    (0..=offset).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

fn excerpt(span: Span, text: &str) -> Option<Excerpt> {
    let breaks = ['\n', '\r'];
    let start = boundary(text, span.start);
    let first = text.get(..start)?.rfind(breaks).map_or(0, |at| at + 1);
    let rest = text.get(first..)?;
    let line = rest.split(breaks).next()?;
    if line.trim().is_empty() {
        return None;
    }
    let end = boundary(text, span.end).clamp(start, (first + line.len()).max(start));
    let mut cells: Vec<(usize, String)> = Vec::new();
    for (offset, c) in line.char_indices() {
        cells.push((first + offset, shown(c)));
    }
    let width = |cells: &[(usize, String)]| -> usize { cells.iter().map(|(_, s)| cells_of(s)).sum() };
    let from = cells.partition_point(|(at, _)| *at < start);
    let to = cells.partition_point(|(at, _)| *at < end);
    let mut cut = 0;
    if width(&cells) > MAX_CELLS {
        cut = from.saturating_sub(BEFORE);
    }
    let mut before = width(cells.get(cut..from)?);
    let mut line = String::new();
    if cut > 0 {
        line.push('…');
        before += 1;
    }
    let mut taken = 0;
    for (_, s) in cells.get(cut..)? {
        taken += cells_of(s);
        if taken > MAX_CELLS {
            line.push('…');
            break;
        }
        line.push_str(s);
    }
    let marked = width(cells.get(from..to)?).clamp(1, MAX_CELLS.saturating_sub(before).max(1));
    Some(Excerpt { line, before, marked })
}

/// How a character is shown: a tab as blanks, what has no width as its replacement.
fn shown(c: char) -> String {
    match c {
        '\t' => " ".repeat(TAB),
        '\u{feff}' => String::new(),
        c if c.is_control() => "\u{fffd}".to_owned(),
        // Direction marks would let a line look like another one.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => "\u{fffd}".to_owned(),
        c => c.to_string(),
    }
}

fn cells_of(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, needle: &str) -> Diagnostic {
        let start = text.find(needle).unwrap();
        let before = &text[..start];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
        Diagnostic {
            code: "E0201",
            severity: Severity::Error,
            span: Span { start, end: start + needle.len(), line: u32::try_from(line).unwrap(), column: u32::try_from(column).unwrap() },
            pointer: String::new(),
            message: "no such field".to_owned(),
            help: Some("remove it".to_owned()),
        }
    }

    #[test]
    fn it_looks_like_this() {
        let text = "services:\n  - port: 3000\n";
        assert_eq!(
            render(&at(text, "port"), "a.yaml", text, false),
            "error[E0201]: no such field\n  --> a.yaml:2:5\n   |\n 2 |   - port: 3000\n   |     ^^^^\n   = help: remove it\n"
        );
    }

    #[test]
    fn carets_stand_under_wide_characters_and_tabs() {
        for (text, needle, line, carets) in [
            ("名前: port", "port", " 1 | 名前: port", "   |       ^^^^"),
            ("\u{feff}a: port", "port", " 1 | a: port", "   |    ^^^^"),
            ("a:\tport", "port", " 1 | a:    port", "   |       ^^^^"),
            ("a: 名", "名", " 1 | a: 名", "   |    ^^"),
            ("x\r\na: port\r\n", "port", " 2 | a: port", "   |    ^^^^"),
        ] {
            let shown = render(&at(text, needle), "a", text, false);
            let lines: Vec<&str> = shown.lines().collect();
            assert_eq!((lines[3], lines[4]), (line, carets), "{text:?}");
        }
    }

    #[test]
    fn a_long_line_is_cut_round_the_place() {
        let text = format!("{}port{}", "a".repeat(5_000), "b".repeat(5_000));
        let shown = render(&at(&text, "port"), "a", &text, false);
        assert!(shown.lines().all(|line| line.chars().count() < 120), "{shown}");
        assert!(shown.contains("aport"), "{shown}");
    }

    #[test]
    fn a_span_outside_the_text_is_no_panic() {
        let mut d = at("é port", "port");
        for (start, end) in [(1, 2), (99, 100), (0, usize::MAX), (5, 2)] {
            d.span.start = start;
            d.span.end = end;
            assert!(render(&d, "a", "é", true).starts_with("\u{1b}[1;31merror[E0201]"));
        }
    }
}
