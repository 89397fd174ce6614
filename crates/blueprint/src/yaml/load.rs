//! Parser events → tree.

use super::{Entry, Kind, MAX_DEPTH, MAX_NODES, Node, Places, syntax};
use crate::codes::{E0103, E0104, E0105, E0106, E0108, E0109, E0110};
use crate::report::{Path, Report, quoted};
use moat_model::Span;
use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use std::borrow::Cow;
use std::collections::HashMap;

/// Reads one document. `None` when a diagnostic says why there is no tree, or when the text holds nothing.
pub(crate) fn load<'t>(places: &Places<'t>, report: &mut Report) -> Option<Node<'t>> {
    let mut loader = Loader { places, report, stack: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None };
    let mut parser = Parser::new_from_str(places.text());
    while let Some(event) = parser.next_event() {
        match event {
            Ok((event, span)) => {
                if !loader.event(event, span.start.index(), span.end.index()) {
                    return None;
                }
                if matches!(loader.root, Some(Root::Done)) {
                    break;
                }
            }
            Err(error) => {
                syntax::say(&error, places, loader.report);
                return None;
            }
        }
    }
    match loader.root {
        Some(Root::Node(node)) => Some(node),
        Some(Root::Done) | None => None,
    }
}

/// The document's node, and whether more of the text matters.
enum Root<'t> {
    Node(Node<'t>),
    Done,
}

/// A list or mapping that is not closed yet.
struct Frame<'t> {
    anchor: usize,
    start: usize,
    end: usize,
    body: Body<'t>,
}

enum Body<'t> {
    List(Vec<Node<'t>>),
    Map {
        entries: Vec<Entry<'t>>,
        merges: Vec<Node<'t>>,
        seen: Seen<'t>,
        pending: Option<Pending<'t>>,
        /// Keys given again: the entry that has the key, the key, its place and the value.
        again: Vec<(usize, Cow<'t, str>, Span, Node<'t>)>,
        /// Whether some key was no word.
        wrong: bool,
    },
}

/// Which keys a mapping has; small ones are searched, large ones are indexed.
#[derive(Default)]
struct Seen<'t>(HashMap<Cow<'t, str>, usize>);

impl<'t> Seen<'t> {
    const SMALL: usize = 24;

    fn find(&self, entries: &[Entry<'t>], key: &str) -> Option<usize> {
        if self.0.is_empty() {
            return entries.iter().position(|entry| entry.key == key);
        }
        self.0.get(key).copied()
    }

    fn push(&mut self, entries: &mut Vec<Entry<'t>>, entry: Entry<'t>) {
        if !self.0.is_empty() {
            self.0.insert(entry.key.clone(), entries.len());
        }
        entries.push(entry);
        if self.0.is_empty() && entries.len() > Self::SMALL {
            self.0 = entries.iter().enumerate().map(|(at, entry)| (entry.key.clone(), at)).collect();
        }
    }
}

/// A key whose value comes next; one that is no word swallows its value.
enum Pending<'t> {
    Key(Cow<'t, str>, Span),
    Merge,
    Wrong,
}

struct Loader<'p, 't> {
    places: &'p Places<'t>,
    report: &'p mut Report,
    stack: Vec<Frame<'t>>,
    anchors: HashMap<usize, Node<'t>>,
    nodes: usize,
    root: Option<Root<'t>>,
}

impl<'t> Loader<'_, 't> {
    /// Takes one event; false when reading must stop.
    fn event(&mut self, event: Event<'t>, start: usize, end: usize) -> bool {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => true,
            Event::DocumentStart(_) => self.document(start, end),
            Event::Alias(anchor) => self.alias(anchor, start, end),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = matches!(style, ScalarStyle::Plain);
                let plain = self.tag(tag.as_deref(), start, end) && plain;
                let empty = text.is_empty() && plain;
                let span = if empty { self.gap(start) } else { self.trimmed(start, end) };
                let node = Node { span, kind: Kind::Scalar(text, plain) };
                self.keep(anchor, &node) && self.add(node, end)
            }
            Event::SequenceStart(anchor, tag) => {
                self.tag(tag.as_deref(), start, end);
                self.open(anchor, start, end, Body::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.tag(tag.as_deref(), start, end);
                let body = Body::Map {
                    entries: Vec::new(),
                    merges: Vec::new(),
                    seen: Seen::default(),
                    pending: None,
                    again: Vec::new(),
                    wrong: false,
                };
                self.open(anchor, start, end, body)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(start, end),
        }
    }

