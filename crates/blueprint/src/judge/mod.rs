//! Tree against tables: everything about names, shapes, words and formats. What fields say together is for the rules.

pub(crate) mod choose;
pub(crate) mod suggest;
mod value;

use crate::codes::{E0201, E0202, E0203, E0204, E0207, E0208, E0209, E0210, E0211, E0212, E0213, E0219, E0221, E0222, E0223, E0228};
use crate::report::{Path, Report, quoted};
use crate::tables::{Choice, ChooseBy, FROM_GROUP, FROM_VALUE, Fate, Field, KEYVALUE, Object, Shape};
use crate::yaml::{Entry, Kind, Node, Plain};
use choose::Problem;

/// Judges a whole tree by the table of its root.
pub(crate) fn judge(root: &Node<'_>, table: &'static Object, report: &mut Report) {
    Judge { report }.object(root, table, &Path::Root);
}

/// True or false, also as the words that YAML 1.1 took for them, and in quotes.
pub(crate) fn lenient_bool(node: &Node<'_>) -> Option<bool> {
    match node.plain()? {
        Plain::Bool(value) => Some(value),
        Plain::Text => match node.text()?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Some(true),
            "false" | "no" | "off" => Some(false),
            _ => None,
        },
        Plain::Null | Plain::Int | Plain::Float => None,
    }
}

struct Judge<'r> {
    report: &'r mut Report,
}

