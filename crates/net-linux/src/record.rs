//! What is remembered in `RUN/net`: the policy last applied, and what was found of the host.
//!
//! Invariant: `policy.json` is what the live filter holds unless the file `policy.unknown` is there too, which is
//! written before the filter changes and removed after `policy.json` says so.

use crate::lower::Facts;
use crate::NetError;
use moat_model::policy::NetPolicy;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// What was chosen for and found of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// The host's IPv4 address on the uplink; the router's is the next one, in a /30.
    pub uplink_v4: Ipv4Addr,
    /// The host's IPv6 address on the uplink; the router's is the next one, in a /126.
    pub uplink_v6: Option<Ipv6Addr>,
    /// Settings of the host (below `/proc/sys/net`) that were changed, with their values before.
    pub settings: Vec<(String, String)>,
    /// The facts that the live filter was made with.
    pub facts: Facts,
}

impl HostRecord {
    /// The router's IPv4 address on the uplink.
    pub fn router_v4(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.uplink_v4) + 1)
    }
    /// The router's IPv6 address on the uplink.
    pub fn router_v6(&self) -> Option<Ipv6Addr> {
        self.uplink_v6.map(|host| Ipv6Addr::from(u128::from(host) + 1))
    }
}

/// The folder of records.
pub struct Records {
    folder: PathBuf,
}

impl Records {
    pub fn new(run_dir: &Path) -> Self {
        Self { folder: run_dir.join("net") }
    }

    /// Makes the folder and takes its lock, so that two processes never change the network at once.
    pub fn lock(&self) -> Result<Flock<File>, NetError> {
        let doing = || format!("lock `{}`", self.folder.display());
        fs::create_dir_all(&self.folder).map_err(NetError::io(doing()))?;
        let file = File::options().create(true).truncate(false).write(true).open(self.folder.join("lock")).map_err(NetError::io(doing()))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| NetError::io(doing())(error.into()))
    }

    /// Removes everything; whether something was there.
    pub fn remove(&self) -> Result<bool, NetError> {
        match fs::remove_dir_all(&self.folder) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(NetError::io(format!("remove `{}`", self.folder.display()))(error)),
        }
    }

    pub fn host(&self) -> Result<Option<HostRecord>, NetError> {
        self.read("host.json")
    }

    pub fn write_host(&self, record: &HostRecord) -> Result<(), NetError> {
        self.write("host.json", record)
    }

    /// The policy that the live filter holds; `None` when that is unknown.
    pub fn policy(&self) -> Result<Option<NetPolicy>, NetError> {
        if self.unknown().exists() {
            return Ok(None);
        }
        self.read("policy.json")
    }

    /// Says that the live filter is about to change.
    pub fn begin(&self) -> Result<(), NetError> {
        File::create(self.unknown()).map(drop).map_err(NetError::io(format!("write `{}`", self.unknown().display())))
    }

    /// Says what the live filter holds now.
    pub fn finish(&self, policy: &NetPolicy) -> Result<(), NetError> {
        self.write("policy.json", policy)?;
        match fs::remove_file(self.unknown()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetError::io(format!("remove `{}`", self.unknown().display()))(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn unknown(&self) -> PathBuf {
        self.folder.join("policy.unknown")
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, NetError> {
        let path = self.folder.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| NetError::Record { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NetError::io(format!("read `{}`", path.display()))(error)),
        }
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), NetError> {
        let path = self.folder.join(name);
        let doing = || format!("write `{}`", path.display());
        let bytes = serde_json::to_vec(value).map_err(|error| NetError::io(doing())(error.into()))?;
        let temporary = self.folder.join(format!("{name}.new"));
        let mut file = File::create(&temporary).map_err(NetError::io(doing()))?;
        file.write_all(&bytes).map_err(NetError::io(doing()))?;
        fs::rename(&temporary, &path).map_err(NetError::io(doing()))
    }
}
