//! DNS over TCP (RFC 7766): messages behind two length bytes, one after the other on a stream.

use super::{Server, end, forward, rest};
use crate::{Answer, Transport};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a stream may stay silent between messages, and how long one message may take.
const IDLE: Duration = Duration::from_secs(10);

pub(super) async fn listen(server: Arc<Server>, listener: TcpListener, mut stopping: watch::Receiver<bool>) {
    let mut streams = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = streams.join_next() => continue,
            () = end(&mut stopping) => break,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                rest("a DNS stream can't be accepted", &error).await;
                continue;
            }
        };
        let asker = from.ip().to_canonical();
        // A stranger's stream, or one too many, is closed at once.
        if !server.zones.load().askers.contains_key(&asker) {
            continue;
        }
        let Some(permit) = server.limits.stream(asker) else { continue };
        let (server, stopping) = (Arc::clone(&server), stopping.clone());
        streams.spawn(async move {
            if let Err(error) = converse(&server, asker, stream, stopping).await {
                tracing::debug!(%asker, %error, "a DNS stream ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    while streams.join_next().await.is_some() {}
}

async fn converse(server: &Server, asker: IpAddr, mut stream: TcpStream, mut stopping: watch::Receiver<bool>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let query = tokio::select! {
            query = timeout(IDLE, read_message(&mut stream)) => query??,
            () = end(&mut stopping) => return Ok(()),
        };
        let Some(query) = query else { return Ok(()) };
        if !server.admits(asker) {
            return Ok(());
        }
        let reply = match server.answer(asker, &query, Transport::Tcp) {
            Answer::Drop => return Ok(()),
            Answer::Reply(reply) => Some(reply),
            Answer::Forward(query) => match server.limits.lookup(asker) {
                None => query.failure(),
                Some(permit) => {
                    let reply = forward::resolve(server, query).await;
                    drop(permit);
                    reply
                }
            },
        };
        let Some(reply) = reply else { return Ok(()) };
        timeout(IDLE, write_message(&mut stream, &reply)).await??;
    }
}

/// One message; `None` at the end of the stream or for an empty message.
pub(super) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(0) => return Ok(None),
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes the length and the message as one segment, where it fits.
pub(super) async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    stream.write_all(&framed).await
}
