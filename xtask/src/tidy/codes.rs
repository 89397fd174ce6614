//! Diagnostic codes: each that a crate can print has a page in `docs/errors`, each page's code is printed somewhere.

use super::Tracked;
use std::collections::BTreeSet;
use std::path::Path;

const PAGES: &str = "docs/errors";

/// Codes without a page, pages without a code, pages that don't name theirs in the title.
pub fn problems(tracked: &Tracked) -> Vec<String> {
    let mut used = BTreeSet::new();
    let mut paged = BTreeSet::new();
    let mut problems = Vec::new();
    for (path, text) in &tracked.files {
        if is_product_code(path) {
            used.extend(codes(text).map(str::to_owned));
        }
        let code = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if path.parent() == Some(Path::new(PAGES)) && is_code(code) {
            paged.insert(code.to_owned());
            if !text.starts_with(&format!("# {code}: ")) {
                problems.push(format!("{}: the first line must be `# {code}: …`", path.display()));
            }
        }
    }
    problems.extend(used.difference(&paged).map(|code| format!("`{code}` has no page {PAGES}/{code}.md")));
    problems.extend(paged.difference(&used).map(|code| format!("{PAGES}/{code}.md: no crate says `{code}`")));
    problems
}

/// Rust source that ships: tests may name codes that do not exist.
fn is_product_code(path: &Path) -> bool {
    let in_tests = path.components().any(|part| part.as_os_str() == "tests");
    path.starts_with("crates") && !in_tests && path.extension().is_some_and(|extension| extension == "rs")
}

/// Codes that stand as words of their own, outside of comments and of the tests at the file's end.
fn codes(text: &str) -> impl Iterator<Item = &str> {
    let product = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = product.lines().filter(|line| !line.trim_start().starts_with("//"));
    let words = lines.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    words.filter(|word| is_code(word))
}

/// A capital letter of a severity (error, unsupported, warning, notice) and four digits.
fn is_code(text: &str) -> bool {
    let (letter, digits) = text.split_at_checked(1).unwrap_or_default();
    matches!(letter, "E" | "U" | "W" | "N") && digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn codes_and_pages_are_compared_both_ways() {
        let files = [
            (
                "crates/blueprint/src/lib.rs",
                "say(E0101); say(\"W0201\", E01, X0101, E0101_OLD);\n/// ```compile_fail,E0277\n#[cfg(test)]\nE9999",
            ),
            ("docs/errors/E0101.md", "# E0101: the text is not YAML\n"),
            ("docs/errors/N0901.md", "# N0901: a page for nothing\n"),
            ("docs/errors/README.md", "# Codes\n"),
        ];
        let files = files.map(|(path, text)| (PathBuf::from(path), text.to_owned())).to_vec();
        let found = problems(&Tracked { root: PathBuf::from("/"), files });
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("`W0201` has no page"), "{found:?}");
        assert!(found[1].contains("no crate says `N0901`"), "{found:?}");
    }
}
