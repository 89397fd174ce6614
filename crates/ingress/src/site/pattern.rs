//! Patterns of request paths, and the texts that what they matched is put into.
//!
//! Both are turned into regular expressions of a linear-time engine, so that no request can make matching slow.

use super::path::spelled;
use regex_lite::Regex;

/// A pattern that can't be used: it is too long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the path pattern `{0}` is too long")]
pub struct TooLong(String);

/// What a part of a pattern stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part<'t> {
    Literal(&'t str),
    /// `*`.
    Wild,
    /// `:name`.
    Name(&'t str),
}

/// Takes a text apart. In a pattern a name is what begins a segment (`/:slug`); in a template it stands anywhere.
fn parts(text: &str, anywhere: bool) -> Vec<Part<'_>> {
    let (mut parts, mut literal, mut at) = (Vec::new(), 0, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let length = match bytes[at] {
            b'*' => 1,
            b':' if anywhere || at == 0 || bytes[at - 1] == b'/' => match bytes.get(at + 1) {
                Some(first) if first.is_ascii_alphabetic() || *first == b'_' => {
                    1 + bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count()
                }
                Some(_) | None => 0,
            },
            _ => 0,
        };
        if length == 0 {
            at += 1;
            continue;
        }
        if literal < at {
            parts.push(Part::Literal(&text[literal..at]));
        }
        parts.push(if bytes[at] == b'*' { Part::Wild } else { Part::Name(&text[at + 1..at + length]) });
        at += length;
        literal = at;
    }
    if literal < text.len() {
        parts.push(Part::Literal(&text[literal..]));
    }
    parts
}

fn compile(pattern: &str, expression: &str) -> Result<Regex, TooLong> {
    Regex::new(&format!("(?s)^{expression}$")).map_err(|_| TooLong(pattern.chars().take(80).collect()))
}

/// The source of a redirect or rewrite: `*` matches anything, `:name` one segment.
#[derive(Debug, Clone)]
pub struct Pattern {
    expression: Regex,
    /// The name of each group; none for `*`.
    groups: Vec<Option<String>>,
}

/// What a pattern matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched<'t> {
    /// By name; none for `*`.
    values: Vec<(Option<String>, &'t str)>,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When it is too long.
    pub fn new(pattern: &str) -> Result<Self, TooLong> {
        let (mut expression, mut groups) = (String::new(), Vec::new());
        for part in parts(pattern, false) {
            match part {
                Part::Literal(literal) => expression.push_str(&regex_lite::escape(&spelled(literal))),
                Part::Wild => {
                    expression.push_str("(.*)");
                    groups.push(None);
                }
                Part::Name(name) => {
                    expression.push_str("([^/]+?)");
                    groups.push(Some(name.to_owned()));
                }
            }
        }
        Ok(Self { expression: compile(pattern, &expression)?, groups })
    }

    /// What it matches of a path in its one spelling.
    pub fn matches<'t>(&self, path: &'t str) -> Option<Matched<'t>> {
        let found = self.expression.captures(path)?;
        let value = |index: usize| found.get(index + 1).map_or("", |group| group.as_str());
        Some(Matched { values: self.groups.iter().enumerate().map(|(index, name)| (name.clone(), value(index))).collect() })
    }
}

/// Puts what was matched into a destination: the first `*` of one into the first of the other, and so on; `:splat` is the
/// first. What the pattern has not stays as it is written.
pub fn fill(template: &str, matched: &Matched<'_>) -> String {
    let mut wild = matched.values.iter().filter(|(name, _)| name.is_none()).map(|(_, value)| *value);
    let first = wild.clone().next();
    let mut out = String::with_capacity(template.len());
    for part in parts(template, true) {
        match part {
            Part::Literal(literal) => out.push_str(literal),
            Part::Wild => out.push_str(wild.next().or(first).unwrap_or("*")),
            Part::Name(name) => match matched.values.iter().find(|(known, _)| known.as_deref() == Some(name)) {
                Some((_, value)) => out.push_str(value),
                None if name == "splat" && first.is_some() => out.push_str(first.unwrap_or_default()),
                None => {
                    out.push(':');
                    out.push_str(name);
                }
            },
        }
    }
    // `/old/*` to `/*` must not make `/old//host` a URL of another host.
    if template.starts_with('/') && out.starts_with("//") {
        out.replace_range(..out.len() - out.trim_start_matches('/').len(), "/");
    }
    out
}

