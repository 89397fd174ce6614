//! The ids of a user namespace: the user's own is root in it, and a range that `/etc/subuid` and `/etc/subgid` give the user
//! (subuid(5)) is what services have.

use super::{RootlessError, restricted};
use crate::lower::sandbox;
use crate::ranges::FIRST;
use crate::toolchain;
use nix::unistd::{User, getegid, geteuid};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many ids services have.
pub const IDS: u32 = sandbox::IDS;

/// What the maps of a user namespace are written with.
#[derive(Debug)]
pub struct Maps {
    users: Map,
    groups: Map,
}

#[derive(Debug)]
struct Map {
    program: PathBuf,
    own: u32,
    first: u32,
}

impl Maps {
    /// Looks for the programs and the ranges of the user of this process.
    pub fn find() -> Result<Self, RootlessError> {
        let user = geteuid();
        let name = User::from_uid(user).ok().flatten().map_or_else(|| user.to_string(), |user| user.name);
        let map = |program: &str, file: &str, flag: &str, own: u32| {
            let program = toolchain::program(program).ok_or_else(|| {
                RootlessError::new(format!("without root, `{program}` is needed, which is not installed"))
                    .hint("`apt-get install uidmap`, or run it with sudo")
            })?;
            let text = fs::read_to_string(file).unwrap_or_default();
            let first = range(&text, &name, user.as_raw()).ok_or_else(|| {
                RootlessError::new(format!("without root, services need {IDS} ids of their own, and `{file}` has none for `{name}`"))
                    .hint(format!("`sudo usermod {flag} {} {name}`, or run it with sudo", free(&text)))
            })?;
            Ok(Map { program, own, first })
        };
        Ok(Self {
            users: map("newuidmap", "/etc/subuid", "--add-subuids", user.as_raw())?,
            groups: map("newgidmap", "/etc/subgid", "--add-subgids", getegid().as_raw())?,
        })
    }

    /// Writes the maps of a process that has just made its user namespace.
    pub fn write(&self, pid: u32) -> Result<(), RootlessError> {
        self.users.write(pid)?;
        self.groups.write(pid)
    }
}

impl Map {
    fn write(&self, pid: u32) -> Result<(), RootlessError> {
        let numbers = [pid, 0, self.own, 1, FIRST, self.first, IDS];
        let run = Command::new(&self.program).args(numbers.map(|number| number.to_string())).stdin(Stdio::null()).output();
        let output = run.map_err(RootlessError::io(format!("run `{}`", self.program.display())))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let what = format!("`{}` failed: {said}", shown(&self.program));
        Err(restricted::explain(&what, "`apt-get install --reinstall uidmap`, or run it with sudo"))
    }
}

fn shown(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Lines `NAME-OR-NUMBER:FIRST:COUNT`.
fn lines(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (who, first, count) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((who, first, count))
    })
}

/// The first range of a user that is long enough.
fn range(text: &str, name: &str, number: u32) -> Option<u32> {
    let number = number.to_string();
    lines(text).find(|(who, _, count)| (*who == name || *who == number) && *count >= IDS).map(|(_, first, _)| first)
}

/// A range that nobody has yet, as `usermod` takes it.
fn free(text: &str) -> String {
    let after = lines(text).map(|(_, first, count)| first.saturating_add(count)).max().unwrap_or_default();
    let first = after.max(100_000);
    format!("{first}-{}", first.saturating_add(IDS - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_the_users_and_long_enough() {
        for (text, found) in [
            ("", None),
            ("me:100000:65536", Some(100_000)),
            ("1000:200000:70000\n", Some(200_000)),
            ("you:100000:65536", None),
            ("me:100000:65535", None),
            ("me:100000:1000\nme:300000:65536", Some(300_000)),
            ("# me\nme:x:65536\nme:7", None),
        ] {
            assert_eq!(range(text, "me", 1000), found, "{text}");
        }
        assert_eq!(free(""), "100000-165535");
        assert_eq!(free("you:100000:65536\n"), "165536-231071");
    }
}
