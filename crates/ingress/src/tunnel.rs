//! Connections that switched protocols: bytes both ways until both sides have ended.

use crate::pool::Flight;
use crate::serve::end;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;

/// Copies bytes both ways until both sides have ended, or tunnels are cut.
pub(crate) async fn tunnel(
    client_side: OnUpgrade,
    instance_side: OnUpgrade,
    counted: (Flight, OpenTunnel),
    mut cutting: watch::Receiver<bool>,
) {
    let copied = async {
        let (client, instance) =
            tokio::try_join!(client_side, instance_side).map_err(|error| tracing::debug!(%error, "an upgrade failed")).ok()?;
        let (mut client, mut instance) = (TokioIo::new(client), TokioIo::new(instance));
        tokio::io::copy_bidirectional(&mut client, &mut instance).await.map_err(|error| tracing::debug!(%error, "a tunnel broke")).ok()
    };
    tokio::select! {
        _ = copied => {}
        () = end(&mut cutting) => {}
    }
    drop(counted);
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
