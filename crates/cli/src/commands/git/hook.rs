//! The hooks of a repository: what they write is on the pusher's screen.

use super::deploy;
use super::{Repository, short};
use crate::args::Hook;
use crate::command_error::CommandError;
use crate::commands::need_root;
use crate::commands::up::REFUSED;
use crate::ui::{Tone, Ui};
use moat_daemon::protocol::Cause;
use moat_model::Severity;
use std::io::Read as _;
use std::process::ExitCode;

/// At most so many files are named.
const NAMED: usize = 5;

/// One line of what git tells a hook: a reference and the commit it is to have.
struct Update {
    reference: String,
    /// None for a reference that is removed.
    commit: Option<String>,
}

/// Runs one of the hooks of the repository in this folder.
pub async fn run(hook: Hook, ui: &Ui) -> Result<ExitCode, CommandError> {
    need_root().map_err(|error| CommandError { hints: vec!["only root deploys by a push".to_owned()], ..error })?;
    let here = std::env::current_dir().map_err(|error| CommandError::bug(format!("a hook without a folder: {error}")))?;
    let repository =
        Repository::open(&here).map_err(|error| CommandError::usage(format!("`{}` is no repository of Moat: {error}", here.display())))?;
    let updates = updates().map_err(|error| CommandError::bug(format!("git tells nothing: {error}")))?;
    let deployed = format!("refs/heads/{}", repository.settings.branch);
    for update in &updates {
        let (Some(commit), true) = (&update.commit, update.reference == deployed) else {
            if hook == Hook::PostReceive {
                other(&repository, update, ui);
            }
            continue;
        };
        match hook {
            Hook::PreReceive => check(&repository, commit, ui).await?,
            Hook::PostReceive => {
                if let Some(phrase) = phrase(&repository, commit) {
                    ui.say(&format!(
                        "commit {} is kept and not deployed, as its message says `{phrase}`: `moat git deploy {}` deploys it",
                        short(commit),
                        repository.name
                    ));
                } else {
                    return deploy::run(&repository, commit, Cause::Push, false, ui).await;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn updates() -> std::io::Result<Vec<Update>> {
    let mut updates = Vec::new();
    let mut told = Vec::new();
    std::io::stdin().lock().read_to_end(&mut told)?;
    for line in String::from_utf8_lossy(&told).lines() {
        if let [_, new, reference] = line.splitn(3, ' ').collect::<Vec<_>>()[..] {
            let commit = Some(new.to_owned()).filter(|new| new.bytes().any(|digit| digit != b'0'));
            updates.push(Update { reference: reference.to_owned(), commit });
        }
    }
    Ok(updates)
}

/// What is not deployed is said.
fn other(repository: &Repository, update: &Update, ui: &Ui) {
    let Repository { name, settings, .. } = repository;
    let shown = update.reference.strip_prefix("refs/heads/").unwrap_or(&update.reference);
    ui.say(&match (&update.commit, shown == settings.branch) {
        (Some(_), _) => format!("`{shown}` is kept and not deployed: `{name}` deploys `{}`", settings.branch),
        (None, true) => format!("`{shown}` is removed; what runs of it goes on (`moat down {name}` stops it)"),
        (None, false) => format!("`{shown}` is removed"),
    });
}

/// The phrase in a commit's message that asks for no deploy.
fn phrase(repository: &Repository, commit: &str) -> Option<String> {
    let message = repository.text(&["log", "-1", "--format=%B", commit])?;
    moat_planner::push::skip_phrase(&message).map(str::to_owned)
}

/// Refuses what can't be deployed, with all that is wrong.
async fn check(repository: &Repository, commit: &str, ui: &Ui) -> Result<(), CommandError> {
    let checked = deploy::blueprint(repository, commit)?;
    checked.say(ui, &[Severity::Error, Severity::Unsupported, Severity::Warning]);
    if checked.has(&REFUSED) {
        return Err(CommandError::usage(format!("`{}` can't be run: the push is refused, and nothing has changed", checked.shown)));
    }
    submodules(repository, commit)?;
    large_files(repository, commit, ui);
    if phrase(repository, commit).is_none() {
        deploy::plan(repository, commit, &checked, ui).await?;
    }
    Ok(())
}

/// A submodule is fetched from its own repository; where that lies beside the pushed one, nobody knows where it is.
fn submodules(repository: &Repository, commit: &str) -> Result<(), CommandError> {
    let blob = format!("{commit}:.gitmodules");
    let Some(urls) = repository.text(&["config", "--blob", &blob, "--get-regexp", r"^submodule\..*\.url$"]) else { return Ok(()) };
    let relative: Vec<&str> = urls
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(_, url)| url)
        .filter(|url| url.starts_with("./") || url.starts_with("../"))
        .collect();
    if relative.is_empty() {
        return Ok(());
    }
    Err(CommandError::refused(format!(
        "the submodule {} is written relative to a repository that Moat does not know: the push is refused",
        relative.iter().map(|url| format!("`{url}`")).collect::<Vec<_>>().join(", ")
    ))
    .hint("write its whole URL in `.gitmodules`, one that root's git on this machine can fetch"))
}

/// Of files in Git LFS a push brings pointers only.
fn large_files(repository: &Repository, commit: &str, ui: &Ui) {
    let attributes = ["grep", "--quiet", "filter=lfs", commit, "--", ".gitattributes", "**/.gitattributes"];
    if repository.git(&attributes).is_err() {
        return;
    }
    let pointers = ["grep", "-I", "--name-only", "--fixed-strings", "version https://git-lfs.github.com/spec/", commit];
    let Some(list) = repository.text(&pointers).filter(|list| !list.is_empty()) else { return };
    let files: Vec<&str> = list.lines().map(|line| line.split_once(':').map_or(line, |(_, file)| file)).collect();
    let more = if files.len() > NAMED { format!(" and {} more", files.len() - NAMED) } else { String::new() };
    let named = files.iter().take(NAMED).map(|file| format!("`{file}`")).collect::<Vec<_>>().join(", ");
    ui.say(&ui.paint_err(
        Tone::Warn,
        &format!("● {named}{more}: kept by Git LFS, whose content a push does not bring: the services find pointers there"),
    ));
}
