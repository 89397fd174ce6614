//! The folder of a live instance, and what can be told from it.
//!
//! Invariant: what is said about an instance comes from its folder and `/proc`, never from this process' memory, so any
//! engine that opens the same runtime folder says the same. What can't be told (no descriptor is left) is an error, never an end.

use super::Inner;
use crate::monitor::files::{self, ProcessId};
use moat_engine::EngineError;
use moat_model::state::{ExitReport, InstancePhase, ObservedInstance};
use moat_model::{AddressPair, InstanceId, LinkName, Purpose, ServiceId, Slug};
use moat_planner::plan::InstanceSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::PoisonError;

/// File name of [`Facts`].
pub const FACTS: &str = "instance.json";

/// What an instance is; no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its id.
    pub id: InstanceId,
    /// Its service.
    pub service: ServiceId,
    /// Its service's slug.
    pub slug: Slug,
    /// What it runs for.
    pub purpose: Purpose,
    /// What it is made of.
    pub fingerprint: String,
    /// Its addresses.
    pub address: AddressPair,
    /// Its link.
    pub link: LinkName,
    /// The release it runs, which must not be removed meanwhile.
    pub release: Option<String>,
    /// A folder of the host that only one instance may write (a disk, a Key Value's data).
    pub exclusive: Option<std::path::PathBuf>,
}

impl Facts {
    /// What an instance is, from its specification.
    pub fn of(spec: &InstanceSpec, exclusive: Option<std::path::PathBuf>) -> Self {
        Self {
            id: spec.id.clone(),
            service: spec.service.clone(),
            slug: spec.slug.clone(),
            purpose: spec.purpose,
            fingerprint: spec.fingerprint.clone(),
            address: spec.address,
            link: spec.link.clone(),
            release: spec.release.clone(),
            exclusive,
        }
    }
}

/// What was seen of one instance.
#[derive(Debug, Clone)]
pub struct Look {
    /// What it is; absent when its folder was half made.
    pub facts: Option<Facts>,
    /// Where it is in its life.
    pub phase: InstancePhase,
    /// Its monitor, while that lives.
    pub monitor: Option<ProcessId>,
    /// Its first process, while that lives.
    pub program: Option<ProcessId>,
    /// Whether its program was ever started.
    pub began: bool,
}

fn fail(id: &str, error: io::Error) -> EngineError {
    EngineError::new(format!("look at `{id}`"), error.to_string()).caused_by(error)
}

/// Looks at one instance; `None` when it has no folder.
pub fn look(inner: &Inner, id: &InstanceId) -> Result<Option<Look>, EngineError> {
    let dir = inner.paths.instance(id.as_str());
    match fs::metadata(&dir) {
        Ok(about) if about.is_dir() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(id.as_str(), error)),
    }
    let starting = inner.starting.lock().unwrap_or_else(PoisonError::into_inner).contains(id);
    read(&dir, starting).map(Some).map_err(|error| fail(id.as_str(), error))
}

fn read(dir: &Path, starting: bool) -> io::Result<Look> {
    let facts = files::read_json(&dir.join(FACTS))?;
    let monitor = alive(files::read_json(&dir.join(files::MONITOR))?)?;
    let program: Option<ProcessId> = files::read_json(&dir.join(files::PROGRAM))?;
    // After the monitor: one that has just ended wrote its report before.
    let status: Option<ExitReport> = files::read_json(&dir.join(files::STATUS))?;
    let phase = match (status, monitor, program) {
        (Some(report), ..) => InstancePhase::Exited(report),
        (None, Some(_), Some(_)) => InstancePhase::Running,
        (None, Some(_), None) => InstancePhase::Preparing,
        (None, None, _) if starting => InstancePhase::Preparing,
        (None, None, _) => InstancePhase::Lost,
    };
    Ok(Look { facts, phase, monitor, program: alive(program)?, began: program.is_some() })
}

/// The process, if it lives.
fn alive(process: Option<ProcessId>) -> io::Result<Option<ProcessId>> {
    match process {
        Some(process) if process.alive()? => Ok(Some(process)),
        Some(_) | None => Ok(None),
    }
}

/// Ids of every folder there is.
pub fn ids(inner: &Inner) -> Result<Vec<InstanceId>, EngineError> {
    let entries = match fs::read_dir(inner.paths.instances()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail("instances", error)),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>();
    let names = names.map_err(|error| fail("instances", error))?;
    Ok(names.into_iter().filter_map(|name| InstanceId::new(name.into_string().ok()?).ok()).collect())
}

/// Everything that can be told of every instance.
pub fn observe_all(inner: &Inner) -> Result<BTreeMap<InstanceId, ObservedInstance>, EngineError> {
    let mut out = BTreeMap::new();
    for id in ids(inner)? {
        let Some(Look { facts: Some(facts), phase, monitor, program, .. }) = look(inner, &id)? else { continue };
        let pid = |process: Option<ProcessId>| process.and_then(|process| u32::try_from(process.pid).ok());
        let observed = ObservedInstance {
            id: facts.id,
            service: facts.service,
            slug: facts.slug,
            purpose: facts.purpose,
            fingerprint: facts.fingerprint,
            address: facts.address,
            link: facts.link,
            phase,
            monitor_pid: pid(monitor),
            pid: pid(program),
        };
        out.insert(id, observed);
    }
    Ok(out)
}
