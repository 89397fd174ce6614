//! A pushed commit as a request to the daemon.

use super::{Repository, short};
use crate::command_error::CommandError;
use crate::commands::check::{self, Checked};
use crate::commands::own_exe;
use crate::commands::up::{self, Progress};
use crate::ui::Ui;
use moat_daemon::protocol::{Cause, Event, Pushed, Request, UpRequest};
use moat_daemon::{Paths, client};
use moat_model::{Secret, Severity};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

/// Deploys a commit, and shows what becomes of it until it is over. Whoever stops watching stops nothing.
pub async fn run(repository: &Repository, commit: &str, cause: Cause, prune: bool, ui: &Ui) -> Result<ExitCode, CommandError> {
    let checked = blueprint(repository, commit)?;
    let asked = cause != Cause::Push;
    if asked {
        // A push was judged when it came.
        checked.say(ui, &[Severity::Error, Severity::Unsupported, Severity::Warning]);
        if checked.has(&up::REFUSED) {
            return Err(CommandError::usage(format!("`{}` of commit {} can't be run", checked.shown, short(commit))));
        }
    }
    let request = UpRequest { prune, ..request(repository, commit, &checked, cause) };
    let paths = Paths::from_env();
    client::ensure(&paths, &own_exe()?).await?;
    if !ui.json() {
        ui.say(&format!("deploying commit {} of `{}`", short(commit), repository.name));
    }
    let talk = client::ask(&paths, &Request::Up(request)).await?;
    match up::follow(talk, None, ui).await {
        Ok(Progress::Ready(status)) => {
            if ui.json() {
                ui.json_line(&serde_json::json!({ "ready": status }));
            } else {
                up::summary(ui, &status, &repository.blueprint(), false).await;
            }
            Ok(ExitCode::SUCCESS)
        }
        Ok(Progress::Superseded(by)) => {
            ui.say(&format!("commit {} is skipped: {} was pushed meanwhile and is deployed instead", short(commit), short(&by)));
            Ok(ExitCode::SUCCESS)
        }
        Ok(Progress::Failed(mut failure, status)) => {
            if let Some(status) = &status {
                up::summary(ui, status, &repository.blueprint(), true).await;
                failure.hints =
                    vec![format!("the others run; push a mended commit, or `moat git deploy {}` to try again", repository.name)];
            }
            Err(failure)
        }
        Ok(Progress::Missing(values, failure)) => Err(missing(repository, &values, failure)),
        Ok(Progress::Interrupted) => Ok(ExitCode::from(130)),
        Err(error) => {
            let hint = format!("the commit is kept: `moat git deploy {}` deploys it", repository.name);
            Err(CommandError { hints: vec![hint], ..error })
        }
    }
}

/// Asks the daemon whether it would take a commit: what is wrong with it beside the other blueprints, and which values are
/// missing.
pub async fn plan(repository: &Repository, commit: &str, checked: &Checked, ui: &Ui) -> Result<(), CommandError> {
    let paths = Paths::from_env();
    client::ensure(&paths, &own_exe()?).await?;
    let request = request(repository, commit, checked, Cause::Push);
    let mut talk = client::ask(&paths, &Request::Plan(request)).await?;
    let mut values = Vec::new();
    while let Some(event) = talk.next().await? {
        match event {
            Event::Missing { values: missing } => values = missing,
            Event::Refused { diagnostics } => diagnostics.iter().for_each(|d| ui.say(&d.rendered)),
            Event::End { error: Some(failure) } if values.is_empty() => return Err(failure.into()),
            Event::End { error: Some(failure) } => return Err(missing(repository, &values, failure.into())),
            Event::End { error: None } => break,
            _ => {}
        }
    }
    Ok(())
}

fn missing(repository: &Repository, values: &[moat_daemon::protocol::MissingValue], failure: CommandError) -> CommandError {
    let hint = format!("give each on this machine with `moat git init --name {} --set SERVICE.KEY=VALUE`, and push again", repository.name);
    CommandError { hints: vec![hint], ..up::listed(values, failure) }
}

/// The blueprint of a commit, judged.
pub fn blueprint(repository: &Repository, commit: &str) -> Result<Checked, CommandError> {
    let settings = &repository.settings;
    let bytes = repository.git(&["cat-file", "blob", &format!("{commit}:{}", settings.file)]).map_err(|_| {
        CommandError::usage(format!("there is no `{}` in commit {}", settings.file, short(commit)))
            .hint(format!("commit one, or name another: `moat git init --name {} PATH`", repository.name))
    })?;
    Ok(check::judge(settings.file.clone(), repository.blueprint(), &bytes, settings.remotes.clone()))
}

fn request(repository: &Repository, commit: &str, checked: &Checked, cause: Cause) -> UpRequest {
    let settings = &repository.settings;
    let folder = Path::new(&settings.file).parent().unwrap_or(Path::new(""));
    let mut files = BTreeMap::new();
    for (_, path) in checked.blueprint.services.iter().filter_map(|s| s.moat.as_ref()).flat_map(|m| &m.secret_files) {
        let at = folder.join(&path.value);
        // One that is not there is said with its place.
        if let Ok(content) = repository.git(&["cat-file", "blob", &format!("{commit}:{}", at.display())]) {
            files.insert(path.value.clone(), Secret::new(String::from_utf8_lossy(&content)));
        }
    }
    UpRequest {
        file: repository.blueprint(),
        text: checked.text.clone(),
        given: settings.given.clone(),
        files,
        listen: settings.listen.clone(),
        listen_tls: None,
        start_timeout_seconds: settings.start_timeout_seconds,
        pass_env: settings.pass_env.clone(),
        git: [settings.branch.clone(), commit.to_owned(), settings.repo_slug.clone()],
        remotes: settings.remotes.clone(),
        prune: false,
        pushed: Some(Pushed { repository: repository.folder.clone(), cause, pins: BTreeMap::new() }),
    }
}
