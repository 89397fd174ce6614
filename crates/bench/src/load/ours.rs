//! The services on Moat: one behind the ingress, one at its private address, asked from a worker.

use super::{DRAIN, Lane, lanes};
use crate::failure::{Doing, Failure, Outcome};
use crate::process::{Moat, timed};
use serde_json::Value;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const INGRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// A Moat with the measured services.
pub struct Ours<'a> {
    moat: &'a Moat,
    home: PathBuf,
    blueprint: PathBuf,
}

/// Nothing runs yet. `source`: the folder of the built program.
pub fn begin<'a>(moat: &'a Moat, folder: &Path, source: &Path) -> Outcome<Ours<'a>> {
    let (home, blueprint) = (folder.join("moat"), source.join("render.yaml"));
    fs::create_dir(&home).doing("make a folder")?;
    let service = |kind: &str, name: &str, more: &str| {
        format!(
            "  - type: {kind}\n    name: {name}\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: exec ./serve\n    \
             maxShutdownDelaySeconds: {DRAIN}\n    envVars:\n      - {{key: RELEASE, sync: false}}\n{more}"
        )
    };
    let text = format!(
        "services:\n{}{}  - type: worker\n    name: clients\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: exec sleep infinity\n",
        service("web", "site", ""),
        service("pserv", "echo", "      - {key: PORT, value: 7000}\n")
    );
    fs::write(&blueprint, text).doing("write a blueprint")?;
    let ours = Ours { moat, home, blueprint };
    ours.deploy(0)?;
    Ok(ours)
}

impl Ours<'_> {
    /// Both services, one of two releases each.
    pub fn deploy(&self, release: usize) -> Outcome {
        let mut command = self.moat.command(&self.home);
        let release = format!("RELEASE={}", release % 2);
        command.args(["up", "--detach", "--listen", &INGRESS.to_string(), "--set", &release]).arg(&self.blueprint);
        timed(&mut command).map(drop)
    }

    /// The clients, with the worker's network for those of the private service.
    pub fn lanes(&self) -> Outcome<Vec<(Lane, Option<OwnedFd>)>> {
        let output = self.moat.command(&self.home).args(["ps", "--output", "json"]).output().doing("run `moat ps`")?;
        let ps: Value = serde_json::from_slice(&output.stdout).doing("understand `moat ps`")?;
        let missing = || Failure::new(format!("`moat ps` does not tell of the services: {ps}"));
        let service = |name: &str| ps["services"].as_array()?.iter().find(|service| service["state"]["service"] == name);
        let address = service("echo").and_then(|echo| echo["address"]["v4"].as_str()?.parse::<Ipv4Addr>().ok()).ok_or_else(missing)?;
        let pid = service("clients").and_then(|clients| clients["instances"][0]["pid"].as_u64()).ok_or_else(missing)?;
        let ns = File::open(format!("/proc/{pid}/ns/net")).doing("open the worker's network")?;
        let all = lanes(INGRESS, "site.localhost", SocketAddr::new(address.into(), 7000));
        let inside = |lane: &Lane| lane.host.is_none().then(|| ns.try_clone().map(OwnedFd::from)).transpose();
        all.into_iter().map(|lane| Ok((lane.clone(), inside(&lane).doing("open the worker's network")?))).collect()
    }

    /// Stops everything.
    pub fn end(&self) -> Outcome {
        timed(self.moat.command(&self.home).arg("down")).map(drop)
    }
}
