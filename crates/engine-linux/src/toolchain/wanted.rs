//! Which version of a language a service asks for: by the variable that the blueprint sets, else by a file of its source.
//!
//! Invariant: no link of the source is followed out of it, and nothing of the source is run.

use moat_model::NativeRuntime;
use std::fs;
use std::path::{Component, Path};

/// A longer file says no version.
const LONGEST: u64 = 1 << 20;

/// A version asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// A version, a part of one, or a range.
    pub version: String,
    /// The file below the source that says so; none for the blueprint's variable. What a file says is a wish: people write
    /// down the version of their own machine.
    pub file: Option<String>,
}

/// What is asked for, `variable` being the value of `PYTHON_VERSION` and the like. Files in `root_dir` come before those of
/// the source's root.
pub fn wanted(runtime: NativeRuntime, variable: Option<&str>, source: &Path, root_dir: &Path) -> Option<Wanted> {
    if let Some(version) = variable {
        return Some(Wanted { version: version.to_owned(), file: None });
    }
    let mut folders = vec![root_dir];
    if root_dir.components().next().is_some() {
        folders.push(Path::new(""));
    }
    folders.into_iter().find_map(|folder| {
        files(runtime).iter().find_map(|&(name, read)| {
            let path = folder.join(name);
            let version = read(&text(source, &path)?)?;
            Some(Wanted { version, file: Some(path.display().to_string()) })
        })
    })
}

/// A file's way of saying a version.
type Reader = fn(&str) -> Option<String>;

fn files(runtime: NativeRuntime) -> &'static [(&'static str, Reader)] {
    match runtime {
        NativeRuntime::Python => &[(".python-version", first_line)],
        NativeRuntime::Node => &[(".node-version", first_line), (".nvmrc", first_line), ("package.json", engines)],
        NativeRuntime::Ruby => &[(".ruby-version", ruby)],
        NativeRuntime::Rust => &[("rust-toolchain.toml", channel), ("rust-toolchain", channel)],
        NativeRuntime::Go => &[("go.mod", go_mod)],
        NativeRuntime::Elixir => &[(".elixir-version", first_line)],
    }
}

/// A small regular file's text; every part of the way to it is a folder, not a link.
pub(crate) fn text(source: &Path, path: &Path) -> Option<String> {
    let mut here = source.to_owned();
    for part in path.components() {
        match part {
            Component::Normal(name) => here.push(name),
            Component::CurDir => continue,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
        if fs::symlink_metadata(&here).ok()?.is_symlink() {
            return None;
        }
    }
    let about = fs::symlink_metadata(&here).ok()?;
    if !about.is_file() || about.len() > LONGEST {
        return None;
    }
    fs::read_to_string(&here).ok()
}

/// The first line that says something.
fn first_line(text: &str) -> Option<String> {
    let line = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).find(|line| !line.is_empty())?;
    Some(line.to_owned())
}

/// `ruby-3.3.1` and `3.3.1` alike.
fn ruby(text: &str) -> Option<String> {
    first_line(text).map(|line| line.strip_prefix("ruby-").unwrap_or(&line).to_owned())
}

/// `engines.node` of a `package.json`.
fn engines(text: &str) -> Option<String> {
    let package: serde_json::Value = serde_json::from_str(text).ok()?;
    let range = package.get("engines")?.get("node")?.as_str()?.trim();
    (!range.is_empty()).then(|| range.to_owned())
}

/// The `toolchain` line of a `go.mod`, else its `go` line: the least version that it can be built with. Every later one builds it too,
/// so it is a range.
///
/// Source: The Go Blog, *Forward compatibility and toolchain management in Go 1.21*; go.dev/ref/mod.
fn go_mod(text: &str) -> Option<String> {
    let line = |word: &str| {
        text.lines().find_map(|line| {
            let mut words = line.split("//").next().unwrap_or_default().split_whitespace();
            (words.next() == Some(word)).then(|| words.next().map(str::to_owned)).flatten()
        })
    };
    let version = line("toolchain").filter(|name| name != "default").or_else(|| line("go"))?;
    // `go1.22.1`, `1.22rc1`: a release comes after its candidates.
    let version = version.strip_prefix("go").unwrap_or(&version);
    let numbers = version.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
    (!numbers.is_empty()).then(|| format!(">={numbers}"))
}

