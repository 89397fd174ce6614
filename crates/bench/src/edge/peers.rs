//! The proxies, each in front of the same server.

use super::{chat, ours};
use crate::failure::{Doing, Failure, Outcome};
use crate::place::Folder;
use crate::process::{find, timed};
use crate::start::memory::Memory;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where proxies run, and where everything else does.
const PROXY_CPU: u32 = 0;
pub const LOAD_CPU: u32 = 1;
/// The server behind all.
const BACKEND: u16 = 8000;
/// The server of WebSockets behind those that the goal names and Moat.
pub const ECHO: u16 = 8001;
const PATIENCE: Duration = Duration::from_secs(20);
/// Moat, in the tables.
const OURS: &str = "Moat";

/// A way in.
#[derive(Debug, Clone, Copy)]
pub enum Port {
    /// HTTP/1.1.
    Plain,
    /// HTTP/1.1 and HTTP/2 over TLS, by ALPN.
    Tls,
    /// HTTP/2 without TLS, by prior knowledge.
    Http2,
}

/// A program that runs until this is dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // nginx takes its workers with it when it is asked, and only then.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let since = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && since.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Proportional set size of the program and its children, MiB.
    pub fn memory(&self) -> Outcome<f64> {
        let own = self.0.id();
        let mut all = vec![own];
        for entry in fs::read_dir("/proc").doing("list processes")?.filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            if status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == own.to_string())) {
                all.push(pid);
            }
        }
        all.into_iter().map(|pid| Memory::of(pid).map(|memory| memory.pss_mb)).sum()
    }
}

/// A proxy that runs.
pub struct Lane {
    /// For tables.
    pub name: String,
    /// One of those that the goal names.
    pub is_main: bool,
    /// Moat.
    pub is_ours: bool,
    ports: [u16; 3],
    /// Its process.
    pub running: Running,
}

impl Lane {
    /// What clients ask for.
    pub fn url(&self, port: Port, path: &str) -> String {
        let [plain, tls, http2] = self.ports;
        match port {
            Port::Plain => format!("http://127.0.0.1:{plain}{path}"),
            Port::Tls => format!("https://127.0.0.1:{tls}{path}"),
            Port::Http2 => format!("http://127.0.0.1:{http2}{path}"),
        }
    }
    /// The port of HTTP/1.1.
    pub fn plain(&self) -> u16 {
        self.ports[0]
    }
}

/// What all share: files, the certificate, the server behind.
pub struct Stage {
    folder: PathBuf,
    _backend: Running,
    _echo: Running,
}

/// A command on one processor.
pub fn pinned(processor: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(processor.to_string()).arg(program);
    command.stdin(Stdio::null());
    command
}

