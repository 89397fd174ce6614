//! The Valkey or Redis server of this machine, and whose data it can read.
//!
//! Servers write their data in a format that has a number (`RDB_VERSION`), and none reads a later one. Both began as one
//! program; since then Redis has the numbers 12 to 79 and Valkey those from 80 on (valkey's `rdb.h`).

use super::{Toolchain, program, version};
use std::fs;
use std::process::{Command, Stdio};

/// The first format that is Redis' alone.
const REDIS: u16 = 12;
/// The first format that is Valkey's alone.
const VALKEY: u16 = 80;

/// Whose server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// `redis-server`.
    Redis,
    /// `valkey-server`.
    Valkey,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Whose.
    pub make: Make,
    /// Its version, `7.0.15`.
    pub version: String,
}

impl Server {
    /// Whether it reads data in the format.
    pub fn reads(&self, format: u16) -> bool {
        let number = version::key(&self.version);
        let since = |floor: &str| number >= version::key(floor);
        match (self.make, format) {
            (_, ..10) | (Make::Valkey, 10 | 11) => true,
            (Make::Redis, 10) => since("7.0"),
            (Make::Redis, 11) => since("7.2"),
            (Make::Redis, REDIS..VALKEY) => since("7.4"),
            (Make::Valkey, VALKEY..) => since("9"),
            (Make::Redis, VALKEY..) | (Make::Valkey, REDIS..VALKEY) => false,
        }
    }

    /// `Redis 7.0.15`.
    pub fn words(&self) -> String {
        let make = match self.make {
            Make::Redis => "Redis",
            Make::Valkey => "Valkey",
        };
        format!("{make} {}", self.version)
    }
}

/// The machine's server, Valkey's before Redis'.
pub fn installed() -> Option<(Toolchain, Server)> {
    ["valkey-server", "redis-server"].into_iter().find_map(|name| {
        let path = program(name)?;
        let output = Command::new(&path).arg("--version").env_clear().stdin(Stdio::null()).output().ok()?;
        let server = read_version(&String::from_utf8_lossy(&output.stdout))?;
        // Called by this very name: one program is the server and its tools, told apart by how it is called.
        let mut toolchain = Toolchain { program: path.clone(), version: server.version.clone(), ..Toolchain::default() };
        let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        for file in [&path, &real] {
            toolchain.show(file.parent().unwrap_or(file), file);
        }
        Some((toolchain, server))
    })
}

/// `Redis server v=7.0.15 sha=…`, `Valkey server v=8.1.1 sha=…`; Valkey's first version said `Server v=7.2.5`.
fn read_version(text: &str) -> Option<Server> {
    let version = text.split_ascii_whitespace().find_map(|word| word.strip_prefix("v="))?.to_owned();
    Some(Server { make: if text.starts_with("Redis") { Make::Redis } else { Make::Valkey }, version })
}

/// The format of a file of data, from how it begins: `REDIS0010`, `VALKEY080`; none for a file of commands.
pub fn format(start: &[u8]) -> Option<u16> {
    let head = std::str::from_utf8(start.get(..9)?).ok()?;
    head.strip_prefix("REDIS").or_else(|| head.strip_prefix("VALKEY"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read() {
        for (start, expect) in [
            (&b"REDIS0010\xfa\x09"[..], Some(10)),
            (b"REDIS0011", Some(11)),
            (b"VALKEY080\xfa", Some(80)),
            (b"*2\r\n$6\r\nSELECT", None),
            (b"REDIS00", None),
            (b"REDISxxxx", None),
            (b"", None),
        ] {
            assert_eq!(format(start), expect, "{}", start.escape_ascii());
        }
    }

    #[test]
    fn no_server_reads_a_later_format_and_both_read_what_is_common() {
        for (said, words, reads, refuses) in [
            ("Redis server v=6.2.7 sha=0", "Redis 6.2.7", &[8, 9][..], &[10, 11, 12, 80][..]),
            ("Redis server v=7.0.15 sha=00000000:0", "Redis 7.0.15", &[9, 10], &[11, 12, 80]),
            ("Redis server v=7.2.4 sha=0", "Redis 7.2.4", &[10, 11], &[12, 80]),
            ("Redis server v=8.2.1 sha=0", "Redis 8.2.1", &[11, 12, 13], &[80]),
            ("Server v=7.2.5 sha=0", "Valkey 7.2.5", &[9, 11], &[12, 80]),
            ("Valkey server v=8.1.4 sha=0", "Valkey 8.1.4", &[10, 11], &[12, 79, 80]),
            ("Valkey server v=9.0.0 sha=0", "Valkey 9.0.0", &[11, 80], &[12]),
        ] {
            let server = read_version(said).unwrap();
            assert_eq!(server.words(), words);
            for (formats, expect) in [(reads, true), (refuses, false)] {
                for format in formats {
                    assert_eq!(server.reads(*format), expect, "{said}: {format}");
                }
            }
        }
        assert_eq!(read_version("no version"), None);
    }
}
