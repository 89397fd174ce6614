//! Databases from outside: PostgreSQL clients by TLS, which ask for a host name (SNI) that says which database is meant.
//!
//! [`Databases`] says who may come to which; [`serve_databases`] owns connections. A client begins with TLS at once (its ALPN is
//! `postgresql`) or asks for it as PostgreSQL does (`SSLRequest`); TLS ends here, and what is in it goes to the database's instance
//! as it is.
//!
//! Invariants: nothing is read from an address that no database lets in; nothing is sent to a database on behalf of a client whose
//! address its list does not hold, and a connection ends as soon as that is so no more.

use crate::serve::end;
use crate::{Dial, Tls};
use ipnet::IpNet;
use moat_model::Slug;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// What clients that begin with TLS say they speak.
pub(crate) const PROTOCOL: &[u8] = b"postgresql";
/// The first byte of a TLS record with a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// `SSLRequest` and `GSSENCRequest`: their length and their code.
const ASKS_TLS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const ASKS_GSS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
/// More than PostgreSQL reads of a client before it knows who that is, bytes.
const LONGEST_STARTUP: u64 = 16 * 1024;
/// For everything until a client is connected to its database.
const BEGINS_WITHIN: Duration = Duration::from_secs(30);
/// For a connection to an instance.
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);
/// Connections at once; more wait to be accepted.
const MOST: usize = 4096;

/// A database that is reached from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its label.
    pub service: Slug,
    /// Its instance, where one is ready.
    pub upstreams: Vec<SocketAddr>,
    /// Clients that may come; no other may.
    pub allow: Vec<IpNet>,
}

/// Every database that is reached from outside, by lower-case host name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Databases(pub HashMap<String, Database>);

impl Databases {
    /// The database that a client means and may come to.
    fn find(&self, name: &str, client: IpAddr) -> Option<&Database> {
        self.0.get(name).filter(|database| database.admits(client))
    }
}

impl Database {
    fn admits(&self, client: IpAddr) -> bool {
        self.allow.iter().any(|net| net.contains(&client))
    }
}

/// Serves until `stop` resolves: then accepts no more and lets connections go on for `drain_wait`.
///
/// # Errors
/// When the listener itself is broken.
pub async fn serve_databases<D: Dial>(
    listener: TcpListener,
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
                if !databases.borrow().0.values().any(|database| database.admits(client)) {
                    continue;
                }
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let mut cutting = cutting.clone();
                let served = converse(stream, client, databases.clone(), Arc::clone(&tls), Arc::clone(&dial));
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
    mut databases: watch::Receiver<Arc<Databases>>,
    tls: Arc<Tls>,
    dial: Arc<D>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let begun = timeout(BEGINS_WITHIN, begin(stream, client, &databases, &tls, &*dial)).await;
    let Some((name, mut stream, mut instance)) = begun.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? else { return Ok(()) };
    let withdrawn = async {
        // An error means that nothing changes any more.
        let _ = databases.wait_for(|databases| databases.find(&name, client).is_none()).await;
    };
    tokio::select! {
        copied = copy_bidirectional(&mut stream, &mut instance) => copied.map(drop),
        () = withdrawn => Ok(()),
    }
}

/// The host name that a client asks for, its connection and the database's. `None` where all is said.
async fn begin<D: Dial>(
    mut stream: TcpStream,
    client: IpAddr,
    databases: &watch::Receiver<Arc<Databases>>,
    tls: &Tls,
    dial: &D,
) -> io::Result<Option<(String, TlsStream<TcpStream>, TcpStream)>> {
    let Some(at_once) = asks_for_tls(&mut stream).await? else { return Ok(None) };
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let (name, speaks) = {
        let hello = hello.client_hello();
        let speaks = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == PROTOCOL));
        (hello.server_name().unwrap_or_default().to_ascii_lowercase(), speaks)
    };
    let refused = || io::Error::new(io::ErrorKind::PermissionDenied, "it asks for no database that it may come to");
    if at_once && !speaks {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not say that it speaks PostgreSQL's protocol"));
    }
    let upstream = databases.borrow().find(&name, client).ok_or_else(refused)?.upstreams.first().copied();
    let mut stream = hello.into_stream(tls.databases()).await?;
    let connected = match upstream {
        Some(upstream) => timeout(CONNECTED_WITHIN, dial.dial(upstream)).await.ok().and_then(Result::ok),
        None => None,
    };
    let Some(instance) = connected else {
        say(&mut stream, "57P03", "the database is not ready").await?;
        return Ok(None);
    };
    Ok(Some((name, stream, instance)))
}

/// Waits until a client begins TLS: at once, or after it asked. `None` for one that wants none, which is told.
async fn asks_for_tls(stream: &mut TcpStream) -> io::Result<Option<bool>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
    if first[0] == HANDSHAKE {
        return Ok(Some(true));
    }
    // Encryption by GSSAPI is tried before TLS, once.
    for _ in 0..2 {
        let mut asked = [0; 8];
        stream.read_exact(&mut asked).await?;
        match asked {
            ASKS_TLS => {
                stream.write_all(b"S").await?;
                return Ok(Some(false));
            }
            ASKS_GSS => stream.write_all(b"N").await?,
            _ => break,
        }
    }
    say(stream, "28000", "connections from outside are encrypted: connect with sslmode=verify-full or sslmode=require").await?;
    // What was sent is taken first: to close over it would take back the words (RFC 9293 §3.6.1).
    let mut rest = stream.take(LONGEST_STARTUP);
    let _ = timeout(CONNECTED_WITHIN, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    Ok(None)
}

/// Ends with an `ErrorResponse`, which clients show.
async fn say(stream: &mut (impl AsyncWrite + Unpin), code: &str, words: &str) -> io::Result<()> {
    let fields = format!("SFATAL\0VFATAL\0C{code}\0M{words}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
    stream.write_all(&[b"E", &length.to_be_bytes()[..], fields.as_bytes()].concat()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
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

    /// What a client hears that says these bytes, at a server of one database for clients of this range.
    async fn hears(allow: &str, says: &[u8], dialled: &Arc<Nobody>) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let upstreams = vec!["127.0.0.1:1".parse().unwrap()];
        let database = Database { service: Slug::new("db").unwrap(), upstreams, allow: vec![allow.parse().unwrap()] };
        let (_table, databases) = watch::channel(Arc::new(Databases(HashMap::from([("db.localhost".to_owned(), database)]))));
        let (stopped, mut stopping) = watch::channel(false);
        let tls = Arc::new(Tls::new().unwrap());
        let stop = async move { end(&mut stopping).await };
        let server = tokio::spawn(serve_databases(listener, databases, tls, Arc::clone(dialled), stop, Duration::ZERO));
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
            let heard = hears(allow, says, &dialled).await;
            let words = String::from_utf8_lossy(&heard);
            let fits = if holds.is_empty() { !words.contains("encrypted") } else { words.contains(holds) };
            assert!(heard.starts_with(begins) && fits && (!begins.is_empty() || heard.is_empty()), "{allow} {says:?}: {words}");
        }
        assert_eq!(dialled.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_name_is_found_by_those_whom_its_list_holds() {
        let database = |allow: &[&str]| Database {
            service: Slug::new("db").unwrap(),
            upstreams: Vec::new(),
            allow: allow.iter().map(|net| net.parse().unwrap()).collect(),
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
            assert_eq!(all.find(name, client.parse().unwrap()).is_some(), want, "{name} {client}");
        }
    }
}
