//! A query as it came in: the header, one question and the EDNS fields that matter.

use crate::MAX_UDP;
use hickory_proto::op::{Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

const HEADER: usize = 12;

/// How a query came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram; long answers are cut (TC).
    Udp,
    /// A TCP stream; the two length bytes (RFC 1035 §4.2.2) are not part of the message.
    Tcp,
}

/// What the asker's OPT record said (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientEdns {
    pub payload: u16,
    pub version: u8,
    pub dnssec_ok: bool,
}

/// A query, readable far enough to be replied to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// Header of the query.
    pub header: Metadata,
    /// The question, when there is exactly one and it is well formed.
    pub question: Option<Query>,
    /// EDNS, when the asker speaks it.
    pub edns: Option<ClientEdns>,
    /// How it came.
    pub transport: Transport,
    /// What is wrong with the message as a whole, as the code to reply with.
    pub fault: Option<ResponseCode>,
}

impl Request {
    /// Reads a message. `None` when nothing must be replied: too short for a header, or itself a response.
    pub fn read(bytes: &[u8], transport: Transport) -> Option<Self> {
        let header = hickory_proto::op::Header::read(&mut BinDecoder::new(bytes)).ok()?;
        if header.metadata.message_type == MessageType::Response {
            return None;
        }
        let mut request = Self { header: header.metadata, question: None, edns: None, transport, fault: None };
        let one_question = header.counts.queries == 1;
        if let Some(end) = question_end(bytes).filter(|_| one_question) {
            request.question =
                bytes.get(..end).and_then(|head| Query::read(&mut BinDecoder::new(head).clone(u16::try_from(HEADER).ok()?)).ok());
        }
        if header.metadata.op_code != OpCode::Query {
            request.fault = Some(ResponseCode::NotImp);
            return Some(request);
        }
        let message = Message::from_vec(bytes);
        if let Ok(message) = &message {
            request.edns = message.edns.as_ref().map(|edns| ClientEdns {
                payload: edns.max_payload(),
                version: edns.version(),
                dnssec_ok: edns.flags().dnssec_ok,
            });
        }
        // An answer has no place in a query; an IXFR's SOA (RFC 1995) does, and is refused later by its type.
        request.fault = if message.is_err() || request.question.is_none() || header.counts.answers > 0 {
            Some(ResponseCode::FormErr)
        } else if request.edns.is_some_and(|edns| edns.version > 0) {
            Some(ResponseCode::BADVERS)
        } else {
            None
        };
        Some(request)
    }

    /// The longest reply that the asker can take, bytes.
    pub fn room(&self) -> usize {
        match (self.transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, Some(edns)) => usize::from(edns.payload.clamp(512, MAX_UDP)),
            (Transport::Udp, None) => 512,
        }
    }
}

/// Where the first question ends; `None` for a name with pointers (nothing stands before it to point to), one longer
/// than 255 bytes, or a message that stops short.
fn question_end(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*bytes.get(at)?);
        if length > 63 {
            return None;
        }
        at += 1 + length;
        if at - HEADER > 255 {
            return None;
        }
        if length == 0 {
            let end = at + 4;
            return (end <= bytes.len()).then_some(end);
        }
    }
}