/// The channel of a `rust-toolchain` file, in either of its forms.
fn channel(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("channel")?.trim_start().strip_prefix('='));
    let word = match line {
        Some(value) => value.split('#').next().unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned(),
        None => first_line(text).filter(|line| !line.contains(['[', '=']))?,
    };
    (!word.is_empty()).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use NativeRuntime::{Go, Node, Python, Ruby, Rust};

    #[test]
    fn versions_are_asked_for_by_variables_and_by_files() {
        for (runtime, variable, files, root_dir, expect) in [
            (Python, Some("3.12"), &[(".python-version", "3.11\n")][..], "", Some(("3.12", None))),
            (Python, None, &[(".python-version", "\n# ours\n3.11.4 # yes\n")], "", Some(("3.11.4", Some(".python-version")))),
            (Python, None, &[], "", None),
            (Node, None, &[(".nvmrc", "lts/iron")], "", Some(("lts/iron", Some(".nvmrc")))),
            (Node, None, &[("package.json", r#"{"engines": {"node": ">=18 <21"}}"#)], "", Some((">=18 <21", Some("package.json")))),
            (Node, None, &[("package.json", r#"{"engines": {"npm": "9"}}"#)], "", None),
            (Node, None, &[("package.json", "{")], "", None),
            (Node, None, &[(".nvmrc", "20"), ("web/.node-version", "22")], "web", Some(("22", Some("web/.node-version")))),
            (Node, None, &[(".nvmrc", "20"), ("web/x", "")], "web", Some(("20", Some(".nvmrc")))),
            (Ruby, None, &[(".ruby-version", "ruby-3.3.1")], "", Some(("3.3.1", Some(".ruby-version")))),
            (Rust, None, &[("rust-toolchain.toml", "[toolchain]\nchannel = \"1.80\"\n")], "", Some(("1.80", Some("rust-toolchain.toml")))),
            (Rust, None, &[("rust-toolchain", "nightly\n")], "", Some(("nightly", Some("rust-toolchain")))),
            (Rust, None, &[("rust-toolchain.toml", "[toolchain]\nprofile = \"minimal\"\n")], "", None),
            (Go, None, &[("go.mod", "module x\n\ngo 1.22\n")], "", Some((">=1.22", Some("go.mod")))),
            (Go, None, &[("go.mod", "module x\ngo 1.21.0 // least\n\ntoolchain go1.22.3\n")], "", Some((">=1.22.3", Some("go.mod")))),
            (Go, None, &[("go.mod", "module x\ngo 1.23rc1\ntoolchain default\n")], "", Some((">=1.23", Some("go.mod")))),
            (Go, None, &[("go.mod", "module x\nrequire go.example/y v1.0.0\n")], "", None),
        ] {
            let folder = tempfile::tempdir().unwrap();
            for (name, content) in files {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            let found = wanted(runtime, variable, folder.path(), Path::new(root_dir));
            let found = found.as_ref().map(|wanted| (wanted.version.as_str(), wanted.file.as_deref()));
            assert_eq!(found, expect, "{runtime:?} {files:?}");
        }
    }

    #[test]
    fn a_link_says_nothing() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join(".python-version"), "3.9").unwrap();
        std::os::unix::fs::symlink(other.path().join(".python-version"), folder.path().join(".python-version")).unwrap();
        std::os::unix::fs::symlink(other.path(), folder.path().join("web")).unwrap();
        for root_dir in ["", "web", ".."] {
            assert_eq!(wanted(Python, None, folder.path(), Path::new(root_dir)), None, "{root_dir}");
        }
    }
}
