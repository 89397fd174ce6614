//! The daemon's hold on the data plane: makes its sockets, and publishes what it serves by.
//!
//! The process itself is [`moat_dataplane`]'s; it outlives this daemon.

use crate::core::Msg;
use crate::handed::{self, Handed};
use crate::machine::Doing;
use crate::protocol::Failure;
use moat_dataplane::message::Measures;
use moat_dataplane::{CertificateSet, Config, Doors, KeepError, Keeper, News, Place, Sockets, Stamp};
use moat_ingress::LogFormat;
use moat_net_linux::outside::{self, Outside};
use moat_net_linux::{Network, ns};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the loop waits for a configuration to hold. One that takes longer holds later.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the ingress listens unless somebody says otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8080";

/// Why the data plane does not serve.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// No sockets.
    #[error("the DNS server can't listen in the private network")]
    Sockets(#[source] io::Error),
    /// No process.
    #[error(transparent)]
    Process(#[from] KeepError),
}

/// The data plane, as far as this daemon has to do with it.
pub struct DataPlane {
    place: Place,
    tx: mpsc::UnboundedSender<Msg>,
    keeper: Option<Keeper>,
    /// Where the ingress listens.
    listening: Option<SocketAddr>,
    /// Where it listens for HTTPS.
    listening_https: Option<SocketAddr>,
    /// The ingress' listener, while there is no router namespace to go with it.
    ingress: Option<OwnedFd>,
    /// That of HTTPS, while no process has it.
    https: Option<OwnedFd>,
    /// Where clients of databases come to from now on; none is as the process has it.
    databases: Option<Doors<OwnedFd>>,
    /// What the service manager handed in, until it is first asked for.
    handed: Handed,
    /// What a process serves with, or will.
    sockets: Option<Sockets>,
    /// A process was asked to serve with them.
    serving: bool,
    /// They are others since.
    changed: bool,
    resolvers: Vec<SocketAddr>,
    logging: Logging,
}

/// What the process was told of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Logging {
    /// Nothing that this daemon knows of.
    Unknown,
    Off,
    /// To the file with this device and inode.
    To(LogFormat, (u64, u64)),
}

impl DataPlane {
    /// Nothing is known yet. `root`: the folder that every release is in; `handed`: listeners of the service manager.
    pub fn new(run: PathBuf, root: PathBuf, handed: Handed, tx: mpsc::UnboundedSender<Msg>) -> Self {
        // Only root can be somebody else.
        let user = nix::unistd::geteuid().is_root().then(moat_engine_linux::outward);
        Self {
            place: Place { run, root, user },
            tx,
            keeper: None,
            listening: handed.http.as_ref().and_then(|socket| handed::address(socket).ok()),
            listening_https: handed.https.as_ref().and_then(|socket| handed::address(socket).ok()),
            ingress: None,
            https: None,
            databases: None,
            handed,
            sockets: None,
            serving: false,
            changed: false,
            resolvers: Vec::new(),
            logging: Logging::Unknown,
        }
    }

    /// Where the ingress listens.
    pub fn listening(&self) -> Option<SocketAddr> {
        self.listening
    }

    /// Where the ingress listens for HTTPS.
    pub fn listening_https(&self) -> Option<SocketAddr> {
        self.listening_https
    }

    /// Looks for the process of an earlier daemon, once.
    async fn find(&mut self) {
        if self.keeper.is_none() {
            let tx = self.tx.clone();
            // Nobody listens any more only when the daemon ends.
            let told = move |news| {
                drop(tx.send(match news {
                    News::Said(text) => Msg::PlaneSaid(text),
                    News::Wanted(services) => Msg::Wanted(services),
                }));
            };
            let (keeper, sockets) = Keeper::find(self.place.clone(), told).await;
            self.listening = sockets.as_ref().and_then(|sockets| sockets.listening().ok());
            self.listening_https = sockets.as_ref().and_then(|sockets| sockets.listening_https().ok().flatten());
            self.sockets = sockets;
            self.keeper = Some(keeper);
        }
    }

