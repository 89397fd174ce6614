//! Runs a command inside a live instance.

use super::{LinuxEngine, folder};
use crate::cgroup;
use crate::lower::oci::{Process, Spec};
use crate::lower::sandbox::{INIT, LIBRARIES};
use crate::monitor::{ENTER_FLAG, GROUP, RUN_FLAG, VERB, files};
use moat_engine::EngineError;
use moat_model::{InstanceId, Secret};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often, and how long in between, a starting instance is looked at: two seconds in all.
const STARTING_LOOKS: u32 = 1000;
const STARTING_WAIT: Duration = Duration::from_millis(2);

/// Tells apart the commands that run at the same time.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl LinuxEngine {
    /// Runs a command in an instance's sandbox, as its user, with its environment, filter and limits, and waits for it.
    ///
    /// `env` is added to the instance's own environment. `stdio` is standard input, output and error; with `tty`, standard
    /// input must be a terminal. Returns the command's exit code; 128 + signal when one ended it; 127 when there is no such
    /// command and 126 when it can't be run, which is said on standard error.
    pub async fn exec(
        &self,
        id: &InstanceId,
        argv: Vec<String>,
        env: BTreeMap<String, Secret>,
        tty: bool,
        stdio: [OwnedFd; 3],
    ) -> Result<i32, EngineError> {
        let doing = format!("run a command in `{id}`");
        let fail = |error: std::io::Error| EngineError::new(&doing, error.to_string()).caused_by(error);
        let look = folder::look(&self.inner, id)?.ok_or_else(|| EngineError::new(&doing, "there is no such instance"))?;
        let (Some(monitor), Some(program)) = (look.monitor, look.program) else {
            return Err(EngineError::new(&doing, "the instance does not run"));
        };
        until_started(program.pid, &self.inner.runtime).await;
        let dir = self.inner.paths.instance(id.as_str());
        let spec: Spec = files::read_json(&dir.join(files::BUNDLE).join("config.json"))
            .map_err(fail)?
            .ok_or_else(|| EngineError::new(&doing, "the instance has just ended"))?;
        // The environment goes by a file that only root can read, never by an argument.
        let file = dir.join(format!("exec-{}-{}.json", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let process = process(spec.process, argv, &env, tty);
        let [input, output, errors] = stdio;
        if let Some((code, why)) = super::command::problem(program.pid, &process) {
            // A closed standard error leaves nobody to tell.
            let _ = writeln!(std::fs::File::from(errors), "moat: {why}");
            return Ok(code);
        }
        files::write_json(&file, &process).map_err(fail)?;
        let [input, output, errors] = [input, output, errors].map(Stdio::from);
        // Without root, the runtime may not move what it has put into the sandbox's user namespace between groups: it is there before.
        let grouped = crate::rootless::inside() && self.inner.paths.has_groups();
        let group = grouped.then(|| format!("{GROUP}{}", self.inner.paths.cgroup(id.as_str())));
        let status = tokio::process::Command::new(&self.inner.config.own_exe)
            .args([VERB, ENTER_FLAG])
            .arg(monitor.pid.to_string())
            .args(group)
            .arg("--")
            .arg(&self.inner.runtime)
            .arg("--root")
            .arg(self.inner.paths.runtime_root())
            .args([cgroup::manager(self.inner.machine.limits.is_some()), "exec", "--process"])
            .arg(&file)
            .arg(id.as_str())
            .current_dir("/")
            // Where a runtime without root would keep things of its own.
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(input)
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(true)
            .status()
            .await;
        // Gone with the instance's folder at the latest.
        let _ = std::fs::remove_file(&file);
        let status = status.map_err(fail)?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
    }
}

/// Waits until an instance's first process is a program of its own: before that it is the OCI runtime, which is still
/// making the sandbox, and a command that enters it then fails without a word.
async fn until_started(pid: i32, runtime: &Path) {
    let link = format!("/proc/{pid}/exe");
    for _ in 0..STARTING_LOOKS {
        // The runtime may run from a sealed copy of itself in memory.
        let is_runtime = |exe: &Path| exe.file_name() == runtime.file_name() || exe.to_string_lossy().starts_with("/memfd:");
        if !std::fs::read_link(&link).is_ok_and(|exe| is_runtime(&exe)) {
            return;
        }
        tokio::time::sleep(STARTING_WAIT).await;
    }
}

fn process(mut process: Process, argv: Vec<String>, env: &BTreeMap<String, Secret>, tty: bool) -> Process {
    process.terminal = tty;
    // With what runs it before it, where the sandbox has an image's libraries.
    let ours = match process.args.as_slice() {
        [first, ..] if first == INIT => 1,
        [linker, _, _, init, ..] if init == INIT && linker.starts_with(LIBRARIES) => 4,
        _ => 0,
    };
    process.args.truncate(ours);
    if ours > 0 {
        process.args.extend([VERB, RUN_FLAG, "--"].map(str::to_owned));
    }
    process.args.extend(argv);
    process.env.retain(|entry| entry.split_once('=').is_none_or(|(key, _)| !env.contains_key(key)));
    process.env.extend(env.iter().map(|(key, value)| format!("{key}={}", value.expose())));
    process
}
