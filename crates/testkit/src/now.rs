//! Futures that need no runtime.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// The result of a future that is ready at once, as all of [`FakeEngine`](crate::FakeEngine)'s are but `wait`.
///
/// # Panics
/// When the future is not ready.
pub fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the future is not ready: it waits for something"),
    }
}
