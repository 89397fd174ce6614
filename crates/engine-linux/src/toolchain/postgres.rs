//! Finds a PostgreSQL server of the version asked for.
//!
//! Where the machine has none, [`server`] says what to install. An image with the server would be looked for there.

use super::{Toolchain, find};
use moat_engine::EngineError;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The newest that is found, in Debian's and in Red Hat's place for several versions side by side, and on `PATH`.
///
/// `wanted` is what the blueprint asks for and `data` the version that wrote the data there is. Data is never handed to
/// another major version: that server would refuse it or, worse, not.
pub fn server(wanted: Option<u16>, data: Option<u16>) -> Result<Toolchain, EngineError> {
    choose(&installed(), wanted, data)
}

/// Every major version that is installed: its program and its whole version.
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

fn choose(installed: &BTreeMap<u16, (PathBuf, String)>, wanted: Option<u16>, data: Option<u16>) -> Result<Toolchain, EngineError> {
    if let (Some(wanted), Some(data)) = (wanted, data)
        && wanted != data
    {
        return Err(EngineError::new(
            "start the database",
            format!("its data is PostgreSQL {data}'s, and PostgreSQL {wanted} is asked for"),
        )
        .hint(format!(
            "write `postgresMajorVersion: \"{data}\"`; to change the version, add a database and move the data with pg_dump and psql"
        )));
    }
    let major = wanted.or(data).or_else(|| installed.keys().next_back().copied());
    let Some((program, version)) = major.and_then(|major| installed.get(&major)) else { return Err(missing(installed, major, data)) };
    let mut toolchain = Toolchain { program: program.clone(), version: version.clone(), ..Toolchain::default() };
    let folder = program.parent().unwrap_or(program);
    // Its libraries and its files to share lie beside the folder of programs.
    toolchain.show(folder.parent().unwrap_or(folder), program);
    toolchain.path.push(folder.to_owned());
    Ok(toolchain)
}

fn missing(installed: &BTreeMap<u16, (PathBuf, String)>, major: Option<u16>, data: Option<u16>) -> EngineError {
    let doing = "find a PostgreSQL server";
    let Some(major) = major else {
        return EngineError::new(doing, "PostgreSQL is not installed").hint("apt-get install postgresql (its own server need not run)");
    };
    let package = format!("apt-get install postgresql-{major} (from apt.postgresql.org, where the system has another version)");
    let Some(newest) = installed.keys().next_back() else {
        return EngineError::new(doing, format!("PostgreSQL {major} is not installed")).hint(package);
    };
    let versions: Vec<String> = installed.keys().map(u16::to_string).collect();
    let message = format!("PostgreSQL {major} is not installed; found {}", versions.join(", "));
    let hint = if data.is_some() { package } else { format!("{package}, or write `postgresMajorVersion: \"{newest}\"`") };
    EngineError::new(doing, message).hint(hint)
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
            assert_eq!(read_version(text), expect.map(|(major, version)| (major, version.to_owned())), "{text}");
        }
    }

    /// What is installed, what is asked for, what wrote the data, and what comes of it.
    type Row<'a> = (&'a [u16], Option<u16>, Option<u16>, Result<&'a str, &'a str>);

    #[test]
    fn the_version_asked_for_or_a_clear_answer() {
        let of = |majors: &[u16]| -> BTreeMap<u16, (PathBuf, String)> {
            majors.iter().map(|m| (*m, (PathBuf::from(format!("/usr/lib/postgresql/{m}/bin/postgres")), format!("{m}.1")))).collect()
        };
        let rows: [Row<'_>; 9] = [
            (&[15], None, None, Ok("15.1")),
            (&[13, 15], None, None, Ok("15.1")),
            (&[13, 15], Some(13), None, Ok("13.1")),
            (&[13, 15], None, Some(13), Ok("13.1")),
            (&[13, 15], Some(13), Some(13), Ok("13.1")),
            (&[13, 15], Some(15), Some(13), Err("its data is PostgreSQL 13's, and PostgreSQL 15 is asked for")),
            (&[13, 15], Some(18), None, Err("PostgreSQL 18 is not installed; found 13, 15")),
            (&[15], None, Some(13), Err("PostgreSQL 13 is not installed; found 15")),
            (&[], None, None, Err("PostgreSQL is not installed")),
        ];
        for (installed, wanted, data, expect) in rows {
            let found = choose(&of(installed), wanted, data);
            match expect {
                Ok(version) => assert_eq!(found.unwrap().version, version),
                Err(words) => {
                    let error = found.unwrap_err();
                    assert!(error.to_string().contains(words), "{error}");
                    assert!(error.hint.is_some());
                }
            }
        }
    }
}
