//! What holds for tracked files: a bearable length, links that lead somewhere, no path of one person's machine.

use super::Tracked;
use std::path::{Component, Path, PathBuf};

/// Longer Rust files are to be split by concern.
const MOST_LINES: usize = 700;

/// Files that are too long, links that lead nowhere or out of the repository, paths of this machine.
pub fn problems(tracked: &Tracked) -> Vec<String> {
    let mut problems = Vec::new();
    let local = local_paths(&tracked.root);
    for (path, text) in &tracked.files {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let lines = text.lines().count();
        if extension == "rs" && lines > MOST_LINES {
            problems.push(format!("{}: {lines} lines, more than {MOST_LINES}: split it by concern", path.display()));
        }
        for (number, line) in text.lines().enumerate() {
            let place = || format!("{}:{}", path.display(), number + 1);
            if let Some(found) = local.iter().find(|local| line.contains(local.as_str())) {
                problems.push(format!("{}: `{found}` is a path of this machine", place()));
            }
            if extension == "md" {
                let broken = links(line).filter(|link| !leads_somewhere(tracked, path, link));
                problems.extend(broken.map(|link| format!("{}: the link `{link}` leads nowhere", place())));
            }
        }
    }
    problems
}

/// Paths that mean something on this machine only: the clone's own folder, its parent and the home folder, if they are
/// long enough not to be everybody's (`/root`, `/src`, `/work/x` of a container image are not).
fn local_paths(root: &Path) -> Vec<String> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let places = [Some(root.to_path_buf()), root.parent().map(Path::to_path_buf), home];
    let long_enough = |place: &PathBuf| place.components().count() > 2;
    places.into_iter().flatten().filter(long_enough).map(|place| format!("{}/", place.display())).collect()
}

/// Targets of the links of one line of Markdown: `[text](target)`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

fn leads_somewhere(tracked: &Tracked, from: &Path, link: &str) -> bool {
    let target = link.split(['#', ' ']).next().unwrap_or_default();
    if link.contains("://") || link.starts_with("mailto:") || target.is_empty() {
        return true;
    }
    within(from.parent().unwrap_or(Path::new("")), target).is_some_and(|path| tracked.has(&path))
}

/// A relative path as seen from a folder of the repository; none when it leaves the repository or is absolute.
fn within(folder: &Path, target: &str) -> Option<PathBuf> {
    let mut path = folder.to_path_buf();
    for component in Path::new(target).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracked(files: &[(&str, &str)]) -> Tracked {
        let files = files.iter().map(|&(path, text)| (PathBuf::from(path), text.to_owned())).collect();
        Tracked { root: PathBuf::from("/srv/build/clone"), files }
    }

    #[test]
    fn a_link_leads_to_a_tracked_file_or_folder() {
        for (link, fine) in [
            ("b.md", true),
            ("./b.md#part", true),
            ("#part", true),
            ("https://example.org/x", true),
            ("../LICENSE", true),
            ("design", true),
            ("gone.md", false),
            ("../../outside.md", false),
            ("/docs/b.md", false),
        ] {
            let text = format!("see [it]({link}) there");
            let files = tracked(&[("docs/a.md", &text), ("docs/b.md", ""), ("docs/design/0001.md", ""), ("LICENSE", "")]);
            assert_eq!(problems(&files).is_empty(), fine, "{link}: {:?}", problems(&files));
        }
    }

    #[test]
    fn a_long_file_and_a_local_path_are_named_with_their_place() {
        let long = "x\n".repeat(MOST_LINES + 1);
        let found = problems(&tracked(&[("a.rs", &long), ("b.py", &long), ("c.sh", "\ncd /srv/build/clone/docs\n")]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("a.rs: 701 lines"), "{found:?}");
        assert!(found[1].starts_with("c.sh:2: "), "{found:?}");
    }
}
