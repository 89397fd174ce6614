//! Connections that switched protocols: bytes both ways until both sides have ended.

use crate::clients::Place;
use crate::counters::Counters;
use crate::pool::Flight;
use crate::record::Open;
use crate::serve::end;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// Copies bytes both ways until both sides have ended, or tunnels are cut.
pub(crate) async fn tunnel(client_side: OnUpgrade, instance_side: OnUpgrade, counted: Counted, mut cutting: watch::Receiver<bool>) {
    let copied = async {
        let (client, instance) =
            tokio::try_join!(client_side, instance_side).map_err(|error| tracing::debug!(%error, "an upgrade failed")).ok()?;
        let mut client = Counting::new(TokioIo::new(client), Arc::clone(counted.open.counters()));
        let mut instance = TokioIo::new(instance);
        tokio::io::copy_bidirectional(&mut client, &mut instance).await.map_err(|error| tracing::debug!(%error, "a tunnel broke")).ok()
    };
    tokio::select! {
        _ = copied => {}
        () = end(&mut cutting) => {}
    }
    drop(counted);
}

/// What a tunnel is counted by while it is open.
#[expect(dead_code, reason = "they count until they are dropped")]
pub(crate) struct Counted {
    /// Of its instance.
    pub flight: Flight,
    /// Of all tunnels.
    pub tunnel: OpenTunnel,
    /// Of its service.
    pub open: Open,
    /// Of its client.
    pub place: Option<Arc<Place>>,
}

/// Counts bytes.
pub(crate) trait Bytes {
    /// From a client.
    fn received(&self, bytes: u64);
    /// To a client.
    fn sent(&self, bytes: u64);
}

impl Bytes for Counters {
    fn received(&self, bytes: u64) {
        self.received(bytes);
    }
    fn sent(&self, bytes: u64) {
        self.sent(bytes);
    }
}

/// A client's side, whose bytes are counted.
pub(crate) struct Counting<T, C> {
    io: T,
    counters: Arc<C>,
}

impl<T, C> Counting<T, C> {
    pub fn new(io: T, counters: Arc<C>) -> Self {
        Self { io, counters }
    }
}

fn number(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or_default()
}

impl<T: AsyncRead + Unpin, C: Bytes> AsyncRead for Counting<T, C> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        self.counters.received(number(buffer.filled().len() - before));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin, C: Bytes> AsyncWrite for Counting<T, C> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(context, bytes))?;
        self.counters.sent(number(written));
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// A tunnel that is counted until this is dropped.
pub(crate) struct OpenTunnel(watch::Sender<usize>);

impl OpenTunnel {
    /// One more.
    pub fn new(open: &watch::Sender<usize>) -> Self {
        open.send_modify(|open| *open += 1);
        Self(open.clone())
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open = open.saturating_sub(1));
    }
}
