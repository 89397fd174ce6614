//! `moat up`.

use super::check::{self, Checked};
use super::logs::Painter;
use super::{down, need_root_or_daemon, own_exe, rootless};
use crate::args::UpArgs;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui, cell};
use moat_daemon::Paths;
use moat_daemon::client::{self, Conversation};
use moat_daemon::protocol::{Event, LogFilter, MissingValue, Request, ServicePhase, ServiceState, Status, UpRequest};
use moat_model::{Secret, Severity, Slug};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What keeps a blueprint from being run.
pub const REFUSED: [Severity; 2] = [Severity::Error, Severity::Unsupported];

/// Runs the blueprint; in the foreground until Ctrl-C.
pub async fn run(args: UpArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    let paths = Paths::from_env();
    // First of all: what was said before would be said again.
    need_root_or_daemon(&paths).await?;
    let checked = load(&args.file, ui)?;
    let mut request = request(&args, &checked)?;
    client::ensure(&paths, &own_exe()?).await?;
    rootless::say_lacks(&paths, ui);
    let mut stop = Stop::new()?;
    let status = loop {
        let talk = client::ask(&paths, &Request::Up(request.clone())).await?;
        match follow(talk, Some(&mut stop), ui).await? {
            Progress::Ready(status) => break status,
            Progress::Superseded(_) => return Err(CommandError::bug("only a push can be superseded")),
            Progress::Failed(mut failure, status) => {
                if let Some(status) = &status {
                    summary(ui, status, &checked.path, true).await;
                }
                if !args.detach && status.is_some() {
                    down::stop(&paths, Some(checked.path.clone()), ui).await?;
                    failure.hints = vec!["everything was stopped; `moat up -d` leaves running what does run".to_owned()];
                }
                return Err(failure);
            }
            Progress::Missing(values, failure) => fill(&mut request, &values, failure, ui)?,
            Progress::Interrupted => {
                ui.say("");
                down::stop(&paths, Some(checked.path.clone()), ui).await?;
                return Ok(ExitCode::from(130));
            }
        }
    };
    if ui.json() {
        ui.json_line(&serde_json::json!({ "ready": status }));
    } else {
        summary(ui, &status, &checked.path, false).await;
    }
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    if !ui.json() {
        ui.say(&ui.paint_err(Tone::Dim, "Ctrl-C stops everything"));
    }
    let mut talk = client::ask(
        &paths,
        &Request::Logs { service: None, follow: true, tail: Some(5), file: Some(checked.path.clone()), filter: LogFilter::default() },
    )
    .await?;
    let mut painter = Painter::default();
    loop {
        let event = tokio::select! {
            event = talk.next() => event?,
            () = stop.asked() => {
                ui.say("");
                down::stop(&paths, Some(checked.path), ui).await?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        match event {
            Some(Event::Log(line)) => painter.print(ui, &line),
            Some(Event::Notice { service, text }) => painter.notice(ui, service.as_ref(), &text),
            Some(Event::Service(state)) => {
                if let Some(detail) = &state.detail {
                    painter.notice(ui, Some(&state.service), &format!("{}: {detail}", state.phase.word()));
                }
            }
            Some(Event::End { error: Some(failure) }) => return Err(failure.into()),
            // Stopped by somebody else's `moat down`.
            Some(Event::End { error: None }) | None => return Ok(ExitCode::SUCCESS),
            Some(_) => {}
        }
    }
}

/// Reads the file and looks at it as [`refuse`] does.
pub fn load(file: &Path, ui: &Ui) -> Result<Checked, CommandError> {
    let mut checked = check::load(file)?;
    checked.look_around();
    refuse(&checked, ui)?;
    Ok(checked)
}

/// Stops at what can't be run; notices are counted, warnings shown.
pub fn refuse(checked: &Checked, ui: &Ui) -> Result<(), CommandError> {
    if checked.has(&REFUSED) {
        checked.say(ui, &REFUSED);
        return Err(CommandError::usage(format!("`{}` can't be run", checked.shown))
            .hint(format!("`moat check {}` says everything about it", checked.shown)));
    }
    checked.say(ui, &[Severity::Warning]);
    let notices = checked.diagnostics.iter().filter(|d| d.severity == Severity::Notice).count();
    if notices > 0 && !ui.json() {
        ui.say(&ui.paint_err(Tone::Dim, &format!("{notices} notices (`moat check {}`)", checked.shown)));
    }
    Ok(())
}

/// The request for a checked file.
pub fn request(args: &UpArgs, checked: &Checked) -> Result<UpRequest, CommandError> {
    let folder = checked.path.parent().unwrap_or(Path::new("/"));
    let mut files = BTreeMap::new();
    for (_, path) in checked.blueprint.services.iter().filter_map(|s| s.moat.as_ref()).flat_map(|m| &m.secret_files) {
        let at = folder.join(&path.value);
        let text = std::fs::read_to_string(&at).map_err(|error| CommandError::unreadable(&at, &error))?;
        files.insert(path.value.clone(), Secret::new(text));
    }
    Ok(UpRequest {
        file: checked.path.clone(),
        text: checked.text.clone(),
        given: given(&args.set, &args.env_file)?,
        files,
        listen: args.listen.clone(),
        listen_tls: args.listen_tls.clone(),
        start_timeout_seconds: args.start_timeout,
        pass_env: passed(&args.pass_env),
        git: git_facts(folder),
        remotes: checked.remotes.clone(),
        prune: args.prune,
        pushed: None,
    })
}

/// `NAME=value` of the variables of this shell that have a value.
pub fn passed(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort();
    names.into_iter().filter_map(|name| std::env::var(&name).ok().map(|value| format!("{name}={value}"))).collect()
}

/// The values that `--set` and `--env-file` give.
pub fn given(set: &[String], env_file: &[PathBuf]) -> Result<BTreeMap<String, Secret>, CommandError> {
    let mut given = BTreeMap::new();
    for file in env_file {
        let text = std::fs::read_to_string(file).map_err(|error| CommandError::unreadable(file, &error))?;
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=').ok_or_else(|| {
                CommandError::usage(format!("`{}`, line {}: no `=`", file.display(), n + 1)).hint("write KEY=VALUE lines")
            })?;
            given.insert(key.trim().to_owned(), Secret::new(unquoted(value.trim())));
        }
    }
    for pair in set {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| CommandError::usage(format!("`--set {pair}` has no `=`")).hint("write --set KEY=VALUE"))?;
        given.insert(key.to_owned(), Secret::new(value));
    }
    Ok(given)
}

fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
            return inner;
        }
    }
    value
}

/// Branch, commit and `user/repo` of the folder, blank where it is no repository.
pub fn git_facts(folder: &Path) -> [String; 3] {
    let git = |args: &[&str]| check::git(folder, args);
    let origin = git(&["remote", "get-url", "origin"]).unwrap_or_default();
    let slug: Vec<&str> = origin.trim_end_matches(".git").rsplit(['/', ':']).take(2).collect();
    let slug = if let [repo, user] = slug[..] { format!("{user}/{repo}") } else { String::new() };
    let head = git(&["rev-parse", "HEAD", "--abbrev-ref", "HEAD"]).unwrap_or_default();
    let (commit, branch) = head.split_once('\n').unwrap_or_default();
    [branch.to_owned(), commit.to_owned(), slug]
}

/// Asks for what is missing, at the terminal; elsewhere it is an error that lists all.
fn fill(request: &mut UpRequest, values: &[MissingValue], failure: CommandError, ui: &Ui) -> Result<(), CommandError> {
    if ui.json() || !std::io::stdin().is_terminal() {
        return Err(listed(values, failure));
    }
    for value in values {
        let label = value.label.as_ref().map(|l| format!(" ({l})")).unwrap_or_default();
        ui.say(&format!("{} {} {}{label}", ui.paint_err(Tone::Strong, &value.key), ui.paint_err(Tone::Dim, "of"), value.owner));
        let text = read_hidden().map_err(|error| CommandError::usage(format!("can't read the value: {error}")))?;
        request.given.insert(format!("{}.{}", value.owner, value.key), Secret::new(text));
    }
    Ok(())
}

