//! `moat plan`.

use super::check::{self, Checked};
use super::up;
use crate::args::UpArgs;
use crate::command_error::CommandError;
use crate::ui::{Tone, Ui, cell};
use moat_blueprint::Blueprint;
use moat_blueprint::spec::{ServiceSpec, TypeSpec};
use moat_daemon::Paths;
use moat_daemon::blueprints::{self, Doors};
use moat_daemon::client;
use moat_daemon::drift::{Drift, DriftKind};
use moat_daemon::protocol::{Event, Request, UpRequest};
use moat_engine_linux::ServerImages;
use moat_engine_linux::datastore::Outlook;
use moat_model::policy::NetPolicy;
use moat_model::state::{ImageOrigin, Workload};
use moat_model::{DesiredState, Diagnostic, Service, ServiceKind, StartOrder};
use moat_planner::{Plan, Step};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Shows what `up` would do: to what runs, or from nothing.
pub async fn run(args: UpArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    check::make_room(&args.file);
    let mut checked = check::read(&args.file)?;
    let request = up::request(&args, &checked);
    let paths = Paths::from_env();
    let running = client::is_running(&paths).await;
    let outlook = Outlook::new(ServerImages::from_env());
    // Planning and looking at what the machine has need nothing of each other. What is planned from nothing is judged by planning it.
    let (around, planned) = std::thread::scope(|scope| {
        let blueprint = &checked.blueprint;
        let is_keyvalue = |service: &ServiceSpec| service.kind.value == TypeSpec::Kind(ServiceKind::KeyValue);
        let (keyvalues, databases) = (blueprint.services.iter().any(is_keyvalue), !blueprint.databases.is_empty());
        let outlook = &outlook;
        scope.spawn(move || outlook.look(keyvalues, databases));
        let look = scope.spawn(|| if running { checked.judged() } else { checked.surroundings() });
        let planned = request.as_ref().ok().filter(|_| !running).map(|request| from_nothing(request, blueprint));
        (look.join(), planned)
    });
    checked.add(around.map_err(|_| CommandError::bug("looking at this machine ended early"))?);
    let from_nothing = planned.map(|(planned, said)| {
        checked.add(said);
        planned
    });
    up::refuse(&checked, ui)?;
    let ((plan, state, missing), drift) = match from_nothing {
        Some(planned) => (planned, Vec::new()),
        None => from_what_runs(&paths, request?, ui).await?,
    };
    if ui.json() {
        ui.print_json(&serde_json::json!({ "plan": moat_daemon::masked::plan(plan), "missing": missing, "drift": drift }))?;
        return Ok(ExitCode::SUCCESS);
    }
    say_languages(&checked, ui);
    print_drift(ui, &drift);
    print(ui, &paths, &outlook, &plan, &state, &missing);
    // The process ends here: what was thought needs no taking apart.
    std::mem::forget((checked, plan, state));
    Ok(ExitCode::SUCCESS)
}

/// Says which languages come from images, each once.
fn say_languages(checked: &Checked, ui: &Ui) {
    let mut said: BTreeMap<&str, (&Diagnostic, usize)> = BTreeMap::new();
    for notice in checked.diagnostics.iter().filter(|notice| notice.code == "N0310") {
        said.entry(&notice.message).or_insert((notice, 0)).1 += 1;
    }
    let mut said: Vec<_> = said.into_values().collect();
    said.sort_by_key(|(first, _)| first.span.start);
    for (first, services) in said {
        ui.say(moat_blueprint::render(first, &checked.shown, &checked.text, ui.color_err()).trim_end());
        if services > 1 {
            ui.say(&ui.paint_err(Tone::Dim, &format!("   the same for {} more", services - 1)));
        }
    }
}

