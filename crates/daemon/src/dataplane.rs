//! The data plane: the HTTP ingress and the DNS server, each following a configuration that is swapped as a whole.

use crate::protocol::Failure;
use arc_swap::ArcSwap;
use moat_dns::Zones;
use moat_ingress::{Dial, Routes};
use moat_model::Family;
use moat_net_linux::Network;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Makes the ingress' connections with sockets of the router namespace.
#[derive(Clone)]
struct RouterDial {
    network: Network,
}

impl Dial for RouterDial {
    async fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let ns = self.network.router_ns().map_err(io::Error::other)?;
        let socket = moat_net_linux::ns::tcp_socket_in(&ns, family)?;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Both servers and what they follow.
pub struct DataPlane {
    routes: Arc<ArcSwap<Routes>>,
    zones: Arc<ArcSwap<Zones>>,
    upstreams: Arc<ArcSwap<Vec<SocketAddr>>>,
    listening: Option<SocketAddr>,
    listener: Option<std::net::TcpListener>,
    ingress: Option<JoinHandle<()>>,
    dns: Option<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl DataPlane {
    /// Nothing listens yet.
    pub fn new() -> Self {
        Self {
            routes: Arc::new(ArcSwap::from_pointee(Routes::default())),
            zones: Arc::new(ArcSwap::from_pointee(Zones::default())),
            upstreams: Arc::new(ArcSwap::from_pointee(Vec::new())),
            listening: None,
            listener: None,
            ingress: None,
            dns: None,
            stop: watch::channel(false).0,
        }
    }

    /// Where the ingress listens.
    pub fn listening(&self) -> Option<SocketAddr> {
        self.listening
    }

    /// Takes the ingress' address. Does nothing when it listens there already; another address than before is refused.
    pub async fn listen(&mut self, address: &str) -> Result<(), Failure> {
        let wanted: SocketAddr = address.parse().map_err(|_| Failure {
            message: format!("`{address}` is not an address to listen on"),
            hint: Some("write it as `127.0.0.1:8080`".to_owned()),
            exit_code: 2,
        })?;
        if let Some(now) = self.listening {
            return if now == wanted || wanted.port() == 0 {
                Ok(())
            } else {
                Err(Failure::refused(
                    format!("the ingress listens on {now} already"),
                    Some(format!("use `--listen {now}`, or `moat down` first")),
                ))
            };
        }
        let listener = TcpListener::bind(wanted).await.map_err(|error| {
            let other = wanted.port().saturating_add(1);
            let hint = if error.kind() == io::ErrorKind::AddrInUse {
                format!("another program listens on {wanted}: stop it, or choose another port with `--listen 127.0.0.1:{other}`")
            } else {
                "choose another address with `--listen`".to_owned()
            };
            Failure { message: format!("can't listen on {wanted}: {error}"), hint: Some(hint), exit_code: 3 }
        })?;
        self.listening = listener.local_addr().ok();
        self.listener = listener.into_std().ok();
        Ok(())
    }

    /// Starts the DNS server in the router namespace, and the ingress in front of it, unless they run.
    pub fn ensure_dns(&mut self, network: &Network) -> io::Result<()> {
        self.upstreams.store(Arc::new(upstreams()));
        if self.dns.as_ref().is_none_or(JoinHandle::is_finished) {
            let ns = network.router_ns().map_err(io::Error::other)?;
            let at = SocketAddr::new(moat_model::net::GATEWAY_V4.into(), 53);
            let udp = UdpSocket::from_std(moat_net_linux::ns::udp_bound_in(&ns, at)?)?;
            let tcp = TcpListener::from_std(moat_net_linux::ns::tcp_listener_in(&ns, at)?)?;
            let (zones, upstreams, stop) = (self.zones.clone(), self.upstreams.clone(), self.stopped());
            self.dns = Some(tokio::spawn(async move {
                moat_dns::serve(vec![udp], vec![tcp], zones, upstreams, stop).await;
            }));
        }
        if self.ingress.as_ref().is_none_or(JoinHandle::is_finished)
            && let Some(listener) = self.listener.take()
        {
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            let (routes, dial, stop) = (self.routes.clone(), Arc::new(RouterDial { network: network.clone() }), self.stopped());
            self.ingress = Some(tokio::spawn(async move {
                if let Err(error) = moat_ingress::serve(listener, routes, dial, stop).await {
                    tracing::error!(%error, "the ingress ended");
                }
            }));
        }
        Ok(())
    }

    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stop = self.stop.subscribe();
        async move {
            // An error means that the sender is gone: the same end.
            let _ = stop.wait_for(|stopped| *stopped).await;
        }
    }

    /// What the ingress routes by from now on.
    pub fn set_routes(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }

    /// What DNS answers by from now on.
    pub fn set_zones(&self, zones: Zones) {
        self.zones.store(Arc::new(zones));
    }

    /// Ends both servers.
    pub fn stop(&mut self) {
        self.stop.send_replace(true);
        for task in [self.dns.take(), self.ingress.take()].into_iter().flatten() {
            task.abort();
        }
        self.listener = None;
        self.listening = None;
        // What is started after this is not to be stopped.
        self.stop = watch::channel(false).0;
    }
}

/// The host's resolvers. systemd-resolved's list is preferred to its stub, which does not forward to itself.
fn upstreams() -> Vec<SocketAddr> {
    for path in ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"] {
        if let Ok(text) = std::fs::read_to_string(path) {
            let found = moat_dns::parse_resolv_conf(&text);
            if !found.is_empty() {
                return found;
            }
        }
    }
    Vec::new()
}