    fn document(&mut self, start: usize, end: usize) -> bool {
        if self.root.is_some() {
            let span = self.places.span(start, end.min(start + 3));
            self.report.say(
                E0106,
                span,
                &Path::Root,
                "a second document begins here",
                "keep one document in a file: join them, or remove this `---`".to_owned(),
            );
            return true;
        }
        true
    }

    /// `!!str` makes a scalar text; every other tag is refused. Returns whether a plain scalar stays plain.
    fn tag(&mut self, tag: Option<&Tag>, start: usize, end: usize) -> bool {
        let Some(tag) = tag else { return true };
        let core = tag.is_yaml_core_schema() || tag.handle == "!!";
        if core && tag.suffix == "str" {
            return false;
        }
        let span = self.trimmed(start, end);
        self.report.say(
            E0110,
            span,
            &Path::Root,
            format!("the tag {} is not part of the format", quoted(&tag.to_string())),
            "write the plain value without a tag".to_owned(),
        );
        true
    }

    /// The place of an empty value: the `-` or `:` before it, when that is what comes before.
    fn gap(&self, start: usize) -> Span {
        let byte = self.places.byte(start);
        let before = self.places.text().get(..byte).unwrap_or_default();
        let line = before.trim_end();
        if line.ends_with(['-', ':']) {
            return self.places.bytes(line.len() - 1, line.len());
        }
        self.places.span(start, start)
    }

    /// A span without the blanks and line breaks at its end.
    fn trimmed(&self, start: usize, end: usize) -> Span {
        let mut span = self.places.span(start, end);
        span.end = span.start + self.places.piece(span).trim_end().len();
        span
    }

    fn open(&mut self, anchor: usize, start: usize, end: usize, body: Body<'t>) -> bool {
        if self.stack.len() >= MAX_DEPTH {
            let span = self.places.span(start, end);
            self.report.say(
                E0104,
                span,
                &Path::Root,
                format!("more than {MAX_DEPTH} lists and mappings inside each other"),
                "a blueprint needs fewer than ten: check the indentation and the brackets".to_owned(),
            );
            return false;
        }
        self.stack.push(Frame { anchor, start, end, body });
        true
    }

    fn close(&mut self, start: usize, end: usize) -> bool {
        let Some(frame) = self.stack.pop() else { return true };
        // A block has no closing mark of its own: it ends where its last child does.
        let end = if end > start { end } else { frame.end };
        let span = self.trimmed(frame.start, end);
        let kind = match frame.body {
            Body::List(items) => Kind::List(items),
            Body::Map { mut entries, merges, mut seen, again, wrong, .. } => {
                for (at, key, key_span, value) in again {
                    self.twice(entries.get_mut(at), value, &key, key_span);
                }
                for merge in merges {
                    self.merge(&merge, &mut entries, &mut seen);
                }
                // `{{ x }}`: what is wrong with it was said at the key.
                if entries.is_empty() && wrong { Kind::Broken } else { Kind::Map(entries) }
            }
        };
        let node = Node { span, kind };
        self.keep(frame.anchor, &node) && self.add(node, end)
    }

    /// Remembers an anchored node.
    fn keep(&mut self, anchor: usize, node: &Node<'t>) -> bool {
        if anchor == 0 {
            return true;
        }
        let (size, _) = node.extent();
        if !self.spend(size, node.span) {
            return false;
        }
        self.anchors.insert(anchor, node.clone());
        true
    }

