//! A small private network, and queries written by hand.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RData;
use moat_dns::{Answer, Asker, Forward, NameEntry, Transport, View, ViewId, Zones, answer};
use moat_model::net::Ula;
use moat_model::{AddressPair, NetworkId, Slug};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

pub const A: u16 = 1;
pub const NS: u16 = 2;
pub const SOA: u16 = 6;
pub const PTR: u16 = 12;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;
pub const HTTPS: u16 = 65;
pub const ANY: u16 = 255;

pub fn instance(offset: u16) -> AddressPair {
    NetworkId::new(0).unwrap().instance(Ula([0xfd12, 0x3456, 0x789a]), offset)
}

pub fn service(offset: u16) -> AddressPair {
    NetworkId::new(0).unwrap().service(Ula([0xfd12, 0x3456, 0x789a]), offset)
}

pub fn slug(text: &str) -> Slug {
    Slug::new(text).unwrap()
}

/// `shop` (10.64.0.1) sees `catalog` (three ready), `cache` (none ready; instances named `srv-c4-abcde` and, as a service is, `old`) and `many` (200 ready) and may ask outside;
/// `closed` (10.64.0.2) sees nothing and may not; `local` (127.0.0.1, for real sockets) is like `shop`.
pub fn zones() -> Zones {
    let names = BTreeMap::from([
        (slug("catalog"), NameEntry { service: service(9), ready: vec![instance(11), instance(12), instance(13)], hosts: BTreeMap::new() }),
        (
            slug("cache"),
            NameEntry {
                service: service(10),
                ready: Vec::new(),
                hosts: BTreeMap::from([("srv-c4-abcde".to_owned(), instance(14)), ("old".to_owned(), instance(15))]),
            },
        ),
        (slug("many"), NameEntry { service: service(11), ready: (1000..1200).map(instance).collect(), hosts: BTreeMap::new() }),
        (slug("old-discovery"), NameEntry { service: service(12), ready: vec![instance(20)], hosts: BTreeMap::new() }),
        (slug("old"), NameEntry { service: service(13), ready: vec![instance(21)], hosts: BTreeMap::new() }),
    ]);
    let open = Asker { view: ViewId(0), forward: Forward::All };
    let closed = Asker { view: ViewId(7), forward: Forward::None };
    Zones {
        askers: HashMap::from([
            (instance(1).v4.into(), open),
            (instance(1).v6.into(), open),
            (instance(2).v4.into(), closed),
            (instance(2).v6.into(), closed),
            (IpAddr::from([127, 0, 0, 1]), open),
        ]),
        views: HashMap::from([(ViewId(0), View::new(names))]),
    }
}

pub fn shop() -> IpAddr {
    instance(1).v4.into()
}

pub fn closed() -> IpAddr {
    instance(2).v4.into()
}

/// Name in wire form: `a.b` or `a.b.`.
pub fn wire_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.trim_end_matches('.').split('.').filter(|label| !label.is_empty()) {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend(label.bytes());
    }
    out.push(0);
    out
}

/// The question section.
pub fn question(name: &str, kind: u16, class: u16) -> Vec<u8> {
    let mut out = wire_name(name);
    out.extend(kind.to_be_bytes());
    out.extend(class.to_be_bytes());
    out
}

/// A query with id 0xbeef and RD.
pub fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut out = vec![0xbe, 0xef, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    out.extend(question(name, kind, 1));
    out
}

/// The same with an OPT record.
pub fn query_edns(name: &str, kind: u16, payload: u16, version: u8) -> Vec<u8> {
    let mut out = query(name, kind);
    out[11] = 1;
    out.extend([0, 0, 41]);
    out.extend(payload.to_be_bytes());
    out.extend([0, version, 0, 0, 0, 0]);
    out
}

/// A response to `query`, with records of (type, data) owned by the question's name, in the answer section.
pub fn response(query: &[u8], records: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let mut out = query[..end].to_vec();
    out[2] = 0x81;
    out[3] = 0x80;
    out[6..12].copy_from_slice(&[0, u8::try_from(records.len()).unwrap(), 0, 0, 0, 0]);
    for (kind, data) in records {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 60]);
        out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        out.extend(data);
    }
    out
}

pub fn ask(asker: IpAddr, query: &[u8]) -> Answer {
    answer(&zones(), asker, query, Transport::Udp, 1)
}

/// The decoded reply.
pub fn reply(asker: IpAddr, query: &[u8]) -> Message {
    match ask(asker, query) {
        Answer::Reply(bytes) => Message::from_vec(&bytes).unwrap(),
        other @ (Answer::Forward(_) | Answer::Drop) => panic!("no reply but {other:?}"),
    }
}

pub fn texts(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

pub fn has_soa(message: &Message) -> bool {
    message.authorities.iter().any(|record| matches!(record.data, RData::SOA(_)))
}

pub fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}
