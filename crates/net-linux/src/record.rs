//! What is remembered in `RUN/net`: the policy last applied, and what was found of the host.
//!
//! Invariant: `policy.json` with the changes listed in `policy.changes` is what the live filter holds, unless the file
//! `policy.unknown` is there too: it is written before the filter changes and removed after those two say so. Changes
//! are appended, so that remembering one service of many costs the size of one.

use crate::NetError;
use crate::lower::Facts;
use moat_model::policy::NetPolicy;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
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

/// Bytes of changes after which the policy is written as a whole again.
const CHANGES_LIMIT: u64 = 1 << 20;

/// Applies a change to a policy. An entry that changed is in both halves.
fn alter(policy: &mut NetPolicy, gone: &NetPolicy, come: NetPolicy) {
    let NetPolicy { sources, receivers, pairs, ingress, services, held } = come;
    policy.sources.retain(|id, _| !gone.sources.contains_key(id));
    policy.services.retain(|vip, _| !gone.services.contains_key(vip));
    policy.held.retain(|vip| !gone.services.contains_key(vip));
    policy.receivers.retain(|entry| !gone.receivers.contains(entry));
    policy.pairs.retain(|entry| !gone.pairs.contains(entry));
    policy.ingress.retain(|entry| !gone.ingress.contains(entry));
    policy.sources.extend(sources);
    policy.services.extend(services);
    policy.held.extend(held);
    policy.receivers.extend(receivers);
    policy.pairs.extend(pairs);
    policy.ingress.extend(ingress);
}

fn remove_file(path: &Path) -> Result<(), NetError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetError::io(format!("remove `{}`", path.display()))(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Tells one state of the records from another, cheaply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp([Option<(u64, u64, i64, i64)>; 3]);

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
        let file =
            File::options().create(true).truncate(false).write(true).open(self.folder.join("lock")).map_err(NetError::io(doing()))?;
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
        let Some(mut policy): Option<NetPolicy> = self.read("policy.json")? else { return Ok(None) };
        let path = self.changes();
        match fs::read(&path) {
            Ok(bytes) => {
                for change in serde_json::Deserializer::from_slice(&bytes).into_iter() {
                    let (gone, come) = change.map_err(|source| NetError::Record { path: path.clone(), source })?;
                    alter(&mut policy, &gone, come);
                }
                Ok(Some(policy))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(policy)),
            Err(error) => Err(NetError::io(format!("read `{}`", path.display()))(error)),
        }
    }

    /// Says that the live filter is about to change.
    pub fn begin(&self) -> Result<(), NetError> {
        File::create(self.unknown()).map(drop).map_err(NetError::io(format!("write `{}`", self.unknown().display())))
    }

    /// Says what the live filter holds now.
    pub fn finish(&self, policy: &NetPolicy) -> Result<(), NetError> {
        // The old changes belong to the old policy; while `policy.unknown` is there, nobody reads either.
        remove_file(&self.changes())?;
        self.write("policy.json", policy)?;
        remove_file(&self.unknown())
    }

    /// The same, as a change of what it held before: what went and what came.
    pub fn finish_change(&self, gone: &NetPolicy, come: &NetPolicy, policy: &NetPolicy) -> Result<(), NetError> {
        let path = self.changes();
        let doing = || NetError::io(format!("write `{}`", path.display()));
        let mut bytes = serde_json::to_vec(&(gone, come)).map_err(|error| doing()(error.into()))?;
        bytes.push(b'\n');
        let mut file = File::options().create(true).append(true).open(&path).map_err(doing())?;
        file.write_all(&bytes).map_err(doing())?;
        if file.metadata().map_err(doing())?.len() > CHANGES_LIMIT {
            return self.finish(policy);
        }
        remove_file(&self.unknown())
    }

    /// What the files of the policy look like from outside: as long as it is the same, so is the policy.
    pub fn stamp(&self) -> Stamp {
        let look = |path: PathBuf| fs::metadata(path).ok().map(|data| (data.ino(), data.len(), data.mtime(), data.mtime_nsec()));
        Stamp([self.folder.join("policy.json"), self.changes(), self.unknown()].map(look))
    }

    fn changes(&self) -> PathBuf {
        self.folder.join("policy.changes")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower;
    use moat_model::AddressPair;
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn pair(last: u8) -> AddressPair {
        AddressPair { v4: Ipv4Addr::new(10, 128, 0, last), v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()) }
    }

    /// Policies of service addresses: which there are, with whom behind each, and which of them are held.
    fn policy(services: &[(u8, &[u8])], held: &[u8]) -> NetPolicy {
        let behind = |list: &[u8]| list.iter().map(|last| pair(*last)).collect::<BTreeSet<_>>();
        let services: BTreeMap<_, _> = services.iter().map(|(vip, list)| (pair(*vip), behind(list))).collect();
        NetPolicy { services, held: behind(held), ..NetPolicy::default() }
    }

    #[test]
    fn what_is_remembered_change_by_change_is_the_last_policy() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path());
        let _lock = records.lock().unwrap();
        let mut before = policy(&[(1, &[9])], &[]);
        records.finish(&before).unwrap();
        for (services, held) in [
            (&[(1, &[][..]), (2, &[8])][..], &[1][..]),
            (&[(1, &[]), (2, &[8])], &[]),
            (&[(1, &[]), (2, &[])], &[1, 2]),
            (&[(1, &[7]), (2, &[])], &[2]),
            (&[(2, &[])], &[2]),
            (&[], &[]),
        ] {
            let after = policy(services, held);
            let (gone, come) = lower::difference(&before, &after);
            records.finish_change(&gone, &come, &after).unwrap();
            assert_eq!(records.policy().unwrap().as_ref(), Some(&after), "{services:?}, held {held:?}");
            before = after;
        }
    }
}
