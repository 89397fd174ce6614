//! Package managers that every build finds without installing them: Poetry, uv, Pipenv, Yarn, pnpm, Bun.
//!
//! A tool is a release of its own, `STATE/releases/+NAME`, shown read-only to all that are built with it. It is installed by
//! an ordinary build sandbox that sees nothing of the service it is first needed by: no variable, no file, no cache. Which
//! tools a service needs is read from its commands, the scripts these run, and its `package.json`.
//!
//! Invariant: what one service's build does can't change a tool that another one is shown.

use crate::toolchain::wanted::text;
use moat_model::Secret;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// How the name of a tool's release begins, as no service's slug does.
const MARK: char = '+';
/// Where tools are inside.
pub const TOOLS: &str = "/opt/render/tools";
/// The folder of a tool that is on `PATH`.
pub const SHIMS: &str = "shims";
/// How deep scripts that run scripts are followed.
const DEPTH: usize = 3;

/// Whether a release is a tool's.
pub fn is_tool(release: &str) -> bool {
    release.starts_with(MARK)
}

/// The name of a tool's release that is made of this.
pub fn release_name(need: &Need, digest: &str) -> String {
    format!("{MARK}{}-{digest}", need.tool.word())
}

/// Where a tool is inside.
pub fn place(release: &str) -> PathBuf {
    Path::new(TOOLS).join(release)
}

/// A tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// Poetry.
    Poetry,
    /// uv.
    Uv,
    /// Pipenv.
    Pipenv,
    /// Yarn, classic or later.
    Yarn,
    /// pnpm.
    Pnpm,
    /// Bun.
    Bun,
}

const ALL: [Tool; 6] = [Tool::Poetry, Tool::Uv, Tool::Pipenv, Tool::Yarn, Tool::Pnpm, Tool::Bun];

impl Tool {
    /// Its command.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Poetry => "poetry",
            Self::Uv => "uv",
            Self::Pipenv => "pipenv",
            Self::Yarn => "yarn",
            Self::Pnpm => "pnpm",
            Self::Bun => "bun",
        }
    }

    /// Its other command, if it has one.
    const fn runner(self) -> Option<&'static str> {
        match self {
            Self::Uv => Some("uvx"),
            Self::Pnpm => Some("pnpx"),
            Self::Bun => Some("bunx"),
            Self::Yarn => Some("yarnpkg"),
            Self::Poetry | Self::Pipenv => None,
        }
    }

    /// The variable that names its version.
    const fn variable(self) -> Option<&'static str> {
        match self {
            Self::Poetry => Some("POETRY_VERSION"),
            Self::Uv => Some("UV_VERSION"),
            Self::Bun => Some("BUN_VERSION"),
            Self::Pipenv | Self::Yarn | Self::Pnpm => None,
        }
    }

    /// Whether it comes from PyPI; else it comes from npm.
    const fn of_python(self) -> bool {
        matches!(self, Self::Poetry | Self::Uv | Self::Pipenv)
    }
}

/// A tool that a service needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// Which.
    pub tool: Tool,
    /// The exact version asked for, or the major one that goes with the lock file.
    pub version: Option<String>,
}

impl Need {
    /// What it is called in messages.
    pub fn words(&self) -> String {
        match &self.version {
            Some(version) => format!("{} {version}", self.tool.word()),
            None => self.tool.word().to_owned(),
        }
    }

    /// What its package manager is asked for.
    fn package(&self) -> String {
        match (self.tool, self.version.as_deref()) {
            (Tool::Poetry, None) => "poetry<3".to_owned(),
            (Tool::Uv, None) => "uv<1".to_owned(),
            (Tool::Pipenv, _) => "pipenv".to_owned(),
            (Tool::Poetry | Tool::Uv, Some(version)) => format!("{}=={version}", self.tool.word()),
            (Tool::Yarn, Some(version)) if !version.starts_with("1.") => format!("@yarnpkg/cli-dist@{version}"),
            (Tool::Yarn, version) => format!("yarn@{}", version.unwrap_or("1")),
            (Tool::Pnpm, version) => format!("pnpm@{}", version.unwrap_or("10")),
            (Tool::Bun, version) => format!("bun@{}", version.unwrap_or("1")),
        }
    }

