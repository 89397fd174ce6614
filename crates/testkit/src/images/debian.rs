//! Debian's packages: which ones a recipe needs, and their files on this machine.

use super::cache::Cache;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What images do without: it only serves the installing of packages, or a machine with an init system.
const LEFT_OUT: &[&str] = &[
    "adduser",
    "cron",
    "cron-daemon-common",
    "debconf",
    "dpkg",
    "gcc-12-base",
    "init-system-helpers",
    "libc-l10n",
    "libfile-find-rule-perl",
    "libnumber-compare-perl",
    "libpam-modules",
    "libpam-modules-bin",
    "libpam-runtime",
    "libperl5.36",
    "libpython3-stdlib",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libsemanage-common",
    "libsemanage2",
    "libsepol2",
    "libtext-glob-perl",
    "locales",
    "logrotate",
    "lsb-base",
    "media-types",
    "passwd",
    "perl",
    "perl-base",
    "perl-modules-5.36",
    "postgresql-common",
    "python3",
    "python3-minimal",
    "python3.11",
    "python3.11-minimal",
    "sensible-utils",
    "ssl-cert",
    "sysvinit-utils",
    "ucf",
    "usrmerge",
];

/// A package of a certain version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// Its name.
    pub name: String,
    version: String,
    architecture: String,
}

impl Package {
    /// How apt calls its file.
    fn file(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version.replace(':', "%3a"), self.architecture)
    }
}

/// Debian's word for this machine's architecture, which is OCI's too for those that Moat runs on (`amd64`, `arm64`).
pub fn architecture() -> io::Result<String> {
    let out = run(Command::new("dpkg").arg("--print-architecture"))?;
    Ok(out.trim().to_owned())
}

/// The packages and all they depend on, as if nothing were installed here, less what images do without and these don't name.
///
/// Asks the package lists of this machine; where they are missing or don't know a package, fresh ones in the cache.
pub fn closure(cache: &Cache, packages: &[&str]) -> io::Result<Vec<Package>> {
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    let ask = |options: &[String]| {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "--simulate", "--quiet", "--no-install-recommends", "-o", "Dir::State::status=/dev/null"]);
        run(apt.args(["-o", "Debug::NoLocking=1"]).args(options).arg("--").args(packages))
    };
    let answer = ask(&[]).or_else(|_| {
        let lists = own_lists(cache)?;
        if !lists.1.join("partial").exists() {
            std::fs::create_dir_all(lists.1.join("partial"))?;
            update(&lists.0)?;
        }
        ask(&lists.0)
    })?;
    let mut found: Vec<Package> = answer
        .lines()
        .filter_map(installed)
        .filter(|p| !LEFT_OUT.contains(&p.name.as_str()) || packages.contains(&p.name.as_str()))
        .collect();
    found.sort();
    Ok(found)
}

/// The packages' files, downloaded where the cache has none.
pub fn download(cache: &Cache, packages: &[Package]) -> io::Result<Vec<PathBuf>> {
    let folder = cache.folder("debs")?;
    let missing: Vec<String> =
        packages.iter().filter(|p| !folder.join(p.file()).is_file()).map(|p| format!("{}={}", p.name, p.version)).collect();
    if !missing.is_empty() {
        let arriving = tempfile::tempdir_in(&folder)?;
        let get = |options: &[String]| {
            let mut apt = Command::new("apt-get");
            apt.current_dir(arriving.path()).args(["download", "--quiet", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]);
            run(apt.args(options).arg("--").args(&missing))
        };
        // Lists older than the archive name files that are gone.
        get(&[]).or_else(|_| {
            let lists = own_lists(cache)?;
            std::fs::create_dir_all(lists.1.join("partial"))?;
            update(&lists.0)?;
            get(&lists.0)
        })?;
        for file in std::fs::read_dir(arriving.path())? {
            let file = file?;
            std::fs::rename(file.path(), folder.join(file.file_name()))?;
        }
    }
    packages.iter().map(|package| existing(&folder.join(package.file()))).collect()
}

fn existing(file: &Path) -> io::Result<PathBuf> {
    if file.is_file() {
        return Ok(file.to_owned());
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("apt-get brought no `{}`", file.display())))
}

/// apt's options for package lists of the cache's own, and where they are.
fn own_lists(cache: &Cache) -> io::Result<([String; 2], PathBuf)> {
    let lists = cache.folder("lists")?;
    Ok((["-o".to_owned(), format!("Dir::State::lists={}", lists.display())], lists))
}

fn update(options: &[String]) -> io::Result<String> {
    run(Command::new("apt-get").args(["update", "--quiet", "-o", "APT::Sandbox::User=root"]).args(options))
}

/// The package of a line such as `Inst redis-server (5:7.0.15-1 Debian:12/oldstable [amd64])`.
fn installed(line: &str) -> Option<Package> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let inside = rest.split_once('(')?.1.split_once(')')?.0;
    let version = inside.split_whitespace().next()?.to_owned();
    let architecture = inside.rsplit_once('[')?.1.strip_suffix(']')?.to_owned();
    Some(Package { name: name.split(':').next()?.to_owned(), version, architecture })
}

/// The standard output of a command that must succeed.
pub fn run(command: &mut Command) -> io::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command.env("LC_ALL", "C").output().map_err(|error| io::Error::new(error.kind(), format!("`{program}`: {error}")))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(io::Error::other(format!("`{program}` failed ({}): {}", out.status, String::from_utf8_lossy(&out.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_simulation() {
        for (line, file) in [
            (
                "Inst redis-server (5:7.0.15-1~deb12u10 Debian:12.15/oldstable [amd64])",
                Some("redis-server_5%3a7.0.15-1~deb12u10_amd64.deb"),
            ),
            ("Inst tzdata (2026f-0+deb12u1 Debian:12 [all]) []", Some("tzdata_2026f-0+deb12u1_all.deb")),
            ("Inst libc6 (2.36-9 Debian:12 [amd64]) [libgcc-s1:amd64 ]", Some("libc6_2.36-9_amd64.deb")),
            ("Conf libc6 (2.36-9 Debian:12 [amd64])", None),
            ("Reading package lists...", None),
        ] {
            assert_eq!(installed(line).map(|p| p.file()).as_deref(), file, "{line}");
        }
    }
}