/// The failure with what is missing.
pub fn listed(values: &[MissingValue], failure: CommandError) -> CommandError {
    let list: Vec<String> = values.iter().map(|v| format!("  {}.{} (line {})", v.owner, v.key, v.line)).collect();
    CommandError { message: format!("{}:\n{}", failure.message, list.join("\n")), ..failure }
}

/// A line from the terminal without showing it; the terminal is put back whatever happens.
fn read_hidden() -> std::io::Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut hidden = before.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSANOW, &hidden)?;
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    tcsetattr(&stdin, SetArg::TCSANOW, &before)?;
    read?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// Ctrl-C, SIGTERM and the terminal's end all mean: stop.
pub struct Stop {
    int: Signal,
    term: Signal,
    hup: Signal,
}

impl Stop {
    fn new() -> Result<Self, CommandError> {
        let on = |kind| signal(kind).map_err(|error| CommandError::bug(format!("no signal handler: {error}")));
        Ok(Self { int: on(SignalKind::interrupt())?, term: on(SignalKind::terminate())?, hup: on(SignalKind::hangup())? })
    }
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
            _ = self.hup.recv() => {}
        }
    }
}

/// How an `up` or a push ended.
pub enum Progress {
    /// All is ready.
    Ready(Status),
    /// Refused, or something failed.
    Failed(CommandError, Option<Status>),
    /// Values are missing; nothing was changed.
    Missing(Vec<MissingValue>, CommandError),
    /// Somebody asked to stop.
    Interrupted,
    /// This commit was pushed later and is deployed instead.
    Superseded(String),
}

/// Shows progress until the deploys are over. Without `stop` nobody watches who could ask for it (a push): the output of builds is
/// shown as well.
pub async fn follow(mut talk: Conversation, mut stop: Option<&mut Stop>, ui: &Ui) -> Result<Progress, CommandError> {
    let mut board = Board::new(ui);
    let mut painter = Painter::default();
    let (mut status, mut missing, mut superseded) = (None, None, None);
    loop {
        let event = match &mut stop {
            Some(stop) => tokio::select! {
                event = talk.next() => event?,
                () = stop.asked() => return Ok(Progress::Interrupted),
            },
            None => talk.next().await?,
        };
        match event {
            Some(Event::Log(line)) if stop.is_none() => {
                painter.print(ui, &line);
                board.printed.insert(line.service, line.text);
            }
            Some(Event::Superseded { commit }) => superseded = Some(commit),
            Some(Event::Service(state)) => board.show(&state),
            Some(Event::Notice { service, text }) => board.notice(service.as_ref(), &text),
            Some(Event::Missing { values }) => missing = Some(values),
            Some(Event::Refused { diagnostics }) => {
                for d in &diagnostics {
                    ui.say(&d.rendered);
                }
            }
            Some(Event::Status(now)) => status = Some(now),
            Some(Event::End { error: Some(failure) }) => {
                let failure = CommandError::from(failure);
                return Ok(match missing {
                    Some(values) => Progress::Missing(values, failure),
                    None => Progress::Failed(failure, status),
                });
            }
            Some(Event::End { error: None }) => {
                let done = superseded.map(Progress::Superseded).or(status.map(Progress::Ready));
                return done.ok_or_else(|| CommandError::bug("no status"));
            }
            Some(_) => {}
            None => {
                return Err(CommandError::engine("the background process went away")
                    .hint(format!("its log: `{}`; `moat up` goes on where it was", Paths::from_env().daemon_log().display())));
            }
        }
    }
}

/// The progress of each service: lines that change on a terminal, plain lines elsewhere.
struct Board<'a> {
    ui: &'a Ui,
    bars: Option<indicatif::MultiProgress>,
    by_service: BTreeMap<Slug, indicatif::ProgressBar>,
    last: BTreeMap<Slug, (ServicePhase, Option<String>)>,
    /// The last line of each service's build that was shown.
    printed: BTreeMap<Slug, String>,
}

