//! What must be known of a Dockerfile before it is built: which images it builds on, and which variables it asks for.
//!
//! Buildah reads the file itself; this only looks for names. Invariant: what can't be told from the text is not guessed:
//! [`Scan::complete`] says that nothing was.
//!
//! Source: the Dockerfile reference (`ARG`, `FROM`, `COPY --from`, `RUN --mount`, parser directives, here-documents).

use moat_model::Secret;
use std::collections::{BTreeMap, BTreeSet};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scan {
    /// Images that are built on or copied from, as written, variables replaced, each once.
    pub images: Vec<String>,
    /// Names of all build arguments.
    pub args: BTreeSet<String>,
    /// Every image is among `images`.
    pub complete: bool,
}

/// Looks through a Dockerfile; `values` are the build arguments that it would be given, `arch` is
/// `std::env::consts::ARCH`.
pub fn scan(text: &str, values: &BTreeMap<String, Secret>, arch: &str) -> Scan {
    let mut scan = Scan { complete: true, ..Scan::default() };
    let mut global: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut stages: Vec<String> = Vec::new();
    let mut begun = 0_usize;
    for line in instructions(text) {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
        match word.to_ascii_uppercase().as_str() {
            "ARG" => {
                for part in words(rest) {
                    let (name, default) = part.split_once('=').map_or((part.as_str(), None), |(name, value)| (name, Some(value)));
                    if begun == 0 {
                        let given = values.get(name).map(|value| value.expose().to_owned());
                        let value = given.or_else(|| default.and_then(|default| expand(default, &global)));
                        global.insert(name.to_owned(), value);
                    }
                    scan.args.insert(name.to_owned());
                }
            }
            "FROM" => {
                begun += 1;
                let parts = words(rest);
                let platform = parts.iter().find_map(|part| part.strip_prefix("--platform="));
                let mut parts = parts.iter().filter(|part| !part.starts_with("--"));
                let written = parts.next().cloned().unwrap_or_default();
                let named = parts.next().is_some_and(|word| word.eq_ignore_ascii_case("as"));
                let foreign = platform.is_some_and(|platform| !is_own(platform, arch));
                match expand(&written, &global).filter(|_| !foreign) {
                    Some(image) => scan.image(image, &stages),
                    None => scan.complete = false,
                }
                stages.push(parts.next().filter(|_| named).map(|name| name.to_lowercase()).unwrap_or_default());
            }
            "COPY" | "ADD" | "RUN" => {
                for option in words(rest).iter().take_while(|part| part.starts_with("--")) {
                    let from = option.strip_prefix("--from=").or_else(|| {
                        option.strip_prefix("--mount=").and_then(|mount| mount.split(',').find_map(|part| part.strip_prefix("from=")))
                    });
                    let Some(from) = from else { continue };
                    if from.contains('$') {
                        scan.complete = false;
                    } else if from.parse::<usize>().is_err() {
                        // Not a stage by its number.
                        scan.image(from.to_owned(), &stages);
                    }
                }
            }
            _ => {}
        }
    }
    scan
}

impl Scan {
    fn image(&mut self, image: String, stages: &[String]) {
        let stage = image.to_lowercase();
        if image.is_empty() {
            self.complete = false;
        } else if stage != "scratch" && !stages.contains(&stage) && !self.images.contains(&image) {
            self.images.push(image);
        }
    }
}

/// Whether a platform is this machine's, by whatever way it is said.
fn is_own(platform: &str, arch: &str) -> bool {
    let name = match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let platform = platform.trim_matches('"');
    platform == format!("linux/{name}")
        || matches!(platform, "$BUILDPLATFORM" | "${BUILDPLATFORM}" | "$TARGETPLATFORM" | "${TARGETPLATFORM}")
}

/// The instructions, each in one line: comments, continuations and here-documents are taken out.
fn instructions(text: &str) -> Vec<String> {
    let mut escape = '\\';
    for line in text.lines().map_while(|line| line.trim().strip_prefix('#')) {
        let Some((key, value)) = line.split_once('=') else { break };
        if key.trim().eq_ignore_ascii_case("escape") && value.trim() == "`" {
            escape = '`';
        }
    }
    let mut done = Vec::new();
    let mut current = String::new();
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(part) = line.strip_suffix(escape) {
            current.push_str(part);
            continue;
        }
        current.push_str(line);
        for end in here_documents(&current) {
            // To its end, or to that of the file.
            let _ = lines.by_ref().find(|line| line.trim_start_matches('\t') == end);
        }
        done.push(std::mem::take(&mut current));
    }
    if !current.is_empty() {
        done.push(current);
    }
    done
}