    /// Counts nodes; false past the limit.
    fn spend(&mut self, size: usize, span: Span) -> bool {
        self.nodes = self.nodes.saturating_add(size);
        if self.nodes <= MAX_NODES {
            return true;
        }
        self.report.say(
            E0103,
            span,
            &Path::Root,
            format!("the file holds more than {MAX_NODES} values, aliases expanded"),
            "split it, or write fewer aliases of aliases".to_owned(),
        );
        false
    }

    fn alias(&mut self, anchor: usize, start: usize, end: usize) -> bool {
        let span = self.trimmed(start, end);
        let Some(node) = self.anchors.get(&anchor) else {
            self.report.say(E0108, span, &Path::Root, "an alias inside the very value that it names", "write the value out".to_owned());
            return self.add(Node { span, kind: Kind::Broken }, end);
        };
        let (size, depth) = node.extent();
        if self.stack.len() + depth > MAX_DEPTH {
            self.report.say(
                E0104,
                span,
                &Path::Root,
                format!("with this alias, more than {MAX_DEPTH} lists and mappings lie inside each other"),
                "write the value out".to_owned(),
            );
            return false;
        }
        // Copied only when the budget has room for it.
        if self.nodes.saturating_add(size) > MAX_NODES {
            return self.spend(size, span);
        }
        let node = node.clone();
        self.nodes += size;
        self.add(node, end)
    }

    /// Puts a finished node where it belongs.
    fn add(&mut self, node: Node<'t>, end: usize) -> bool {
        if !self.spend(1, node.span) {
            return false;
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(if self.root.is_none() { Root::Node(node) } else { Root::Done });
            return true;
        };
        frame.end = frame.end.max(end);
        match &mut frame.body {
            Body::List(items) => items.push(node),
            Body::Map { entries, merges, seen, pending, again, wrong } => match pending.take() {
                None => *pending = Some(key(node, self.report)),
                Some(Pending::Wrong) => *wrong = true,
                Some(Pending::Merge) => merges.push(node),
                Some(Pending::Key(key, key_span)) => {
                    if let Some(at) = seen.find(entries, &key) {
                        again.push((at, key, key_span, node));
                    } else {
                        seen.push(entries, Entry { key, key_span, value: node });
                    }
                }
            },
        }
        true
    }

    /// Adds what `<<` brings and is not written: the mapping's own keys win, then earlier mappings.
    fn merge(&mut self, from: &Node<'t>, entries: &mut Vec<Entry<'t>>, seen: &mut Seen<'t>) {
        match &from.kind {
            Kind::Map(more) => {
                for entry in more {
                    if seen.find(entries, &entry.key).is_none() {
                        seen.push(entries, entry.clone());
                    }
                }
            }
            Kind::List(items) if items.iter().all(|item| item.entries().is_some()) => {
                for item in items {
                    self.merge(item, entries, seen);
                }
            }
            Kind::Broken => {}
            Kind::List(_) | Kind::Scalar(..) => self.report.say(
                E0108,
                from.span,
                &Path::Root,
                format!("`<<` merges a mapping, this is {}", from.shape()),
                "name the anchor of a mapping: `<<: *name`".to_owned(),
            ),
        }
    }

    /// Says that a key is given twice. Lists are joined, so that the items of both are looked at.
    fn twice(&mut self, first: Option<&mut Entry<'t>>, node: Node<'t>, key: &str, span: Span) {
        let Some(first) = first else { return };
        let pointer = self.pointer(key);
        self.report.say_at(
            E0105,
            span,
            pointer,
            format!("{} is given twice in one mapping; first at line {}", quoted(key), first.key_span.line),
            "join the two, or remove one: only one of them would count".to_owned(),
        );
        if let (Kind::List(items), Kind::List(more)) = (&mut first.value.kind, node.kind) {
            items.extend(more);
        }
    }

    /// The pointer of a key of the mapping that is being closed.
    fn pointer(&self, key: &str) -> String {
        let mut parts: Vec<String> = Vec::new();
        for frame in &self.stack {
            match &frame.body {
                Body::List(items) => parts.push(items.len().to_string()),
                Body::Map { pending: Some(Pending::Key(key, _)), .. } => parts.push(key.to_string()),
                Body::Map { .. } => {}
            }
        }
        parts.push(key.to_owned());
        parts.join("/")
    }
}

