//! The way in: HTTP/1.1 and HTTP/2 requests from outside go to a ready instance of the web service that their host name means, or are
//! answered with a file of the static site that it means ([`Site`]).
//!
//! [`decide`] is pure: a request's head and the [`Routes`] give a route or a refusal. [`serve`] owns connections: it
//! streams bodies both ways, passes upgrades (WebSocket) through, keeps connections to instances alive, and says in a
//! page what is wrong when nobody answers, and notes each request ([`Records`]). How a socket to an instance is made is the caller's choice ([`Dial`]); which
//! certificate is shown for which name, [`Tls`] is told.
//!
//! A client's connection, its requests and their connections to instances are one task: nothing of a request wakes another thread.
//!
//! Invariants: only hosts in the routes lead anywhere; what an instance reads about the client (`X-Forwarded-*`, the
//! request id, `Host`) was written here; each message is framed anew, and nothing behind a doubtful one is read.

mod alarm;
mod announce;
mod arrival;
mod bell;
mod body;
mod clients;
mod clock;
mod compress;
mod connection;
mod cork;
mod counters;
mod database;
mod decide;
mod failure;
mod forwarded;
mod heads;
mod limit;
mod link;
mod log;
mod meters;
mod pages;
mod pool;
mod preface;
mod proxy;
mod received;
mod record;
mod routes;
mod serve;
mod shared;
mod silence;
mod site;
mod sleep;
mod socket;
mod tls;
mod together;
mod traces;
mod tunnel;

pub use announce::own_header;
pub use arrival::Arrival;
pub use counters::{BUCKETS, Counted, Counters};
pub use database::{Access, AllVisits, Database, DatabaseKind, Databases, Login, Visited, Visitors, serve_databases};
pub use decide::{Decision, Fault, Refusal, decide};
pub use limit::{Limiter, NoRate, Rate};
pub use log::{Log, LogFiles, LogFormat};
pub use meters::{Meter, Meters, Series};
pub use record::Records;
pub use routes::{Policy, Route, RouteState, RouteTable, Routes};
pub use serve::{Listeners, Settings, serve, serve_with};
pub use site::{RuleError, Rules, Site, TooLong};
pub use tls::{Certificate, CertificateError, Certificates, Tls};
pub use traces::{TraceTarget, Traces, WHOLE};

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// Makes connections to instances.
pub trait Dial: Send + Sync + 'static {
    /// Connects to an instance's address; the error's kind is what the 502 page explains.
    fn dial(&self, to: SocketAddr) -> impl Future<Output = io::Result<TcpStream>> + Send;
}
