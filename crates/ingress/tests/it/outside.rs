//! Databases and Key Values from outside.

use crate::support::{PATIENCE, certificate};
use moat_ingress::{Access, Certificates, Database, DatabaseKind, Databases, Dial, Login, Tls, Visitors, serve_databases};
use moat_model::Slug;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const HOST: &str = "db.test";

/// Closes every database while one is dialled.
struct Closes {
    table: watch::Sender<Arc<Databases>>,
    to: SocketAddr,
    is_closing: bool,
}

impl Dial for Closes {
    async fn dial(&self, _to: SocketAddr) -> io::Result<TcpStream> {
        if self.is_closing {
            self.table.send_replace(Arc::default());
        }
        TcpStream::connect(self.to).await
    }
}

/// What a Key Value is sent by a client who knows its password and says all at once.
async fn arrives(is_closing: bool) -> Vec<u8> {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let database = Database {
        service: Slug::new("db").unwrap(),
        access: Access::KeyValue(Login::new("red-1", "secret")),
        upstreams: vec![to],
        allow: vec!["127.0.0.0/8".parse().unwrap()],
        visitors: Visitors::default(),
    };
    let (table, databases) = watch::channel(Arc::new(Databases(HashMap::from([(HOST.to_owned(), database)]))));
    let (chain, pem) = certificate(&[HOST]);
    let tls = Arc::new(Tls::new().unwrap());
    tls.set(Certificates { by_name: HashMap::from([(HOST.to_owned(), chain)]), proofs: HashMap::new() });
    let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = public.local_addr().unwrap();
    let dial = Arc::new(Closes { table, to, is_closing });
    tokio::spawn(serve_databases(public, DatabaseKind::KeyValue, databases, tls, dial, std::future::pending(), Duration::ZERO));

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(at).await.unwrap();
    let mut client = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(HOST).unwrap(), stream).await.unwrap();
    client.write_all(b"AUTH secret\r\nSET a b\r\n").await.unwrap();
    let (mut connection, _) = timeout(PATIENCE, server.accept()).await.unwrap().unwrap();
    let mut got = vec![0; 64];
    let length = timeout(PATIENCE, connection.read(&mut got)).await.unwrap().unwrap_or(0);
    got.truncate(length);
    got
}

#[tokio::test]
async fn nothing_of_a_client_arrives_who_may_come_no_more() {
    assert_eq!(arrives(false).await, b"SET a b\r\n");
    assert_eq!(arrives(true).await, b"");
}
