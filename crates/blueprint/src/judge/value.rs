//! Values against shapes.

use super::{Judge, lenient_bool, suggest};
use crate::codes::{E0203, E0204, E0205, E0206, E0208, E0215, E0216, E0222, E0225};
use crate::report::{Path, one_of, quoted};
use crate::tables::{CRON_PLAN, Field, Item, Meant, RUNTIME, Shape, Words};
use crate::yaml::{Kind, Node, Plain};

impl Judge<'_> {
    /// Judges a value that is not null.
    pub(super) fn value(&mut self, node: &Node<'_>, field: &'static Field, path: &Path<'_>) {
        if matches!(node.kind, Kind::Broken) {
            return;
        }
        match field.shape {
            Shape::Text | Shape::Command => self.text(node, field, path),
            Shape::Value => self.scalar(node, path),
            Shape::Word(words) => self.word(node, words, field, path),
            Shape::Type(_) => {}
            Shape::Bool => self.boolean(node, field, path),
            Shape::Int(low, high) => self.int(node, (low, high), field, path),
            Shape::List(item) => self.list(node, item, field, path),
            Shape::Object(table) => self.object(node, table, path),
            Shape::TextMap => self.text_map(node, field, path),
            Shape::WordOrTexts(words) => {
                if node.items().is_some() {
                    self.list(node, Item::Text, field, path);
                } else {
                    self.word(node, words, field, path);
                }
            }
        }
    }

    fn wrong(&mut self, node: &Node<'_>, field: &Field, wanted: &str, help: Option<String>, path: &Path<'_>) {
        let message = format!("`{}` is {wanted}, this is {}", field.name, node.shape());
        self.report.say(E0204, node.span, path, message, help);
    }

    fn text(&mut self, node: &Node<'_>, field: &'static Field, path: &Path<'_>) {
        let Some(text) = node.text() else {
            self.wrong(node, field, "a text", None, path);
            return;
        };
        if text.trim().is_empty() && field.required {
            let message = format!("`{}` is blank", field.name);
            self.report.say(E0203, node.span, path, message, format!("write `{}: …`", field.name));
            return;
        }
        if matches!(node.plain(), Some(Plain::Bool(_) | Plain::Float | Plain::Int)) {
            self.as_text(node, path);
        }
        self.format(node, text, field, path);
    }

    fn as_text(&mut self, node: &Node<'_>, path: &Path<'_>) {
        let message = format!("{} where a text stands: read as it is written", node.shape());
        self.report.say(E0208, node.span, path, message, "write it in quotes".to_owned());
    }

    fn format(&mut self, node: &Node<'_>, text: &str, field: &'static Field, path: &Path<'_>) {
        if let Some(format) = field.format
            && let Err((message, help)) = format(text)
        {
            let code = match field.name {
                "name" => crate::codes::E0217,
                "key" => crate::codes::E0214,
                _ => E0216,
            };
            self.report.say(code, node.span, path, message, help);
        }
    }

    /// A value whose source text is kept.
    fn scalar(&mut self, node: &Node<'_>, path: &Path<'_>) {
        let (Some(text), Some(plain)) = (node.text(), node.plain()) else {
            let message = format!("a value is a text or a number, this is {}", node.shape());
            let help = "write it in quotes, or as a block after `|`".to_owned();
            self.report.say(E0204, node.span, path, message, help);
            return;
        };
        match plain {
            Plain::Bool(_) => self.as_text(node, path),
            // Other readers would print such a number differently.
            Plain::Int | Plain::Float if !prints_alike(text) => self.as_text(node, path),
            Plain::Int | Plain::Float | Plain::Null | Plain::Text => {}
        }
    }

    fn word(&mut self, node: &Node<'_>, words: &'static Words, field: &'static Field, path: &Path<'_>) {
        let Some(text) = node.text() else {
            let help = format!("write {}", one_of(words.all));
            self.wrong(node, field, "a word", Some(help), path);
            return;
        };
        match words.meant(text) {
            Meant::Exactly => {
                if node.plain() != Some(Plain::Text) {
                    self.as_text(node, path);
                }
            }
            Meant::Deprecated(word) => {
                let message = format!("this is the old word for `{word}`");
                self.report.say(crate::codes::E0207, node.span, path, message, format!("write `{word}`"));
            }
            Meant::Spelling(word) => {
                let message = format!("{} is read as `{word}`", quoted(text));
                self.report.say(E0208, node.span, path, message, format!("write `{word}`"));
            }
            Meant::Nothing => self.no_word(node, text, words, field, path),
        }
    }

    fn no_word(&mut self, node: &Node<'_>, text: &str, words: &'static Words, field: &'static Field, path: &Path<'_>) {
        if field.name == "plan" && text == "free" && std::ptr::eq(words, &raw const CRON_PLAN) {
            self.report.say(
                E0225,
                node.span,
                path,
                "a cron job has no plan `free`: it gets the limits of `starter`",
                "write `plan: starter`".to_owned(),
            );
            return;
        }
        if field.name == "property" {
            let message = format!("there is no property {}", quoted(text));
            let help = property_help(text, words);
            self.report.say(E0215, node.span, path, message, help);
            return;
        }
        let message =
            if text.trim().is_empty() { format!("`{}` is blank", field.name) } else { format!("{} is no `{}`", quoted(text), field.name) };
        let help = if field.name == "runtime" {
            runtime_help(text)
        } else {
            match suggest::nearest(text, words.all.iter().copied()) {
                Some(word) if words.all.len() > 9 => format!("did you mean `{word}`?"),
                Some(word) => format!("did you mean `{word}`? the words are {}", one_of(words.all)),
                None => format!("write {}", one_of(words.all)),
            }
        };
        self.report.say(E0205, node.span, path, message, help);
    }

    fn boolean(&mut self, node: &Node<'_>, field: &'static Field, path: &Path<'_>) {
        match (lenient_bool(node), node.plain()) {
            (Some(_), Some(Plain::Bool(_))) => {}
            (Some(value), _) => {
                let message = format!("{} is a text in YAML 1.2: read as {value}", quoted(node.text().unwrap_or_default()));
                self.report.say(E0208, node.span, path, message, format!("write `{value}`"));
            }
            (None, _) => self.wrong(node, field, "true or false", Some("write `true` or `false`".to_owned()), path),
        }
    }

    fn int(&mut self, node: &Node<'_>, (low, high): (u32, u32), field: &'static Field, path: &Path<'_>) {
        let range = format!("write a whole number from {low} to {high}");
        let number = match (node.plain(), node.int()) {
            (_, Some(number)) => number,
            (Some(Plain::Int), None) => i64::MAX,
            (Some(Plain::Text), None) => match node.text().and_then(|text| text.parse::<i64>().ok()) {
                Some(number) => {
                    let message = "a text where a number stands: read as the number";
                    self.report.say(E0208, node.span, path, message, "remove the quotes".to_owned());
                    number
                }
                None => return self.wrong(node, field, "a whole number", Some(range), path),
            },
            (Some(Plain::Null | Plain::Bool(_) | Plain::Float) | None, None) => {
                return self.wrong(node, field, "a whole number", Some(range), path);
            }
        };
        if !(i64::from(low)..=i64::from(high)).contains(&number) {
            let message = format!("`{}` goes from {low} to {high}", field.name);
            self.report.say(E0206, node.span, path, message, range);
        }
    }

    fn list(&mut self, node: &Node<'_>, item: Item, field: &'static Field, path: &Path<'_>) {
        let Some(items) = node.items() else {
            let help = match (&node.kind, field.name) {
                (Kind::Map(_), "envVars") => "write each variable as `- key: NAME` and `value: …`",
                _ => "write each entry on a line of its own, after `- `",
            };
            self.wrong(node, field, "a list", Some(help.to_owned()), path);
            return;
        };
        for (index, entry) in items.iter().enumerate() {
            let path = path.item(index);
            if entry.is_null() {
                let message = "an entry with nothing in it: it counts as not written";
                self.report.say(E0222, entry.span, &path, message, "remove the `-`".to_owned());
                continue;
            }
            match item {
                Item::Object(table) => self.object(entry, table, &path),
                Item::Choice(choice) => self.choice(entry, choice, &path),
                Item::Text => match entry.text() {
                    Some(text) => {
                        if entry.plain() != Some(Plain::Text) {
                            self.as_text(entry, &path);
                        }
                        self.format(entry, text, field, &path);
                    }
                    None if matches!(entry.kind, Kind::Broken) => {}
                    None => {
                        let message = format!("`{}` lists texts, this is {}", field.name, entry.shape());
                        self.report.say(E0204, entry.span, &path, message, None);
                    }
                },
            }
        }
    }

    fn text_map(&mut self, node: &Node<'_>, field: &'static Field, path: &Path<'_>) {
        let Some(entries) = node.entries() else {
            self.wrong(node, field, "a mapping", Some("write `NAME: path` below it, indented".to_owned()), path);
            return;
        };
        for entry in entries {
            let path = path.key(&entry.key);
            if entry.value.text().is_none() || entry.value.is_null() {
                let message = format!("{} is a text, this is {}", quoted(&entry.key), entry.value.shape());
                self.report.say(E0204, entry.value.span, &path, message, None);
            }
        }
    }
}

