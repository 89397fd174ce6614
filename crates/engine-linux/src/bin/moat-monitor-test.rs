//! For this crate's tests: the monitor on its own (`__monitor …`, as the product's program has it), and an engine in a
//! process that can be killed (`start STATE RUN SPEC`) or traced (`seal STATE RUN RELEASE`).

use moat_engine::Engine;
use moat_engine_linux::{Config, LinuxEngine, ServerImages, monitor};
use moat_planner::Step;
use moat_planner::plan::InstanceSpec;
use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|arg| arg.to_str()) {
        Some(monitor::VERB) => Ok(monitor::main(&args[2..])),
        Some("start") if args.len() == 5 => start(&args[2..]),
        Some("seal") if args.len() == 5 => seal(&args[2..]),
        _ => Err("`__monitor …`, `start STATE RUN SPEC` or `seal STATE RUN RELEASE` is expected".into()),
    }
}

/// Starts the instance of the file and stays.
fn start(args: &[OsString]) -> Result<ExitCode, Box<dyn Error>> {
    let instance: InstanceSpec = serde_json::from_slice(&std::fs::read(&args[2])?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        engine(args)?.apply(&Step::StartInstance { instance: Box::new(instance) }).await?;
        std::future::pending().await
    })
}

/// Finishes a release.
fn seal(args: &[OsString]) -> Result<ExitCode, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        engine(args)?.seal_release(&args[2].to_string_lossy()).await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn engine(args: &[OsString]) -> Result<LinuxEngine, Box<dyn Error>> {
    Ok(LinuxEngine::open(Config {
        state_dir: (&args[0]).into(),
        run_dir: (&args[1]).into(),
        oci_runtime: None,
        pass_env: Vec::new(),
        mirrors: Vec::new(),
        server_images: ServerImages::default(),
        shortcut: true,
        own_exe: std::env::current_exe()?,
    })?)
}
