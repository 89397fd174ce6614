//! What a whole machine had beside its services' data: releases, images, certificates, repositories.

use super::failed;
use crate::engine::LinuxEngine;
use crate::tree;
use moat_engine::EngineError;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Folders of the state folder that another machine needs besides what services keep.
const TREES: [&str; 4] = ["releases", "images", "certificates", "git"];
/// How deep names are looked at: what lies deeper belongs to one release, layer or repository, and that is there or not.
const DEPTH: u32 = 3;

impl LinuxEngine {
    /// The folders, by name, that another machine needs besides what services keep.
    pub fn trees(&self) -> Vec<(&'static str, PathBuf)> {
        TREES.into_iter().map(|name| (name, self.inner.paths.state().join(name))).filter(|(_, path)| path.is_dir()).collect()
    }

    /// The ids that services of this machine have, as another machine takes them over.
    pub fn ranges_file(&self) -> PathBuf {
        self.inner.paths.state().join("ranges.json")
    }

    /// A folder for what is brought back of a whole machine, empty and not there.
    pub fn stage_machine(&self) -> Result<PathBuf, EngineError> {
        let path = self.machine_stage();
        tree::remove(&path).map_err(failed("prepare a restore", &path))?;
        fs::create_dir(&path).map_err(failed("prepare a restore", &path))?;
        Ok(path)
    }

    fn machine_stage(&self) -> PathBuf {
        self.inner.paths.snapshots().join("machine.part")
    }

    /// Puts the folders of [`Self::stage_machine`] in their places. What is there already stays: releases and layers are known by
    /// their content.
    pub async fn install_trees(&self) -> Result<(), EngineError> {
        let staged = self.machine_stage();
        self.blocking(move |inner| {
            for name in TREES {
                let (from, to) = (staged.join(name), inner.paths.state().join(name));
                if from.exists() {
                    merge(&from, &to, DEPTH).map_err(failed("put back", &to))?;
                }
            }
            super::sync(inner.paths.state()).map_err(failed("put back", inner.paths.state()))
        })
        .await
    }

    /// Removes what [`Self::stage_machine`] made.
    pub async fn unstage_machine(&self) {
        let staged = self.machine_stage();
        let removed = self.blocking(move |_| tree::remove(&staged).map_err(failed("remove what was staged", &staged)));
        if let Err(error) = removed.await {
            // The next daemon does it.
            tracing::warn!(%error, "a staged machine stays");
        }
    }
}

fn merge(from: &Path, to: &Path, depth: u32) -> io::Result<()> {
    match fs::symlink_metadata(to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return fs::rename(from, to),
        other => other?,
    };
    if depth == 0 || !from.is_dir() || !to.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        merge(&entry.path(), &to.join(entry.file_name()), depth - 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays_and_the_rest_comes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for (name, text) in [("from/a/x/file", "theirs"), ("from/a/new/file", "new"), ("from/b/file", "b"), ("to/a/x/file", "ours")] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        merge(&from, &to, DEPTH).unwrap();
        for (name, text) in [("a/x/file", "ours"), ("a/new/file", "new"), ("b/file", "b")] {
            assert_eq!(fs::read_to_string(to.join(name)).unwrap(), text);
        }
    }
}
