//! Where servers and clients are, and what is between them.
//!
//! Invariant: a server ends with its lane.

use super::Load;
use crate::docker::Docker;
use crate::engine::{Site, Words};
use crate::failure::{Doing, Failure, Outcome};
use crate::image::{Published, Stage};
use crate::net::scene::Room;
use crate::net::{peers, policy};
use crate::process::timed;
use moat_engine::Engine;
use moat_model::state::{NativeWorkload, Workload};
use moat_model::{InstanceId, LinkName};
use moat_net_linux::ns;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const REDIS: [&str; 5] = ["redis-server", "--save", "", "--appendonly", "no"];
const MEMCACHED: [&str; 3] = ["memcached", "-t", "1"];
const PORTS: [u16; 2] = [6379, 11211];
/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);
/// What of the policy the rooms are: client and server.
const ROOMS: [u16; 2] = [450, 451];
/// What of the policy the servers are that are instances: Redis and Memcached.
const SERVERS: [u16; 2] = [460, 461];
/// The first number of clients that are instances; each is used once, as a deploy does.
const FIRST_CLIENT: u16 = 100;

/// One way from a client to the servers.
pub struct Lane<'a> {
    /// What the table calls it.
    pub name: &'static str,
    /// Where Redis is, and where Memcached is.
    hosts: [String; 2],
    place: Place<'a>,
}

enum Place<'a> {
    /// Plain processes in namespaces; the server's is the client's own where there is no other.
    Rooms { client: Room, server: Option<Room>, between: Vec<Room>, servers: Vec<Server>, site: Option<&'a Site> },
    /// Instances: the servers from images, clients as native workers.
    Instances { site: &'a Site, servers: Vec<InstanceId>, release: String, workload: Box<NativeWorkload>, next: u16 },
    /// Containers on the default bridge.
    Containers { docker: &'a Docker, servers: Vec<String>, image: String, program: PathBuf },
}

impl<'a> Lane<'a> {
    /// Through one pair of links.
    pub fn veth() -> Outcome<Self> {
        let (client, server) = (Room::new()?, Room::new()?);
        client.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}\naddress add {NEAR}/24 dev eth0\nlink set eth0 up",
            server.pid()
        ))?;
        server.ip(&format!("address add {FAR}/24 dev eth0\nlink set eth0 up"))?;
        Self::rooms("one veth pair, plain processes", client, Some(server), FAR, None)
    }

    /// Within one namespace.
    pub fn loopback() -> Outcome<Self> {
        Self::rooms("loopback, plain processes", Room::new()?, None, Ipv4Addr::LOCALHOST, None)
    }

    /// Through the private network to a service address, by processes that are in no sandbox.
    pub fn moat_rooms(site: &'a Site) -> Outcome<Self> {
        let (client, server) = (Room::new()?, Room::new()?);
        for (number, room) in ROOMS.into_iter().zip([&client, &server]) {
            let address = policy::instance(number).ok_or_else(no_address)?;
            let link = LinkName::of(address.v4);
            site.runtime.block_on(site.engine.network().attach(room.pid(), address, &link)).doing("attach a namespace")?;
        }
        let host = policy::service(ROOMS[1]).ok_or_else(no_address)?.v4;
        Self::rooms("Moat's network, plain processes", client, Some(server), host, Some(site))
    }

    /// Through two pairs of links and a router that decides nothing.
    pub fn routed() -> Outcome<Self> {
        let (path, rooms) = peers::routed()?;
        let mut rooms = rooms.into_iter();
        let (Some(client), server) = (rooms.next(), rooms.next()) else { return Err(Failure::new("a namespace is missing")) };
        let mut lane = Self::rooms("routed veths without policy, plain processes", client, server, path.target.ip(), None)?;
        if let Place::Rooms { between, .. } = &mut lane.place {
            between.extend(rooms);
        }
        Ok(lane)
    }

    fn rooms(name: &'static str, client: Room, server: Option<Room>, host: impl Into<IpAddr>, site: Option<&'a Site>) -> Outcome<Self> {
        let host = host.into();
        let at = server.as_ref().unwrap_or(&client);
        let open = ["--protected-mode", "no"];
        let user = ["-u", "nobody"];
        let servers = vec![Server::start(at, &[&REDIS[..], &open].concat())?, Server::start(at, &[&MEMCACHED[..], &user].concat())?];
        for port in PORTS {
            listens(port, || Ok(ns::in_ns(&at.ns, || TcpStream::connect((Ipv4Addr::LOCALHOST, port))).is_ok_and(|made| made.is_ok())))?;
        }
        Ok(Self {
            name,
            hosts: [host.to_string(), host.to_string()],
            place: Place::Rooms { client, server, between: Vec::new(), servers, site },
        })
    }

    /// Through the private network from an instance to the service addresses of instances.
    pub fn moat(stage: &'a Stage) -> Outcome<Self> {
        let site = &stage.site;
        let source = stage.folder.path().join("client");
        fs::create_dir(&source).doing("make a folder")?;
        let program = source.join("client");
        fs::copy(std::env::current_exe().doing("find this program")?, &program).doing("copy this program")?;
        let (release, workload) = site.release(&program)?;
        let mut servers = Vec::new();
        for ((image, command), (number, port)) in commands(stage).into_iter().zip(SERVERS.into_iter().zip(PORTS)) {
            let quoted: Vec<String> = command.iter().map(|word| format!("'{word}'")).collect();
            let mut spec = Site::spec(number, image.workload(&quoted.join(" ")), &image.release(site)?)?;
            spec.limits.cpu_millis = 1000;
            let id = site.start(spec)?;
            let heard = || Ok(site.runtime.block_on(site.engine.listeners(&id)).words()?.iter().any(|one| one.endpoint.port == port));
            listens(port, heard)?;
            servers.push(id);
        }
        let host = |number| policy::service(number).map(|address| address.v4.to_string()).ok_or_else(no_address);
        let hosts = [host(SERVERS[0])?, host(SERVERS[1])?];
        let place = Place::Instances { site, servers, release, workload: Box::new(workload), next: FIRST_CLIENT };
        Ok(Self { name: "Moat, instances", hosts, place })
    }

    /// Through Docker's bridge, between containers.
    pub fn docker(stage: &Stage, docker: &'a Docker) -> Outcome<Self> {
        let (mut servers, mut hosts) = (Vec::new(), Vec::new());
        for ((image, command), port) in commands(stage).into_iter().zip(PORTS) {
            let id = said(docker.command().args(["run", "--detach", &image.reference]).args(command))?;
            let format = "{{.NetworkSettings.IPAddress}}";
            let host = said(docker.command().args(["inspect", "--format", format, &id]))?;
            let address: Ipv4Addr = host.parse().doing("read the address of a container")?;
            servers.push(id);
            hosts.push(host);
            listens(port, || Ok(TcpStream::connect((address, port)).is_ok()))?;
        }
        let hosts = hosts.try_into().map_err(|_| Failure::new("a container is missing"))?;
        let program = stage.folder.path().join("client");
        let place = Place::Containers { docker, servers, image: stage.redis.reference.clone(), program };
        Ok(Self { name: "Docker's bridge, containers", hosts, place })
    }

    /// Runs a client; what it says.
    pub fn load(&mut self, load: &Load) -> Outcome<String> {
        let host = if load.redis { &self.hosts[0] } else { &self.hosts[1] };
        match &mut self.place {
            Place::Rooms { client, .. } => {
                let own = std::env::current_exe().doing("find this program")?;
                said(inside(client, End::Client)?.args(load.arguments(&own.to_string_lossy(), host)))
            }
            Place::Instances { site, release, workload, next, .. } => {
                let number = *next;
                *next += 1;
                if number >= ROOMS[0] {
                    return Err(Failure::new("too many rounds"));
                }
                let command = format!("exec {}", load.arguments("./client", host).join(" "));
                let workload = Workload::Native(NativeWorkload { start_command: command, ..NativeWorkload::clone(workload) });
                let mut spec = Site::spec(number, workload, release)?;
                spec.limits.cpu_millis = 1000;
                let id = site.start(spec)?;
                site.end(&id)
            }
            Place::Containers { docker, image, program, .. } => {
                let mount = format!("{}:/bench:ro", program.display());
                said(docker.command().args(["run", "--rm", "--volume", &mount, image]).args(load.arguments("/bench/client", host)))
            }
        }
    }

    /// Ends the servers.
    pub fn close(self) -> Outcome {
        match self.place {
            Place::Rooms { client, server, between, servers, site } => {
                drop((servers, client, server, between));
                let Some(site) = site else { return Ok(()) };
                ROOMS.into_iter().filter_map(policy::instance).try_for_each(|address| {
                    site.runtime.block_on(site.engine.network().detach(&LinkName::of(address.v4))).doing("detach a namespace").map(drop)
                })
            }
            Place::Instances { site, servers, .. } => servers.iter().try_for_each(|id| site.stop(id)),
            Place::Containers { docker, servers, .. } => timed(docker.command().args(["rm", "--force"]).args(servers)).map(drop),
        }
    }
}

