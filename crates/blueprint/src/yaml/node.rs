//! The tree.

use moat_model::Span;
use std::borrow::Cow;

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node<'t> {
    /// Where it stands.
    pub(crate) span: Span,
    /// What it is.
    pub(crate) kind: Kind<'t>,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(crate) enum Kind<'t> {
    /// A scalar: its text, and whether it was written plain (without quotes), so that it may be a number or a word.
    Scalar(Cow<'t, str>, bool),
    /// A list.
    List(Vec<Node<'t>>),
    /// A mapping, in the order of the text, no key twice.
    Map(Vec<Entry<'t>>),
    /// Something wrong that a diagnostic names already; fits everywhere.
    Broken,
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'t> {
    /// The key's text.
    pub(crate) key: Cow<'t, str>,
    /// The key's place.
    pub(crate) key_span: Span,
    /// The value.
    pub(crate) value: Node<'t>,
}

/// What a scalar means by the core schema of YAML 1.2 (section 10.3.2): `no`, `off` and `1_000` are text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plain {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int,
    /// A number with a fraction or an exponent, infinite or not a number.
    Float,
    /// Text.
    Text,
}

impl<'t> Node<'t> {
    /// The scalar's text.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar(text, _) => Some(text),
            Kind::List(_) | Kind::Map(_) | Kind::Broken => None,
        }
    }

    /// What the scalar means; lists and mappings are none.
    pub(crate) fn plain(&self) -> Option<Plain> {
        match &self.kind {
            Kind::Scalar(_, false) => Some(Plain::Text),
            Kind::Scalar(text, true) => Some(resolve(text)),
            Kind::List(_) | Kind::Map(_) | Kind::Broken => None,
        }
    }

    /// Whether nothing is written here.
    pub(crate) fn is_null(&self) -> bool {
        self.plain() == Some(Plain::Null)
    }

    /// The items, when it is a list.
    pub(crate) fn items(&self) -> Option<&[Self]> {
        match &self.kind {
            Kind::List(items) => Some(items),
            Kind::Scalar(..) | Kind::Map(_) | Kind::Broken => None,
        }
    }

    /// The entries, when it is a mapping.
    pub(crate) fn entries(&self) -> Option<&[Entry<'t>]> {
        match &self.kind {
            Kind::Map(entries) => Some(entries),
            Kind::Scalar(..) | Kind::List(_) | Kind::Broken => None,
        }
    }

    /// The entry with this key.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry<'t>> {
        self.entries()?.iter().find(|entry| entry.key == key)
    }

    /// The integer, when it is one in decimal.
    pub(crate) fn int(&self) -> Option<i64> {
        (self.plain() == Some(Plain::Int)).then(|| self.text().and_then(|text| text.parse().ok())).flatten()
    }

    /// The word for people.
    pub(crate) fn shape(&self) -> &'static str {
        match &self.kind {
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
            Kind::Broken => "something unreadable",
            Kind::Scalar(..) => match self.plain() {
                Some(Plain::Null) | None => "nothing",
                Some(Plain::Bool(_)) => "true or false",
                Some(Plain::Int | Plain::Float) => "a number",
                Some(Plain::Text) => "text",
            },
        }
    }

    /// How many nodes it is made of, itself included, and how deep it goes (1 for a scalar).
    pub(crate) fn extent(&self) -> (usize, usize) {
        let mut size = 1;
        let mut depth = 0;
        let mut add = |(s, d): (usize, usize)| {
            size += s;
            depth = depth.max(d);
        };
        match &self.kind {
            Kind::Scalar(..) | Kind::Broken => {}
            Kind::List(items) => items.iter().for_each(|item| add(item.extent())),
            Kind::Map(entries) => entries.iter().for_each(|entry| add(entry.value.extent())),
        }
        (size, depth + 1)
    }
}

/// Resolves a plain scalar.
fn resolve(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Null,
        "true" | "True" | "TRUE" => return Plain::Bool(true),
        "false" | "False" | "FALSE" => return Plain::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Plain::Float,
        // Most are words.
        _ if !text.starts_with(|c: char| matches!(c, '0'..='9' | '+' | '-' | '.')) => return Plain::Text,
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Plain::Float;
    }
    let radix = |prefix: &str, radix: u32| text.strip_prefix(prefix).is_some_and(|d| !d.is_empty() && d.chars().all(|c| c.is_digit(radix)));
    if radix("0o", 8) || radix("0x", 16) {
        return Plain::Int;
    }
    if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return Plain::Int;
    }
    if is_float(unsigned) { Plain::Float } else { Plain::Text }
}

/// `( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn is_float(unsigned: &str) -> bool {
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let exponent_fits = exponent.is_none_or(|text| {
        let text = text.strip_prefix(['+', '-']).unwrap_or(text);
        !text.is_empty() && digits(text)
    });
    let mantissa_fits = match mantissa.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty()),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    exponent_fits && mantissa_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_mean_what_yaml_1_2_says() {
        for (text, plain) in [
            ("", Plain::Null),
            ("~", Plain::Null),
            ("null", Plain::Null),
            ("nULL", Plain::Text),
            ("true", Plain::Bool(true)),
            ("False", Plain::Bool(false)),
            ("yes", Plain::Text),
            ("off", Plain::Text),
            ("on", Plain::Text),
            ("3", Plain::Int),
            ("-3", Plain::Int),
            ("0x1F", Plain::Int),
            ("0o17", Plain::Int),
            ("0x", Plain::Text),
            ("100_000", Plain::Text),
            ("3.10", Plain::Float),
            ("3.", Plain::Float),
            (".5", Plain::Float),
            (".", Plain::Text),
            ("1e3", Plain::Float),
            ("1e", Plain::Text),
            ("3.11.4", Plain::Text),
            ("-.inf", Plain::Float),
            ("12:30", Plain::Text),
        ] {
            assert_eq!(resolve(text), plain, "{text}");
        }
    }
}
