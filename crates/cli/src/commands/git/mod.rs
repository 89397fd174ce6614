//! `moat git`: repositories of the state folder whose pushes are deployed.
//!
//! * [`init`] – makes one, with hooks that call this program.
//! * [`hook`] – what these do: refuse a blueprint that can't be run, deploy one that can.
//! * [`deploy`] – a commit as a request to the daemon, and watching it.
//!
//! git itself takes the push and keeps the commits. Invariant: a repository is only ever there with its settings and hooks.

mod deploy;
mod hook;
mod init;

use super::{ask_one, need_real_root, need_root, own_exe};
use crate::args::GitVerb;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui, cell};
use moat_daemon::protocol::{Cause, Event, Request, ServiceStatus};
use moat_daemon::{Paths, client};
use moat_model::Secret;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The file with the settings, in the repository's folder.
const SETTINGS: &str = "moat.json";
/// The place that they are sealed for: not the folder's name, which they get before it does.
const SEALED_FOR: &str = "git settings";
/// End of the name of a repository's folder.
const ENDING: &str = ".git";
/// End of the name of one that is being removed.
const REMOVED: &str = ".removed";

/// Runs one of the verbs.
pub async fn run(verb: GitVerb, ui: &Ui) -> Result<ExitCode, CommandError> {
    match verb {
        GitVerb::Init(args) => init::run(&args, ui),
        GitVerb::List => list(ui).await,
        GitVerb::Deploy { name, services, prune } => {
            need_root()?;
            let repository = Repository::named(&name)?;
            let commit = repository.head().ok_or_else(|| {
                CommandError::refused(format!("nothing was pushed to `{name}` yet"))
                    .hint(format!("`git push moat {}` in the work tree", repository.settings.branch))
            })?;
            deploy::run(&repository, &commit, Cause::Asked { services }, prune, ui).await
        }
        GitVerb::Remove { name } => remove(&Repository::named(&name)?, ui).await,
        GitVerb::Receive { folder } => Err(receive(&folder)),
        GitVerb::Hook { hook } => hook::run(hook, ui).await,
    }
}

/// How a repository's pushes are deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    /// The branch that is deployed.
    branch: String,
    /// The blueprint's path in the repository.
    file: String,
    /// Where the ingress listens.
    listen: String,
    start_timeout_seconds: u64,
    /// Values that the blueprint asks for.
    given: BTreeMap<String, Secret>,
    /// `NAME=value` for builds.
    pass_env: Vec<String>,
    /// URLs by which the blueprint may call this very repository.
    remotes: Vec<String>,
    /// `user/repository`, for `RENDER_GIT_REPO_SLUG`.
    repo_slug: String,
}

/// A repository that is pushed to.
#[derive(Debug)]
pub struct Repository {
    name: String,
    /// The bare repository, absolute.
    folder: PathBuf,
    settings: Settings,
}

impl Repository {
    /// The repository of this name, if there is one.
    pub fn find(paths: &Paths, name: &str) -> Option<Self> {
        if name.contains('/') {
            return None;
        }
        Self::open(&all(paths).join(format!("{name}{ENDING}"))).ok()
    }

    fn named(name: &str) -> Result<Self, CommandError> {
        let paths = Paths::from_env();
        Self::find(&paths, name).ok_or_else(|| {
            let known: Vec<String> = every(&paths).into_iter().map(|repository| repository.name).collect();
            let hint = if known.is_empty() { "`moat git init` makes one".to_owned() } else { format!("there are: {}", known.join(", ")) };
            CommandError::refused(format!("there is no repository `{name}`")).hint(hint)
        })
    }

    /// The repository in this folder.
    fn open(folder: &Path) -> io::Result<Self> {
        let folder = fs::canonicalize(folder)?;
        let written = fs::read(folder.join(SETTINGS))?;
        let settings = if written.starts_with(b"{") {
            // Of a version that wrote them in clear: sealed when they are written next.
            serde_json::from_slice(&written)?
        } else {
            let opened = moat_daemon::unseal(&Paths::from_env(), SEALED_FOR, &written).map_err(io::Error::other)?;
            serde_json::from_slice(&opened.ok_or_else(|| io::Error::other("its settings were sealed by another key"))?)?
        };
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { name: name.strip_suffix(ENDING).unwrap_or(&name).to_owned(), folder, settings })
    }

    /// Writes the settings, whole or not at all; they hold secrets and are sealed.
    fn save(folder: &Path, settings: &Settings) -> io::Result<()> {
        let aside = folder.join(format!("{SETTINGS}.new"));
        let sealed = moat_daemon::seal(&Paths::from_env(), SEALED_FOR, &serde_json::to_vec(settings)?).map_err(io::Error::other)?;
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&sealed)?;
        file.sync_all()?;
        fs::rename(aside, folder.join(SETTINGS))
    }

    /// By which its blueprint is known to the daemon, whatever its path in the repository.
    pub fn blueprint(&self) -> PathBuf {
        self.folder.join("render.yaml")
    }

    /// What git prints about this repository; the error is what it says.
    fn git(&self, args: &[&str]) -> Result<Vec<u8>, String> {
        let output = Command::new("git")
            .arg("--git-dir")
            .arg(&self.folder)
            .args(args)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() { Ok(output.stdout) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
    }

    fn text(&self, args: &[&str]) -> Option<String> {
        self.git(args).ok().map(|out| String::from_utf8_lossy(&out).trim().to_owned())
    }

    /// The commit that was pushed last to the branch that is deployed.
    fn head(&self) -> Option<String> {
        self.text(&["rev-parse", "--verify", "--quiet", &format!("refs/heads/{}^{{commit}}", self.settings.branch)])
    }
}