impl Stage {
    /// Makes files and certificate, and starts the server.
    pub fn set(folder: &Folder) -> Outcome<Self> {
        let folder = folder.path().to_owned();
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).doing("read the limit of open files")?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most).doing("raise the limit of open files")?;
        fs::create_dir(folder.join("www")).doing("make a folder")?;
        for (name, size) in [("small", 1_000), ("large", 1_000_000)] {
            fs::write(folder.join("www").join(name), vec![b'x'; size]).doing("write a file")?;
        }
        let [cert, key, both] = ["cert.pem", "key.pem", "both.pem"].map(|name| folder.join(name));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
        openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout"]);
        timed(openssl.arg(&key).arg("-out").arg(&cert))?;
        let read = |path: &Path| fs::read(path).doing("read the certificate");
        fs::write(both, [read(&cert)?, read(&key)?].concat()).doing("write the certificate")?;
        let name = folder.display();
        let text = nginx(
            &folder,
            "backend",
            &format!(
                "keepalive_requests 1000000000; open_file_cache max=10; sendfile on; tcp_nopush on;\n\
                 server {{ listen 127.0.0.1:{BACKEND} backlog=4096; root {name}/www; }}"
            ),
        );
        let backend = start(pinned(LOAD_CPU, "nginx").arg("-c").arg(write(&folder, "backend.conf", &text)?), &folder, "backend")?;
        let program = std::env::current_exe().doing("find this program")?;
        let echo = start(pinned(LOAD_CPU, program).arg(chat::SERVER), &folder, "echo")?;
        wait_for(&[BACKEND, ECHO])?;
        Ok(Self { folder, _backend: backend, _echo: echo })
    }

    /// Every proxy that can be had, Moat's ingress last; others are said.
    pub fn lanes(&self) -> Vec<Lane> {
        let peers: [(&str, &str, bool, Make); 5] = [
            ("nginx", "nginx", true, Self::nginx),
            ("HAProxy", "haproxy", true, Self::haproxy),
            ("Caddy", "caddy", false, Self::caddy),
            ("Traefik", "traefik", false, Self::traefik),
            ("Envoy", "envoy", false, Self::envoy),
        ];
        let mut lanes = Vec::new();
        for (place, (name, program, is_main, make)) in (0_u16..).zip(peers) {
            let Some(program) = find(program) else {
                println!("skipped: {name} (no `{program}`)\n");
                continue;
            };
            let first = 9000 + 10 * place;
            match make(self, pinned(PROXY_CPU, program), first).and_then(|(running, ports)| wait_for(&ports).map(|()| (running, ports))) {
                Ok((running, ports)) => lanes.push(Lane { name: name.to_owned(), is_main, is_ours: false, ports, running }),
                Err(error) => println!("skipped: {name}: {error}\n"),
            }
        }
        match self.ours(9100, 10, 1).map(|running| (running, [9100, 9101, 9100])) {
            Ok((running, ports)) => lanes.push(Lane { name: OURS.to_owned(), is_main: false, is_ours: true, ports, running }),
            Err(error) => println!("Moat's ingress does not run: {error}\n"),
        }
        lanes
    }

    /// Moat's ingress with so many hosts and certificates; it listens at `port` and the next one.
    pub fn ours(&self, port: u16, hosts: u32, certificates: u32) -> Outcome<Running> {
        let program = std::env::current_exe().doing("find this program")?;
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| self.folder.join(name));
        let mut command = pinned(PROXY_CPU, program);
        command.args([ours::SERVE, &port.to_string(), &(port + 1).to_string(), &BACKEND.to_string()]).args([cert, key]);
        command.args([hosts.to_string(), certificates.to_string()]);
        let running = start(&mut command, &self.folder, &format!("moat-{port}"))?;
        wait_for(&[port, port + 1])?;
        Ok(running)
    }

    /// What the program that listens at `port` said.
    pub fn said(&self, port: u16) -> Outcome<String> {
        fs::read_to_string(self.folder.join(format!("moat-{port}.log"))).doing("read what the ingress said")
    }

    fn nginx(&self, mut command: Command, first: u16) -> Outcome<(Running, [u16; 3])> {
        let (folder, ports) = (self.folder.display(), [first, first + 1, first + 2]);
        let [plain, tls, http2] = ports;
        let text = nginx(
            &self.folder,
            "nginx",
            &format!(
                "keepalive_requests 1000000000; proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;\n\
                 upstream b {{ server 127.0.0.1:{BACKEND}; keepalive 256; keepalive_requests 1000000000; }}\n\
                 server {{ listen 127.0.0.1:{plain} backlog=4096; listen 127.0.0.1:{tls} ssl http2 backlog=4096; listen 127.0.0.1:{http2} http2 backlog=4096;\n\
                 ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;\n\
                 location /echo {{ proxy_pass http://127.0.0.1:{ECHO}; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;\n\
                 proxy_set_header Connection upgrade; proxy_set_header Host $host; }}\n\
                 location / {{ proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; }} }}"
            ),
        );
        Ok((start(command.arg("-c").arg(write(&self.folder, "nginx.conf", &text)?), &self.folder, "nginx")?, ports))
    }

    fn haproxy(&self, mut command: Command, first: u16) -> Outcome<(Running, [u16; 3])> {
        let (folder, ports) = (self.folder.display(), [first, first + 1, first + 2]);
        let [plain, tls, http2] = ports;
        let text = format!(
            "global\n nbthread 1\n no strict-limits\n maxconn 15000\n\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n \
             timeout http-keep-alive 60s\n option http-keep-alive\n option forwardfor\n http-reuse always\n\n\
             frontend f\n bind 127.0.0.1:{plain}\n bind 127.0.0.1:{tls} ssl crt {folder}/both.pem alpn h2,http/1.1\n \
             bind 127.0.0.1:{http2} proto h2\n http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]\n use_backend e if {{ path /echo }}\n \
             default_backend b\n\n\
             backend b\n server s 127.0.0.1:{BACKEND}\n\nbackend e\n timeout tunnel 60s\n server s 127.0.0.1:{ECHO}\n"
        );
        Ok((start(command.args(["-db", "-f"]).arg(write(&self.folder, "haproxy.cfg", &text)?), &self.folder, "haproxy")?, ports))
    }

    fn caddy(&self, mut command: Command, first: u16) -> Outcome<(Running, [u16; 3])> {
        let (folder, [plain, tls]) = (self.folder.display(), [first, first + 1]);
        let text = format!(
            "{{\n admin off\n auto_https off\n persist_config off\n servers {{\n  protocols h1 h2 h2c\n }}\n}}\n\
             http://:{plain} {{\n bind 127.0.0.1\n reverse_proxy 127.0.0.1:{BACKEND}\n}}\n\
             https://:{tls} {{\n bind 127.0.0.1\n tls {folder}/cert.pem {folder}/key.pem\n reverse_proxy 127.0.0.1:{BACKEND}\n}}\n"
        );
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(write(&self.folder, "Caddyfile", &text)?).env("HOME", &self.folder);
        Ok((start(&mut command, &self.folder, "caddy")?, [plain, tls, plain]))
    }

    fn traefik(&self, mut command: Command, first: u16) -> Outcome<(Running, [u16; 3])> {
        let (folder, [plain, tls]) = (self.folder.display(), [first, first + 1]);
        let text = format!(
            "http:\n  routers:\n    a: {{ rule: 'PathPrefix(`/`)', entryPoints: [plain], service: s }}\n    \
             b: {{ rule: 'PathPrefix(`/`)', entryPoints: [tls], service: s, tls: {{}} }}\n  \
             services:\n    s: {{ loadBalancer: {{ servers: [{{ url: 'http://127.0.0.1:{BACKEND}' }}] }} }}\n\
             tls:\n  stores: {{ default: {{ defaultCertificate: {{ certFile: '{folder}/cert.pem', keyFile: '{folder}/key.pem' }} }} }}\n"
        );
        command.arg(format!("--entrypoints.plain.address=127.0.0.1:{plain}")).arg(format!("--entrypoints.tls.address=127.0.0.1:{tls}"));
        command.args(["--log.level=ERROR", "--global.checknewversion=false", "--global.sendanonymoususage=false"]);
        command.arg(format!("--providers.file.filename={}", write(&self.folder, "traefik.yml", &text)?.display()));
        Ok((start(&mut command, &self.folder, "traefik")?, [plain, tls, plain]))
    }

    fn envoy(&self, mut command: Command, first: u16) -> Outcome<(Running, [u16; 3])> {
        let (folder, [plain, tls]) = (self.folder.display(), [first, first + 1]);
        let chain = |tls: &str| {
            format!(
                "{{ {tls} filters: [{{ name: envoy.filters.network.http_connection_manager, typed_config: {{ \
                 '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
                 stat_prefix: s, codec_type: AUTO, use_remote_address: true, \
                 http_filters: [{{ name: envoy.filters.http.router, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}], \
                 route_config: {{ virtual_hosts: [{{ name: a, domains: ['*'], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: b, timeout: 0s }} }}] }}] }} }} }}] }}"
            )
        };
        let secure = format!(
            "transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
             '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {{ alpn_protocols: [h2, http/1.1], \
             tls_certificates: [{{ certificate_chain: {{ filename: '{folder}/cert.pem' }}, private_key: {{ filename: '{folder}/key.pem' }} }}] }} }} }},"
        );
        let listener = |name: &str, port: u16, chain: &str| {
            format!(
                "  - {{ name: {name}, address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}, filter_chains: [{chain}] }}\n"
            )
        };
        let text = format!(
            "static_resources:\n  listeners:\n{}{}  clusters:\n  - {{ name: b, type: STATIC, connect_timeout: 5s, \
             circuit_breakers: {{ thresholds: [{{ max_connections: 40000, max_pending_requests: 40000, max_requests: 40000 }}] }}, \
             load_assignment: {{ cluster_name: b, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: \
             {{ address: 127.0.0.1, port_value: {BACKEND} }} }} }} }}] }}] }} }}\n",
            listener("plain", plain, &chain("")),
            listener("tls", tls, &chain(&secure)),
        );
        command.args(["--concurrency", "1", "--log-level", "error", "--disable-hot-restart", "--config-path"]);
        Ok((start(command.arg(write(&self.folder, "envoy.yaml", &text)?), &self.folder, "envoy")?, [plain, tls, plain]))
    }
}

