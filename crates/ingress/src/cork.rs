//! Gathers small writes into few: what is written is sent when its owner says so, or when it is much.
//!
//! HTTP/2 flushes after each frame, which is a system call (and a record of TLS) for each of many small answers that are ready at
//! the same time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much is gathered at most, bytes: a record of TLS.
const MOST: usize = 16 << 10;

struct Gathered<I> {
    io: I,
    unsent: Vec<u8>,
    /// How many bytes have left.
    sent: u64,
    /// Why nothing can be sent any more.
    broken: Option<io::ErrorKind>,
}

/// A connection whose writes are gathered. Clones are the same connection.
pub(crate) struct Cork<I>(Arc<Mutex<Gathered<I>>>);

impl<I> Clone for Cork<I> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<I> Cork<I> {
    pub fn new(io: I) -> Self {
        Self(Arc::new(Mutex::new(Gathered { io, unsent: Vec::new(), sent: 0, broken: None })))
    }

    /// How many bytes have left.
    pub fn sent(&self) -> u64 {
        self.lock().sent
    }

    fn lock(&self) -> MutexGuard<'_, Gathered<I>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I: AsyncWrite + Unpin> Cork<I> {
    /// Sends what was gathered.
    pub fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.lock();
        if gathered.unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(gathered.poll_send(context))?;
        Pin::new(&mut gathered.io).poll_flush(context)
    }
}

impl<I: AsyncWrite + Unpin> Gathered<I> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        let polled = loop {
            let Some(rest) = self.unsent.get(sent..).filter(|rest| !rest.is_empty()) else { break Poll::Ready(Ok(())) };
            match Pin::new(&mut self.io).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(some)) => sent += some,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.sent += u64::try_from(sent).unwrap_or_default();
        if let Poll::Ready(Err(error)) = &polled {
            self.broken = Some(error.kind());
        }
        if sent == self.unsent.len() {
            // Connections that wait hold nothing.
            self.unsent = Vec::new();
        } else {
            self.unsent.drain(..sent);
        }
        polled
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Cork<I> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.lock();
        match gathered.broken {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None => Pin::new(&mut gathered.io).poll_read(context, into),
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Cork<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(from)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut gathered = self.lock();
        let more: usize = from.iter().map(|slice| slice.len()).sum();
        if gathered.unsent.len() + more > MOST {
            ready!(gathered.poll_send(context))?;
            if more > MOST {
                let polled = Pin::new(&mut gathered.io).poll_write_vectored(context, from);
                if let Poll::Ready(Ok(some)) = &polled {
                    gathered.sent += u64::try_from(*some).unwrap_or_default();
                }
                return polled;
            }
        }
        for slice in from {
            gathered.unsent.extend_from_slice(slice);
        }
        Poll::Ready(Ok(more))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing for what is gathered: [`Cork::poll_send`] does.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.lock();
        if gathered.unsent.is_empty() { Pin::new(&mut gathered.io).poll_flush(context) } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.lock();
        ready!(gathered.poll_send(context))?;
        Pin::new(&mut gathered.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn small_writes_leave_as_one_and_nothing_is_lost() {
        let (near, mut far) = tokio::io::duplex(MOST / 2);
        let (cork, mut got) = (Cork::new(near), [0; 64]);
        let mut writer = cork.clone();
        for text in ["one ", "two"] {
            writer.write_all(text.as_bytes()).await.unwrap();
            writer.flush().await.unwrap();
        }
        assert!(far.read(&mut got).now_or_never().is_none(), "nothing left yet");
        poll_fn(|context| cork.poll_send(context)).await.unwrap();
        let length = far.read(&mut got).await.unwrap();
        assert_eq!(&got[..length], b"one two");

        let long = vec![7; 5 * MOST + 1];
        let write = async {
            writer.write_all(b"x").await.unwrap();
            writer.write_all(&long).await.unwrap();
            writer.write_all(b"y").await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut all = Vec::new();
        let ((), read) = tokio::join!(write, far.read_to_end(&mut all));
        read.unwrap();
        assert!(all == [&b"x"[..], &long, b"y"].concat(), "{} bytes", all.len());
    }
}
