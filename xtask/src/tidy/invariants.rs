//! The invariants of ARCHITECTURE.md: each test that the table names is a test that exists.

use super::Tracked;
use std::path::Path;

const PAGE: &str = "ARCHITECTURE.md";
const HEADING: &str = "## Invariants";

/// Rows of the invariants' table whose test is nowhere.
pub fn problems(tracked: &Tracked) -> Vec<String> {
    let Some((_, page)) = tracked.files.iter().find(|(path, _)| path == Path::new(PAGE)) else {
        return vec![format!("{PAGE} is missing")];
    };
    let Some((_, section)) = page.split_once(HEADING) else {
        return vec![format!("{PAGE} has no part `{HEADING}`")];
    };
    let section = section.split("\n## ").next().unwrap_or_default();
    let is_a_test = |name: &str| {
        let head = format!("fn {name}(");
        let rust = |path: &Path| path.extension().is_some_and(|extension| extension == "rs");
        tracked.files.iter().any(|(path, text)| rust(path) && text.contains(&head))
    };
    test_names(section).filter(|name| !is_a_test(name)).map(|name| format!("{PAGE}: there is no test `{name}`")).collect()
}

/// Names of tests in the last column of each row.
fn test_names(section: &str) -> impl Iterator<Item = &str> {
    let rows = section.lines().filter(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.trim_end().strip_suffix('|')?.rsplit('|').next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_test_that_is_gone_is_named() {
        let page = "# A\n## Invariants\n| x | held by |\n|---|---|\n| a `b` without a test | |\n| `a` holds | `here_it_is`, `it_is_gone` |\n## B\n| | `not_looked_at` |\n";
        let files = [(PAGE, page), ("crates/a/src/lib.rs", "#[test]\nfn here_it_is() {}")];
        let files = files.map(|(path, text)| (PathBuf::from(path), text.to_owned())).to_vec();
        let found = problems(&Tracked { root: PathBuf::from("/"), files });
        assert_eq!(found, ["ARCHITECTURE.md: there is no test `it_is_gone`"]);
    }
}
