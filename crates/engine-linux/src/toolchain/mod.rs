//! Finds a language's toolchain on this machine, wherever a version manager has put it, and says what of it a sandbox
//! needs to see.
//!
//! Invariant: a tree that is shown holds a toolchain, never a home folder or a top-level folder.

mod find;
pub mod keyvalue;
pub mod official;
pub mod postgres;
pub mod version;
pub mod wanted;

use moat_engine::EngineError;
use moat_model::NativeRuntime;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A toolchain, or a server program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Toolchain {
    /// The main program, a real file.
    pub program: PathBuf,
    /// Its version, `3.11.7`.
    pub version: String,
    /// Folders and files outside `/usr` that it needs, shown at the same place.
    pub trees: Vec<PathBuf>,
    /// Folders that come first in `PATH`.
    pub path: Vec<PathBuf>,
    /// Names that mean the main program (`python`, `python3`).
    pub names: Vec<String>,
    /// Names that mean other programs, where it is several languages in one.
    pub others: Vec<(String, PathBuf)>,
    /// Variables it needs.
    pub env: BTreeMap<String, String>,
}

impl Toolchain {
    /// Adds what is needed to see a file or folder: nothing below the system's own folders, else the folder, or, where that
    /// would show more than a toolchain, the one file.
    fn show(&mut self, tree: &Path, program: &Path) {
        let system = ["/usr", "/bin", "/sbin", "/lib", "/lib64"];
        if system.iter().any(|folder| tree.starts_with(folder)) {
            return;
        }
        let too_wide = tree.components().count() <= 2 || tree.starts_with("/home") && tree.components().count() <= 3;
        let tree = if too_wide { program } else { tree };
        if !self.trees.iter().any(|known| tree.starts_with(known)) {
            self.trees.push(tree.to_owned());
        }
    }
}

/// Finds the toolchain of a language: the one that `PATH` prefers, or the newest that is the version asked for.
pub fn resolve(runtime: NativeRuntime, wanted: Option<&str>) -> Result<Toolchain, EngineError> {
    let doing = format!("find the {} toolchain", runtime.word());
    let found = find::all(runtime, wanted.is_none());
    if found.is_empty() {
        return Err(EngineError::new(doing, format!("`{}` is not installed", find::program(runtime))).hint(find::hint(runtime, wanted)));
    }
    let Some(wanted) = wanted else { return found.into_iter().next().ok_or_else(|| EngineError::new(doing, "nothing was found")) };
    let mut fitting: Vec<&Toolchain> = Vec::new();
    for toolchain in &found {
        let named = toolchain.path.iter().any(|path| find::channel(path).as_deref() == Some(wanted));
        match version::matches(wanted, &toolchain.version) {
            _ if named => fitting.push(toolchain),
            Some(true) => fitting.push(toolchain),
            Some(false) => {}
            None if runtime == NativeRuntime::Rust => {}
            None => {
                return Err(EngineError::new(doing, format!("the version `{wanted}` can't be read"))
                    .hint("write a version such as `3.11`, or a range such as `>=18 <21`"));
            }
        }
    }
    if let Some(best) = fitting.into_iter().max_by_key(|toolchain| version::key(&toolchain.version)) {
        return Ok(best.clone());
    }
    let mut versions: Vec<String> = found.iter().map(|toolchain| toolchain.version.clone()).collect();
    versions.sort_by_key(|version| version::key(version));
    versions.dedup();
    let message = format!("{} {wanted} is not installed; found {}", runtime.word(), versions.join(", "));
    Err(EngineError::new(doing, message).hint(find::hint(runtime, Some(wanted))))
}

/// What a service's language comes from where this machine does not have what it asks for, in words; nothing where it does.
/// Nothing is run, except to compare versions.
pub fn instead(runtime: NativeRuntime, wanted: Option<&str>) -> Option<String> {
    if wanted.is_none() && program(find::program(runtime)).is_some() {
        return None;
    }
    let missing = resolve(runtime, wanted).err()?;
    Some(match official::reference(runtime, wanted) {
        Some(reference) => format!("{}: the image `{reference}` is used", missing.message),
        None => format!("{}, and no image has a tag for it", missing.message),
    })
}

/// Finds a program on `PATH` or in the system's folders.
pub fn program(name: &str) -> Option<PathBuf> {
    find::on_path(name).into_iter().next()
}

/// Every toolchain of a language on this machine, the preferred one first.
pub fn installed(runtime: NativeRuntime) -> Vec<Toolchain> {
    find::all(runtime, false)
}

/// What to do about a language that is not installed.
pub fn install_hint(runtime: NativeRuntime) -> String {
    find::hint(runtime, None)
}