/// The folder of all repositories.
fn all(paths: &Paths) -> PathBuf {
    paths.state.join("git")
}

fn every(paths: &Paths) -> Vec<Repository> {
    let entries = fs::read_dir(all(paths)).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(ENDING))
        .filter_map(|entry| Repository::open(&entry.path()).ok())
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The first digits of a commit.
fn short(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}

/// The services of a repository's blueprint that run, or may: what a killed daemon left is looked at by a new one.
async fn services(repository: &Repository) -> Result<Vec<ServiceStatus>, CommandError> {
    let paths = Paths::from_env();
    if !client::is_running(&paths).await {
        if fs::read_dir(paths.run.join("instances")).into_iter().flatten().next().is_none() {
            return Ok(Vec::new());
        }
        client::ensure(&paths, &own_exe()?).await?;
    }
    let status = ask_one(Request::Status, |event| match event {
        Event::Status(status) => Some(status),
        _ => None,
    })
    .await?;
    Ok(status.services.into_iter().filter(|service| service.blueprint == repository.blueprint()).collect())
}

async fn list(ui: &Ui) -> Result<ExitCode, CommandError> {
    need_root()?;
    let (mut rows, mut json) = (Vec::new(), Vec::new());
    for repository in every(&Paths::from_env()) {
        let pushed = repository.head();
        let running: BTreeSet<String> = services(&repository).await?.into_iter().filter_map(|service| service.commit).collect();
        let current = pushed.as_ref().is_some_and(|pushed| running.contains(pushed));
        let runs = running.iter().map(|commit| short(commit)).collect::<Vec<_>>().join(", ");
        rows.push(vec![
            cell(Tone::Strong, &repository.name),
            cell(Tone::Plain, &repository.settings.branch),
            cell(Tone::Plain, pushed.as_deref().map_or("–", short)),
            cell(if current { Tone::Good } else { Tone::Warn }, if runs.is_empty() { "–" } else { &runs }),
            cell(Tone::Dim, repository.folder.display().to_string()),
        ]);
        json.push(serde_json::json!({
            "name": repository.name,
            "branch": repository.settings.branch,
            "file": repository.settings.file,
            "pushed": pushed,
            "running": running,
            "folder": repository.folder,
        }));
    }
    if ui.json() {
        ui.print_json(&json)?;
    } else if rows.is_empty() {
        ui.line("no repository is here: `moat git init` makes one");
    } else {
        ui.table(&["REPOSITORY", "BRANCH", "PUSHED", "RUNS", "URL"], &rows);
    }
    Ok(ExitCode::SUCCESS)
}

async fn remove(repository: &Repository, ui: &Ui) -> Result<ExitCode, CommandError> {
    need_root()?;
    let name = &repository.name;
    if !services(repository).await?.is_empty() {
        return Err(CommandError::refused(format!("the services of `{name}` run")).hint(format!("`moat down {name}` first")));
    }
    let fail = |error: io::Error| CommandError::engine(format!("can't remove `{}`: {error}", repository.folder.display()));
    // Under another name first: what is half removed is no repository.
    let aside = repository.folder.with_file_name(format!("{name}{REMOVED}"));
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(fail)?;
    }
    fs::rename(&repository.folder, &aside).map_err(fail)?;
    fs::remove_dir_all(&aside).map_err(fail)?;
    init::forget_remote(&repository.folder);
    // Only when it was the last one.
    let _ = fs::remove_dir(all(&Paths::from_env()));
    if ui.json() {
        ui.json_line(&serde_json::json!({ "removed": name }));
    } else {
        ui.say(&format!("`{name}` is removed"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Becomes git's own receiver, for who may push.
fn receive(folder: &Path) -> CommandError {
    // One's own is for oneself.
    let own = fs::metadata(folder).is_ok_and(|about| about.uid() == nix::unistd::geteuid().as_raw());
    if let (false, Err(error)) = (own, need_real_root("a push to another user's repository")) {
        return CommandError { hints: vec!["`sudo git push …`, or push over ssh as root".to_owned()], ..error };
    }
    let error = Command::new("git").arg("receive-pack").arg(folder).exec();
    CommandError::engine(format!("can't run `git receive-pack`: {error}"))
}
