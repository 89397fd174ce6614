//! Copies of a datastore's data that its own server makes while it runs.

use crate::engine::LinuxEngine;
use crate::lower::{keyvalue, postgres};
use crate::toolchain;
use moat_engine::EngineError;
use moat_model::{InstanceId, Secret};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a server may be silent. One that makes a copy says something each second (`repl-ping-replica-period`).
const SPEAKS_WITHIN: Duration = Duration::from_mins(2);

impl LinuxEngine {
    /// Has a PostgreSQL server write all of itself, as it is at one moment, as a tar stream of its data folder (`pg_basebackup`).
    /// Returns the program's exit code; what it says goes to `errors`.
    pub async fn base_backup(&self, id: &InstanceId, output: OwnedFd, errors: OwnedFd) -> Result<i32, EngineError> {
        let fail = |error: io::Error| EngineError::new(format!("copy the database of `{id}`"), error.to_string()).caused_by(error);
        let nothing = File::open("/dev/null").map_err(fail)?;
        let words = ["pg_basebackup", "-U", postgres::SUPERUSER, "-D", "-", "-F", "tar", "-X", "fetch", "-c", "fast", "-w"];
        let argv = words.map(str::to_owned).to_vec();
        // Not the owner's database, which it would ask the map of users for.
        let env = BTreeMap::from([("PGUSER".to_owned(), Secret::new(postgres::SUPERUSER))]);
        self.exec(id, argv, env, false, [nothing.into(), output, errors]).await
    }

    /// Has a Key Value's server write its data, as it is at one moment, to a new file: as it does for a replica (`SYNC`).
    pub async fn dump_keyvalue(&self, id: &InstanceId, to: PathBuf) -> Result<(), EngineError> {
        let ns = self.instance_ns(id).await?;
        let doing = format!("copy the data of `{id}`");
        self.blocking(move |_| {
            let done = moat_net_linux::ns::in_ns(&ns, || {
                let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, keyvalue::PORT)), SPEAKS_WITHIN)?;
                stream.set_read_timeout(Some(SPEAKS_WITHIN))?;
                (&stream).write_all(b"SYNC\r\n")?;
                receive(&mut BufReader::new(stream), &to)
            });
            done.and_then(|done| done).map_err(|error| EngineError::new(&doing, error.to_string()).caused_by(error))
        })
        .await
    }
}

/// Receives the snapshot that a server sends a new replica: newlines while it makes it, `$LENGTH`, and so many bytes.
fn receive(from: &mut impl BufRead, to: &Path) -> io::Result<()> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let length: u64 = loop {
        let mut line = Vec::new();
        from.by_ref().take(256).read_until(b'\n', &mut line)?;
        let text = String::from_utf8_lossy(&line);
        match text.trim_end() {
            "" if line.is_empty() => return Err(invalid("the server ended the connection".to_owned())),
            "" => {}
            said => match said.strip_prefix('$').map(str::parse) {
                Some(Ok(length)) => break length,
                _ => return Err(invalid(format!("the server answered `{said}`"))),
            },
        }
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut start = Vec::new();
    from.by_ref().take(9.min(length)).read_to_end(&mut start)?;
    if toolchain::keyvalue::format(&start).is_none() {
        return Err(invalid("the server sent no snapshot".to_owned()));
    }
    file.write_all(&start)?;
    let rest = length - start.len() as u64;
    if io::copy(&mut from.take(rest), &mut file)? < rest {
        return Err(invalid("the server ended the connection in the middle".to_owned()));
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_received_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        for (n, (said, expect)) in [
            (&b"\n\n\n$12\r\nREDIS0010xyz"[..], Ok(&b"REDIS0010xyz"[..])),
            (b"$12\r\nREDIS0010xyzPING", Ok(b"REDIS0010xyz")),
            (b"-ERR unknown command 'SYNC'\r\n", Err("`-ERR unknown")),
            (b"$12\r\nREDIS0010x", Err("in the middle")),
            (b"$5\r\nhello", Err("no snapshot")),
            (b"$EOF:0123\r\n", Err("answered")),
            (b"\n", Err("ended the connection")),
        ]
        .into_iter()
        .enumerate()
        {
            let to = folder.path().join(n.to_string());
            match (receive(&mut &said[..], &to), expect) {
                (Ok(()), Ok(bytes)) => assert_eq!(std::fs::read(&to).unwrap(), bytes),
                (Err(error), Err(word)) => assert!(error.to_string().contains(word), "{error}"),
                (got, expect) => panic!("{}: {got:?} instead of {expect:?}", said.escape_ascii()),
            }
        }
    }
}
