//! The conversation with the machine's resolvers, without its sockets: what is sent, and which answers come in.

use crate::request::Request;
use crate::{MAX_UDP, reply, special};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamValue};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use std::net::IpAddr;

/// A query to send upstream: the same question, none of the asker's other bytes (no EDNS options, no padding).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardQuery {
    /// The message. Its id is the asker's until [`ForwardQuery::set_id`] gives it a fresh one.
    pub bytes: Vec<u8>,
    request: Request,
}

/// Why an answer from upstream does not come in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// Another id, another question, or no response: it answers nothing that was asked. Keep waiting.
    #[error("the answer is not to this question")]
    NotOurs,
    /// It was cut (TC): ask again over TCP.
    #[error("the answer is cut, it comes whole over TCP")]
    Truncated,
    /// It can't be read, or can't be written again.
    #[error("the answer is malformed")]
    Malformed,
    /// An outside name that resolves to an inside address (DNS rebinding).
    #[error("`{name}` resolves to the private address {address}")]
    Private {
        /// The record's owner.
        name: String,
        /// The address.
        address: IpAddr,
    },
    /// An outside name that is an alias of a single-label name: that would be a private service's.
    #[error("`{name}` is an alias of the bare name `{target}`")]
    BareName {
        /// The record's owner.
        name: String,
        /// The single label.
        target: String,
    },
}

impl Rejected {
    /// Whether the answer was refused for where it points, and no other server should be asked.
    pub fn is_policy(&self) -> bool {
        matches!(self, Self::Private { .. } | Self::BareName { .. })
    }
}

impl ForwardQuery {
    pub(crate) fn new(request: Request, question: &Query) -> Option<Self> {
        let mut message = Message::new(request.header.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = request.header.recursion_desired;
        message.metadata.checking_disabled = request.header.checking_disabled;
        message.metadata.authentic_data = request.header.authentic_data;
        message.queries.push(question.clone());
        if let Some(client) = request.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP);
            edns.set_dnssec_ok(client.dnssec_ok);
            message.edns = Some(edns);
        }
        Some(Self { bytes: message.to_vec().ok()?, request })
    }

    /// Gives the message an id of its own; draw it from a source that can't be guessed.
    pub fn set_id(&mut self, id: u16) {
        let [high, low] = id.to_be_bytes();
        if let [a, b, ..] = self.bytes.as_mut_slice() {
            (*a, *b) = (high, low);
        }
    }

    /// The reply when nobody upstream answers: SERVFAIL. `None` only when no reply can be written.
    pub fn failure(&self) -> Option<Vec<u8>> {
        reply::encode(&self.request, reply::empty(&self.request, ResponseCode::ServFail))
    }

    /// The reply in place of an answer that must not come in: "no record", uncacheable, for an answer refused for
    /// where it points; SERVFAIL for the others.
    pub fn refusal(&self, why: &Rejected) -> Option<Vec<u8>> {
        if why.is_policy() { reply::encode(&self.request, reply::empty(&self.request, ResponseCode::NoError)) } else { self.failure() }
    }

    fn id(&self) -> Option<u16> {
        self.bytes.first_chunk().map(|id| u16::from_be_bytes(*id))
    }
}

/// Checks an upstream's answer to `query` and makes the reply to the asker of it: the asker's id and question, every
/// record written anew, cut to what the asker takes.
///
/// No record of any section may carry a private address (A, AAAA, the hints of SVCB and HTTPS).
///
/// # Errors
/// [`Rejected`]; [`Rejected::NotOurs`] means that a better answer may still come.
pub fn check_upstream(query: &ForwardQuery, response: &[u8]) -> Result<Vec<u8>, Rejected> {
    let header = hickory_proto::op::Header::read(&mut BinDecoder::new(response)).map_err(|_| Rejected::NotOurs)?;
    let metadata = header.metadata;
    if metadata.message_type != MessageType::Response || Some(metadata.id) != query.id() || metadata.op_code != OpCode::Query {
        return Err(Rejected::NotOurs);
    }
    let message = Message::from_vec(response);
    let asked = query.request.question.as_ref().ok_or(Rejected::NotOurs)?;
    match &message {
        Ok(message) => match message.queries.as_slice() {
            [answered] if same_question(asked, answered) => {}
            // Some servers leave the question out when all they say is "I won't".
            [] if metadata.response_code != ResponseCode::NoError => {}
            _ => return Err(Rejected::NotOurs),
        },
        // A cut message may stop in the middle of a record.
        Err(_) if metadata.truncation => return Err(Rejected::Truncated),
        Err(_) => return Err(Rejected::Malformed),
    }
    if metadata.truncation {
        return Err(Rejected::Truncated);
    }
    let Ok(mut message) = message else { return Err(Rejected::Malformed) };
    for record in message.all_sections() {
        check_record(record)?;
    }
    let mut reply = reply::empty(&query.request, message.metadata.response_code);
    reply.metadata.authentic_data = metadata.authentic_data;
    reply.answers = std::mem::take(&mut message.answers);
    reply.authorities = std::mem::take(&mut message.authorities);
    reply.additionals = std::mem::take(&mut message.additionals);
    reply.additionals.retain(|record| record.record_type() != RecordType::TSIG);
    reply::encode(&query.request, reply).ok_or(Rejected::Malformed)
}

fn same_question(asked: &Query, answered: &Query) -> bool {
    asked.name == answered.name && asked.query_type == answered.query_type && asked.query_class == answered.query_class
}

fn check_record(record: &Record) -> Result<(), Rejected> {
    if let Some(address) = record.data.ip_addr() {
        return check_address(record, address);
    }
    if let RData::CNAME(target) = &record.data {
        return check_target(record, &target.0);
    }
    let service: &SVCB = if let RData::SVCB(data) = &record.data {
        data
    } else if let RData::HTTPS(data) = &record.data {
        &data.0
    } else {
        return Ok(());
    };
    check_target(record, &service.target_name)?;
    for (_, value) in &service.svc_params {
        if let SvcParamValue::Ipv4Hint(hint) = value {
            hint.0.iter().try_for_each(|address| check_address(record, address.0.into()))?;
        } else if let SvcParamValue::Ipv6Hint(hint) = value {
            hint.0.iter().try_for_each(|address| check_address(record, address.0.into()))?;
        }
    }
    Ok(())
}

fn check_address(record: &Record, address: IpAddr) -> Result<(), Rejected> {
    if special::is_private(address) {
        return Err(Rejected::Private { name: record.name.to_ascii(), address });
    }
    Ok(())
}

fn check_target(record: &Record, target: &Name) -> Result<(), Rejected> {
    if target.iter().count() == 1 {
        return Err(Rejected::BareName { name: record.name.to_ascii(), target: target.to_ascii() });
    }
    Ok(())
}