    /// Takes the ingress' addresses. Does nothing where it listens there already. Another address for HTTP than before, or than that of
    /// a listener of the service manager, is refused; one for HTTPS takes the place of that before. Without one HTTPS is not listened
    /// for any more.
    pub async fn listen(&mut self, http: &str, https: Option<&str>) -> Result<(), Failure> {
        self.find().await;
        self.take_handed().map_err(|error| Failure::refused(format!("can't take the sockets that were handed in: {error}"), None))?;
        if let Some((listener, address)) = listener(http, self.listening, "--listen")? {
            (self.ingress, self.listening) = (Some(listener), Some(address));
        }
        let Some(https) = https else {
            if self.listening_https.take().is_some() {
                self.https = None;
                self.changed = true;
                if let Some(sockets) = &mut self.sockets {
                    sockets.https = None;
                }
            }
            return Ok(());
        };
        let stays = |now: &SocketAddr| https.parse().is_ok_and(|wanted: SocketAddr| wanted == *now || wanted.port() == 0);
        if let Some((listener, address)) = listener(https, self.listening_https.filter(stays), "--listen-tls")? {
            (self.https, self.listening_https) = (Some(listener), Some(address));
        }
        Ok(())
    }

    /// Where clients of databases come to from now on; it holds with the next [`ensure`](Self::ensure). All or nothing is changed.
    pub async fn listen_databases(&mut self, at: Doors<SocketAddr>) -> Result<(), Failure> {
        self.find().await;
        let now = self.databases.as_ref().or_else(|| self.sockets.as_ref().map(|sockets| &sockets.databases));
        let door = |at: Option<SocketAddr>, now: Option<&OwnedFd>, option| {
            let stays = now.filter(|now| at.is_some() && handed::address(now).ok() == at);
            match (at, stays) {
                (Some(at), None) => bound(at, option).map(Some),
                (_, stays) => stays.map(OwnedFd::try_clone).transpose().map_err(|error| Failure::refused(error.to_string(), None)),
            }
        };
        let (postgres, keyvalue) = (now.and_then(|now| now.postgres.as_ref()), now.and_then(|now| now.keyvalue.as_ref()));
        let is_open = |at: Option<SocketAddr>, now: Option<&OwnedFd>| at == now.and_then(|now| handed::address(now).ok());
        if is_open(at.postgres, postgres) && is_open(at.keyvalue, keyvalue) {
            return Ok(());
        }
        self.databases = Some(Doors {
            postgres: door(at.postgres, postgres, "moat ingress postgres=")?,
            keyvalue: door(at.keyvalue, keyvalue, "moat ingress keyvalue=")?,
        });
        Ok(())
    }

    /// Has the ingress listen with what the service manager handed in, once.
    fn take_handed(&mut self) -> io::Result<()> {
        let before = self.sockets.as_ref();
        let places = [
            (self.handed.http.take(), before.map(|sockets| &sockets.ingress), &mut self.ingress, &mut self.listening),
            (self.handed.https.take(), before.and_then(|sockets| sockets.https.as_ref()), &mut self.https, &mut self.listening_https),
        ];
        for (handed, before, place, listening) in places {
            let Some(handed) = handed else { continue };
            *listening = Some(handed::address(&handed)?);
            // A process that was left by an earlier daemon may serve with it already.
            if !before.is_some_and(|before| moat_dataplane::is_same(before, &handed).unwrap_or(false)) {
                *place = Some(handed);
            }
        }
        Ok(())
    }

    /// Whether a process serves, or is being started again.
    pub const fn is_serving(&self) -> bool {
        self.serving
    }

