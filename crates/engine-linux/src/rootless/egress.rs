//! The way to the internet of a network namespace that has no link to the machine's: slirp4netns(1), an ordinary process outside that
//! opens the sockets for what comes to a tap device inside.
//!
//! It opens nothing of the machine's loopback; the machine's own addresses are refused by the router's filter, as everywhere.

use crate::toolchain;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::pipe;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The program.
const PROGRAM: &str = "slirp4netns";
/// The resolver that it answers as, inside.
pub const RESOLVER: &str = "10.0.2.3";
/// What it makes devices with.
const TUN: &str = "/dev/net/tun";

/// Why services don't reach the internet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoEgress {
    /// In words.
    pub why: String,
    /// What to run.
    pub hint: String,
}

/// The program, where it is installed and can make its device.
pub fn found() -> Result<PathBuf, NoEgress> {
    let again = "then `moat down` and `moat up`";
    let program = toolchain::program(PROGRAM)
        .ok_or_else(|| NoEgress { why: format!("`{PROGRAM}` is not installed"), hint: format!("`apt-get install {PROGRAM}`, {again}") })?;
    match File::options().read(true).write(true).open(TUN) {
        Ok(_) => Ok(program),
        Err(error) => {
            Err(NoEgress { why: format!("`{TUN}`: {error}"), hint: format!("`sudo modprobe tun` and `sudo chmod 666 {TUN}`, {again}") })
        }
    }
}

/// One that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Egress {
    child: Child,
}

impl Egress {
    /// Starts it for the namespaces of a process, and waits until the device is configured.
    pub fn start(program: &Path, holder: i32) -> io::Result<Self> {
        // The one end that it inherits; its output is words.
        let (ready, told) = pipe()?;
        fcntl(&ready, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        let child = Command::new(program)
            .args(["--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp"])
            // Its standard input closes with this process.
            .arg("--exit-fd=0")
            .arg(format!("--ready-fd={}", told.as_raw_fd()))
            .arg(holder.to_string())
            .arg("tap0")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        drop(told);
        let mut egress = Self { child };
        match File::from(ready).read_exact(&mut [0]) {
            Ok(()) => Ok(egress),
            Err(_) => Err(io::Error::other(format!("it ended: {}", egress.child.wait()?))),
        }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