/// The words that end the here-documents which an instruction begins.
fn here_documents(instruction: &str) -> Vec<String> {
    let takes = ["RUN", "COPY", "ADD"].iter().any(|word| instruction.get(..word.len()).is_some_and(|it| it.eq_ignore_ascii_case(word)));
    let mut ends = Vec::new();
    for part in instruction.split("<<").skip(1).filter(|_| takes) {
        let part = part.strip_prefix('-').unwrap_or(part);
        let quoted = part.trim_start_matches(['"', '\'']);
        let end: String = quoted.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        // `<<<` is a shell's here-string, `1 << 2` a number.
        if end.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            ends.push(end);
        }
    }
    ends
}

/// Words apart by blanks, quotes taken off.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in text.chars() {
        match (c, quote) {
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(q)) if c == q => quote = None,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// A text with its variables replaced; `None` where one is not known here.
fn expand(text: &str, values: &BTreeMap<String, Option<String>>) -> Option<String> {
    let known = |name: &str| values.get(name).map(|value| value.as_deref().unwrap_or_default());
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(inner) = after.strip_prefix('{') {
            let (inner, after) = inner.split_once('}')?;
            rest = after;
            let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
            let (name, operator) = inner.split_at(end);
            let value = known(name);
            let filled = value.filter(|value| !value.is_empty());
            match operator {
                "" => out.push_str(value?),
                _ => match (operator.get(..2)?, operator.get(2..)?) {
                    // What is inside has no variables of its own: a `}` would have ended it too early.
                    (_, inside) if inside.contains('$') => return None,
                    (":-", otherwise) => out.push_str(filled.unwrap_or(otherwise)),
                    (":+", instead) => out.push_str(if filled.is_some() { instead } else { "" }),
                    _ => return None,
                },
            }
        } else {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            rest = after;
            out.push_str(known(name)?);
        }
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_arguments() {
        let values = BTreeMap::from([("VERSION".to_owned(), Secret::new("3.12"))]);
        // (text, images, arguments, complete)
        for (text, images, args, complete) in [
            ("FROM scratch\nCOPY . /", "", "", true),
            ("FROM node:20", "node:20", "", true),
            ("# a comment\nfrom Node:20 AS x\nFROM X", "Node:20", "", true),
            ("ARG VERSION=3.11\nFROM python:$VERSION-slim\nARG TOKEN\nARG A=1 B=2", "python:3.12-slim", "A B TOKEN VERSION", true),
            ("ARG BASE=debian\nARG TAG=12\nARG ALL=$BASE:${TAG}\nFROM ${ALL}", "debian:12", "ALL BASE TAG", true),
            ("FROM ${NONE:-alpine:3}", "alpine:3", "", true),
            ("FROM $NONE", "", "", false),
            ("ARG NONE\nFROM $NONE", "", "NONE", false),
            (
                "FROM golang:1 AS build\nFROM scratch\nCOPY --from=build /a /a\nCOPY --from=0 /b /b\nCOPY --chown=1 --from=busybox /c /c",
                "golang:1 busybox",
                "",
                true,
            ),
            ("FROM a\nRUN --mount=type=cache,target=/x --mount=type=bind,from=b,target=/b make", "a b", "", true),
            ("FROM a\nCOPY --from=$X / /", "a", "", false),
            ("FROM --platform=linux/amd64 a", "a", "", true),
            ("FROM --platform=$BUILDPLATFORM a", "a", "", true),
            ("FROM --platform=linux/s390x a", "", "", false),
            ("FROM a\nRUN <<EOF\nFROM inside\nEOF\nFROM b", "a b", "", true),
            ("FROM a\nRUN x=$((1 << 2)) && \\\n# in between\n  FROM_inside \\\n  ARG\nFROM b", "a b", "", true),
            ("# escape=`\nFROM a `\n  AS x\nRUN c:\\\nFROM x", "a", "", true),
            ("\u{feff}FROM \"a\"", "a", "", true),
            ("FROM", "", "", false),
        ] {
            let found = scan(text, &values, "x86_64");
            let args: BTreeSet<String> = args.split_whitespace().map(str::to_owned).collect();
            let images: Vec<String> = images.split_whitespace().map(str::to_owned).collect();
            assert_eq!(found, Scan { images, args, complete }, "{text}");
        }
    }
}
