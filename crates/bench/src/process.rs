//! Other programs: `moat` itself and the peers.

use crate::failure::{Doing, Failure, Outcome};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The `moat` program that was built beside this one.
#[derive(Debug)]
pub struct Moat(PathBuf);

impl Moat {
    /// Why it is not there.
    pub const MISSING: &str = "there is no `moat` beside this program (`cargo build --release -p moat-cli`)";

    /// The one beside this program, if it was built.
    pub fn find() -> Outcome<Option<Self>> {
        let path = std::env::current_exe().doing("find this program")?.with_file_name("moat");
        Ok(path.is_file().then_some(Self(path)))
    }
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// A command line of it, with run and state folder below `home`.
    pub fn command(&self, home: &Path) -> Command {
        let mut command = Command::new(&self.0);
        command.env("MOAT_RUN_DIR", home.join("run")).env("MOAT_STATE_DIR", home.join("state")).stdin(Stdio::null());
        command
    }
}

/// Runs a program that must succeed; what it took, start and end included.
pub fn timed(command: &mut Command) -> Outcome<Duration> {
    let start = Instant::now();
    let output = command.output().doing(format_args!("run {command:?}"))?;
    let took = start.elapsed();
    if output.status.success() {
        return Ok(took);
    }
    let said = [output.stderr, output.stdout].concat();
    Err(Failure::new(format!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&said).trim())))
}

/// Whether a program of this name is in `PATH` or where administrators' programs are.
pub fn found(program: &str) -> bool {
    find(program).is_some()
}

/// The program of this name in `PATH`, where administrators' programs are, or among the proxies that `cargo xtask bench` brought.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let brought = std::env::current_exe().ok()?.parent()?.parent()?.join("edge-peers/bin");
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).chain([brought]);
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}