/// The path of a header rule. `*` alone at the end matches everything below, elsewhere within one segment; `**` stands for
/// one or more whole segments: `/*.css` is the top level only, `/**/*.css` what lies deeper.
pub fn header_pattern(pattern: &str) -> Result<Regex, TooLong> {
    let segments: Vec<&str> = pattern.strip_prefix('/').unwrap_or(pattern).split('/').collect();
    let mut expression = String::new();
    for (index, segment) in segments.iter().enumerate() {
        expression.push('/');
        let last = index + 1 == segments.len();
        match *segment {
            "*" | "**" if last => expression.push_str(".*"),
            "**" => expression.push_str("[^/]+(?:/[^/]+)*"),
            segment => {
                let literals: Vec<String> = segment.split('*').map(|literal| regex_lite::escape(&spelled(literal))).collect();
                expression.push_str(&literals.join("[^/]*"));
            }
        }
    }
    compile(pattern, &expression)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source, a destination, a path, and where it leads; none when the source does not match.
    #[test]
    fn sources_and_destinations() {
        for (source, destination, path, want) in [
            ("/*", "/index.html", "/", Some("/index.html")),
            ("/*", "/index.html", "/a/b", Some("/index.html")),
            ("/old", "/new", "/old", Some("/new")),
            ("/old", "/new", "/old/", None),
            ("/old", "/new", "/older", None),
            ("/old", "/new", "/x/old", None),
            ("/old", "/new", "/Old", None),
            ("/blog/*", "/news/*", "/blog/2024/a.html", Some("/news/2024/a.html")),
            ("/blog/*", "/news/*", "/blog/", Some("/news/")),
            ("/blog/*", "/news/*", "/blog", None),
            ("/blog/*", "/news", "/blog/a", Some("/news")),
            ("/a/*", "/b/:splat", "/a/c/d", Some("/b/c/d")),
            ("/a/*", "https://b.example/:splat?from=*", "/a/c", Some("https://b.example/c?from=c")),
            ("/a/*/c/*", "/*/x/*", "/a/1/c/2/3", Some("/1/x/2/3")),
            ("/p/:id", "/item/:id.html", "/p/7", Some("/item/7.html")),
            ("/p/:id", "/item/:id.html", "/p/7/8", None),
            ("/p/:id", "/item/:id.html", "/p/", None),
            ("/:year/:month/:day", "/blog-:year-:month-:day.html", "/2024/05/06", Some("/blog-2024-05-06.html")),
            ("/p/:id.html", "/item/:id", "/p/7.html", Some("/item/7")),
            ("/p/:id/*", "/q/*/:id", "/p/7/x/y", Some("/q/x/y/7")),
            ("/Talk:Main", "/talk", "/Talk:Main", Some("/talk")),
            ("/a", "/b/:nobody/*", "/a", Some("/b/:nobody/*")),
            ("/a", "http://b.localhost:8080/c", "/a", Some("http://b.localhost:8080/c")),
            ("/café", "/b", "/caf%C3%A9", Some("/b")),
            ("/caf%c3%a9", "/b", "/caf%C3%A9", Some("/b")),
            ("/a.b", "/c", "/aXb", None),
            ("/(x)+[y]", "/c", "/(x)+%5By%5D", Some("/c")),
            ("/old/*", "/*", "/old//evil.example", Some("/evil.example")),
            ("/old/*", "/*", "/old///evil.example", Some("/evil.example")),
        ] {
            let pattern = Pattern::new(source).unwrap();
            let got = pattern.matches(path).map(|matched| fill(destination, &matched));
            assert_eq!(got.as_deref(), want, "{source} {destination} {path}");
        }
    }

    #[test]
    fn paths_of_headers() {
        for (pattern, yes, no) in [
            ("/*", &["/", "/a", "/a/b.css"][..], &[][..]),
            ("/blog/*", &["/blog/", "/blog/a", "/blog/a/b"], &["/blog", "/blogs/a", "/"]),
            ("/**/*", &["/a/b", "/a/", "/a/b/c"], &["/", "/a"]),
            ("/*.css", &["/a.css", "/.css"], &["/a/b.css", "/a.css.map"]),
            ("/**/*.css", &["/a/b.css", "/a/b/c.css"], &["/a.css"]),
            ("/assets/*.js", &["/assets/a.js"], &["/assets/a/b.js", "/assets/a.mjs"]),
            ("/a/*/c", &["/a/b/c"], &["/a/b/b/c", "/a/c"]),
            ("/**", &["/", "/a/b"], &[]),
            ("/index.html", &["/index.html"], &["/indexxhtml", "/index.html/", "/"]),
            ("/a b/*", &["/a%20b/c"], &["/a/b"]),
        ] {
            let expression = header_pattern(pattern).unwrap();
            for path in yes {
                assert!(expression.is_match(path), "{pattern} {path}");
            }
            for path in no {
                assert!(!expression.is_match(path), "{pattern} {path}");
            }
        }
    }

    #[test]
    fn a_pattern_that_is_too_long_is_refused() {
        assert!(Pattern::new(&"/*".repeat(1 << 20)).is_err());
    }
}
