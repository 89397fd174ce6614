//! This machine: the Linux engine, and connections from inside instances' namespaces.

use super::{Doing, HealthCheck, Machine, Tell, Unwell};
use crate::ready::postgres;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use moat_engine::{EngineError, StepOutcome};
use moat_engine_linux::{
    BuildRequest, DatastoreRequest, ImageBuildRequest, LinuxEngine, Prepared, Provided, Prune, Published, PullRequest, Release,
    SiteRequest, Usage,
};
use moat_model::policy::NetPolicy;
use moat_model::state::{InstancePhase, Listener, ObservedInstance, ObservedState, PostgresWorkload, Source, StaticWorkload};
use moat_model::{InstanceId, ServiceId};
use moat_planner::Step;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

/// The longest that a health check, or a database's first session, may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

impl Machine for LinuxEngine {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn observe(&self) -> Doing<'_, Result<ObservedState, EngineError>> {
        Box::pin(moat_engine::Engine::observe(self))
    }
    fn apply<'a>(&'a self, step: &'a Step) -> Doing<'a, Result<StepOutcome, EngineError>> {
        Box::pin(moat_engine::Engine::apply(self, step))
    }
    fn wait<'a>(&'a self, id: &'a InstanceId) -> Doing<'a, Result<InstancePhase, EngineError>> {
        Box::pin(moat_engine::Engine::wait(self, id))
    }
    fn age(&self, found: &ObservedInstance) -> Duration {
        found.pid.and_then(|pid| self.age(pid)).unwrap_or_default()
    }
    fn policy(&self) -> Arc<NetPolicy> {
        self.network().policy()
    }

    fn listeners<'a>(&'a self, id: &'a InstanceId) -> Doing<'a, Result<Vec<Listener>, EngineError>> {
        Box::pin(moat_engine::Engine::listeners(self, id))
    }
    fn ask_health<'a>(&'a self, id: &'a InstanceId, to: SocketAddr, check: HealthCheck<'a>) -> Doing<'a, Result<(), Unwell>> {
        Box::pin(async move {
            let socket = socket(self, id).await.map_err(Unwell::NotAsked)?;
            in_time(health(socket, to, check)).await.map_err(Unwell::Answer)
        })
    }
    fn ask_postgres<'a>(&'a self, id: &'a InstanceId, to: SocketAddr, server: &'a PostgresWorkload) -> Doing<'a, Result<(), String>> {
        Box::pin(in_time(async move {
            let mut stream = connect(socket(self, id).await?, to).await?;
            postgres::ask(&mut stream, server).await
        }))
    }
    fn connections<'a>(&'a self, id: &'a InstanceId) -> Doing<'a, Result<usize, EngineError>> {
        Box::pin(self.connections(id))
    }
    fn usage(&self, ids: Vec<InstanceId>) -> Doing<'_, Result<Vec<(InstanceId, Usage)>, EngineError>> {
        Box::pin(self.usage(ids))
    }
    fn disk_use<'a>(&'a self, service: &'a ServiceId, name: &'a str) -> Doing<'a, Result<u64, EngineError>> {
        Box::pin(self.disk_use(service, name))
    }
    fn log_path(&self, id: &InstanceId) -> PathBuf {
        self.log_path(id)
    }

    fn prepare_release(&self, request: BuildRequest, tell: Tell) -> Doing<'_, Result<Prepared, EngineError>> {
        Box::pin(self.prepare_release(request, tell))
    }
    fn prepare_image(&self, request: ImageBuildRequest, tell: Tell) -> Doing<'_, Result<Release, EngineError>> {
        Box::pin(self.prepare_image(request, tell))
    }
    fn prepare_site(&self, request: SiteRequest, tell: Tell) -> Doing<'_, Result<Prepared, EngineError>> {
        Box::pin(self.prepare_site(request, tell))
    }
    fn pull_image(&self, request: PullRequest, tell: Tell) -> Doing<'_, Result<(Release, Option<EngineError>), EngineError>> {
        Box::pin(self.pull_image(request, tell))
    }
    fn provide_datastore(&self, request: DatastoreRequest, tell: Tell) -> Doing<'_, Result<Provided, EngineError>> {
        Box::pin(self.provide_datastore(request, tell))
    }
    fn seal_release<'a>(&'a self, name: &'a str) -> Doing<'a, Result<(), EngineError>> {
        Box::pin(self.seal_release(name))
    }
    fn seal_image<'a>(&'a self, name: &'a str) -> Doing<'a, Result<String, EngineError>> {
        Box::pin(self.seal_image(name))
    }
    fn seal_site<'a>(&'a self, name: &'a str, site: &'a StaticWorkload) -> Doing<'a, Result<Published, EngineError>> {
        Box::pin(self.seal_site(name, site))
    }
    fn is_sealed(&self, name: &str) -> bool {
        self.is_sealed(name)
    }
    fn site_folder<'a>(&'a self, name: &'a str) -> Doing<'a, Result<PathBuf, EngineError>> {
        Box::pin(self.site_folder(name))
    }
    fn changed_files(
        &self,
        repository: PathBuf,
        from: BTreeSet<String>,
        to: String,
    ) -> Doing<'_, Result<BTreeMap<String, Vec<String>>, EngineError>> {
        Box::pin(self.changed_files(repository, from, to))
    }
    fn collect_garbage<'a>(&'a self, keep: &'a BTreeSet<String>) -> Doing<'a, Result<(), EngineError>> {
        Box::pin(self.collect_garbage(keep))
    }
    fn prune_images<'a>(&'a self, keep: &'a BTreeSet<String>, prune: Prune) -> Doing<'a, Result<(usize, u64), EngineError>> {
        Box::pin(self.prune_images(keep, prune))
    }
    fn image_notices<'a>(&'a self, id: &'a str, disk: Option<PathBuf>) -> Doing<'a, Vec<String>> {
        Box::pin(self.image_notices(id, disk))
    }
    fn collect_fetched(&self, sources: Vec<Source>, services: BTreeSet<ServiceId>) -> Doing<'_, Result<(), EngineError>> {
        Box::pin(self.collect_fetched(sources, services))
    }

    fn linux(&self) -> Option<&LinuxEngine> {
        Some(self)
    }
}

