//! Databases from outside: clients of PostgreSQL and of Key Values by TLS, which ask for a host name (SNI) that says which one is
//! meant.
//!
//! [`Databases`] says who may come to which; [`serve_databases`] owns connections. TLS begins at once, or PostgreSQL's clients ask
//! for it first; it ends here. PostgreSQL's server then asks for the password itself; a Key Value's has none, so that its clients
//! are asked here. What comes after goes to the instance as it is.
//!
//! Invariants: nothing is read from an address that no database lets in; nothing is sent to a database on behalf of a client whose
//! address its list does not hold, and a connection ends as soon as that is so no more.

mod command;
mod keyvalue;
mod postgres;
mod visits;

pub use keyvalue::Login;
pub(crate) use postgres::PROTOCOL;
pub use visits::{AllVisits, Visited, Visitors};

use crate::serve::end;
use crate::silence;
use crate::tunnel::Counting;
use crate::{Dial, Tls};
use ipnet::IpNet;
use moat_model::Slug;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use visits::Visitor;

/// The first byte of a TLS record with a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// More than servers read of a client before they know who that is, bytes.
const LONGEST_STARTUP: u64 = 16 * 1024;
/// For everything until a client is connected to its database.
const BEGINS_WITHIN: Duration = Duration::from_secs(30);
/// For a connection to an instance.
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);
/// Connections at once; more wait to be accepted.
const MOST: usize = 4096;

/// The kinds of database, each with a listener of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseKind {
    /// PostgreSQL.
    Postgres,
    /// Redis' protocol.
    KeyValue,
}

/// How a client is let in to a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// PostgreSQL's server asks for a password.
    Postgres,
    /// A Key Value's server does not: the ingress asks for this one.
    KeyValue(Login),
}

impl Access {
    /// The kind that it is for.
    pub const fn kind(&self) -> DatabaseKind {
        match self {
            Self::Postgres => DatabaseKind::Postgres,
            Self::KeyValue(_) => DatabaseKind::KeyValue,
        }
    }
}

/// A database that is reached from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its label.
    pub service: Slug,
    /// How clients are let in.
    pub access: Access,
    /// Its instance, where one is ready.
    pub upstreams: Vec<SocketAddr>,
    /// Clients that may come; no other may.
    pub allow: Vec<IpNet>,
    /// What is counted of them.
    pub visitors: Visitors,
}

/// Every database that is reached from outside, by lower-case host name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Databases(pub HashMap<String, Database>);

impl Databases {
    /// The database that a client means and may come to.
    fn find(&self, kind: DatabaseKind, name: &str, client: IpAddr) -> Option<&Database> {
        self.0.get(name).filter(|database| database.admits(kind, client))
    }
}

impl Database {
    fn admits(&self, kind: DatabaseKind, client: IpAddr) -> bool {
        self.access.kind() == kind && self.allow.iter().any(|net| net.contains(&client))
    }
}

/// A client that is connected to its database.
struct Begun {
    name: String,
    access: Access,
    visitors: Visitors,
    stream: TlsStream<TcpStream>,
    instance: TcpStream,
}

