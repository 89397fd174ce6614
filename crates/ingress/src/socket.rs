//! Sockets that say what goes on in them: of a client, whether something waits to be taken by it; of an instance, whether it said
//! anything.

use rustix::net::sockopt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Something that is so or is not. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sign(Arc<AtomicBool>);

impl Sign {
    pub fn is_so(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self, so: bool) {
        self.0.store(so, Ordering::Relaxed);
    }
}

/// A client's socket, which ends when its client takes nothing for too long of what waits for it.
///
/// The system counts (`TCP_USER_TIMEOUT`): it knows each byte that the client has room for, while a write succeeds again only when
/// a third of all that waits is gone. It counts only while a write waits, since it would count for ends that are gone without a
/// word too, which are noticed sooner ([`crate::silence`]).
#[derive(Debug)]
pub(crate) struct Paced {
    stream: TcpStream,
    /// Milliseconds; none waits for ever.
    limit: Option<u32>,
    waits: Sign,
}

impl Paced {
    /// With how long a client may take nothing.
    pub fn new(stream: TcpStream, limit: Option<Duration>) -> Self {
        let limit = limit.map(|limit| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX));
        Self { stream, limit, waits: Sign::default() }
    }

    /// Whether something waits for its client.
    pub fn waits(&self) -> Sign {
        self.waits.clone()
    }

    fn written(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let waits = polled.is_pending();
        if waits != self.waits.is_so() {
            self.waits.set(waits);
            if let Some(limit) = self.limit {
                // It fails where the connection is over, which the next write says.
                let _ = sockopt::set_tcp_user_timeout(&self.stream, if waits { limit } else { 0 });
            }
        }
        polled
    }
}

impl AsyncRead for Paced {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, from);
        self.written(polled)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, from);
        self.written(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// An instance's socket, which remembers whether anything came from it.
#[derive(Debug)]
pub(crate) struct Heard {
    stream: TcpStream,
    heard: Sign,
}

impl Heard {
    pub fn new(stream: TcpStream, heard: Sign) -> Self {
        Self { stream, heard }
    }
}

impl AsyncRead for Heard {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.heard.set(true);
        }
        polled
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
