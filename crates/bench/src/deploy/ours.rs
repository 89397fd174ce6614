//! Moat's own deploys: the real program, a web service behind the ingress.

use super::traffic::{Took, until};
use crate::failure::{Doing, Outcome};
use crate::process::{Moat, timed};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where the ingress listens; nobody else is in this network namespace.
pub const INGRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

const BLUEPRINT: &str = r#"services:
  - type: web
    name: measured
    runtime: python
    buildCommand: "true"
    startCommand: exec ./serve
    maxShutdownDelaySeconds: 2
    envVars:
      - key: RELEASE
        sync: false
"#;

/// A Moat with one web service.
pub struct Ours<'a> {
    moat: &'a Moat,
    home: PathBuf,
    blueprint: PathBuf,
}

impl<'a> Ours<'a> {
    /// Nothing runs yet. `source`: the folder of the built program.
    pub fn begin(moat: &'a Moat, folder: &Path, source: &Path) -> Outcome<Self> {
        let (home, blueprint) = (folder.join("moat"), source.join("render.yaml"));
        fs::create_dir(&home).doing("make a folder")?;
        fs::write(&blueprint, BLUEPRINT).doing("write a blueprint")?;
        Ok(Self { moat, home, blueprint })
    }

    /// Deploys one of two releases, each of which is built the first time only.
    pub fn deploy(&self, release: usize) -> Outcome<Took> {
        let mut command = self.moat.command(&self.home);
        command.args(["up", "--detach", "--listen", &INGRESS.to_string(), "--set", &format!("RELEASE={release}")]).arg(&self.blueprint);
        until(&mut command, INGRESS, "measured.localhost", release)
    }

    /// Stops everything.
    pub fn end(&self) -> Outcome {
        timed(self.moat.command(&self.home).arg("down")).map(drop)
    }
}
