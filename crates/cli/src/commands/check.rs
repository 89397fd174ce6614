//! `moat check`, and reading a blueprint for the other verbs.

use crate::args::CheckArgs;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui};
use moat_blueprint::{Blueprint, Read};
use moat_daemon::protocol::UpRequest;
use moat_engine_linux::toolchain::instead;
use moat_engine_linux::toolchain::wanted::wanted;
use moat_model::{DesiredState, Diagnostic, NativeRuntime, Severity};
use moat_planner::languages::Asked;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A blueprint file, read and judged.
pub struct Checked {
    /// As given.
    pub shown: String,
    /// Absolute.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// Git remotes of its folder.
    pub remotes: Vec<String>,
    /// What it says.
    pub blueprint: Blueprint,
    /// All that is to be said, by place.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads and judges one file.
pub fn load(file: &Path) -> Result<Checked, CommandError> {
    let mut checked = read(file)?;
    checked.judge();
    Ok(checked)
}

/// Makes the heap ready, in a command that reads this file and ends.
pub fn make_room(file: &Path) {
    // What can't be read is said by who reads it.
    if let Ok(about) = std::fs::metadata(blueprint_of(file)) {
        moat_engine_linux::heap::expect_text(usize::try_from(about.len()).unwrap_or_default());
    }
}

/// The file that is meant, where a folder is given.
fn blueprint_of(file: &Path) -> Cow<'_, Path> {
    if file.is_dir() { Cow::Owned(file.join("render.yaml")) } else { Cow::Borrowed(file) }
}

/// Reads one file; [`Checked::judge`] says the rest.
pub fn read(file: &Path) -> Result<Checked, CommandError> {
    let file = &*blueprint_of(file);
    let bytes = std::fs::read(file).map_err(|error| CommandError::unreadable(file, &error))?;
    let path = std::fs::canonicalize(file).map_err(|error| CommandError::unreadable(file, &error))?;
    let remotes = remotes(path.parent().unwrap_or(Path::new("/")));
    Ok(parse(file.display().to_string(), path, &bytes, remotes))
}

/// Reads and judges a text.
pub fn judge(shown: String, path: PathBuf, bytes: &[u8], remotes: Vec<String>) -> Checked {
    let mut checked = parse(shown, path, bytes, remotes);
    checked.judge();
    checked
}

fn parse(shown: String, path: PathBuf, bytes: &[u8], remotes: Vec<String>) -> Checked {
    let Read { blueprint, diagnostics } = match std::str::from_utf8(bytes) {
        Ok(text) => moat_blueprint::read_beside(text, &remotes),
        Err(_) => moat_blueprint::read_bytes(bytes),
    };
    Checked { remotes, shown, path, text: String::from_utf8_lossy(bytes).into_owned(), blueprint, diagnostics }
}

impl Checked {
    /// Adds what the file says as a whole.
    pub fn judge(&mut self) {
        self.add(moat_planner::check::check(&self.blueprint));
    }

    /// Adds what this machine has to do with it: languages that it does not have.
    pub fn look_around(&mut self) {
        self.add(self.surroundings());
    }

    /// What [`Self::judge`] and [`Self::look_around`] add.
    pub fn judged(&self) -> Vec<Diagnostic> {
        let mut found = moat_planner::check::check(&self.blueprint);
        found.extend(self.surroundings());
        found
    }

    /// Adds diagnostics, each at its place.
    pub fn add(&mut self, found: Vec<Diagnostic>) {
        self.diagnostics.extend(found);
        self.diagnostics.sort_by_key(|d| (d.span.start, d.severity));
    }

    /// What this machine has to do with it.
    pub fn surroundings(&self) -> Vec<Diagnostic> {
        let mut known: BTreeMap<(NativeRuntime, Option<String>), Option<String>> = BTreeMap::new();
        let source = self.path.parent().unwrap_or(Path::new("/"));
        moat_planner::languages::notices(&self.blueprint, &mut |Asked { runtime, version: variable, root_dir }| {
            let version = match root_dir {
                Some(root_dir) => wanted(runtime, variable, source, root_dir).map(|wanted| wanted.version),
                None => variable.map(str::to_owned),
            };
            known.entry((runtime, version)).or_insert_with_key(|(runtime, version)| instead(*runtime, version.as_deref())).clone()
        })
    }
}