    /// The command that installs it into its place, whatever a killed one has left there.
    pub fn install(&self, release: &str) -> String {
        let place = place(release);
        let (place, package, tool) = (place.display(), self.package(), self.tool.word());
        let clean = format!("echo 'installing {tool} ({package})'\nfind {place} -mindepth 1 -delete\n");
        if self.tool.of_python() {
            let names: Vec<&str> = std::iter::once(tool).chain(self.tool.runner()).collect();
            let names = names.join(" ");
            return format!(
                "{clean}{}\n\
                 {place}/bin/python -m pip install --quiet --no-input --no-cache-dir --disable-pip-version-check '{package}'\n\
                 mkdir {place}/{SHIMS}\n\
                 for name in {names}; do test ! -e {place}/bin/$name || ln -s ../bin/$name {place}/{SHIMS}/$name; done\n\
                 test -x {place}/{SHIMS}/{tool}",
                crate::venv::make(&place.to_string())
            );
        }
        format!(
            "{clean}npm install --global --prefix {place} --no-audit --no-fund --no-update-notifier --loglevel error '{package}'\n\
             ln -s bin {place}/{SHIMS}\ntest -x {place}/{SHIMS}/{tool}"
        )
    }
}

/// What a service's commands are, and where.
pub struct Asked<'a> {
    /// Build, pre-deploy, start command and hook.
    pub commands: Vec<&'a str>,
    /// Variables of the build.
    pub env: &'a BTreeMap<String, Secret>,
    /// The source.
    pub source: &'a Path,
    /// The working folder below it.
    pub root_dir: &'a Path,
}

/// The tools that a service uses and does not bring itself for good, each once.
pub fn needed(asked: &Asked<'_>) -> Vec<Need> {
    let package = package_json(asked);
    let mut words = Words::default();
    let mut texts: Vec<(String, usize)> = asked.commands.iter().map(|text| ((*text).to_owned(), 0)).collect();
    let mut read = BTreeSet::new();
    while let Some((text, depth)) = texts.pop() {
        words.take(&text);
        if depth == DEPTH {
            continue;
        }
        for path in scripts(&text) {
            if let Some(path) = below(asked.root_dir, &path)
                && read.insert(path.clone())
                && let Some(text) = self::text(asked.source, &path)
            {
                texts.push((text, depth + 1));
            }
        }
    }
    if words.used.iter().any(|word| matches!(word.as_str(), "npm" | "npx" | "yarn" | "pnpm" | "bun" | "node")) {
        package.scripts.iter().for_each(|text| words.take(text));
    }
    ALL.into_iter()
        .filter(|tool| {
            let named = |list: &BTreeSet<String>| std::iter::once(tool.word()).chain(tool.runner()).any(|name| list.contains(name));
            // `pip install uv && uv sync` takes uv away again: it is in no lock file.
            named(&words.used) && (*tool == Tool::Uv || !named(&words.brought))
        })
        .map(|tool| {
            let variable = tool.variable().and_then(|key| asked.env.get(key)).map(|value| value.expose().trim().to_owned());
            let version =
                variable.filter(|version| plain(version)).or_else(|| package.version_of(tool)).or_else(|| lock_version(asked, tool));
            Need { tool, version }
        })
        .collect()
}

/// A version that is safe as a word of a command.
fn plain(version: &str) -> bool {
    version.len() < 40
        && version.starts_with(|c: char| c.is_ascii_digit())
        && version.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte))
}