/// Serves clients of one kind until `stop` resolves: then accepts no more and lets connections go on for `drain_wait`.
///
/// # Errors
/// When the listener itself is broken.
pub async fn serve_databases<D: Dial>(
    listener: TcpListener,
    kind: DatabaseKind,
    databases: watch::Receiver<Arc<Databases>>,
    tls: Arc<Tls>,
    dial: Arc<D>,
    stop: impl Future<Output = ()>,
    drain_wait: Duration,
) -> io::Result<()> {
    let (cut, cutting) = watch::channel(false);
    let places = Arc::new(Semaphore::new(MOST));
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    let ended = loop {
        let accepted = tokio::select! {
            () = &mut stop => break Ok(()),
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if places.available_permits() > 0 => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let client = from.ip().to_canonical();
                if !databases.borrow().0.values().any(|database| database.admits(kind, client)) {
                    continue;
                }
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let mut cutting = cutting.clone();
                let served = converse(stream, client, kind, databases.clone(), Arc::clone(&tls), Arc::clone(&dial));
                connections.spawn(async move {
                    let outcome = tokio::select! {
                        outcome = served => outcome,
                        () = end(&mut cutting) => Ok(()),
                    };
                    if let Err(error) = outcome {
                        tracing::debug!(%client, %error, "a client of a database was left");
                    }
                    drop(place);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break Err(error),
            Err(error) => {
                tracing::warn!(%error, "a connection to a database can't be accepted");
                sleep(Duration::from_millis(50)).await;
            }
        }
    };
    drop(listener);
    let _ = timeout(drain_wait, async { while connections.join_next().await.is_some() {} }).await;
    cut.send_replace(true);
    ended
}

async fn converse<D: Dial>(
    stream: TcpStream,
    client: IpAddr,
    kind: DatabaseKind,
    mut databases: watch::Receiver<Arc<Databases>>,
    tls: Arc<Tls>,
    dial: Arc<D>,
) -> io::Result<()> {
    silence::prepare(&stream)?;
    let begun = timeout(BEGINS_WITHIN, begin(stream, client, kind, &databases, &tls, &*dial)).await;
    let Some(begun) = begun.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? else { return Ok(()) };
    let Begun { name, access, visitors, stream, mut instance } = begun;
    let visitor = Visitor::new(&visitors.0);
    let mut stream = Counting::new(stream, Arc::clone(&visitors.0));
    let withdrawn = async {
        // An error means that nothing changes any more.
        let _ = databases.wait_for(|now| now.find(kind, &name, client).is_none_or(|database| database.access != access)).await;
    };
    tokio::select! {
        biased;
        () = withdrawn => Ok(()),
        copied = copy_bidirectional(&mut stream, &mut instance) => copied.map(drop),
    }?;
    drop(visitor);
    Ok(())
}

/// The host name that a client asks for, its connection and the database's. `None` where all is said.
async fn begin<D: Dial>(
    mut stream: TcpStream,
    client: IpAddr,
    kind: DatabaseKind,
    databases: &watch::Receiver<Arc<Databases>>,
    tls: &Tls,
    dial: &D,
) -> io::Result<Option<Begun>> {
    let (at_once, config) = match kind {
        DatabaseKind::Postgres => match postgres::asks_for_tls(&mut stream).await? {
            Some(at_once) => (at_once, tls.postgres()),
            None => return Ok(None),
        },
        DatabaseKind::KeyValue if keyvalue::begins_tls(&mut stream).await? => (false, tls.keyvalues()),
        DatabaseKind::KeyValue => return Ok(None),
    };
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let (name, speaks) = {
        let hello = hello.client_hello();
        let speaks = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == postgres::PROTOCOL));
        (hello.server_name().unwrap_or_default().to_ascii_lowercase(), speaks)
    };
    if at_once && !speaks {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not say that it speaks PostgreSQL's protocol"));
    }
    let find = |access: Option<&Access>| {
        let databases = databases.borrow();
        let found = databases.find(kind, &name, client).filter(|database| access.is_none_or(|access| database.access == *access));
        if let Some(other) = databases.0.get(&name).filter(|database| found.is_none() && database.access.kind() == kind) {
            other.visitors.0.refused();
        }
        found.cloned()
    };
    let refused = || io::Error::new(io::ErrorKind::PermissionDenied, "it asks for no database that it may come to");
    let Database { access, visitors, .. } = find(None).ok_or_else(refused)?;
    let mut stream = hello.into_stream(config).await?;
    let passed = match &access {
        Access::Postgres => None,
        Access::KeyValue(login) => {
            let asked = keyvalue::ask(&mut stream, login).await;
            if !matches!(asked, Ok(Some(_))) {
                visitors.0.refused();
            }
            let Some(passed) = asked? else { return Ok(None) };
            Some(passed)
        }
    };
    // It may be so no more.
    let upstream = find(Some(&access)).ok_or_else(refused)?.upstreams.first().copied();
    let connected = match upstream {
        Some(upstream) => timeout(CONNECTED_WITHIN, dial.dial(upstream)).await.ok().and_then(Result::ok),
        None => None,
    };
    let Some(mut instance) = connected.filter(|instance| silence::prepare(instance).is_ok()) else {
        match access {
            Access::Postgres => postgres::say(&mut stream, "57P03", "the database is not ready").await?,
            Access::KeyValue(_) => {
                stream.write_all(keyvalue::NOT_READY).await?;
                stream.shutdown().await?;
            }
        }
        return Ok(None);
    };
    // Meanwhile it may have been closed to this client.
    find(Some(&access)).ok_or_else(refused)?;
    if let Some(keyvalue::Passed { by_auth, first }) = passed {
        if by_auth {
            stream.write_all(b"+OK\r\n").await?;
            stream.flush().await?;
        }
        instance.write_all(&first).await?;
    }
    Ok(Some(Begun { name, access, visitors, stream, instance }))
}

