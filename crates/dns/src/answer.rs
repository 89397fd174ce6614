//! The decision: what one asker gets for one query.

use crate::request::{Request, Transport};
use crate::upstream::ForwardQuery;
use crate::zones::{Found, NameEntry, View};
use crate::{Forward, TTL, Zones, reply, reverse, special};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, HINFO, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::IpNet;
use moat_model::AddressPair;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What becomes of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send these bytes back.
    Reply(Vec<u8>),
    /// Ask the machine's resolvers, and hand what they say through [`check_upstream`](crate::check_upstream).
    Forward(ForwardQuery),
    /// Say nothing: a stranger, a response, or no DNS message at all.
    Drop,
}

/// Zones under `arpa` and special-use top-level names that never leave the machine: RFC 6762 (`local`), RFC 6761
/// (`invalid`), RFC 7686 (`onion`), RFC 9476 (`alt`), RFC 9462 §6.4 (`resolver.arpa`).
const NEVER_LEAVES: [&[&[u8]]; 5] = [&[b"local"], &[b"invalid"], &[b"onion"], &[b"alt"], &[b"resolver", b"arpa"]];

/// Answers `query`, which came from `asker`.
///
/// `shuffle` is fresh randomness: it orders the instances of a discovery name. A reply repeats the query's id and its
/// question as it was written (letter case included); UDP replies are cut to what the asker takes, with TC set.
pub fn answer(zones: &Zones, asker: IpAddr, query: &[u8], transport: Transport, shuffle: u64) -> Answer {
    let Some(who) = zones.askers.get(&asker.to_canonical()) else { return Answer::Drop };
    let Some(request) = Request::read(query, transport) else { return Answer::Drop };
    let message = match (&request.question, request.fault) {
        (_, Some(fault)) => reply::empty(&request, fault),
        (None, None) => reply::empty(&request, ResponseCode::FormErr),
        (Some(question), None) => {
            let empty = View::default();
            let view = zones.views.get(&who.view).unwrap_or(&empty);
            match decide(&request, question, view, shuffle) {
                Decision::Reply(message) => *message,
                Decision::Outside if who.forward == Forward::None => reply::empty(&request, ResponseCode::Refused),
                Decision::Outside if question.query_type == RecordType::ANY => minimal_any(&request, question),
                Decision::Outside => match ForwardQuery::new(request.clone(), question) {
                    Some(forward) => return Answer::Forward(forward),
                    None => reply::empty(&request, ResponseCode::FormErr),
                },
            }
        }
    };
    reply::encode(&request, message).map_or(Answer::Drop, Answer::Reply)
}

enum Decision {
    Reply(Box<Message>),
    Outside,
}

impl From<Message> for Decision {
    fn from(message: Message) -> Self {
        Self::Reply(Box::new(message))
    }
}

fn decide(request: &Request, question: &Query, view: &View, shuffle: u64) -> Decision {
    if question.query_class != DNSClass::IN || is_meta(question.query_type) {
        return reply::empty(request, ResponseCode::Refused).into();
    }
    let labels: Vec<&[u8]> = question.name.iter().collect();
    if labels.last().is_some_and(|top| top.eq_ignore_ascii_case(b"localhost")) {
        return localhost(request, question).into();
    }
    if let [label] = labels.as_slice() {
        return bare(request, question, view, label, shuffle).into();
    }
    if let Some(name) = reverse::parse(&question.name)
        && special::is_private_range(name.range)
    {
        return private_reverse(request, question, view, name).into();
    }
    for zone in NEVER_LEAVES {
        if let Some(tail) = labels.len().checked_sub(zone.len()).and_then(|start| labels.get(start..))
            && tail.iter().zip(zone).all(|(label, part)| label.eq_ignore_ascii_case(part))
        {
            return reply::negative(request, ResponseCode::NXDomain, question.name.trim_to(zone.len())).into();
        }
    }
    Decision::Outside
}

/// Meta types and query types (RFC 6895 §3.1): AXFR, IXFR, MAILA, MAILB, TKEY, TSIG, OPT. Not ANY.
fn is_meta(kind: RecordType) -> bool {
    kind != RecordType::ANY && matches!(u16::from(kind), 0 | 41 | 128..=255)
}