impl Judge<'_> {
    fn object(&mut self, node: &Node<'_>, table: &'static Object, path: &Path<'_>) {
        let entries = match &node.kind {
            Kind::Map(entries) => entries,
            Kind::Broken => return,
            Kind::Scalar(..) | Kind::List(_) => {
                self.no_mapping(node, table, path);
                return;
            }
        };
        for entry in entries {
            let path = path.key(&entry.key);
            match table.field(&entry.key) {
                Some(field) => self.field(entry, field, &path),
                None if table.open => {}
                None => self.unknown(entry, table, &path),
            }
        }
        for field in table.fields() {
            self.spellings(node, field, path);
            if field.required {
                self.required(node, field, table, path);
            }
        }
    }

    fn no_mapping(&mut self, node: &Node<'_>, table: &'static Object, path: &Path<'_>) {
        let names: Vec<String> = table.fields().filter(|f| f.required).map(|f| format!("`{}: …`", f.name)).collect();
        let help = if table.name == "serviceReference" {
            "write `name: …`, `type: …` and `property: …` below it, indented".to_owned()
        } else if names.is_empty() {
            "write its fields below it, indented".to_owned()
        } else {
            format!("write {} below it, indented", names.join(", "))
        };
        let message = format!("{} is a mapping, this is {}", table.phrase, node.shape());
        self.report.say(E0204, node.span, path, message, help);
    }

    /// A field that the table has.
    fn field(&mut self, entry: &Entry<'_>, field: &'static Field, path: &Path<'_>) {
        if entry.key != field.name {
            self.report.say(
                E0207,
                entry.key_span,
                path,
                format!("`{}` is the old name of `{}`", entry.key, field.name),
                format!("write `{}`", field.name),
            );
        }
        if entry.value.is_null() {
            if !field.required && !matches!(field.shape, Shape::Command | Shape::Type(_)) {
                // A variable with a key alone is asked for.
                let (what, help) = if matches!(field.shape, Shape::Value) && field.name == "value" {
                    ("the value is asked for, as with `sync: false`", "write `\"\"` for an empty value")
                } else {
                    ("it counts as not written", "remove it, or write a value")
                };
                let message = format!("nothing is written after `{}`: {what}", entry.key);
                self.report.say(E0222, entry.key_span, path, message, help.to_owned());
            }
            return;
        }
        let span = entry.key_span;
        let name = &entry.key;
        match field.fate {
            Fate::Honoured => {}
            Fate::OneMachine(why) => {
                self.report.say(E0210, span, path, format!("`{name}` has no effect here: {why}"), None);
            }
            Fate::NoEffect(why) => {
                self.report.say(E0211, span, path, format!("`{name}` has no effect here: {why}"), "remove it".to_owned());
            }
            Fate::Refused(why) => {
                self.report.say(E0209, span, path, format!("`{name}` is not supported yet: {why}"), None);
            }
            Fate::Deprecated(instead, also) => {
                let help = format!("write `{instead}`");
                let effect = if also.is_empty() { String::new() } else { format!(", and has no effect here: {also}") };
                self.report.say(E0207, span, path, format!("`{name}` is deprecated{effect}"), help);
            }
        }
        self.value(&entry.value, field, path);
    }

    /// One field written under two of its names.
    fn spellings(&mut self, node: &Node<'_>, field: &'static Field, path: &Path<'_>) {
        if field.aliases.is_empty() {
            return;
        }
        let Some(first) = node.entry(field.name) else { return };
        for alias in field.aliases {
            let Some(second) = node.entry(alias) else { continue };
            self.report.say(
                E0212,
                second.key_span,
                &path.key(alias),
                format!("`{alias}` and `{}` are the same field; the other is at line {}", field.name, first.key_span.line),
                format!("remove `{alias}`"),
            );
        }
    }

    fn required(&mut self, node: &Node<'_>, field: &'static Field, table: &'static Object, path: &Path<'_>) {
        let names = std::iter::once(field.name).chain(field.aliases.iter().copied());
        let written = names.into_iter().find_map(|name| node.entry(name));
        if written.is_some_and(|entry| !entry.value.is_null()) || matches!(field.shape, Shape::Type(_)) {
            return;
        }
        let span = written.map_or_else(|| head(node), |entry| entry.key_span);
        if table.name == KEYVALUE.name && field.name == "ipAllowList" {
            self.report.say(
                E0208,
                span,
                path,
                "`ipAllowList` is missing: read as `[]`, nobody connects from outside",
                "write `ipAllowList: []`".to_owned(),
            );
            return;
        }
        // A build source brings the runtime.
        if field.name == "runtime" && node.entry("buildSource").is_some() {
            return;
        }
        let what = match field.shape.words().map(|words| words.all) {
            Some([only]) => format!("`{}: {only}`", field.name),
            Some(all) if all.len() <= 9 => format!("`{}` (one of {})", field.name, all.join(", ")),
            Some(_) | None => format!("`{}: …`", field.name),
        };
        let message = format!("{} needs `{}`", table.phrase, field.name);
        self.report.say(E0203, span, path, message, format!("write {what}"));
    }

    fn unknown(&mut self, entry: &Entry<'_>, table: &'static Object, path: &Path<'_>) {
        let key = entry.key.as_ref();
        let span = entry.key_span;
        if self.report.is_full() {
            // Only counted: no need for good words.
            self.report.say(E0201, span, path, "", None);
            return;
        }
        if key.starts_with("x-") && key != "x-moat" {
            let message = format!("{} is an extension that Moat does not read", quoted(key));
            self.report.say(E0223, span, path, message, None);
            return;
        }
        if table.name == FROM_VALUE.name && matches!(key, "fromDatabase" | "fromService" | "fromGroup") {
            self.report.say(
                E0219,
                span,
                path,
                format!("a variable of a group can't have `{key}`"),
                "write it under `envVars` of each service; a group holds `value` and `generateValue`".to_owned(),
            );
            return;
        }
        let message = format!("{} has no field {}", table.phrase, quoted(key));
        if let Some(hint) = suggest::hint(table, key) {
            self.report.say(E0201, span, path, message, hint.to_owned());
            return;
        }
        if let Some(owner) = suggest::owner(key, table) {
            self.report.say(E0202, span, path, message, format!("`{key}` is a field of {owner}: move or remove it"));
            return;
        }
        let names = || table.fields().map(|field| field.name);
        let help = match suggest::nearest(key, names()) {
            Some(name) => format!("did you mean `{name}`?"),
            None if names().count() <= 9 => format!("its fields are {}", names().collect::<Vec<_>>().join(", ")),
            None => "remove it".to_owned(),
        };
        self.report.say(E0201, span, path, message, help);
    }

    fn choice(&mut self, node: &Node<'_>, choice: &'static Choice, path: &Path<'_>) {
        if node.entries().is_none() {
            if let Some(table) = choice.objects.first() {
                self.no_mapping(node, table, path);
            }
            return;
        }
        match choice.by {
            ChooseBy::Service => self.service(node, path),
            ChooseBy::EnvVar => self.env_var(node, path),
        }
    }

    fn service(&mut self, node: &Node<'_>, path: &Path<'_>) {
        let chosen = choose::service(node);
        let below = path.key("type");
        match chosen.problem {
            None => {}
            Some(Problem::Missing(help)) => {
                self.report.say(E0203, head(node), path, "a service needs `type`", help);
            }
            Some(Problem::Unknown(span, message, help)) => self.report.say(E0221, span, &below, message, help),
            Some(Problem::Spelling(span, word)) => {
                self.report.say(E0208, span, &below, format!("read as `{word}`"), format!("write `{word}`"));
            }
            Some(Problem::Deprecated(span, word)) => {
                let help = format!("write `type: {word}`");
                self.report.say(E0207, span, &below, format!("this is the old word for `{word}`"), help);
            }
        }
        self.object(node, chosen.table, path);
    }

    fn env_var(&mut self, node: &Node<'_>, path: &Path<'_>) {
        let table = choose::env_var(node);
        // A key and one source is what most have.
        let several = node.entries().is_some_and(|entries| entries.len() > 2 || table.open);
        let sources = if several { choose::sources(node) } else { Vec::new() };
        if let [first, .., last] = sources.as_slice() {
            let references = sources.iter().any(|(key, ..)| key.starts_with("from"));
            let names: Vec<String> = sources.iter().map(|(key, ..)| format!("`{key}`")).collect();
            let names = names.join(" and ");
            if references {
                let help = "keep one of them".to_owned();
                self.report.say(E0213, last.1, path, format!("a variable has one source, this has {names}"), help);
            } else {
                self.report.say(
                    E0228,
                    last.1,
                    path,
                    format!("a variable has one source, this has {names}: `{}` counts", first.0),
                    "keep one of them".to_owned(),
                );
            }
        }
        if table.name == FROM_GROUP.name
            && let Some(entry) = node.entry("key")
        {
            self.report.say(
                E0213,
                entry.key_span,
                &path.key("key"),
                "a group brings all its variables under their own names",
                "remove `key`".to_owned(),
            );
            // The rest of the entry is fine; `key` was named just now.
            for entry in node.entries().unwrap_or_default() {
                let path = path.key(&entry.key);
                match table.field(&entry.key) {
                    Some(field) => self.field(entry, field, &path),
                    None if entry.key == "key" => {}
                    None => self.unknown(entry, table, &path),
                }
            }
            return;
        }
        self.object(node, table, path);
    }
}

/// Where something is said about a mapping as a whole: at its `name`, else at its first key.
pub(crate) fn head(node: &Node<'_>) -> moat_model::Span {
    let named = node.entry("name").or_else(|| node.entry("key")).filter(|entry| !entry.value.is_null());
    match (named, node.entries().and_then(<[_]>::first)) {
        (Some(entry), _) if entry.value.text().is_some() => entry.value.span,
        (_, Some(first)) => first.key_span,
        (_, None) => node.span,
    }
}