/// What the blueprint and what runs differ in, a line each.
fn print_drift(ui: &Ui, drift: &[Drift]) {
    for difference in drift {
        let (tone, mark) = match difference.kind {
            DriftKind::New => (Tone::Good, "+"),
            DriftKind::Changed => (Tone::Plain, "~"),
            DriftKind::Unnamed => (Tone::Bad, "-"),
            DriftKind::Set => (Tone::Plain, "="),
            DriftKind::Missing => (Tone::Warn, "!"),
        };
        ui.line(&format!("{} {} {}", ui.paint(tone, mark), ui.paint(Tone::Strong, difference.service.as_str()), difference.text));
    }
    if !drift.is_empty() {
        ui.line("");
    }
}

async fn from_what_runs(paths: &Paths, request: UpRequest, ui: &Ui) -> Result<(Planned, Vec<Drift>), CommandError> {
    let mut talk = client::ask(paths, &Request::Plan(request)).await?;
    let (mut found, mut missing, mut drift) = (None, Vec::new(), Vec::new());
    loop {
        match talk.next().await? {
            Some(Event::Planned { plan, state }) => found = Some((*plan, *state)),
            Some(Event::Drift { differences }) => drift = differences,
            Some(Event::Missing { values }) => missing = values.into_iter().map(|v| format!("{}.{}", v.owner, v.key)).collect(),
            Some(Event::Refused { diagnostics }) => diagnostics.iter().for_each(|d| ui.say(&d.rendered)),
            Some(Event::End { error: Some(failure) }) => {
                let error = CommandError::from(failure);
                return Err(missing.iter().fold(error, |e, m| e.hint(format!("missing: {m}"))));
            }
            Some(Event::End { error: None }) | None => break,
            Some(_) => {}
        }
    }
    let (plan, state) = found.ok_or_else(|| CommandError::bug("no plan was answered"))?;
    Ok(((plan, state, missing), drift))
}

/// The plan, the state it leads to, and the values that nobody gave.
type Planned = (Plan, DesiredState, Vec<String>);

/// What `up` would do where nothing runs, and all that there is to say of the file.
fn from_nothing(request: &UpRequest, blueprint: &Blueprint) -> (Planned, Vec<Diagnostic>) {
    let mut memory = moat_planner::memory::Memory::default();
    let outcome = blueprints::resolve(&[(request, blueprint)], &mut memory, Doors::of(request));
    let said = outcome.diagnostics.into_iter().map(|(_, diagnostic)| diagnostic).collect();
    let missing = outcome.missing.iter().map(|m| format!("{}.{}", m.owner, m.key)).collect();
    let plan = blueprints::preview(&outcome.state, &DesiredState::default(), &BTreeMap::new(), &NetPolicy::default(), &[], &mut memory);
    ((plan, outcome.state, missing), said)
}