fn commands(stage: &Stage) -> [(&Published, &'static [&'static str]); 2] {
    [(&stage.redis, &REDIS), (&stage.memcached, &MEMCACHED)]
}

fn no_address() -> Failure {
    Failure::new("no such address")
}

/// The two ends of a lane between plain processes.
#[derive(Clone, Copy)]
enum End {
    Client,
    Server,
}

/// A command line that goes on in a namespace, on a processor of its end's own and before other work of the machine.
fn inside(room: &Room, end: End) -> Outcome<Command> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).doing("read the processors")?;
    let mut allowed = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let processor = match end {
        End::Client => allowed.next(),
        End::Server => allowed.next_back(),
    };
    let processor = processor.ok_or_else(|| Failure::new("no processor is allowed"))?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", room.pid())).args(["--", "chrt", "--fifo", "1", "taskset", "--cpu-list"]);
    command.arg(processor.to_string()).stdin(Stdio::null());
    Ok(command)
}

/// Runs a program that must succeed; what it says.
fn said(command: &mut Command) -> Outcome<String> {
    let output = command.output().doing(format_args!("run {command:?}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(Failure::new(format!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

/// Waits until someone listens.
fn listens(port: u16, heard: impl Fn() -> Outcome<bool>) -> Outcome {
    let since = Instant::now();
    while !heard()? {
        if since.elapsed() > PATIENCE {
            return Err(Failure::new(format!("nothing listens on port {port}")));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A server that is a plain process.
struct Server(Child);

impl Server {
    fn start(room: &Room, command: &[&str]) -> Outcome<Self> {
        let mut line = inside(room, End::Server)?;
        line.args(command).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        Ok(Self(line.spawn().doing(format_args!("run {command:?}"))?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
