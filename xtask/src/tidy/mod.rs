//! `cargo xtask tidy`: what neither the compiler nor clippy holds. Each check is one file and returns all it found.

mod codes;
mod direction;
mod files;
mod invariants;
mod manifests;

use crate::run::{Failure, Outcome, Program, root};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A check's name and what it found: one line for each problem, naming the place.
type Report = (&'static str, Vec<String>);

/// Runs every check and prints all problems.
pub fn run(arguments: &[String]) -> Outcome {
    crate::no_arguments(arguments)?;
    let metadata = metadata()?;
    let tracked = Tracked::read()?;
    let reports: [Report; 5] = [
        ("dependency direction", direction::problems(&metadata)),
        ("manifests", manifests::problems(&metadata)),
        ("files", files::problems(&tracked)),
        ("diagnostic codes", codes::problems(&tracked)),
        ("invariants", invariants::problems(&tracked)),
    ];
    let mut count = 0;
    for (name, problems) in &reports {
        for problem in problems {
            eprintln!("{name}: {problem}");
        }
        count += problems.len();
    }
    if count > 0 {
        return Err(Failure::new(format!("tidy: {count} problems")));
    }
    println!("tidy: {} checks passed over {} files", reports.len(), tracked.files.len());
    Ok(())
}

/// What `cargo metadata` says of the workspace's own packages.
pub fn metadata() -> Result<Value, Failure> {
    let text = Program::cargo().args(["metadata", "--format-version", "1", "--no-deps", "--locked"]).output()?;
    serde_json::from_str(&text).map_err(|error| Failure::new(format!("`cargo metadata` printed no JSON: {error}")))
}

/// The packages of `cargo metadata`.
fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

/// A package's name.
fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap_or_default()
}

/// The text files of the work tree that git tracks or would track.
struct Tracked {
    root: PathBuf,
    /// Path relative to the root, and text.
    files: Vec<(PathBuf, String)>,
}

impl Tracked {
    fn read() -> Result<Self, Failure> {
        let root = root();
        let listed = Program::new("git")
            .args(["-C", &root.to_string_lossy(), "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .map_err(|failure| failure.hint("tidy looks at what git tracks: run it in a clone"))?;
        let mut files = Vec::new();
        for path in listed.split_terminator('\0').map(PathBuf::from) {
            // Binary files, links to nowhere and files that were just deleted hold no text to look at.
            if let Ok(text) = std::fs::read_to_string(root.join(&path)) {
                files.push((path, text));
            }
        }
        Ok(Self { root, files })
    }
    /// Whether a path relative to the root is tracked, as a file or as a folder of files.
    fn has(&self, path: &Path) -> bool {
        path.as_os_str().is_empty() || self.files.iter().any(|(file, _)| file.starts_with(path))
    }
}
