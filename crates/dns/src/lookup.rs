//! What the world's DNS says of a name, for people who set it up.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// How long one resolver may take for one question.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why nothing is known of a name.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// It is no name.
    #[error("`{0}` is no name that DNS can have")]
    Name(String),
    /// No resolver is known.
    #[error("this machine has no resolver")]
    NoResolver,
    /// No resolver gave an answer.
    #[error("no resolver of this machine answers")]
    NoAnswer(#[source] io::Error),
    /// The resolver could not find out.
    #[error("the resolver says {0}")]
    Failed(ResponseCode),
}

/// The addresses of a name, by the first of these resolvers that answers; none where it has none.
///
/// # Errors
/// When nobody can tell.
pub async fn lookup(resolvers: &[SocketAddr], name: &str) -> Result<BTreeSet<IpAddr>, LookupError> {
    let mut asked = Name::from_ascii(name).map_err(|_| LookupError::Name(name.to_owned()))?;
    asked.set_fqdn(true);
    let mut failed = LookupError::NoResolver;
    for resolver in resolvers {
        let both = async {
            let mut found = ask(*resolver, &asked, RecordType::A).await?;
            found.extend(ask(*resolver, &asked, RecordType::AAAA).await?);
            Ok(found)
        };
        match both.await {
            Ok(found) => return Ok(found),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn ask(resolver: SocketAddr, name: &Name, kind: RecordType) -> Result<BTreeSet<IpAddr>, LookupError> {
    let broken = LookupError::NoAnswer;
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).map_err(|error| broken(io::Error::other(error)))?;
    let id = u16::from_be_bytes(bytes);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(name.clone(), kind));
    let question = message.to_vec().map_err(|error| broken(io::Error::other(error)))?;
    let own: SocketAddr = if resolver.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let exchange = async {
        let socket = UdpSocket::bind(own).await?;
        socket.connect(resolver).await?;
        socket.send(&question).await?;
        let mut read = vec![0; 4096];
        loop {
            let length = socket.recv(&mut read).await?;
            let answer = read.get(..length).and_then(|bytes| Message::from_vec(bytes).ok());
            if let Some(answer) = answer.filter(|answer| answer.metadata.id == id && answer.metadata.message_type == MessageType::Response)
            {
                return Ok(answer);
            }
        }
    };
    let answer = timeout(PATIENCE, exchange).await.map_err(|_| broken(io::ErrorKind::TimedOut.into()))?.map_err(broken)?;
    let code = answer.metadata.response_code;
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Err(LookupError::Failed(code));
    }
    Ok(answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect())
}