/// A key's node → what its value is for.
fn key<'t>(node: Node<'t>, report: &mut Report) -> Pending<'t> {
    match node.kind {
        Kind::Scalar(text, true) if text == "<<" => Pending::Merge,
        Kind::Scalar(text, _) => Pending::Key(text, node.span),
        Kind::Broken => Pending::Wrong,
        Kind::List(_) | Kind::Map(_) => {
            report.say(
                E0109,
                node.span,
                &Path::Root,
                "a list or a mapping can't be a key",
                "a text that begins with `{` or `[` needs quotes; templates such as `{{ … }}` are not filled in".to_owned(),
            );
            Pending::Wrong
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    fn said(text: &str) -> Vec<(String, u32, u32)> {
        let places = Places::new(text);
        let mut report = Report::default();
        let _ = load(&places, &mut report);
        report.finish().into_iter().map(|d| (d.code.to_owned(), d.span.line, d.span.column)).collect()
    }

    fn one(code: &str, line: u32, column: u32) -> Vec<(String, u32, u32)> {
        vec![(code.to_owned(), line, column)]
    }

    #[test]
    fn what_is_wrong_has_a_line_and_a_column() {
        for (text, expect) in [
            ("a: b: c", one("E0101", 1, 5)),
            ("a: 1\nb: 2\na: 3\n", one("E0105", 3, 1)),
            ("a: 1\n---\nb: 2\n", one("E0106", 2, 1)),
            ("a:\n\tb: 1\n", one("E0107", 2, 1)),
            ("a: &x\n  b: *x\n", one("E0108", 2, 6)),
            ("a: *x\n", one("E0101", 1, 4)),
            ("a: {{ b }}\n", one("E0109", 1, 5)),
            ("a: !Ref b\n", one("E0110", 1, 4)),
            ("a: {<<: 3}\n", one("E0108", 1, 9)),
            ("a: !!str 3\n", vec![]),
        ] {
            assert_eq!(said(text), expect, "{text}");
        }
    }

    #[test]
    fn a_merge_key_brings_what_is_not_written() {
        let text = "base: &b {x: 1, y: 2}\nmine:\n  y: 3\n  <<: *b\n";
        let places = Places::new(text);
        let mut report = Report::default();
        let root = load(&places, &mut report).unwrap();
        assert!(report.finish().is_empty());
        let mine = &root.entry("mine").unwrap().value;
        assert_eq!(mine.entry("x").unwrap().value.text(), Some("1"));
        assert_eq!(mine.entry("y").unwrap().value.text(), Some("3"));
    }

    #[test]
    fn spans_hold_the_text_of_scalars() {
        let text = "\u{e9}: \"q\"\r\nlist:\r\n  - one\r\n  - {k: two}\r\n";
        let places = Places::new(text);
        let mut report = Report::default();
        let root = load(&places, &mut report).unwrap();
        let list = &root.entry("list").unwrap().value;
        let cut = |node: &Node<'_>| text[node.span.start..node.span.end].to_owned();
        assert_eq!(cut(list), "- one\r\n  - {k: two}");
        let items = list.items().unwrap();
        assert_eq!(cut(&items[0]), "one");
        assert_eq!(cut(&items[1]), "{k: two}");
        assert_eq!(cut(&root.entries().unwrap()[0].value), "\"q\"");
    }

    #[test]
    fn an_alias_bomb_is_refused_soon() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..30 {
            let below = vec![format!("*a{}", level - 1); 10].join(", ");
            writeln!(text, "a{level}: &a{level} [{below}]").unwrap();
        }
        assert!(said(&text).iter().any(|(code, ..)| code == "E0103"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        for text in ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(70)] {
            let said = said(&text);
            assert!(said.iter().any(|(code, ..)| code == "E0104"), "{said:?}");
        }
    }
}
