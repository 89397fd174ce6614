//! The process that stays in the user's own namespaces: it answers those inside, and keeps the way to the internet.
//!
//! Invariant: it ends when it is told to, or when nobody can find it any more, and the holder with it.

use super::egress::{self, Egress, NoEgress};
use super::groups::{self, Groups};
use super::{HELD, READY, lacks, say, tag};
use crate::sys;
use moat_net_linux::outside::{About, Asked, Door, Found};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, dup2_stdout, setsid};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Between two looks at the way out and at the socket, in milliseconds.
const LOOK_EVERY: u16 = 1000;

/// The role: `RUN HOLDER GROUPS`, the last as JSON.
pub fn main(args: &[OsString]) -> ExitCode {
    super::close_handed();
    let [run, holder, groups] = args else { return ExitCode::from(2) };
    let (run, holder) = (Path::new(run), holder.to_str().and_then(|pid| pid.parse().ok()));
    let groups = groups.to_str().and_then(|text| serde_json::from_str(text).ok());
    let (Some(holder), Some(groups)) = (holder, groups) else { return ExitCode::from(2) };
    match stay(run, holder, &groups) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn stay(run: &Path, holder: i32, groups: &Groups) -> io::Result<()> {
    // A session of its own: no terminal ends it.
    let _ = setsid();
    let held = sys::pidfd_open(Pid::from_raw(holder))?;
    let open = |kind: &str| File::open(format!("/proc/{holder}/ns/{kind}")).map(OwnedFd::from);
    let door = Door::open(run, [open("user")?, open("mnt")?, open("net")?])?;
    let program = egress::found();
    let mut egress = start(program.as_ref(), holder);
    if let Some(base) = groups.as_deref().ok().filter(|base| !groups::is_beside(base, &tag(run))) {
        // It may be there already; where it can't go, it ends with whoever started it, and the next command starts another.
        let _ = groups::join(base);
    }
    let about = |egress: &Result<Egress, NoEgress>| About {
        lacks: lacks(egress.as_ref().err(), groups),
        group: groups.clone().ok(),
        egress: program.as_ref().ok().filter(|_| egress.is_ok()).map(|program| program.display().to_string()),
    };
    say(READY);
    let null = File::options().write(true).open("/dev/null")?;
    dup2_stdout(&null)?;
    loop {
        let ready = {
            let mut ready = [PollFd::new(door.listener(), PollFlags::POLLIN)];
            poll(&mut ready, PollTimeout::from(LOOK_EVERY))
        };
        if matches!(ready, Ok(1)) && matches!(door.serve(&about(&egress)), Ok(Asked::End)) {
            break;
        }
        match door.found() {
            Found::Own => {}
            Found::Other => return Ok(()),
            Found::Nobody => break,
        }
        if program.is_ok() && egress.as_mut().map_or(true, |egress| !egress.runs()) {
            egress = start(program.as_ref(), holder);
        }
    }
    drop(egress);
    // Whoever still runs inside keeps the namespaces for as long as that.
    let _ = sys::pidfd_kill(held.as_fd(), Signal::SIGKILL);
    let _ = fs::remove_file(run.join(HELD));
    groups.as_deref().map_or(Ok(()), |base| groups::give_back(base, &tag(run)))
}

fn start(program: Result<&PathBuf, &NoEgress>, holder: i32) -> Result<Egress, NoEgress> {
    let program = program.map_err(NoEgress::clone)?;
    Egress::start(program, holder)
        .map_err(|error| NoEgress { why: format!("`{}`: {error}", program.display()), hint: "it is tried again each second".to_owned() })
}
