//! Which server a datastore runs: a pure choice from what is asked for, what is installed and what has written the data.

use crate::toolchain::keyvalue::{Make, Server};
use crate::toolchain::{Toolchain, postgres};
use moat_engine::EngineError;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Stands for the major version in the name of an image of PostgreSQL.
const MAJOR: &str = "{major}";
const POSTGRES: &str = "docker.io/library/postgres:{major}";
const KEYVALUE: &str = "docker.io/valkey/valkey:8";
/// What [`KEYVALUE`] holds.
const KEYVALUE_SERVER: (Make, &str) = (Make::Valkey, "8");
const KEYVALUE_HINT: &str = "apt-get install redis-server (or valkey-server)";

/// Images that datastores run, where they are others than the official ones. One that is named here runs even where the
/// machine has a server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerImages {
    /// PostgreSQL; `{major}` in it stands for the major version.
    pub postgres: Option<String>,
    /// Key Value.
    pub keyvalue: Option<String>,
}

impl ServerImages {
    /// Those of `MOAT_POSTGRES_IMAGE` and `MOAT_KEYVALUE_IMAGE`.
    pub fn from_env() -> Self {
        let named = |key| std::env::var(key).ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        Self { postgres: named("MOAT_POSTGRES_IMAGE"), keyvalue: named("MOAT_KEYVALUE_IMAGE") }
    }
}

/// An image that is to provide a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub image: String,
    /// Why, in words: `PostgreSQL 17 is not on this machine`.
    pub because: String,
    /// What to install instead.
    pub hint: String,
    /// The major version that it has to have, of PostgreSQL.
    pub major: Option<u16>,
}

/// Who provides a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// The machine.
    Machine(Toolchain),
    /// An image.
    Image(Wanted),
}

/// What is used where the machine has no server, for whoever looks at the machine: of PostgreSQL and of a Key Value.
pub fn instead() -> [String; 2] {
    [postgres_image(POSTGRES, postgres::NEWEST), KEYVALUE.to_owned()].map(|image| format!("the image `{image}` is used instead"))
}

fn postgres_image(name: &str, major: u16) -> String {
    name.replace(MAJOR, &major.to_string())
}

/// Of a database: `wanted` is the major version asked for, `data` the one that has written the data there is, `named` the
/// image of the settings.
pub fn of_postgres(
    named: Option<&str>,
    installed: &BTreeMap<u16, (PathBuf, String)>,
    wanted: Option<u16>,
    data: Option<u16>,
) -> Result<Provider, EngineError> {
    let major = postgres::agreed(wanted, data)?;
    let (image, because) = match (named, postgres::choose(installed, major)) {
        (Some(image), _) => (image, "`MOAT_POSTGRES_IMAGE` is set".to_owned()),
        (None, Some(toolchain)) => return Ok(Provider::Machine(toolchain)),
        (None, None) => (POSTGRES, postgres::lacking(installed, major)),
    };
    let mut hint = postgres::install_hint(major);
    if let (None, Some(newest)) = (data, installed.keys().next_back().filter(|_| named.is_none())) {
        hint = format!("{hint}, write `postgresMajorVersion: \"{newest}\"`");
    }
    let major = major.or_else(|| image.contains(MAJOR).then_some(postgres::NEWEST));
    let image = postgres_image(image, major.unwrap_or(postgres::NEWEST));
    Ok(Provider::Image(Wanted { image, because, hint, major }))
}