    /// Has a process serve, with sockets in the router namespace of now.
    pub async fn ensure(&mut self, network: &Network) -> Result<(), PlaneError> {
        self.resolvers = resolvers();
        let router = network.router_ns().map_err(|error| PlaneError::Sockets(io::Error::other(error)))?;
        let fits = self.sockets.as_ref().map(|sockets| sockets.are_of(&router)).transpose().map_err(PlaneError::Sockets)?;
        let before = self.sockets.as_ref().map(|sockets| &sockets.databases);
        let databases = self.databases.as_ref().or(before).map(|doors| doors.try_map(OwnedFd::try_clone)).transpose();
        let databases = databases.map_err(PlaneError::Sockets)?.unwrap_or_default();
        let others = self.https.is_some() || self.ingress.is_some() || self.changed || self.databases.is_some();
        if fits == Some(true) && self.serving && !others {
            return Ok(());
        }
        if fits == Some(true) {
            if let Some(sockets) = &mut self.sockets {
                sockets.https = self.https.take().or(sockets.https.take());
                sockets.databases = databases;
                if let Some(ingress) = self.ingress.take() {
                    sockets.ingress = ingress;
                }
            }
        } else {
            let before = self.sockets.as_ref().map(|sockets| sockets.ingress.try_clone()).transpose().map_err(PlaneError::Sockets)?;
            let Some(ingress) = self.ingress.take().or(before) else { return Ok(()) };
            let before = self.sockets.as_ref().and_then(|sockets| sockets.https.as_ref()).map(OwnedFd::try_clone).transpose();
            let https = self.https.take().or(before.map_err(PlaneError::Sockets)?);
            let at = SocketAddr::new(moat_model::net::GATEWAY_V4.into(), 53);
            let sockets = || -> io::Result<Sockets> {
                let (dns_udp, dns_tcp) = (ns::udp_bound_in(&router, at)?.into(), ns::tcp_listener_in(&router, at)?.into());
                let https = https.as_ref().map(OwnedFd::try_clone).transpose()?;
                let databases = databases.try_map(OwnedFd::try_clone)?;
                Ok(Sockets { ingress: ingress.try_clone()?, router: router.try_clone()?.into(), dns_udp, dns_tcp, https, databases })
            };
            match sockets() {
                Ok(sockets) => self.sockets = Some(sockets),
                Err(error) => {
                    (self.ingress, self.https) = (Some(ingress), https);
                    return Err(PlaneError::Sockets(error));
                }
            }
        }
        let Some(sockets) = &self.sockets else { return Ok(()) };
        let sockets = sockets.duplicate().map_err(PlaneError::Sockets)?;
        self.serving = true;
        self.changed = false;
        self.databases = None;
        self.find().await;
        match &self.keeper {
            Some(keeper) => Ok(keeper.serve(sockets).await?),
            None => Ok(()),
        }
    }

    /// Has another process serve in the place of the one that does, which ends with the connections that it has.
    pub async fn replace(&self) -> Result<(), PlaneError> {
        match &self.keeper {
            Some(keeper) => Ok(keeper.replace(None).await?),
            None => Ok(()),
        }
    }

    /// Has these certificates shown from now on.
    pub fn show(&self, certificates: CertificateSet) {
        if let Some(keeper) = &self.keeper {
            keeper.show(certificates);
        }
    }

    /// Has everything served by this from now on, and waits a while until it is, which is the answer. Its revision and its resolvers
    /// are set here.
    pub async fn publish(&mut self, mut config: Config) -> bool {
        if !self.serving {
            return false;
        }
        let Some(keeper) = &mut self.keeper else { return false };
        config.resolvers.clone_from(&self.resolvers);
        let same = keeper.config().is_some_and(|now| {
            config.stamp = Stamp { revision: now.stamp.revision, ..config.stamp };
            *now == config
        });
        if same {
            return keeper.is_applied();
        }
        let applied = keeper.set(config, PATIENCE).await;
        if !applied {
            tracing::warn!("the data plane has not taken its configuration yet");
        }
        applied
    }

    /// Has the access log written so from now on. A file that somebody moved away is made anew.
    pub fn log(&mut self, format: Option<LogFormat>) {
        let Some(keeper) = &self.keeper else { return };
        let path = crate::access_log::path(self.place.root.parent().unwrap_or(&self.place.root));
        let is = |about: fs::Metadata| (about.dev(), about.ino());
        let right = match format {
            None => Some(Logging::Off),
            Some(format) => fs::metadata(&path).ok().map(|about| Logging::To(format, is(about))),
        };
        if right == Some(self.logging) {
            return;
        }
        let open = || -> io::Result<_> {
            let Some(format) = format else { return Ok(None) };
            let open = |path: &Path| File::options().read(true).append(true).create(true).mode(0o600).open(path);
            let (current, older) = (open(&path)?, open(&path.with_extension("log.1"))?);
            let about = is(current.metadata()?);
            Ok(Some((format, about, [current.into(), older.into()])))
        };
        match open() {
            Ok(to) => {
                self.logging = to.as_ref().map_or(Logging::Off, |(format, about, _)| Logging::To(*format, *about));
                keeper.log(to.map(|(format, _, files)| (format, files)));
            }
            Err(error) => tracing::warn!(%error, path = %path.display(), "the access log can't be opened"),
        }
    }

