//! Moat's ingress as a program of its own, with the runtime that the data plane has.

use super::peers::ECHO;
use crate::failure::{Doing, Failure, Outcome};
use moat_ingress::{Certificate, Certificates, Dial, Listeners, Records, Route, RouteState, RouteTable, Routes, Settings, Tls, serve_with};
use moat_model::Slug;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;
use tokio::net::{TcpListener, TcpStream};

/// The role's name.
pub const SERVE: &str = "__edge";

/// Dials as any program does.
struct Plain;

impl Dial for Plain {
    async fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Serves until it is killed: `PORT TLS_PORT BACKEND CERTIFICATE KEY HOSTS CERTIFICATES`. `HOSTS` names lead to the backend,
/// `site-N.test` and `127.0.0.1`; the certificate stands for as many names besides as are asked for.
pub fn serve(arguments: &[String]) -> Outcome {
    let [http, https, backend, certificate, key, hosts, certificates] = arguments else {
        return Err(Failure::new("wrong arguments"));
    };
    let port = |text: &str| text.parse::<u16>().doing("read a port");
    let (http, https) = (port(http)?, port(https)?);
    let backend = SocketAddr::from((Ipv4Addr::LOCALHOST, port(backend)?));
    let [hosts, certificates] = [hosts, certificates].map(|text| text.parse::<u32>().unwrap_or(1));
    let chain = fs::read_to_string(certificate).doing("read the certificate")?;
    let key = fs::read_to_string(key).doing("read the key")?;
    let began = Instant::now();
    let one = Certificate::from_pem(&chain, &key).doing("use the certificate")?;
    let mut by_name: HashMap<String, Certificate> = ["localhost", "site-0.test"].map(|name| (name.to_owned(), one.clone())).into();
    for number in 1..certificates {
        by_name.insert(format!("site-{number}.test"), Certificate::from_pem(&chain, &key).doing("use the certificate")?);
    }
    if certificates > 1 {
        eprintln!("LOADED {}", began.elapsed().as_millis());
    }
    let names = (0..hosts).map(|number| format!("site-{number}.test")).chain(["127.0.0.1".to_owned()]);
    let mut routes = HashMap::new();
    for (number, name) in names.enumerate() {
        let service = Slug::new(format!("site-{number}")).doing("name a service")?;
        routes.insert(name, Route::new(service, vec![backend], RouteState::Live));
    }
    let echo = Slug::new("echo").doing("name a service")?;
    routes.insert("echo.test".to_owned(), Route::new(echo, vec![SocketAddr::from((Ipv4Addr::LOCALHOST, ECHO))], RouteState::Live));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().doing("make a runtime")?;
    runtime.block_on(async {
        let tls = Arc::new(Tls::new().doing("prepare TLS")?);
        tls.set(Certificates { by_name, ..Certificates::default() });
        let listen = async |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.doing("listen");
        let listeners = Listeners { http: listen(http).await?, https: Some((listen(https).await?, tls)) };
        let settings = Settings { max_connections: 20_000, ..Settings::default() };
        let routes = Arc::new(RouteTable::new(Routes::from(routes)));
        serve_with(listeners, routes, Arc::new(Plain), std::future::pending(), settings, Records::default()).await.doing("serve")
    })
}
