//! Collects diagnostics, and the path of the node being looked at.

use crate::codes::{Code, E0113};
use moat_model::{Diagnostic, Span};

/// More diagnostics than this are counted, not kept.
const MAX_DIAGNOSTICS: usize = 1_000;
/// Names longer than this are cut in messages.
const MAX_QUOTED: usize = 48;

/// The way to a node: a list on the stack, turned into text only when something is said.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Path<'a> {
    /// The root.
    Root,
    /// The value of a key.
    Key(&'a Path<'a>, &'a str),
    /// An item of a list.
    Item(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    /// The value of a key below this.
    pub(crate) const fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }
    /// An item below this.
    pub(crate) const fn item(&'a self, index: usize) -> Path<'a> {
        Path::Item(self, index)
    }
}

impl Path<'_> {
    /// The pointer, as RFC 6901 writes it but for the leading `/`.
    pub(crate) fn pointer(&self) -> String {
        let mut out = String::with_capacity(48);
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        let parent = match self {
            Self::Root => return,
            Self::Key(parent, _) | Self::Item(parent, _) => parent,
        };
        parent.write(out);
        if !matches!(parent, Self::Root) {
            out.push('/');
        }
        match self {
            Self::Root => {}
            Self::Key(_, key) if key.contains(['~', '/']) => out.push_str(&key.replace('~', "~0").replace('/', "~1")),
            Self::Key(_, key) => out.push_str(key),
            Self::Item(_, index) => out.push_str(&index.to_string()),
        }
    }
}

/// All that is said about one text.
#[derive(Debug, Default)]
pub(crate) struct Report {
    list: Vec<Diagnostic>,
    dropped: usize,
}

impl Report {
    /// Says something; past a limit it is only counted.
    pub(crate) fn say(&mut self, code: Code, span: Span, path: &Path<'_>, message: impl Into<String>, help: impl Into<Option<String>>) {
        if self.list.len() >= MAX_DIAGNOSTICS {
            self.dropped += 1;
        } else {
            self.say_at(code, span, path.pointer(), message, help);
        }
    }

    /// The same, with the pointer at hand.
    pub(crate) fn say_at(&mut self, code: Code, span: Span, pointer: String, message: impl Into<String>, help: impl Into<Option<String>>) {
        if self.list.len() >= MAX_DIAGNOSTICS {
            self.dropped += 1;
            return;
        }
        let (message, help) = (message.into(), help.into());
        self.list.push(Diagnostic { code: code.id, severity: code.severity, span, pointer, message, help });
    }

    /// Takes what another said.
    pub(crate) fn add(&mut self, other: Self) {
        self.dropped += other.dropped;
        for diagnostic in other.list {
            if self.is_full() {
                self.dropped += 1;
            } else {
                self.list.push(diagnostic);
            }
        }
    }

    /// Whether more is only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= MAX_DIAGNOSTICS
    }

    /// Whether nothing was said.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Everything said, sorted by place; what an alias repeats is said once.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.list.sort_by(|a, b| (a.span.start, a.severity, a.code).cmp(&(b.span.start, b.severity, b.code)));
        self.list.dedup_by(|a, b| a.code == b.code && a.span == b.span && a.message == b.message);
        if self.dropped > 0 {
            let span = self.list.last().map(|d| d.span).unwrap_or_default();
            self.list.push(Diagnostic {
                code: E0113.id,
                severity: E0113.severity,
                span,
                pointer: String::new(),
                message: format!("{} more are not shown", self.dropped),
                help: Some("mend these first, then check again".to_owned()),
            });
        }
        self.list
    }
}

/// Back-ticks round a name from the text, cut when it is long, on one line.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_QUOTED) + 2);
    out.push('`');
    for (count, c) in text.chars().enumerate() {
        if count == MAX_QUOTED {
            out.push('…');
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out.push('`');
    out
}

/// `a`, `b` or `c`, each in back-ticks.
pub(crate) fn one_of(words: &[&str]) -> String {
    let mut out = String::new();
    for (index, word) in words.iter().enumerate() {
        if index > 0 {
            out.push_str(if index + 1 == words.len() { " or " } else { ", " });
        }
        out.push_str(&quoted(word));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_a_pointer() {
        let services = Path::Root.key("services");
        let first = services.item(0);
        assert_eq!(first.key("a/b~c").pointer(), "services/0/a~1b~0c");
        assert_eq!(Path::Root.pointer(), "");
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(quoted("a\nb"), "`a b`");
        assert_eq!(quoted(&"x".repeat(99)).chars().count(), MAX_QUOTED + 3);
    }
}
