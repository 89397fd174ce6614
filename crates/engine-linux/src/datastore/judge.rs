//! Whether data that is brought back fits the datastore that is to have it.

use super::{Origin, Provider, Servers, data};
use crate::engine::LinuxEngine;
use crate::lower::keyvalue;
use moat_engine::EngineError;
use moat_model::Service;
use moat_model::state::Workload;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};

impl LinuxEngine {
    /// Refuses data that the server of a datastore would not read, and lays out the rest as that server looks for it. `origin` is
    /// where the server that runs comes from; none where none ran here yet. Other services' folders are taken as they are.
    pub async fn judge_data(&self, service: &Service, staged: PathBuf, origin: Option<Origin>) -> Result<(), EngineError> {
        let service = service.clone();
        self.blocking(move |inner| {
            let doing = format!("bring back the data of `{}`", service.slug);
            match &service.workload {
                Workload::Postgres(wanted) => {
                    let found = data::version(&staged)?.ok_or_else(|| EngineError::new(&doing, "it is no database"))?;
                    let now = data::version(&inner.paths.data(&service.id))?;
                    let other = now.or(wanted.major).filter(|major| *major != found);
                    if let Some(other) = other {
                        return Err(EngineError::new(&doing, format!("it is PostgreSQL {found}'s, and `{}` is PostgreSQL {other}", service.slug))
                            .hint("a server reads the data of its own major version only: restore it where that runs, and move the data with pg_dump and psql"));
                    }
                }
                Workload::KeyValue(_) => lay_out(&staged).map_err(|error| {
                    EngineError::new(&doing, format!("`{}`: {error}", staged.display())).caused_by(error)
                })?,
                Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => return Ok(()),
            }
            let provider = Servers::default().provider(&inner.config.server_images, &service.workload, &staged)?;
            match (provider, origin) {
                (Provider::Image(wanted), Some(Origin::Machine)) => Err(EngineError::new(&doing, wanted.because).hint(wanted.hint)),
                _ => Ok(()),
            }
        })
        .await
    }
}

/// A server that keeps a journal reads that and no snapshot, so the snapshot becomes the journal's begin: where there is no folder
/// of journals, servers from 7.0 on take this file for that of an earlier one (redis `aof.c`, "aofUpgradePrepare").
fn lay_out(staged: &Path) -> std::io::Result<()> {
    let [snapshot, journal] = keyvalue::SNAPSHOTS.map(|name| staged.join(name));
    if !snapshot.exists() || journal.exists() || staged.join(keyvalue::JOURNAL).exists() {
        return Ok(());
    }
    fs::copy(&snapshot, &journal)?;
    let about = fs::metadata(&snapshot)?;
    lchown(&journal, Some(about.uid()), Some(about.gid()))
}
