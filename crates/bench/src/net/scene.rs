//! Namespaces and what connects them.
//!
//! Invariant: a namespace lives as long as the process that holds it, which ends with this one; links go with it.

use crate::failure::{Doing, Failure, Outcome};
use moat_net_linux::ns;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

/// The first argument of a process that only holds a namespace.
pub const HOLD: &str = "__hold";
/// The port that a server listens on; paths to one server through several addresses need one each, since the addresses differ
/// only on the way: a new connection would meet what is left of an old one at the server.
pub const PORT: u16 = 700;
/// Ports of clients: enough that none comes again within a run.
const CLIENT_PORTS: &str = "1024 65000";

/// A network namespace.
#[derive(Debug)]
pub struct Room {
    holder: Child,
    /// The namespace.
    pub ns: File,
}

impl Room {
    /// A new, empty namespace whose loopback is up.
    pub fn new() -> Outcome<Self> {
        let program = std::env::current_exe().doing("find this program")?;
        let mut holder = Command::new(program)
            .arg(HOLD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .doing("start the holder of a namespace")?;
        let mut ready = [0];
        let said = holder.stdout.take().map(|mut stdout| stdout.read_exact(&mut ready));
        if !matches!(said, Some(Ok(()))) {
            return Err(Failure::new("the holder of a namespace ended at once"));
        }
        let ns = File::open(format!("/proc/{}/ns/net", holder.id())).doing("open a namespace")?;
        let room = Self { holder, ns };
        room.ip("link set lo up")?;
        let set = ns::in_ns(&room.ns, || std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", CLIENT_PORTS));
        set.and_then(|done| done).doing("give clients more ports")?;
        Ok(room)
    }
    /// The process that holds it.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }
    /// Runs lines of `ip` inside.
    pub fn ip(&self, lines: &str) -> Outcome {
        self.feed("ip", &["-batch", "-"], lines)
    }
    /// Runs a program inside that reads `text`.
    pub fn feed(&self, program: &str, arguments: &[&str], text: &str) -> Outcome {
        let net = format!("--net=/proc/{}/ns/net", self.pid());
        feed(Command::new("nsenter").arg(net).arg("--").arg(program).args(arguments), text)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // It ends by itself at the end of its input at the latest.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Runs a program that reads `text` and must succeed.
pub fn feed(command: &mut Command, text: &str) -> Outcome {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().doing(format_args!("run {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).doing(format_args!("write to {command:?}"))?;
    }
    let output = child.wait_with_output().doing(format_args!("run {command:?}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(Failure::new(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }
}

/// What a process with [`HOLD`] does: makes a namespace, says so, and waits for the end of its input.
pub fn hold() -> Outcome {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).doing("make a namespace")?;
    let mut stdout = std::io::stdout();
    stdout.write_all(b"r").and_then(|()| stdout.flush()).doing("say so")?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop).doing("wait")
}

/// From one namespace to a server in another.
#[derive(Debug)]
pub struct Path {
    /// What the table calls it.
    pub name: String,
    /// Where the client is.
    pub client: File,
    /// Where the server is.
    pub server: File,
    /// What the server listens on.
    pub listen: SocketAddr,
    /// What the client connects to.
    pub target: SocketAddr,
}

impl Path {
    /// A path to an address of the server or of a service.
    pub fn new(name: impl Into<String>, client: &Room, server: &Room, target: impl Into<IpAddr>, port: u16) -> Outcome<Self> {
        let target = target.into();
        let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
        let clone = |room: &Room| room.ns.try_clone().doing("open a namespace");
        Ok(Self {
            name: name.into(),
            client: clone(client)?,
            server: clone(server)?,
            listen: SocketAddr::new(any, port),
            target: SocketAddr::new(target, port),
        })
    }
}