/// Whether a reader that turns the number into a double and back prints the same text.
fn prints_alike(text: &str) -> bool {
    if text.bytes().filter(u8::is_ascii_digit).count() > 15 {
        return false;
    }
    match text.strip_prefix('-').unwrap_or(text).split_once('.') {
        None => text.parse::<i64>().is_ok_and(|number| number.to_string() == text),
        Some(_) => text.parse::<f64>().is_ok_and(|number| number.to_string() == text),
    }
}

fn property_help(text: &str, words: &'static Words) -> String {
    let all = format!("the properties are {}", one_of(words.all));
    let lower = text.to_ascii_lowercase();
    let of_service = words.all.contains(&"hostport");
    if of_service && matches!(lower.as_str(), "url" | "uri" | "externalurl" | "address") {
        return format!("{all}; the public address is `envVarKey: RENDER_EXTERNAL_URL`");
    }
    if of_service && lower.contains("hostname") {
        return format!("{all}; the public host is `envVarKey: RENDER_EXTERNAL_HOSTNAME`");
    }
    match suggest::nearest(text, words.all.iter().copied()) {
        Some(word) => format!("did you mean `{word}`? {all}"),
        None => all,
    }
}

/// What to write for a runtime that does not exist.
fn runtime_help(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let languages = [
        ("python", "python", "PYTHON_VERSION"),
        ("nodejs", "node", "NODE_VERSION"),
        ("node", "node", "NODE_VERSION"),
        ("ruby", "ruby", "RUBY_VERSION"),
        ("golang", "go", ""),
        ("go", "go", ""),
        ("rust", "rust", "RUSTUP_TOOLCHAIN"),
        ("elixir", "elixir", "ELIXIR_VERSION"),
    ];
    for (prefix, word, variable) in languages {
        let Some(rest) = lower.strip_prefix(prefix) else { continue };
        let version = rest.trim_start_matches(['-', ':', '@', ' ', '=', '_', 'v']);
        if !version.starts_with(|c: char| c.is_ascii_digit()) {
            if rest.is_empty() || matches!(rest, "js" | "lang") {
                return format!("write `runtime: {word}`");
            }
            continue;
        }
        if variable.is_empty() {
            return format!("write `runtime: {word}`");
        }
        return format!("write `runtime: {word}` and set the variable `{variable}` to {} under `envVars`", quoted(version));
    }
    match lower.as_str() {
        "php" | "java" | "dotnet" | "csharp" | ".net" | "scala" | "kotlin" | "deno" | "swift" | "perl" => {
            "no such native runtime: write a Dockerfile and `runtime: docker`".to_owned()
        }
        "bun" | "javascript" | "typescript" | "js" | "npm" => "write `runtime: node`".to_owned(),
        "dockerfile" | "container" => "write `runtime: docker`".to_owned(),
        "html" | "site" => "write `runtime: static`".to_owned(),
        _ => match suggest::nearest(text, RUNTIME.all.iter().copied()) {
            Some(word) => format!("did you mean `{word}`? the runtimes are {}", one_of(RUNTIME.all)),
            None => format!("write {}", one_of(RUNTIME.all)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_others_print_differently_are_told_apart() {
        for text in ["3", "10000", "0.5", "3.11", "-1"] {
            assert!(prints_alike(text), "{text}");
        }
        for text in ["3.10", "1e3", "0x1F", "007", "1234567890123456", "3.", "+1", ".5"] {
            assert!(!prints_alike(text), "{text}");
        }
    }
}
