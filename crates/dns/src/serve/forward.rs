//! Asking the machine's resolvers: UDP first, TCP when the answer is cut, the next one when one fails.
//!
//! Each attempt has a socket of its own, connected, with a port chosen by the kernel, and a fresh random id: an answer
//! must match address, port, id and question.

use super::stream::{read_message, write_message};
use super::{Server, random};
use crate::upstream::{ForwardQuery, Rejected, check_upstream};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// One attempt over UDP; below the 5 s after which libc asks again.
const UDP_WAIT: Duration = Duration::from_secs(2);
/// One attempt over TCP, connection included.
const TCP_WAIT: Duration = Duration::from_secs(3);
/// The whole lookup.
const WHOLE: Duration = Duration::from_secs(9);
/// Times the list of upstreams is gone through.
const ROUNDS: usize = 2;
/// Datagrams that match nothing, after which an attempt is given up: someone is guessing.
const STRAY: usize = 64;

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    Late(#[from] tokio::time::error::Elapsed),
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

/// Asks until someone answers, and gives the reply for the asker; `None` only when no reply can be written.
pub(super) async fn resolve(server: &Server, query: ForwardQuery) -> Option<Vec<u8>> {
    let mut attempt = query.clone();
    match timeout(WHOLE, ask_all(server, &mut attempt)).await {
        Ok(Some(reply)) => Some(reply),
        Ok(None) | Err(_) => query.failure(),
    }
}

async fn ask_all(server: &Server, query: &mut ForwardQuery) -> Option<Vec<u8>> {
    let upstreams = server.upstreams.load_full();
    let start = server.preferred.load(Ordering::Relaxed);
    let mut unwilling = None;
    for _ in 0..ROUNDS {
        for step in 0..upstreams.len() {
            let index = (start + step) % upstreams.len();
            let Some(&upstream) = upstreams.get(index) else { continue };
            match ask(query, upstream).await {
                Ok(reply) if is_unwilling(&reply) => unwilling = Some(reply),
                Ok(reply) => {
                    server.preferred.store(index, Ordering::Relaxed);
                    return Some(reply);
                }
                Err(Failed::Rejected(why)) if why.is_policy() => {
                    tracing::info!(%upstream, "an answer from outside is refused: {why}");
                    return query.refusal(&why);
                }
                Err(error) => tracing::debug!(%upstream, %error, "an upstream name server failed"),
            }
        }
        if unwilling.is_some() {
            break;
        }
    }
    unwilling
}

/// SERVFAIL, NOTIMP and REFUSED speak of the server, not of the name: another one may know.
fn is_unwilling(reply: &[u8]) -> bool {
    matches!(reply.get(3).map(|flags| flags & 0x0f), Some(2 | 4 | 5))
}

async fn ask(query: &mut ForwardQuery, upstream: SocketAddr) -> Result<Vec<u8>, Failed> {
    fresh_id(query);
    match timeout(UDP_WAIT, ask_udp(query, upstream)).await? {
        Err(Failed::Rejected(Rejected::Truncated)) => {
            fresh_id(query);
            timeout(TCP_WAIT, ask_tcp(query, upstream)).await?
        }
        other => other,
    }
}

fn fresh_id(query: &mut ForwardQuery) {
    let [high, low, ..] = random().to_ne_bytes();
    query.set_id(u16::from_be_bytes([high, low]));
}

async fn ask_udp(query: &ForwardQuery, upstream: SocketAddr) -> Result<Vec<u8>, Failed> {
    let any: SocketAddr = if upstream.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(&query.bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..STRAY {
        let length = socket.recv(&mut buffer).await?;
        match check_upstream(query, buffer.get(..length).unwrap_or_default()) {
            Err(Rejected::NotOurs) => {}
            checked => return Ok(checked?),
        }
    }
    Err(Rejected::NotOurs.into())
}

async fn ask_tcp(query: &ForwardQuery, upstream: SocketAddr) -> Result<Vec<u8>, Failed> {
    let mut stream = TcpStream::connect(upstream).await?;
    write_message(&mut stream, &query.bytes).await?;
    let response = read_message(&mut stream).await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    Ok(check_upstream(query, &response)?)
}
