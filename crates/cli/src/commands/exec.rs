//! `moat exec`.

use super::{ask_one, need_root_and_groups, own_exe};
use crate::args::ExecArgs;
use crate::command_error::CommandError;
use moat_daemon::Paths;
use moat_daemon::protocol::{Event, Request};
use moat_engine_linux::{Config, LinuxEngine, ServerImages};
use moat_model::{InstanceId, Purpose, Secret};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;

/// Runs the command in the first ready instance, or in the one named.
pub async fn run(args: ExecArgs) -> Result<ExitCode, CommandError> {
    need_root_and_groups()?;
    let (slug, wanted) = match args.target.split_once('/') {
        Some((slug, instance)) => (slug, Some(instance)),
        None => (args.target.as_str(), None),
    };
    let status = ask_one(Request::Status, |event| match event {
        Event::Status(status) => Some(status),
        _ => None,
    })
    .await?;
    let names: Vec<&str> = status.services.iter().map(|s| s.state.service.as_str()).collect();
    let service =
        status.services.iter().find(|s| s.state.service.as_str() == slug || s.name == slug).ok_or_else(|| {
            CommandError::refused(format!("no service `{slug}` runs here")).hint(format!("services: {}", names.join(", ")))
        })?;
    let serving = || service.instances.iter().filter(|i| i.purpose == Purpose::Serve || i.purpose == Purpose::Cron);
    let instance = match wanted {
        // The whole id, its last five characters, or a position from 0.
        Some(wanted) => serving()
            .enumerate()
            .find(|(n, i)| i.id == wanted || i.id.ends_with(&format!("-{wanted}")) || n.to_string() == wanted)
            .map(|(_, i)| i),
        None => serving().find(|i| i.ready).or_else(|| serving().next()),
    };
    let instance = instance.ok_or_else(|| {
        let ids: Vec<&str> = serving().map(|i| i.id.as_str()).collect();
        CommandError::refused(format!("`{slug}` has no such instance running")).hint(if ids.is_empty() {
            "it has none now".to_owned()
        } else {
            format!("instances: {}", ids.join(", "))
        })
    })?;
    let id = InstanceId::new(instance.id.clone()).map_err(|error| CommandError::bug(error.to_string()))?;
    let engine = open_engine()?;
    let tty = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let own = |fd: std::io::Result<OwnedFd>| fd.map_err(|error| CommandError::engine(format!("can't share the terminal: {error}")));
    let stdio = [
        own(std::io::stdin().as_fd().try_clone_to_owned())?,
        own(std::io::stdout().as_fd().try_clone_to_owned())?,
        own(std::io::stderr().as_fd().try_clone_to_owned())?,
    ];
    let mut env = BTreeMap::new();
    if let (true, Ok(term)) = (tty, std::env::var("TERM")) {
        env.insert("TERM".to_owned(), Secret::new(term));
    }
    let code = engine.exec(&id, args.command, env, tty, stdio).await.map_err(engine_error)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(255)))
}

/// The engine of this machine, beside the daemon's: for what needs no order of things.
pub fn open_engine() -> Result<LinuxEngine, CommandError> {
    let paths = Paths::from_env();
    LinuxEngine::open(Config {
        state_dir: paths.state,
        run_dir: paths.run,
        oci_runtime: std::env::var_os("MOAT_OCI_RUNTIME").map(Into::into),
        mirrors: Vec::new(),
        server_images: ServerImages::default(),
        pass_env: Vec::new(),
        shortcut: true,
        own_exe: own_exe()?,
    })
    .map_err(engine_error)
}

/// An engine's error in the words of the command line.
pub fn engine_error(error: moat_engine::EngineError) -> CommandError {
    let out = CommandError::engine(error.to_string());
    match error.hint {
        Some(hint) => out.hint(hint),
        None => out,
    }
}
