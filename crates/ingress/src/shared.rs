//! Connections of HTTP/2 to instances, each of which carries many calls.
//!
//! Invariant: no call waits for another one: a connection gets as many as its instance allows and as its window has room for, and
//! a further one is made for more.

use crate::Settings;
use crate::alarm::Alarm;
use crate::body::RequestBody;
use crate::failure::Failure;
use crate::link::{Late, Sent, moved};
use crate::together::Together;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Calls that one connection carries at most.
const CALLS: u16 = 100;
/// What is read ahead of one call's answer, bytes.
const WINDOW: u32 = 128 << 10;

/// A connection.
#[derive(Debug)]
pub(crate) struct Shared {
    sender: http2::SendRequest<RequestBody>,
    /// Calls that its instance allows at once.
    allowed: watch::Receiver<usize>,
    /// It gets no more calls.
    spent: AtomicBool,
}

/// A call on it, which counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Call {
    sender: http2::SendRequest<RequestBody>,
    shared: Arc<Shared>,
}

impl Shared {
    /// Makes one, and learns how many calls its instance allows.
    ///
    /// # Errors
    /// When its instance says nothing in time.
    pub async fn open(stream: TcpStream, address: SocketAddr, settings: &Settings) -> Result<Arc<Self>, Failure> {
        let parts = Together::default();
        let handshake = http2::Builder::new(parts.clone())
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(settings.max_head).unwrap_or(u32::MAX))
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * u32::from(CALLS))
            // None before it said how many.
            .initial_max_send_streams(0)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = handshake.map_err(Failure::of_exchange)?;
        let (told, mut allowed) = watch::channel(0);
        tokio::spawn(async move {
            let (mut connection, mut told) = (pin!(connection), Some(told));
            let mut running = FuturesUnordered::new();
            poll_fn(|context| {
                loop {
                    running.extend(parts.take());
                    while let Poll::Ready(Some(())) = running.poll_next_unpin(context) {
                        parts.ended();
                    }
                    if let Some(tell) = &told {
                        // What an instance allows comes by one of the parts.
                        let now = connection.current_max_send_streams();
                        tell.send_if_modified(|before| std::mem::replace(before, now) != now);
                        if let Poll::Ready(result) = connection.as_mut().poll(context) {
                            told = None;
                            if let Err(error) = result {
                                tracing::debug!(%address, %error, "a connection to an instance ended");
                            }
                        }
                    }
                    if parts.is_empty() {
                        return if told.is_none() && running.is_empty() { Poll::Ready(()) } else { Poll::Pending };
                    }
                }
            })
            .await;
        });
        // Where it ended before, sending says why.
        if timeout(settings.connect_wait, allowed.wait_for(|allowed| *allowed > 0)).await.is_err() {
            return Err(Failure::ConnectLate { port: address.port() });
        }
        Ok(Arc::new(Self { sender, allowed, spent: AtomicBool::new(false) }))
    }

    /// Whether it gets no more calls.
    pub fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed) || self.sender.is_closed()
    }

    /// Whether one more call runs at once beside so many.
    pub fn has_room(&self, calls: usize) -> bool {
        calls < (*self.allowed.borrow()).min(usize::from(CALLS))
    }
}

impl Call {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self { sender: shared.sender.clone(), shared: Arc::clone(shared) }
    }

    /// Has the connection get no more calls; those that run on it go on.
    pub fn give_up(&self) {
        self.shared.spent.store(true, Ordering::Relaxed);
    }

    /// As [`Sender::send`](crate::pool::Sender::send).
    pub async fn send(&mut self, request: Request<RequestBody>, wait: Duration) -> Sent {
        let (upload, began) = (request.body().upload(), Instant::now());
        let mut late = Alarm::default();
        tokio::select! {
            biased;
            answer = self.sender.try_send_request(request) => Ok(answer),
            () = poll_fn(|context| late.poll(context, || moved(upload.as_deref(), began) + wait)) => Err(Late),
        }
    }
}
