//! Names: real DNS questions from inside every instance, held against what the matrix lets it see.
//!
//! Invariant: a name that the asker may not reach must not exist for it, by either transport and for either family.

use crate::report::{Observed, ProbeKind, Row};
use crate::scene::{Scene, Target};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use moat_model::net::GATEWAY_V4;
use moat_model::{Family, Peer, Proto, Purpose, Service, Verdict};
use moat_net_linux::ns::in_ns;
use moat_planner::reach::verdict;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// How long one round of answers is waited for.
const PATIENCE: Duration = Duration::from_millis(600);
const ROUNDS: usize = 3;
const DNS: u16 = 53;

/// One question and what should be answered: `None` for a name that must not exist.
struct Question {
    kind: ProbeKind,
    to: Peer,
    name: String,
    family: Family,
    expected: Verdict,
    addresses: Option<BTreeSet<IpAddr>>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reply {
    Addresses(BTreeSet<IpAddr>),
    NoName,
    Other(ResponseCode),
}

/// The rows of every asker, and whether its questions were answered at all (with the number of answers).
pub(crate) fn ask_all(scene: &Scene<'_>) -> (Vec<Row>, Vec<(usize, io::Result<usize>)>) {
    let mut rows = Vec::new();
    let mut answered = Vec::new();
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = scene.targets.iter().map(|asker| scope.spawn(|| ask(scene, asker))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    for (index, result) in results.into_iter().enumerate() {
        match result {
            Ok((mut found, count)) => {
                rows.append(&mut found);
                answered.push((index, Ok(count)));
            }
            Err(error) => answered.push((index, Err(error))),
        }
    }
    (rows, answered)
}

/// Whether the name server knows this instance at all: what opens no flows resolves no names.
pub(crate) fn may_ask(scene: &Scene<'_>, asker: &Target) -> bool {
    scene.state.services.get(&asker.slug).is_some_and(|service| asker.is_build() || service.kind.sends())
}

fn questions(scene: &Scene<'_>, asker: &Target) -> Vec<Question> {
    let mut out = Vec::new();
    for service in scene.state.services.values() {
        let to = Peer::Service(service.slug.clone());
        let expected = verdict(scene.state, &asker.peer(), &to, None);
        for (discovery, family) in [(false, Family::V4), (false, Family::V6), (true, Family::V4), (true, Family::V6)] {
            let addresses = expected.is_allowed().then(|| addresses(scene, service, discovery, family));
            // With nothing ready there is no discovery name to hold against anything.
            if addresses.as_ref().is_some_and(BTreeSet::is_empty) {
                continue;
            }
            let name = if discovery { format!("{}-discovery", service.slug) } else { service.slug.to_string() };
            for transport in [Proto::Udp, Proto::Tcp] {
                let kind = ProbeKind::Name { transport, family, discovery };
                out.push(Question { kind, to: to.clone(), name: name.clone(), family, expected, addresses: addresses.clone() });
            }
        }
    }
    out
}

fn addresses(scene: &Scene<'_>, service: &Service, discovery: bool, family: Family) -> BTreeSet<IpAddr> {
    if discovery {
        let ready = scene.targets.iter().filter(|t| t.slug == service.slug && t.ready && t.purpose == Purpose::Serve);
        ready.map(|t| t.address.of(family)).collect()
    } else {
        service.vip.map(|vip| vip.of(family)).into_iter().collect()
    }
}

fn ask(scene: &Scene<'_>, asker: &Target) -> io::Result<(Vec<Row>, usize)> {
    let questions = questions(scene, asker);
    let known = may_ask(scene, asker);
    let rounds = if known { ROUNDS } else { 1 };
    let replies = in_ns(&asker.ns, || -> io::Result<_> {
        let mut replies = by_udp(&questions, rounds)?;
        replies.extend(by_tcp(&questions, known)?);
        Ok(replies)
    })??;
    let rows = questions.into_iter().enumerate().map(|(index, question)| row(asker, question, replies.get(&index), known)).collect();
    Ok((rows, replies.len()))
}

fn row(asker: &Target, question: Question, reply: Option<&Reply>, known: bool) -> Row {
    let mut detail = None;
    let observed = match (reply, &question.addresses) {
        (Some(Reply::Addresses(found)), Some(wanted)) if found == wanted => Observed::Reached,
        (Some(Reply::Addresses(found)), wanted) => {
            detail = Some(format!(
                "`{}` was answered with {found:?}, expected {}",
                question.name,
                wanted.as_ref().map_or_else(|| "no such name".to_owned(), |w| format!("{w:?}"))
            ));
            Observed::Reached
        }
        (Some(Reply::NoName | Reply::Other(ResponseCode::Refused)), _) => Observed::NotReached,
        (Some(Reply::Other(code)), _) => Observed::Unproven(format!("the name server answered {code}")),
        // Who may resolve nothing is not answered at all.
        (None, None) if !known => Observed::NotReached,
        (None, _) => Observed::Unproven("the name server did not answer".to_owned()),
    };
    let agrees = detail.is_none()
        && match observed {
            Observed::Reached => question.expected.is_allowed(),
            Observed::NotReached => !question.expected.is_allowed(),
            Observed::Unproven(_) => false,
        };
    Row {
        from: asker.peer(),
        from_instance: Some(asker.instance.clone()),
        to: question.to,
        to_instance: None,
        what: question.kind,
        address: GATEWAY_V4.into(),
        port: DNS,
        expected: question.expected,
        observed,
        detail,
        agrees,
    }
}

fn encode(id: usize, question: &Question) -> io::Result<Vec<u8>> {
    let record = match question.family {
        Family::V4 => RecordType::A,
        Family::V6 => RecordType::AAAA,
    };
    let name = Name::from_ascii(format!("{}.", question.name)).map_err(io::Error::other)?;
    let mut message = Message::new(u16::try_from(id).map_err(io::Error::other)?, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, record));
    message.to_vec().map_err(io::Error::other)
}

fn decode(bytes: &[u8]) -> Option<(usize, Reply)> {
    let message = Message::from_vec(bytes).ok()?;
    let addresses = message.answers.iter().filter_map(|record| {
        if let RData::A(address) = &record.data {
            Some(IpAddr::V4(address.0))
        } else if let RData::AAAA(address) = &record.data {
            Some(IpAddr::V6(address.0))
        } else {
            None
        }
    });
    let code = message.metadata.response_code;
    let reply = if code == ResponseCode::NoError {
        Reply::Addresses(addresses.collect())
    } else if code == ResponseCode::NXDomain {
        Reply::NoName
    } else {
        Reply::Other(code)
    };
    Some((usize::from(message.metadata.id), reply))
}

const fn is_over(question: &Question, wanted: Proto) -> bool {
    match question.kind {
        ProbeKind::Name { transport, .. } => matches!((transport, wanted), (Proto::Tcp, Proto::Tcp) | (Proto::Udp, Proto::Udp)),
        ProbeKind::Flow { .. } => false,
    }
}

fn by_udp(questions: &[Question], rounds: usize) -> io::Result<BTreeMap<usize, Reply>> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect((GATEWAY_V4, DNS))?;
    let mut replies = BTreeMap::new();
    let mut buffer = [0; 4096];
    for _ in 0..rounds {
        let open: Vec<usize> = (0..questions.len()).filter(|i| is_over(&questions[*i], Proto::Udp) && !replies.contains_key(i)).collect();
        // Few at a time, so that no queue overflows.
        for some in open.chunks(64) {
            for index in some {
                // A refusal of an earlier question may be told here; silence says the same.
                let _ = socket.send(&encode(*index, &questions[*index])?);
            }
            let deadline = Instant::now() + PATIENCE;
            while some.iter().any(|index| !replies.contains_key(index)) {
                let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else { break };
                socket.set_read_timeout(Some(left))?;
                match socket.recv(&mut buffer) {
                    Ok(len) => replies.extend(decode(&buffer[..len])),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(replies)
}

fn by_tcp(questions: &[Question], known: bool) -> io::Result<BTreeMap<usize, Reply>> {
    let mut replies = BTreeMap::new();
    let server = SocketAddr::from((GATEWAY_V4, DNS));
    let patience = if known { PATIENCE * 2 } else { PATIENCE };
    let Ok(mut stream) = TcpStream::connect_timeout(&server, patience) else { return Ok(replies) };
    stream.set_read_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    for index in (0..questions.len()).filter(|i| is_over(&questions[*i], Proto::Tcp)) {
        match exchange(&mut stream, &encode(index, &questions[index])?) {
            Ok(bytes) => replies.extend(decode(&bytes)),
            // The server closed or fell silent: what is left stays unanswered.
            Err(_) => break,
        }
    }
    Ok(replies)
}

/// One question on a stream (RFC 1035 §4.2.2: two bytes of length before each message).
fn exchange(stream: &mut TcpStream, question: &[u8]) -> io::Result<Vec<u8>> {
    let len = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), question].concat())?;
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}
