//! Bytes → text that a YAML reader may be given.

use crate::codes::{E0102, E0103, E0111, E0112};
use crate::report::{Path, Report};
use crate::yaml::{Kind, MAX_BYTES, Node, Places};
use moat_model::Span;

/// Whether a text may be read: not too large, and made of characters that YAML allows.
pub(crate) fn readable(places: &Places<'_>, report: &mut Report) -> bool {
    let text = places.text();
    let allowed = |c: char| {
        // YAML 1.2.2, section 5.1.
        matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
            && c != '\u{feff}'
    };
    if text.bytes().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | b' '..=b'~')) {
        return true;
    }
    let Some((at, c)) = text.char_indices().find(|(_, c)| !allowed(*c)) else { return true };
    let span = places.bytes(at, at + c.len_utf8());
    let message = format!("the character U+{:04X} can't stand in YAML", u32::from(c));
    let help = "remove it; in a quoted text, write it as an escape such as `\"\\0\"`".to_owned();
    report.say(E0112, span, &Path::Root, message, help);
    false
}

/// Whether the length is fine.
pub(crate) fn short_enough(bytes: usize, report: &mut Report) -> bool {
    if bytes <= MAX_BYTES {
        return true;
    }
    let message = format!("the file has {bytes} bytes, more than {MAX_BYTES}");
    let help = "a blueprint is a text of a few kilobytes: is this the right file?".to_owned();
    report.say(E0103, start(), &Path::Root, message, help);
    false
}

/// Says where a file stops being UTF-8.
pub(crate) fn not_utf8(bytes: &[u8], valid: usize, report: &mut Report) {
    let before = bytes.get(..valid).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default();
    let places = Places::new(before);
    let end = places.end();
    let help = match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "it looks like UTF-16: save it as UTF-8",
        _ => "save it as UTF-8",
    };
    report.say(E0102, end, &Path::Root, format!("byte {valid} is not UTF-8"), help.to_owned());
}

/// Whether the tree's root is a mapping.
pub(crate) fn is_blueprint(root: Option<&Node<'_>>, report: &mut Report) -> bool {
    let help = "write `services:` and a list of services below it; `moat schema` prints all there is".to_owned();
    match root {
        Some(Node { kind: Kind::Map(_), .. }) => true,
        Some(Node { kind: Kind::Broken, .. }) => false,
        None => {
            if report.is_empty() {
                report.say(E0111, start(), &Path::Root, "the file is empty", help);
            }
            false
        }
        Some(node) if node.is_null() => {
            report.say(E0111, start(), &Path::Root, "the file is empty", help);
            false
        }
        Some(node) => {
            let message = format!("a blueprint is a mapping, this is {}", node.shape());
            report.say(E0111, node.span, &Path::Root, message, help);
            false
        }
    }
}

/// The first place of a file.
fn start() -> Span {
    Span { start: 0, end: 0, line: 1, column: 1 }
}