/// Of a Key Value: `data` is the format of the data there is. An image that the settings name is not judged.
pub fn of_keyvalue(named: Option<&str>, installed: Option<(Toolchain, Server)>, data: Option<u16>) -> Result<Provider, EngineError> {
    let image = |image: &str, because| {
        let hint = KEYVALUE_HINT.to_owned();
        Ok(Provider::Image(Wanted { image: image.to_owned(), because, hint, major: None }))
    };
    if let Some(named) = named {
        return image(named, "`MOAT_KEYVALUE_IMAGE` is set".to_owned());
    }
    let reads = |server: &Server| data.is_none_or(|format| server.reads(format));
    let because = match installed {
        Some((toolchain, server)) if reads(&server) => return Ok(Provider::Machine(toolchain)),
        Some((_, server)) => format!("{} of this machine does not read the data, which another server has written", server.words()),
        None => "neither Valkey nor Redis is on this machine".to_owned(),
    };
    let (make, version) = KEYVALUE_SERVER;
    if reads(&Server { make, version: version.to_owned() }) {
        return image(KEYVALUE, because);
    }
    let message = format!("{because}; the image `{KEYVALUE}` can't read the data either");
    Err(EngineError::new("choose a Key Value server", message)
        .hint("install the server that has written it, or name an image of it in MOAT_KEYVALUE_IMAGE (docker.io/library/redis:8)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(provider: Result<Provider, EngineError>) -> String {
        match provider {
            Ok(Provider::Machine(toolchain)) => format!("machine {}", toolchain.version),
            Ok(Provider::Image(wanted)) => {
                assert!(wanted.hint.contains("apt-get install"), "{}", wanted.hint);
                let major = wanted.major.map(|major| format!(" with {major}")).unwrap_or_default();
                format!("{}{major}: {}", wanted.image, wanted.because)
            }
            Err(error) => {
                assert!(error.hint.is_some());
                format!("error: {}", error.message)
            }
        }
    }

    #[test]
    fn a_database_runs_on_the_machine_where_that_fits_and_else_from_an_image() {
        let of = |majors: &[u16]| -> BTreeMap<u16, (PathBuf, String)> {
            majors.iter().map(|m| (*m, (PathBuf::from(format!("/usr/lib/postgresql/{m}/bin/postgres")), format!("{m}.1")))).collect()
        };
        let own = Some("example.org/pgvector:pg{major}");
        for (named, installed, wanted, data, expect) in [
            (None, &[15][..], None, None, "machine 15.1"),
            (None, &[13, 15], Some(13), None, "machine 13.1"),
            (None, &[15], Some(17), None, "docker.io/library/postgres:17 with 17: PostgreSQL 17 is not on this machine, which has 15"),
            (None, &[], Some(17), None, "docker.io/library/postgres:17 with 17: PostgreSQL 17 is not on this machine"),
            (None, &[], None, None, "docker.io/library/postgres:18 with 18: PostgreSQL is not on this machine"),
            // The data counts, whatever the machine has by now.
            (None, &[15], None, Some(17), "docker.io/library/postgres:17 with 17: PostgreSQL 17 is not on this machine, which has 15"),
            (None, &[15, 17], None, Some(17), "machine 17.1"),
            (None, &[15, 17], None, Some(15), "machine 15.1"),
            (None, &[15], Some(15), Some(17), "error: its data is PostgreSQL 17's, and PostgreSQL 15 is asked for"),
            (None, &[], Some(18), Some(17), "error: its data is PostgreSQL 17's, and PostgreSQL 18 is asked for"),
            // A setting counts before the machine, and never over the data.
            (own, &[15], Some(15), None, "example.org/pgvector:pg15 with 15: `MOAT_POSTGRES_IMAGE` is set"),
            (own, &[15], None, None, "example.org/pgvector:pg18 with 18: `MOAT_POSTGRES_IMAGE` is set"),
            (own, &[15], None, Some(16), "example.org/pgvector:pg16 with 16: `MOAT_POSTGRES_IMAGE` is set"),
            (own, &[15], Some(18), Some(16), "error: its data is PostgreSQL 16's, and PostgreSQL 18 is asked for"),
            (Some("ours/db:1"), &[15], None, None, "ours/db:1: `MOAT_POSTGRES_IMAGE` is set"),
            (Some("ours/db:1"), &[15], Some(15), None, "ours/db:1 with 15: `MOAT_POSTGRES_IMAGE` is set"),
        ] {
            assert_eq!(told(of_postgres(named, &of(installed), wanted, data)), expect, "{named:?} {installed:?} {wanted:?} {data:?}");
        }
    }

    #[test]
    fn a_key_value_runs_on_a_server_that_reads_its_data() {
        let of = |make, version: &str| {
            Some((Toolchain { version: version.to_owned(), ..Toolchain::default() }, Server { make, version: version.to_owned() }))
        };
        let redis = |version| of(Make::Redis, version);
        let image = "docker.io/valkey/valkey:8";
        for (named, installed, data, expect) in [
            (None, redis("7.0.15"), None, "machine 7.0.15".to_owned()),
            (None, redis("7.0.15"), Some(10), "machine 7.0.15".to_owned()),
            (None, of(Make::Valkey, "8.1.1"), Some(11), "machine 8.1.1".to_owned()),
            (None, None, None, format!("{image}: neither Valkey nor Redis is on this machine")),
            // What the image has written is nothing for an older server.
            (
                None,
                redis("7.0.15"),
                Some(11),
                format!("{image}: Redis 7.0.15 of this machine does not read the data, which another server has written"),
            ),
            (
                None,
                None,
                Some(12),
                format!("error: neither Valkey nor Redis is on this machine; the image `{image}` can't read the data either"),
            ),
            (Some("ours/kv"), redis("7.0.15"), Some(12), "ours/kv: `MOAT_KEYVALUE_IMAGE` is set".to_owned()),
        ] {
            assert_eq!(told(of_keyvalue(named, installed, data)), expect, "{named:?} {data:?}");
        }
    }
}