impl<'a> Board<'a> {
    fn new(ui: &'a Ui) -> Self {
        Self {
            ui,
            bars: ui.terminal().then(indicatif::MultiProgress::new),
            by_service: BTreeMap::new(),
            last: BTreeMap::new(),
            printed: BTreeMap::new(),
        }
    }

    fn show(&mut self, state: &ServiceState) {
        let now = (state.phase, state.detail.clone());
        if self.last.get(&state.service) == Some(&now) {
            return;
        }
        let phase_changed = self.last.get(&state.service).is_none_or(|(phase, _)| *phase != state.phase);
        self.last.insert(state.service.clone(), now);
        if self.ui.json() {
            self.ui.json_line(&serde_json::json!({ "service": state }));
            return;
        }
        let tone = super::ps::phase_tone(state.phase);
        let word = self.ui.paint_err(tone, &format!("{:<10}", state.phase.word()));
        let name = self.ui.paint_err(Tone::Strong, &format!("{:<20}", state.service.as_str()));
        let detail = self.ui.paint_err(Tone::Dim, state.detail.as_deref().unwrap_or_default());
        let line = format!("{name} {word} {detail}");
        if let Some(bars) = &self.bars {
            let bar = self.by_service.entry(state.service.clone()).or_insert_with(|| {
                let bar = bars.add(indicatif::ProgressBar::new_spinner());
                if let Ok(style) = indicatif::ProgressStyle::with_template("{spinner} {wide_msg}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(std::time::Duration::from_millis(120));
                bar
            });
            if state.phase.is_final() {
                bar.finish_with_message(line.trim_end().to_owned());
            } else {
                bar.set_message(line.trim_end().to_owned());
            }
        } else if phase_changed || state.phase.is_final() {
            self.ui.say(line.trim_end());
        }
        let shown = state.last_lines.last().is_some_and(|line| self.printed.get(&state.service) == Some(line));
        if !state.last_lines.is_empty() && !shown {
            let text: Vec<String> = state.last_lines.iter().map(|l| format!("    {} {l}", self.ui.paint_err(Tone::Dim, "│"))).collect();
            self.print(&text.join("\n"));
        }
    }

    fn notice(&self, service: Option<&Slug>, text: &str) {
        if self.ui.json() {
            self.ui.json_line(&serde_json::json!({ "notice": text, "service": service }));
            return;
        }
        let who = service.map(|s| format!("{s}: ")).unwrap_or_default();
        self.print(&self.ui.paint_err(Tone::Warn, &format!("● {who}{text}")));
    }

    fn print(&self, text: &str) {
        match &self.bars {
            // Above the bars, so that they stay where they are.
            Some(bars) => {
                let _ = bars.println(text);
            }
            None => self.ui.say(text),
        }
    }
}

/// URLs, internal addresses and what can reach what.
pub async fn summary(ui: &Ui, status: &Status, file: &Path, failed: bool) {
    let mine: Vec<_> = status.services.iter().filter(|s| s.blueprint == file).collect();
    ui.line("");
    let rows: Vec<_> = mine
        .iter()
        .map(|s| {
            let open = match (&s.url, &s.internal, &s.next_run) {
                (Some(url), ..) => cell(Tone::Link, url),
                (None, Some(internal), _) => cell(Tone::Plain, internal),
                (None, None, Some(next)) => cell(Tone::Plain, format!("next run {next}")),
                (None, None, None) => cell(Tone::Dim, "receives nothing"),
            };
            vec![
                cell(super::ps::phase_tone(s.state.phase), if s.state.phase == ServicePhase::Live { "●" } else { "✗" }),
                cell(Tone::Strong, s.state.service.as_str()),
                cell(Tone::Plain, s.state.kind.phrase()),
                open,
            ]
        })
        .collect();
    for line in ui.table_lines(&["", "", "", ""], &rows) {
        ui.line(&line);
    }
    if failed {
        return;
    }
    ui.line("");
    if let Ok(state) = super::state_of(None).await {
        for line in super::reach::compact(ui, &state) {
            ui.line(&line);
        }
    }
    ui.line("");
    ui.line(&ui.paint(Tone::Dim, "moat ps · moat logs -f · moat reach · moat explain A B:PORT · moat verify · moat down"));
}