/// Joins without leaving the source.
fn below(root_dir: &Path, path: &Path) -> Option<PathBuf> {
    let mut joined = root_dir.to_owned();
    for part in path.components() {
        match part {
            Component::Normal(name) => joined.push(name),
            Component::CurDir => {}
            Component::ParentDir if joined.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(joined)
}

/// Whether a word is a shell's script, or a program in a folder. A list of packages that is passed to an installer is not.
fn looks_like_one(word: &str) -> bool {
    match Path::new(word).extension().and_then(|extension| extension.to_str()) {
        Some(extension) => matches!(extension, "sh" | "bash"),
        None => word.contains('/'),
    }
}

/// What could be a script of the source, and the Makefile where `make` is used.
fn scripts(text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for segment in segments(text) {
        let words: Vec<&str> = unquoted(segment);
        for (index, word) in words.iter().enumerate() {
            let after_shell = index > 0 && matches!(words[index - 1], "sh" | "bash" | "source" | ".");
            if after_shell || looks_like_one(word) {
                found.push(PathBuf::from(word));
            }
            if *word == "make" {
                found.push("Makefile".into());
            }
        }
    }
    found
}

/// Parts of a text that are each one command.
fn segments(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(|line| line.split(['&', ';', '|', '(', ')', '`', '{', '}']))
}

fn unquoted(segment: &str) -> Vec<&str> {
    segment.split_whitespace().map(|word| word.trim_matches(['"', '\'', '@'])).filter(|word| !word.is_empty()).collect()
}

/// Words of commands: those that are used, and those that are arguments of an installer.
#[derive(Default)]
struct Words {
    used: BTreeSet<String>,
    brought: BTreeSet<String>,
}

impl Words {
    fn take(&mut self, text: &str) {
        for segment in segments(text) {
            let words = unquoted(segment);
            let installer = words.iter().position(|word| matches!(*word, "pip" | "pip3" | "pipx" | "npm"));
            let installs = installer.is_some_and(|at| words[at..].iter().any(|word| matches!(*word, "install" | "i" | "add")));
            for word in words {
                let name = word.rsplit('/').next().unwrap_or(word);
                if installs {
                    // `poetry==1.8.3`, `pnpm@9`, `uv>=0.5`.
                    let end = name.find(['=', '@', '<', '>', '~', '[']).unwrap_or(name.len());
                    self.brought.insert(name[..end].to_owned());
                }
                self.used.insert(name.to_owned());
            }
        }
    }
}

/// What a `package.json` says.
#[derive(Default)]
struct Package {
    manager: Option<String>,
    scripts: Vec<String>,
}

impl Package {
    /// `pnpm@9.1.0+sha512.…` is pnpm 9.1.0.
    fn version_of(&self, tool: Tool) -> Option<String> {
        let version = self.manager.as_deref()?.strip_prefix(tool.word())?.strip_prefix('@')?;
        let version = version.split('+').next().unwrap_or_default();
        plain(version).then(|| version.to_owned())
    }
}

/// `package.json` of the working folder, with the package manager of the root's where it names none.
fn package_json(asked: &Asked<'_>) -> Package {
    let read = |folder: &Path| -> Option<Package> {
        let value: serde_json::Value = serde_json::from_str(&text(asked.source, &folder.join("package.json"))?).ok()?;
        let manager = value.get("packageManager").and_then(|manager| manager.as_str()).map(str::to_owned);
        let scripts = value.get("scripts").and_then(|scripts| scripts.as_object());
        let scripts = scripts.into_iter().flat_map(|map| map.values()).filter_map(|text| text.as_str().map(str::to_owned)).collect();
        Some(Package { manager, scripts })
    };
    let mut package = read(asked.root_dir).unwrap_or_default();
    if package.manager.is_none() {
        package.manager = read(Path::new("")).and_then(|root| root.manager);
    }
    package
}

/// The major version that wrote a lock file, where a later one would refuse it.
fn lock_version(asked: &Asked<'_>, tool: Tool) -> Option<String> {
    if tool != Tool::Pnpm {
        return None;
    }
    let lock = [asked.root_dir, Path::new("")].into_iter().find_map(|folder| text(asked.source, &folder.join("pnpm-lock.yaml")))?;
    let line = lock.lines().find_map(|line| line.strip_prefix("lockfileVersion:"))?;
    match line.trim().trim_matches(['"', '\'']).split('.').next()? {
        "5" => Some("7".to_owned()),
        "6" => Some("8".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn found(commands: &[&str], env: &[(&str, &str)], files: &[(&str, &str)], root_dir: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), Secret::new(*value))).collect();
        let asked = Asked { commands: commands.to_vec(), env: &env, source: folder.path(), root_dir: Path::new(root_dir) };
        needed(&asked).iter().map(Need::package).collect()
    }

    #[test]
    fn tools_are_those_that_are_used_and_not_brought() {
        type Files = &'static [(&'static str, &'static str)];
        let lock6: Files = &[("pnpm-lock.yaml", "lockfileVersion: '6.0'\n")];
        let script: Files = &[("build.sh", "#!/bin/sh\n# pnpm\nset -e\npoetry install\n")];
        let nested: Files = &[("web/bin/build", ". ./bin/more\n"), ("web/bin/more", "uv sync --frozen\n")];
        let managed: Files = &[("package.json", r#"{"packageManager": "pnpm@9.1.0+sha512.abc", "scripts": {"build": "x"}}"#)];
        let berry: Files =
            &[("package.json", r#"{"packageManager": "yarn@4.5.0"}"#), ("web/package.json", r#"{"scripts": {"b": "yarn t"}}"#)];
        let makefile: Files = &[("Makefile", "build:\n\t@pipenv sync\n")];
        for (commands, env, files, root_dir, expect) in [
            (&["pip install -r requirements.txt", "gunicorn app"][..], &[][..], &[][..], "", &[][..]),
            (&["poetry install", "poetry run x"], &[], &[], "", &["poetry<3"]),
            (&["poetry install"], &[("POETRY_VERSION", "1.8.3")], &[], "", &["poetry==1.8.3"]),
            (&["poetry install"], &[("POETRY_VERSION", "1; reboot")], &[], "", &["poetry<3"]),
            (&["pip install poetry==1.8 && poetry install"], &[], &[], "", &[]),
            (&["pip install 'uv>=0.5'\nuv sync"], &[], &[], "", &["uv<1"]),
            (&["npm install -g pnpm@8 && pnpm i"], &[], &[], "", &[]),
            (&["corepack enable && pnpm i"], &[], &[], "", &["pnpm@10"]),
            (&["pnpm i"], &[], lock6, "", &["pnpm@8"]),
            (&["pnpm i"], &[], managed, "", &["pnpm@9.1.0"]),
            (&["uv sync", "uv run app.py"], &[("UV_VERSION", "0.5.1")], &[], "", &["uv==0.5.1"]),
            (&["./build.sh"], &[], script, "", &["poetry<3"]),
            (&["bash build.sh"], &[], script, "", &["poetry<3"]),
            (&["bin/build"], &[], nested, "web", &["uv<1"]),
            (&["pip install -r lists/all.txt"], &[], &[("lists/all.txt", "pipenv\n")], "", &[]),
            (&["make build"], &[], makefile, "", &["pipenv"]),
            (&["yarn && yarn build"], &[], &[], "", &["yarn@1"]),
            (&["npm run b"], &[], berry, "web", &["@yarnpkg/cli-dist@4.5.0"]),
            (&["npm ci", "node yarn.lock"], &[], &[], "", &[]),
            (&["../../etc/passwd"], &[], &[], "web", &[]),
        ] {
            assert_eq!(found(commands, env, files, root_dir), expect, "{commands:?}");
        }
    }
}
