//! The `moat` command: what is typed becomes a request; what is answered becomes text or JSON.
//!
//! Exit codes: 0 ok, 1 refused or failed check, 2 usage or blueprint error, 3 engine error, 70 bug.

mod args;
mod command_error;
mod commands;
mod ui;

use args::{Cli, DeployVerb, Verb};
use clap::Parser as _;
use command_error::CommandError;
use moat_daemon::protocol::ServiceVerb;
use moat_engine_linux::rootless;
use std::process::ExitCode;

fn main() -> ExitCode {
    // These come first: they must stay small and single-threaded.
    let mut raw = std::env::args_os().skip(1);
    match raw.next().as_deref().and_then(|a| a.to_str()) {
        Some("__monitor") => return moat_engine_linux::monitor::main(&raw.collect::<Vec<_>>()),
        Some(rootless::HOLDER) => return rootless::holder(&raw.collect::<Vec<_>>()),
        Some(rootless::OUTSIDE) => return rootless::outside(&raw.collect::<Vec<_>>()),
        Some(rootless::ENTER) => return rootless::enter(&raw.collect::<Vec<_>>()),
        Some("__daemon") => return commands::daemon::main(moat_daemon::Mode::WhileNeeded),
        Some("__dataplane") => return commands::dataplane::main(),
        _ => {}
    }
    let cli = Cli::parse();
    let ui = ui::Ui::new(cli.output, cli.color);
    if matches!(cli.verb, Verb::Serve) {
        return match commands::need_root_and_groups() {
            Ok(()) => commands::daemon::main(moat_daemon::Mode::Serve),
            Err(error) => ui.fail(&error),
        };
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ui.fail(&CommandError::bug(format!("no runtime: {error}"))),
    };
    let outcome = runtime.block_on(run(cli.verb, &ui));
    // Reading the terminal may still block a thread of the runtime; nothing waits for it.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => ui.fail(&error),
    }
}

async fn run(verb: Verb, ui: &ui::Ui) -> Result<ExitCode, CommandError> {
    match verb {
        Verb::Up(args) => commands::up::run(args, ui).await,
        Verb::Down(args) => commands::down::run(args, ui).await,
        Verb::Ps => commands::ps::run(ui).await,
        Verb::Logs(args) => commands::logs::run(args, ui).await,
        Verb::Exec(args) => commands::exec::run(args).await,
        Verb::Image(verb) => commands::image::run(verb, ui).await,
        Verb::Git(verb) => commands::git::run(verb, ui).await,
        Verb::Deploys { service } => commands::deploys::list(service, ui).await,
        Verb::Deploy(DeployVerb::Cancel { service }) => commands::service::run(service, ServiceVerb::CancelDeploy, ui).await,
        Verb::Rollback { service, deploy } => commands::service::run(service, ServiceVerb::Rollback { deploy }, ui).await,
        Verb::Restart { service } => commands::service::run(service, ServiceVerb::Restart, ui).await,
        Verb::Scale { service, instances } => commands::service::run(service, ServiceVerb::Scale { instances }, ui).await,
        Verb::Suspend { service } => commands::service::run(service, ServiceVerb::Suspend, ui).await,
        Verb::Resume { service } => commands::service::run(service, ServiceVerb::Resume, ui).await,
        Verb::Maintenance { service, mode, page } => commands::service::maintenance(service, mode, page.as_deref(), ui).await,
        Verb::Run(args) => commands::run::run(args, ui).await,
        Verb::Env(verb) => commands::env::run(verb, ui).await,
        Verb::Backup(args) => commands::backup::run(args, ui).await,
        Verb::Restore(args) => commands::restore::run(args, ui).await,
        Verb::Disk(verb) => commands::disk::run(verb, ui).await,
        Verb::Reach(args) => commands::reach::run(args, ui).await,
        Verb::Explain(args) => commands::explain::run(args, ui).await,
        Verb::Denied => commands::denied::run(ui).await,
        Verb::Events(args) => commands::events::run(args, ui).await,
        Verb::Serve => Err(CommandError::bug("`serve` has a runtime of its own")),
        Verb::Install(args) => commands::install::install(&args, ui),
        Verb::Uninstall => commands::install::uninstall(ui),
        Verb::Verify(args) => commands::verify::run(args, ui).await,
        Verb::Check(args) => commands::check::run(&args, ui),
        Verb::Plan(args) => commands::plan::run(args, ui).await,
        Verb::Schema => commands::schema::run(ui),
        Verb::Ingress { restart, set } => commands::ingress::run(restart, &set, ui).await,
        Verb::Cert(verb) => commands::cert::run(verb, ui).await,
        Verb::Trust { print } => commands::trust::run(print, ui).await,
        Verb::Top(args) => commands::top::run(args, ui).await,
        Verb::Metrics => commands::metrics::run(ui).await,
        Verb::Domains => commands::domains::run(ui).await,
        Verb::Doctor => commands::doctor::run(ui),
        Verb::Upgrade(args) => commands::upgrade::run(args, ui).await,
        Verb::Completions(args) => Ok(commands::completions::run(args.shell)),
    }
}