/// `localhost` and everything below it is loopback (RFC 6761 §6.3).
fn localhost(request: &Request, question: &Query) -> Message {
    let loopback = AddressPair { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };
    let Some(data) = address_data(question.query_type) else {
        return reply::negative(request, ResponseCode::NoError, question.name.trim_to(1));
    };
    reply::local(request, vec![data(&loopback)])
}

fn bare(request: &Request, question: &Query, view: &View, label: &[u8], shuffle: u64) -> Message {
    let label = label.to_ascii_lowercase();
    let Some(found) = std::str::from_utf8(&label).ok().and_then(|label| view.find(label)) else {
        return reply::negative(request, ResponseCode::NXDomain, Name::root());
    };
    if question.query_type == RecordType::ANY {
        return minimal_any(request, question);
    }
    let answers = addresses(found, question.query_type, shuffle);
    if answers.is_empty() {
        return reply::negative(request, ResponseCode::NoError, Name::root());
    }
    reply::local(request, answers)
}

/// How an address pair becomes a record of this type; `None` for types that hold no address.
fn address_data(kind: RecordType) -> Option<fn(&AddressPair) -> RData> {
    if kind == RecordType::A {
        Some(|pair| RData::A(A(pair.v4)))
    } else if kind == RecordType::AAAA {
        Some(|pair| RData::AAAA(AAAA(pair.v6)))
    } else {
        None
    }
}

fn addresses(found: Found<'_>, kind: RecordType, shuffle: u64) -> Vec<RData> {
    let Some(data) = address_data(kind) else { return Vec::new() };
    match found {
        Found::Service(NameEntry { service: pair, .. }) | Found::Host(pair) => vec![data(pair)],
        Found::Discovery(NameEntry { ready, .. }) => {
            let mut answers: Vec<RData> = ready.iter().map(data).collect();
            mix(&mut answers, shuffle);
            answers
        }
    }
}

/// A reverse name of a private range: known here or nowhere.
fn private_reverse(request: &Request, question: &Query, view: &View, name: reverse::Reverse) -> Message {
    let soa = arpa_zone(&question.name);
    let range = name.range;
    let (first, last) = match range {
        IpNet::V4(range) => (IpAddr::V4(range.network()), IpAddr::V4(range.broadcast())),
        IpNet::V6(range) => (IpAddr::V6(range.network()), IpAddr::V6(range.broadcast())),
    };
    if name.extra || !view.shows_any(first..=last) {
        return reply::negative(request, ResponseCode::NXDomain, soa);
    }
    // A name above a shown address exists, without records (RFC 8020).
    let Some(name_of) = view.name_of(first).filter(|_| range.prefix_len() == range.max_prefix_len()) else {
        return reply::negative(request, ResponseCode::NoError, soa);
    };
    if question.query_type == RecordType::ANY {
        return minimal_any(request, question);
    }
    if question.query_type != RecordType::PTR {
        return reply::negative(request, ResponseCode::NoError, soa);
    }
    Name::root()
        .prepend_label(name_of)
        .map_or_else(|_| reply::empty(request, ResponseCode::ServFail), |target| reply::local(request, vec![RData::PTR(PTR(target))]))
}

/// The SOA's owner for private reverse names: the zone right below `in-addr.arpa` or `ip6.arpa` (RFC 6303), which a
/// resolver in between accepts as an ancestor of every name in it.
fn arpa_zone(name: &Name) -> Name {
    name.trim_to(3)
}

/// ANY is answered with one made-up record and never with what exists (RFC 8482 §4.2).
fn minimal_any(request: &Request, question: &Query) -> Message {
    let mut message = reply::empty(request, ResponseCode::NoError);
    let data = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
    message.answers.push(Record::from_rdata(question.name.clone(), TTL, data));
    message
}

/// A Fisher–Yates shuffle driven by splitmix64.
fn mix<T>(items: &mut [T], mut seed: u64) {
    for last in (1..items.len()).rev() {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut random = seed;
        random = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        random = (random ^ (random >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        random ^= random >> 31;
        // A high-multiply keeps the choice even without a division.
        let choice = (u128::from(random) * (last as u128 + 1)) >> 64;
        items.swap(last, usize::try_from(choice).unwrap_or(0));
    }
}
