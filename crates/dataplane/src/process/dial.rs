//! Connections to instances, with sockets of the router namespace.

use moat_ingress::Dial;
use moat_model::Family;
use moat_net_linux::ns;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

/// A socket that is wanted.
type Wanted = (Family, oneshot::Sender<io::Result<OwnedFd>>);

/// Asks a thread that stays in the router namespace for sockets. It needs the privilege to enter once, not for each.
#[derive(Debug)]
pub struct RouterDial {
    wanted: mpsc::Sender<Wanted>,
}

impl RouterDial {
    /// Enters the namespace, and is `user` from then on. The thread ends when this is dropped.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn enter(router: BorrowedFd<'_>, user: Option<u32>) -> io::Result<Self> {
        let (wanted, asked) = mpsc::channel::<Wanted>();
        ns::stay_in(router, move || {
            super::confine::give_up_privileges(user);
            while let Ok((family, reply)) = asked.recv() {
                // Who asked may have given up.
                let _ = reply.send(ns::tcp_socket(family));
            }
        })?;
        Ok(Self { wanted })
    }
}

impl Dial for RouterDial {
    async fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let gone = || io::Error::other("the thread in the router namespace is gone");
        let (reply, socket) = oneshot::channel();
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        self.wanted.send((family, reply)).map_err(|_| gone())?;
        let socket = socket.await.map_err(|_| gone())??;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