/// Takes what a client sends that was told something: to close over it would take back the words (RFC 9293 §3.6.1).
async fn finish(stream: &mut TcpStream) {
    let mut rest = stream.take(LONGEST_STARTUP);
    let _ = timeout(CONNECTED_WITHIN, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}

#[cfg(test)]
mod tests {
    use super::postgres::{ASKS_GSS, ASKS_TLS};
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts who is dialled, and connects nobody.
    #[derive(Default)]
    struct Nobody(AtomicUsize);

    impl Dial for Nobody {
        async fn dial(&self, _to: SocketAddr) -> io::Result<TcpStream> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(io::ErrorKind::ConnectionRefused.into())
        }
    }

    fn access(kind: DatabaseKind) -> Access {
        match kind {
            DatabaseKind::Postgres => Access::Postgres,
            DatabaseKind::KeyValue => Access::KeyValue(Login::new("red-1", "secret")),
        }
    }

    /// What a client hears that says these bytes, at a server of one database for clients of this range.
    async fn hears(kind: DatabaseKind, allow: &str, says: &[u8], dialled: &Arc<Nobody>) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let upstreams = vec!["127.0.0.1:1".parse().unwrap()];
        let database = Database {
            service: Slug::new("db").unwrap(),
            access: access(kind),
            upstreams,
            allow: vec![allow.parse().unwrap()],
            visitors: Visitors::default(),
        };
        let (_table, databases) = watch::channel(Arc::new(Databases(HashMap::from([("db.localhost".to_owned(), database)]))));
        let (stopped, mut stopping) = watch::channel(false);
        let tls = Arc::new(Tls::new().unwrap());
        let stop = async move { end(&mut stopping).await };
        let server = tokio::spawn(serve_databases(listener, kind, databases, tls, Arc::clone(dialled), stop, Duration::ZERO));
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(says).await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        // One that is left without an answer may hear so as an error.
        let _ = client.read_to_end(&mut heard).await;
        stopped.send_replace(true);
        server.await.unwrap().unwrap();
        heard
    }

    /// A connection's end here, as the system shows it: with the timer that runs for it.
    fn timer(here: SocketAddr, there: SocketAddr) -> Option<String> {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let ports = |row: &&str| {
            let port = |at: usize| u16::from_str_radix(row.split_whitespace().nth(at)?.split_once(':')?.1, 16).ok();
            port(1) == Some(here.port()) && port(2) == Some(there.port())
        };
        Some(table.lines().find(ports)?.split_whitespace().nth(5)?[..2].to_owned())
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_asked_whether_it_is_there() {
        let database = Database {
            service: Slug::new("db").unwrap(),
            access: Access::Postgres,
            upstreams: Vec::new(),
            allow: vec!["127.0.0.0/8".parse().unwrap()],
            visitors: Visitors::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (_table, databases) = watch::channel(Arc::new(Databases(HashMap::from([("db.localhost".to_owned(), database)]))));
        let tls = Arc::new(Tls::new().unwrap());
        let dialled = Arc::new(Nobody::default());
        let stop = std::future::pending();
        let server = tokio::spawn(serve_databases(listener, DatabaseKind::Postgres, databases, tls, dialled, stop, Duration::ZERO));
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(&ASKS_TLS).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'S');
        let there = client.local_addr().unwrap();
        // 02 is keep-alive's (proc_net_tcp of the kernel's documentation); that of what was just sent may run before.
        let asked = async {
            while timer(at, there).as_deref() != Some("02") {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(10), asked).await.unwrap_or_else(|_| panic!("timer {:?}", timer(at, there)));
        server.abort();
    }

    #[tokio::test]
    async fn who_may_not_come_hears_nothing_and_reaches_nothing() {
        let startup = [&[0, 0, 0, 9, 0, 3, 0, 0][..], b"\0"].concat();
        let (dialled, anybody, nobody) = (Arc::new(Nobody::default()), "127.0.0.0/8", "192.0.2.0/24");
        for (allow, says, begins, holds) in [
            (nobody, &ASKS_TLS[..], &b""[..], ""),
            (nobody, &startup, b"", ""),
            (anybody, &ASKS_TLS, b"S", ""),
            (anybody, &[ASKS_GSS, ASKS_TLS].concat(), b"NS", ""),
            (anybody, &[ASKS_GSS, ASKS_GSS, ASKS_TLS].concat(), b"NNE", "encrypted"),
            (anybody, &startup, b"E", "sslmode=verify-full"),
            (anybody, b"GET / HTTP/1.1\r\n\r\n", b"E", "encrypted"),
            // What is sent before TLS is never taken for what was in it (CVE-2021-23214).
            (anybody, &[&ASKS_TLS[..], &startup].concat(), b"S", ""),
            (anybody, b"", b"", ""),
        ] {
            let heard = hears(DatabaseKind::Postgres, allow, says, &dialled).await;
            let words = String::from_utf8_lossy(&heard);
            let fits = if holds.is_empty() { !words.contains("encrypted") } else { words.contains(holds) };
            assert!(heard.starts_with(begins) && fits && (!begins.is_empty() || heard.is_empty()), "{allow} {says:?}: {words}");
        }
        let auth = b"*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n*1\r\n$4\r\nPING\r\n";
        for (allow, says, words) in [
            (nobody, &auth[..], ""),
            (anybody, auth, "-ERR connections from outside are encrypted: connect with rediss:// or --tls\r\n"),
            (anybody, b"PING\r\n", "-ERR connections from outside are encrypted: connect with rediss:// or --tls\r\n"),
            (anybody, b"", ""),
        ] {
            let heard = hears(DatabaseKind::KeyValue, allow, says, &dialled).await;
            assert_eq!(String::from_utf8_lossy(&heard), words, "{allow} {says:?}");
        }
        assert_eq!(dialled.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_name_is_found_by_those_whom_its_list_holds() {
        let database = |allow: &[&str]| Database {
            service: Slug::new("db").unwrap(),
            access: Access::Postgres,
            upstreams: Vec::new(),
            allow: allow.iter().map(|net| net.parse().unwrap()).collect(),
            visitors: Visitors::default(),
        };
        let all = Databases(HashMap::from([
            ("a.localhost".to_owned(), database(&["192.0.2.0/24", "2001:db8::/32"])),
            ("b.localhost".to_owned(), database(&["0.0.0.0/0"])),
            ("c.localhost".to_owned(), database(&[])),
        ]));
        for (name, client, want) in [
            ("a.localhost", "192.0.2.9", true),
            ("a.localhost", "2001:db8::1", true),
            ("a.localhost", "198.51.100.1", false),
            ("b.localhost", "198.51.100.1", true),
            ("b.localhost", "2001:db8::1", false),
            ("c.localhost", "192.0.2.9", false),
            ("", "192.0.2.9", false),
            ("localhost", "192.0.2.9", false),
        ] {
            let find = |kind| all.find(kind, name, client.parse().unwrap()).is_some();
            assert_eq!(find(DatabaseKind::Postgres), want, "{name} {client}");
            assert!(!find(DatabaseKind::KeyValue));
        }
    }
}