/// What a git command in a folder prints; `None` where it fails, or there is no git or no repository.
pub fn git(folder: &Path, args: &[&str]) -> Option<String> {
    let in_a_repository = std::env::var_os("GIT_DIR").is_some() || folder.ancestors().any(|at| at.join(".git").exists());
    if !in_a_repository {
        return None;
    }
    let out = std::process::Command::new("git").arg("-C").arg(folder).args(args).stderr(std::process::Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// URLs of the git remotes of a folder.
pub fn remotes(folder: &Path) -> Vec<String> {
    let text = git(folder, &["remote", "-v"]).unwrap_or_default();
    let mut urls: Vec<String> = text.lines().filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned)).collect();
    urls.dedup();
    urls
}

impl Checked {
    /// Whether one of these severities was said.
    pub fn has(&self, severities: &[Severity]) -> bool {
        self.diagnostics.iter().any(|d| severities.contains(&d.severity))
    }

    /// Prints diagnostics of these severities to stderr.
    pub fn say(&self, ui: &Ui, severities: &[Severity]) {
        for d in self.diagnostics.iter().filter(|d| severities.contains(&d.severity)) {
            ui.say(&moat_blueprint::render(d, &self.shown, &self.text, ui.color_err()));
        }
    }
}

/// Says everything about each file.
pub fn run(args: &CheckArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    if let Some(code) = &args.explain {
        let code = code.to_uppercase();
        let page = moat_blueprint::explain_code(&code)
            .or_else(|| moat_planner::explain_code(&code))
            .ok_or_else(|| CommandError::usage(format!("no diagnostic has the code `{code}`")))?;
        ui.raw(page);
        return Ok(ExitCode::SUCCESS);
    }
    let (mut wrong, mut json) = (false, Vec::new());
    for file in &args.files {
        make_room(file);
        let mut checked = load(file)?;
        checked.look_around();
        wrong |= checked.has(&[Severity::Error]);
        if ui.json() {
            json.push(
                serde_json::json!({ "file": checked.shown, "valid": !checked.has(&[Severity::Error]), "diagnostics": checked.diagnostics }),
            );
        } else {
            for d in &checked.diagnostics {
                ui.line(&moat_blueprint::render(d, &checked.shown, &checked.text, ui.color_out()));
            }
            ui.line(&summary(ui, &checked));
        }
    }
    if ui.json() {
        ui.print_json(&json)?;
    }
    Ok(if wrong { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

fn summary(ui: &Ui, checked: &Checked) -> String {
    let count = |severity| checked.diagnostics.iter().filter(|d| d.severity == severity).count();
    let mut parts = Vec::new();
    for (severity, word, tone) in [
        (Severity::Error, "error", Tone::Bad),
        (Severity::Unsupported, "not supported here", Tone::Warn),
        (Severity::Warning, "warning", Tone::Warn),
        (Severity::Notice, "notice", Tone::Dim),
    ] {
        let n = count(severity);
        if n > 0 {
            let plural = if n > 1 && severity != Severity::Unsupported { "s" } else { "" };
            parts.push(ui.paint(tone, &format!("{n} {word}{plural}")));
        }
    }
    let b = &checked.blueprint;
    let what = format!("{} services, {} databases, {} groups", b.services.len(), b.databases.len(), b.env_groups.len());
    if parts.is_empty() {
        format!("{}: {} ({what})", checked.shown, ui.paint(Tone::Good, "fine"))
    } else {
        format!("{}: {} ({what})", checked.shown, parts.join(", "))
    }
}

/// The state that a blueprint would lead to on its own; values that are asked for are left blank.
pub fn state_of_file(file: &Path) -> Result<DesiredState, CommandError> {
    let checked = load(file)?;
    if checked.has(&[Severity::Error]) {
        return Err(
            CommandError::usage(format!("`{}` has errors", checked.shown)).hint(format!("see them with `moat check {}`", checked.shown))
        );
    }
    let up = UpRequest { remotes: checked.remotes, ..UpRequest::new(checked.path, checked.text) };
    let mut memory = moat_planner::memory::Memory::default();
    Ok(moat_daemon::blueprints::resolve(&[(&up, &checked.blueprint)], &mut memory, moat_daemon::blueprints::Doors::of(&up)).state)
}
