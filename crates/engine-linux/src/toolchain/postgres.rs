//! PostgreSQL servers of this machine, and which major version a database runs.

use super::{Toolchain, find};
use moat_engine::EngineError;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The major version of a new database that asks for none, where the machine has no server: the newest that is released.
pub const NEWEST: u16 = 18;
/// What a server says of itself, before its version; the text is in its program too.
const BANNER: &str = "postgres (PostgreSQL) ";

/// Every major version that is installed, in Debian's and in Red Hat's place for several versions side by side, and on
/// `PATH`: its program and its whole version.
pub fn installed() -> BTreeMap<u16, (PathBuf, String)> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for (root, prefix, below) in [("/usr/lib/postgresql", "", "bin"), ("/usr", "pgsql-", "bin"), ("/opt", "pgsql-", "bin")] {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let major = entry.file_name().to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u16>().ok());
            folders.extend(major.map(|_| entry.path().join(below)));
        }
    }
    folders.extend(find::on_path("postgres").into_iter().filter_map(|path| path.parent().map(Path::to_owned)));
    let mut found = BTreeMap::new();
    for folder in folders {
        let program = folder.join("postgres");
        if program.is_file()
            && folder.join("initdb").is_file()
            && let Some((major, version)) = version(&program)
        {
            found.entry(major).or_insert((program, version));
        }
    }
    found
}

/// What `postgres --version` says: `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`.
fn version(program: &Path) -> Option<(u16, String)> {
    let output = Command::new(program).arg("--version").env_clear().stdin(Stdio::null()).output().ok()?;
    read_version(&String::from_utf8_lossy(&output.stdout))
}

fn read_version(text: &str) -> Option<(u16, String)> {
    let version = text.split_once("(PostgreSQL)")?.1.split_ascii_whitespace().next()?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((digits.parse().ok()?, version.to_owned()))
}

/// The major version and the whole one of a server, from the bytes of its program: for one that is not run to be asked.
pub fn version_in(program: &[u8]) -> Option<(u16, String)> {
    let banner = BANNER.as_bytes();
    let starts = program.windows(banner.len()).enumerate().filter(|(_, window)| *window == banner).map(|(at, _)| at);
    starts.into_iter().find_map(|at| {
        let end = program.len().min(at + banner.len() + 32);
        read_version(&String::from_utf8_lossy(program.get(at..end)?))
    })
}

/// The major version that a database has to have, if any: what the blueprint asks for, and what wrote the data there is.
/// Data is never handed to another major version: that server would refuse it or, worse, not.
pub fn agreed(wanted: Option<u16>, data: Option<u16>) -> Result<Option<u16>, EngineError> {
    match (wanted, data) {
        (Some(wanted), Some(data)) if wanted != data => Err(EngineError::new(
            "start the database",
            format!("its data is PostgreSQL {data}'s, and PostgreSQL {wanted} is asked for"),
        )
        .hint(format!(
            "write `postgresMajorVersion: \"{data}\"`; to change the version, add a database and move the data with pg_dump and psql"
        ))),
        _ => Ok(wanted.or(data)),
    }
}

/// The server of the machine that is the major version, or the newest where it may be any.
pub fn choose(installed: &BTreeMap<u16, (PathBuf, String)>, major: Option<u16>) -> Option<Toolchain> {
    let major = major.or_else(|| installed.keys().next_back().copied())?;
    let (program, version) = installed.get(&major)?;
    let mut toolchain = Toolchain { program: program.clone(), version: version.clone(), ..Toolchain::default() };
    let folder = program.parent().unwrap_or(program);
    // Its libraries and its files to share lie beside the folder of programs.
    toolchain.show(folder.parent().unwrap_or(folder), program);
    toolchain.path.push(folder.to_owned());
    Some(toolchain)
}

/// That the machine has no such server: `PostgreSQL 17 is not on this machine, which has 13, 15`.
pub fn lacking(installed: &BTreeMap<u16, (PathBuf, String)>, major: Option<u16>) -> String {
    let what = major.map_or_else(|| "PostgreSQL".to_owned(), |major| format!("PostgreSQL {major}"));
    let versions: Vec<String> = installed.keys().map(u16::to_string).collect();
    let has = if versions.is_empty() { String::new() } else { format!(", which has {}", versions.join(", ")) };
    format!("{what} is not on this machine{has}")
}

/// What to install to have a server of the machine.
pub fn install_hint(major: Option<u16>) -> String {
    match major {
        None => "apt-get install postgresql (its own server need not run)".to_owned(),
        Some(major) => format!("apt-get install postgresql-{major} (from apt.postgresql.org, where the system has another version)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (text, expect) in [
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", Some((15, "15.14"))),
            ("postgres (PostgreSQL) 18beta1\n", Some((18, "18beta1"))),
            ("postgres (EnterpriseDB) 15\n", None),
            ("", None),
        ] {
            let expect = expect.map(|(major, version)| (major, version.to_owned()));
            assert_eq!(read_version(text), expect, "{text}");
            let program = [&b"\x7fELF\0postgres (PostgreSQL) \0\xff"[..], text.as_bytes(), b"\0rest"].concat();
            assert_eq!(version_in(&program), expect, "{text}");
        }
    }

    /// What is installed, what is asked for, what wrote the data, and what comes of it.
    type Row<'a> = (&'a [u16], Option<u16>, Option<u16>, Result<Option<&'a str>, &'a str>);

    #[test]
    fn the_version_asked_for_or_the_datas_or_the_newest() {
        let of = |majors: &[u16]| -> BTreeMap<u16, (PathBuf, String)> {
            majors.iter().map(|m| (*m, (PathBuf::from(format!("/usr/lib/postgresql/{m}/bin/postgres")), format!("{m}.1")))).collect()
        };
        let rows: [Row<'_>; 11] = [
            (&[15], None, None, Ok(Some("15.1"))),
            (&[13, 15], None, None, Ok(Some("15.1"))),
            (&[13, 15], Some(13), None, Ok(Some("13.1"))),
            (&[13, 15], None, Some(13), Ok(Some("13.1"))),
            (&[13, 15], Some(13), Some(13), Ok(Some("13.1"))),
            (&[13, 15], Some(15), Some(13), Err("its data is PostgreSQL 13's, and PostgreSQL 15 is asked for")),
            // An image has it.
            (&[13, 15], Some(18), None, Ok(None)),
            (&[15], None, Some(17), Ok(None)),
            (&[15], Some(17), Some(17), Ok(None)),
            (&[15], Some(15), Some(17), Err("its data is PostgreSQL 17's, and PostgreSQL 15 is asked for")),
            (&[], None, None, Ok(None)),
        ];
        for (installed, wanted, data, expect) in rows {
            let chosen = agreed(wanted, data).map(|major| choose(&of(installed), major));
            match expect {
                Ok(version) => assert_eq!(chosen.unwrap().map(|toolchain| toolchain.version).as_deref(), version),
                Err(words) => {
                    let error = chosen.unwrap_err();
                    assert!(error.to_string().contains(words), "{error}");
                    assert!(error.hint.is_some());
                }
            }
        }
        assert_eq!(lacking(&of(&[13, 15]), Some(18)), "PostgreSQL 18 is not on this machine, which has 13, 15");
        assert_eq!(lacking(&of(&[]), None), "PostgreSQL is not on this machine");
    }
}
