//! Whatever the bytes: no panic, spans inside the text, the same answer twice.

use moat_blueprint::{Read, read, read_bytes, render};
use proptest::prelude::*;

const VALID: &[&str] = &[
    include_str!("../cases/everything/render.yaml"),
    include_str!("../cases/wrong-everywhere/render.yaml"),
    include_str!("../cases/anchors/render.yaml"),
    include_str!("../cases/leniently/render.yaml"),
];

fn holds(text: &str, read: &Read) {
    for d in &read.diagnostics {
        assert!(d.span.start <= d.span.end && d.span.end <= text.len(), "{d:?}");
        assert!(text.is_char_boundary(d.span.start) && text.is_char_boundary(d.span.end), "{d:?}");
        assert!(d.span.line >= 1 && d.span.column >= 1, "{d:?}");
        let before = &text[..d.span.start];
        let before = before.strip_prefix('\u{feff}').unwrap_or(before);
        let line = before.replace("\r\n", "\n").replace('\r', "\n").matches('\n').count() + 1;
        // Between the two characters of a line break, both answers are right.
        if !(before.ends_with('\r') && text[d.span.start..].starts_with('\n')) {
            assert_eq!(d.span.line as usize, line, "{d:?} in {text:?}");
        }
        assert!(!d.message.is_empty() && !d.message.contains('\n'), "{d:?}");
        let shown = render(d, "f", text, false);
        assert!(shown.starts_with(|c: char| c.is_ascii_lowercase()), "{shown}");
    }
    assert!(read.diagnostics.is_sorted_by_key(|d| d.span.start) || read.diagnostics.last().is_some_and(|d| d.code == "E0113"));
    for service in &read.blueprint.services {
        assert!(service.span.end <= text.len() && service.name.span.end <= text.len());
    }
}

/// A valid file with some of its text replaced, repeated, removed or joined by something else.
fn mutated() -> impl Strategy<Value = String> {
    let edit = (any::<prop::sample::Index>(), 0_usize..30, piece());
    (prop::sample::select(VALID), prop::collection::vec(edit, 1..6)).prop_map(|(text, edits)| {
        let mut chars: Vec<char> = text.chars().collect();
        for (at, remove, piece) in edits {
            let at = at.index(chars.len() + 1);
            let end = (at + remove).min(chars.len());
            chars.splice(at..end, piece.chars());
        }
        chars.into_iter().collect()
    })
}

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        prop::sample::select(
            &[
                "\t",
                "\r",
                "\r\n",
                "\u{feff}",
                "---\n",
                "...\n",
                "&a ",
                "*a",
                "<<: ",
                "? ",
                ": ",
                "- ",
                "[",
                "]",
                "{",
                "}",
                "{{ x }}",
                "!!str ",
                "!x ",
                "|\n",
                ">-\n",
                "\"",
                "'",
                "#",
                "%YAML 1.1\n",
                "~",
                "null",
                "true",
                "3.10",
                "é",
                "\u{1f980}",
                "\u{85}",
                "\u{2028}",
                "  ",
                "\n",
                "services:\n",
                "x-moat: {egress: [1.2.3.4]}\n",
                "name",
                "type: static",
                "\\x",
                ",",
                "@",
                "`",
            ][..]
        )
        .prop_map(str::to_owned),
        "[ -~\\n]{0,12}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let read = read_bytes(&bytes);
        if let Ok(text) = std::str::from_utf8(&bytes) {
            holds(text, &read);
        }
    }

    #[test]
    fn random_yaml_is_read(pieces in prop::collection::vec(piece(), 0..60)) {
        let text = pieces.concat();
        holds(&text, &read(&text));
    }

    #[test]
    fn mutated_blueprints_are_read(text in mutated()) {
        let first = read(&text);
        holds(&text, &first);
        prop_assert_eq!(first, read(&text));
    }
}