fn print(ui: &Ui, paths: &Paths, outlook: &Outlook, plan: &Plan, state: &DesiredState, missing: &[String]) {
    let (mut rows, mut problems) = (Vec::new(), Vec::new());
    for service in state.services.values() {
        let mut row =
            |what, text: String| rows.push(vec![cell(Tone::Plain, what), cell(Tone::Strong, service.slug.as_str()), cell(Tone::Dim, text)]);
        let command = match &service.workload {
            Workload::Native(native) => {
                if let Some(command) = &native.build_command {
                    row("build", format!("{} · {}", native.runtime.word(), one_line(command)));
                }
                one_line(&native.start_command)
            }
            Workload::Image(image) => {
                match &image.origin {
                    ImageOrigin::Published(name) => row("pull", name.clone()),
                    ImageOrigin::Dockerfile(dockerfile) => row("build", dockerfile.root_dir.join(&dockerfile.file).display().to_string()),
                }
                image.command.as_deref().map_or_else(|| "the image's command".to_owned(), one_line)
            }
            Workload::Static(site) => {
                if let Some(command) = &site.build_command {
                    row("build", one_line(command));
                }
                row("publish", site.root_dir.join(&site.publish_path).display().to_string());
                String::new()
            }
            Workload::KeyValue(_) | Workload::Postgres(_) => {
                let starts = |step: &Step| matches!(step, Step::StartInstance { instance } if instance.slug == service.slug);
                if plan.steps.iter().any(starts) {
                    match outlook.of(&paths.state, service) {
                        Ok(Some(wanted)) => row("pull", format!("{} · {}", wanted.image, wanted.because)),
                        Ok(None) => {}
                        Err(error) => problems.push(format!("`{}`: {}", service.slug, error.message)),
                    }
                }
                continue;
            }
        };
        if let Some(command) = service.workload.pre_deploy_command() {
            row("pre-deploy", one_line(command));
        }
        if let Some(schedule) = service.workload.schedule() {
            row("schedule", format!("{schedule} (UTC) · {command}"));
        }
    }
    let later = later(plan, state);
    for step in &plan.steps {
        rows.push(match step {
            Step::EnsureRouter => vec![
                cell(Tone::Good, "+ network"),
                cell(Tone::Plain, "router namespace"),
                cell(Tone::Dim, "closed until the policy opens it"),
            ],
            Step::SetPolicy { policy } => vec![
                cell(Tone::Plain, "~ policy"),
                cell(Tone::Plain, ""),
                cell(
                    Tone::Dim,
                    format!(
                        "{} instances, {} receivers, {} service addresses, {} for the ingress",
                        policy.sources.len(),
                        policy.receivers.len() + policy.pairs.len(),
                        policy.services.len(),
                        policy.ingress.len()
                    ),
                ),
            ],
            Step::StartInstance { instance } => vec![
                cell(Tone::Good, "+ start"),
                cell(Tone::Strong, instance.slug.as_str()),
                cell(Tone::Dim, format!("{} · {} · {} MB", instance.id, instance.address.v4, instance.limits.memory_bytes >> 20)),
            ],
            Step::StopInstance { id, grace_seconds } => vec![
                cell(Tone::Bad, "- stop"),
                cell(Tone::Strong, id.as_str()),
                cell(Tone::Dim, format!("SIGTERM, {grace_seconds} s, SIGKILL")),
            ],
            Step::RemoveRouter => vec![cell(Tone::Bad, "- network"), cell(Tone::Plain, "router namespace"), cell(Tone::Dim, "")],
        });
    }
    for (slug, count) in later {
        rows.push(vec![
            cell(Tone::Good, "+ start"),
            cell(Tone::Strong, slug),
            cell(Tone::Dim, format!("{count} more, one after another, each once those before are ready")),
        ]);
    }
    if rows.is_empty() {
        ui.line("nothing to do: what runs stays as it is");
    } else {
        ui.table(&["STEP", "SERVICE", ""], &rows);
    }
    for problem in problems {
        ui.say(&format!("{} {problem}", ui.paint_err(Tone::Warn, "warning:")));
    }
    for value in missing {
        ui.say(&format!("{} `{value}` is asked for by `up` (`--set {value}=…`)", ui.paint_err(Tone::Warn, "missing:")));
    }
}

/// Services whose instances start one by one, with how many start after those of the plan.
fn later<'s>(plan: &Plan, state: &'s DesiredState) -> Vec<(&'s str, usize)> {
    let starts = |service: &Service| {
        let of = |step: &&Step| matches!(step, Step::StartInstance { instance } if instance.slug == service.slug);
        plan.steps.iter().filter(of).count()
    };
    let one_by_one = state.services.values().filter(|service| service.start == StartOrder::OneByOne);
    one_by_one
        .filter_map(|service| {
            let (now, wanted) = (starts(service), usize::try_from(service.instances).unwrap_or(usize::MAX));
            (now > 0 && wanted > now).then(|| (service.slug.as_str(), wanted - now))
        })
        .collect()
}

fn one_line(text: &str) -> String {
    let line = text.trim().lines().collect::<Vec<_>>().join(" ⏎ ");
    if line.chars().count() > 60 { format!("{}…", line.chars().take(59).collect::<String>()) } else { line }
}