/// Starts a proxy by its command, with ports from this one on; its process and its ports.
type Make = fn(&Stage, Command, u16) -> Outcome<(Running, [u16; 3])>;

fn write(folder: &Path, name: &str, text: &str) -> Outcome<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text).doing(format_args!("write {name}"))?;
    Ok(path)
}

/// A configuration of nginx in the foreground, with one worker and these lines for HTTP.
fn nginx(folder: &Path, name: &str, http: &str) -> String {
    let folder = folder.display();
    let own = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|what| format!("{what}_temp_path {folder}/{name}-{what};"));
    format!(
        "daemon off; user root; worker_processes 1; worker_rlimit_nofile 60000; pid {folder}/{name}.pid; error_log {folder}/{name}.log;\n\
         events {{ worker_connections 45000; }}\nhttp {{ access_log off; keepalive_timeout 120s; {}\n{http}\n}}\n",
        own.join(" ")
    )
}

fn start(command: &mut Command, folder: &Path, name: &str) -> Outcome<Running> {
    let log = fs::File::create(folder.join(format!("{name}.log"))).doing("make a log")?;
    let both = log.try_clone().doing("make a log")?;
    command.stdout(log).stderr(both).spawn().map(Running).doing(format_args!("start {name}"))
}

/// Waits until every port answers; those without TLS with the file.
fn wait_for(ports: &[u16]) -> Outcome {
    let since = Instant::now();
    for port in ports {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_err() {
            if since.elapsed() > PATIENCE {
                return Err(Failure::new(format!("port {port} does not listen")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// One request for the small file on a connection that is kept.
pub fn ask(stream: &mut TcpStream) -> Outcome {
    stream.write_all(b"GET /small HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").doing("ask")?;
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).doing("read the answer")?;
        got.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let text = String::from_utf8_lossy(&got);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            if !head.starts_with("HTTP/1.1 200") {
                return Err(Failure::new(format!("answered with {head}")));
            }
            if body.len() >= 1_000 {
                return Ok(());
            }
        }
        if count == 0 {
            return Err(Failure::new("the connection was closed"));
        }
    }
}