    /// What the process that serves counted since it began.
    pub fn measure(&self) -> Doing<'static, Option<Measures>> {
        let asked = self.keeper.as_ref().map(Keeper::measure);
        Box::pin(async move { asked?.await })
    }

    /// The machine's resolvers.
    pub fn resolvers(&self) -> Vec<SocketAddr> {
        self.resolvers.clone()
    }

    /// The releases of sites that requests may still be answered from.
    pub fn releases_in_use(&self) -> BTreeSet<String> {
        let folders = self.keeper.as_ref().map(Keeper::holds).unwrap_or_default();
        let release = |folder: &PathBuf| Some(folder.components().next()?.as_os_str().to_str()?.to_owned());
        folders.iter().filter_map(release).collect()
    }

    /// The folder below which every release is.
    pub fn root(&self) -> &Path {
        &self.place.root
    }

    /// The process that accepts connections.
    pub fn pid(&self) -> Option<u32> {
        self.keeper.as_ref().and_then(Keeper::pid)
    }

    /// Ends the data plane, that of an earlier daemon too.
    pub async fn stop(&mut self) {
        self.find().await;
        if let Some(keeper) = self.keeper.take() {
            keeper.stop().await;
        }
        self.logging = Logging::Unknown;
        (self.ingress, self.https, self.sockets) = (None, None, None);
        self.databases = None;
        (self.listening, self.listening_https) = (None, None);
        self.serving = false;
    }
}

/// A listener at an address, unless `now` is that already or nobody said another one. `option`: where people write it.
fn listener(address: &str, now: Option<SocketAddr>, option: &str) -> Result<Option<(OwnedFd, SocketAddr)>, Failure> {
    let wanted: SocketAddr = address.parse().map_err(|_| Failure {
        message: format!("`{address}` is not an address to listen on"),
        hint: Some("write it as `127.0.0.1:8080`".to_owned()),
        exit_code: 2,
    })?;
    if let Some(now) = now {
        return if now == wanted || wanted.port() == 0 || address == DEFAULT_LISTEN {
            Ok(None)
        } else {
            Err(Failure::refused(
                format!("the ingress listens on {now} already"),
                Some(format!("use `{option} {now}`, or `moat down` first")),
            ))
        };
    }
    let listener = bound(wanted, option)?;
    let address = handed::address(&listener).map_err(|error| Failure::refused(error.to_string(), None))?;
    Ok(Some((listener, address)))
}

/// A listener of the machine. `option`: what people write before the address.
fn bound(wanted: SocketAddr, option: &str) -> Result<OwnedFd, Failure> {
    let failed = |error: io::Error| {
        let other = wanted.port().saturating_add(1);
        let hint = if error.kind() == io::ErrorKind::PermissionDenied && Outside::of_process().is_some() {
            format!(
                "ports below 1024 are root's: `sudo sysctl -w net.ipv4.ip_unprivileged_port_start={}`, or choose another with `{option}`",
                wanted.port()
            )
        } else if error.kind() == io::ErrorKind::AddrInUse {
            let example = SocketAddr::new(wanted.ip(), other);
            let between = if option.ends_with('=') { "" } else { " " };
            format!("another program listens on {wanted}: stop it, or choose another port with `{option}{between}{example}`")
        } else {
            format!("choose another address with `{option}`")
        };
        Failure { message: format!("can't listen on {wanted}: {error}"), hint: Some(hint), exit_code: 3 }
    };
    Ok(outside::public_listener(wanted).map_err(failed)?.into())
}

/// The host's resolvers. systemd-resolved's list is preferred to its stub, which does not forward to itself.
fn resolvers() -> Vec<SocketAddr> {
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
