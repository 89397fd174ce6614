//! Replies: the header, the same question, the records that fit.

use crate::request::Request;
use crate::{MAX_UDP, TTL};
use hickory_proto::op::{Edns, Message, Metadata, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record};

/// A reply to a request without records: same id, same question, recursion available.
pub(crate) fn empty(request: &Request, code: ResponseCode) -> Message {
    let header = Metadata::response_from_request(&request.header);
    let mut message = Message::response(header.id, header.op_code);
    message.metadata = header;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.queries.extend(request.question.clone());
    if let Some(client) = request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        edns.set_dnssec_ok(client.dnssec_ok);
        message.edns = Some(edns);
    }
    message
}

/// A reply of our own knowledge: authoritative.
pub(crate) fn local(request: &Request, answers: Vec<RData>) -> Message {
    let mut message = empty(request, ResponseCode::NoError);
    message.metadata.authoritative = true;
    if let Some(question) = &request.question {
        message.answers.extend(answers.into_iter().map(|data| Record::from_rdata(question.name.clone(), TTL, data)));
    }
    message
}

/// "No such name" or "no record of this type", with the SOA that lets it be cached for [`TTL`] (RFC 2308 §3).
pub(crate) fn negative(request: &Request, code: ResponseCode, zone: Name) -> Message {
    let mut message = local(request, Vec::new());
    message.metadata.response_code = code;
    let soa = SOA::new(Name::root(), Name::root(), 1, 3600, 600, 86400, TTL);
    message.authorities.push(Record::from_rdata(zone, TTL, RData::SOA(soa)));
    message
}

/// The message's bytes, cut to what the asker can take: additional records go first, without a mark; then answers and
/// authority go, with TC set (RFC 2181 §9).
///
/// `None` for a message that can't be written at all.
pub(crate) fn encode(request: &Request, mut message: Message) -> Option<Vec<u8>> {
    let room = request.room();
    let mut bytes = message.to_vec().ok()?;
    if bytes.len() > room && !message.additionals.is_empty() {
        message.additionals.clear();
        bytes = message.to_vec().ok()?;
    }
    if bytes.len() <= room {
        return Some(bytes);
    }
    message.metadata.truncation = true;
    message.authorities.clear();
    let mut answers = std::mem::take(&mut message.answers);
    // The most answers that fit; their sizes differ, so it is searched for.
    let (mut fits, mut too_many) = (0, answers.len() + 1);
    while too_many - fits > 1 {
        let middle = usize::midpoint(fits, too_many);
        message.answers = answers.iter().take(middle).cloned().collect();
        if message.to_vec().ok()?.len() <= room { fits = middle } else { too_many = middle }
    }
    answers.truncate(fits);
    message.answers = answers;
    bytes = message.to_vec().ok()?;
    (bytes.len() <= room).then_some(bytes)
}