async fn in_time(attempt: impl Future<Output = Result<(), String>> + Send) -> Result<(), String> {
    tokio::time::timeout(ANSWERS_WITHIN, attempt).await.unwrap_or_else(|_| Err("no answer within 5 s".to_owned()))
}

/// A socket in the instance's namespace.
async fn socket(engine: &LinuxEngine, id: &InstanceId) -> Result<TcpSocket, String> {
    let ns = engine.instance_ns(id).await.map_err(|error| error.to_string())?;
    let socket = moat_net_linux::ns::tcp_socket_in(&ns, moat_model::Family::V4).map_err(|error| error.to_string())?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

async fn connect(socket: TcpSocket, to: SocketAddr) -> Result<TcpStream, String> {
    socket.connect(to).await.map_err(|error| format!("no connection ({error})"))
}

/// One GET with the service's own host name; 2xx and 3xx are healthy.
async fn health(socket: TcpSocket, to: SocketAddr, check: HealthCheck<'_>) -> Result<(), String> {
    let HealthCheck { host, path, proxy_header } = check;
    let mut stream = connect(socket, to).await?;
    if let Some(version) = proxy_header {
        stream.write_all(moat_ingress::own_header(version)).await.map_err(|error| format!("no connection ({error})"))?;
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let task = tokio::spawn(connection);
    let request = hyper::Request::get(path)
        .header("host", host)
        .header("user-agent", "moat-health")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| format!("no answer ({error})"));
    task.abort();
    let status = answer?.status();
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(format!("answered {status}")) }
}
