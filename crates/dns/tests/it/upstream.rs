//! `check_upstream`, row by row.

use crate::support::{A, AAAA, HTTPS, TXT, ask, query, query_edns, response, shop, wire_name};
use hickory_proto::op::{Message, ResponseCode};
use moat_dns::{Answer, ForwardQuery, Rejected, check_upstream};
use std::net::IpAddr;

fn forward(bytes: &[u8]) -> ForwardQuery {
    let Answer::Forward(mut forward) = ask(shop(), bytes) else { panic!() };
    forward.set_id(0x1234);
    forward
}

fn data(address: &str) -> (u16, Vec<u8>) {
    match address.parse().unwrap() {
        IpAddr::V4(address) => (A, address.octets().to_vec()),
        IpAddr::V6(address) => (AAAA, address.octets().to_vec()),
    }
}

/// SVCB data: priority 1, target, one parameter.
fn svcb(target: &str, key: u16, value: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 1];
    out.extend(wire_name(target));
    out.extend(key.to_be_bytes());
    out.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
    out.extend(value);
    out
}

#[test]
fn what_is_sent_upstream_is_the_question_alone() {
    let mut bytes = query_edns("ExAmple.com", A, 4096, 0);
    // An EDNS option (code 65001, "leak") is not passed on.
    let length = bytes.len();
    bytes[length - 1] = 8;
    bytes.extend([0xfd, 0xe9, 0, 4]);
    bytes.extend(b"leak");
    let sent = forward(&bytes).bytes;
    assert_eq!(sent[..2], [0x12, 0x34]);
    let message = Message::from_vec(&sent).unwrap();
    assert_eq!(message.queries[0].name.to_ascii(), "ExAmple.com.");
    assert!(message.recursion_desired);
    assert!(message.edns.unwrap().options().as_ref().is_empty());
    assert!(!sent.windows(4).any(|window| window == b"leak"));
}

#[test]
fn a_public_answer_comes_in_as_the_asker_wrote_the_question() {
    let asked = query("wWw.eXample.com", A);
    let sent = forward(&asked);
    // Upstream folds the case.
    let mut folded = sent.bytes.clone();
    folded[12..].make_ascii_lowercase();
    let reply = check_upstream(&sent, &response(&folded, &[data("93.184.216.34"), data("2606:4700::1111")])).unwrap();
    assert_eq!(reply[..2], [0xbe, 0xef]);
    assert_eq!(reply[12..asked.len()], asked[12..]);
    let message = Message::from_vec(&reply).unwrap();
    assert_eq!(message.answers.len(), 2);
    assert!(!message.authoritative);
}

#[test]
fn private_addresses_never_come_in() {
    let sent = forward(&query("rebind.example", A));
    for address in [
        "10.64.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "169.254.1.1",
        "192.168.0.1",
        "172.16.0.1",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "::",
        "fd12::1",
        "fe80::1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
        "::7f00:1",
    ] {
        // Alone, and behind a public one.
        for records in [vec![data(address)], vec![data("93.184.216.34"), data(address)]] {
            let got = check_upstream(&sent, &response(&sent.bytes, &records)).unwrap_err();
            assert!(
                matches!(&got, Rejected::Private { name, address: found } if name == "rebind.example." && found.to_string() == address.parse::<IpAddr>().unwrap().to_string()),
                "{address}: {got}"
            );
            let reply = Message::from_vec(&sent.refusal(&got).unwrap()).unwrap();
            assert_eq!((reply.response_code, reply.answers.len(), reply.id), (ResponseCode::NoError, 0, 0xbeef));
        }
    }
}

#[test]
fn private_addresses_do_not_hide() {
    let sent = forward(&query("rebind.example", HTTPS));
    // In the hints of HTTPS and SVCB.
    let v6_hint = "fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
    for (kind, record) in [
        (HTTPS, svcb(".", 4, &[93, 184, 216, 34, 10, 0, 0, 1])),
        (64, svcb("x.example", 4, &[127, 0, 0, 1])),
        (HTTPS, svcb(".", 6, &v6_hint)),
    ] {
        let got = check_upstream(&sent, &response(&sent.bytes, &[(kind, record)]));
        assert!(matches!(got, Err(Rejected::Private { .. })), "{got:?}");
    }
    assert!(check_upstream(&sent, &response(&sent.bytes, &[(HTTPS, svcb(".", 4, &[93, 184, 216, 34]))])).is_ok());
    // In the authority and additional sections, under any owner.
    for section in [9, 11] {
        let mut bytes = response(&sent.bytes, &[data("10.0.0.1")]);
        bytes[7] = 0;
        bytes[section] = 1;
        assert!(matches!(check_upstream(&sent, &bytes), Err(Rejected::Private { .. })), "{section}");
    }
    // As an alias of a bare name, which the asker's own library would look up here.
    let got = check_upstream(&sent, &response(&sent.bytes, &[(5, wire_name("catalog"))]));
    assert!(matches!(&got, Err(Rejected::BareName { target, .. }) if target == "catalog."), "{got:?}");
    assert!(check_upstream(&sent, &response(&sent.bytes, &[(5, wire_name("catalog.example.net"))])).is_ok());
}

#[test]
fn answers_to_other_questions_are_passed_over() {
    let sent = forward(&query("example.com", A));
    let good = response(&sent.bytes, &[data("93.184.216.34")]);
    assert!(check_upstream(&sent, &good).is_ok());
    let mut other_id = good.clone();
    other_id[1] ^= 1;
    let mut a_query = good.clone();
    a_query[2] &= 0x7f;
    let mut other_name = good.clone();
    other_name[13] = b'f';
    let mut other_kind = good.clone();
    other_kind[26] = 28;
    let mut no_question = good[..12].to_vec();
    no_question[4..8].fill(0);
    for bytes in [other_id, a_query, other_name, other_kind, no_question.clone(), good[..11].to_vec(), Vec::new()] {
        assert_eq!(check_upstream(&sent, &bytes), Err(Rejected::NotOurs), "{bytes:?}");
    }
    // A refusal may come without the question.
    no_question[3] = 0x85;
    let reply = check_upstream(&sent, &no_question).unwrap();
    assert_eq!(Message::from_vec(&reply).unwrap().response_code, ResponseCode::Refused);
}

#[test]
fn cut_and_broken_answers() {
    let sent = forward(&query("example.com", TXT));
    let mut cut = response(&sent.bytes, &[data("93.184.216.34")]);
    cut[2] |= 2;
    assert_eq!(check_upstream(&sent, &cut), Err(Rejected::Truncated));
    cut.truncate(cut.len() - 3);
    assert_eq!(check_upstream(&sent, &cut), Err(Rejected::Truncated));
    let mut broken = response(&sent.bytes, &[data("93.184.216.34")]);
    broken.truncate(broken.len() - 3);
    let got = check_upstream(&sent, &broken).unwrap_err();
    assert_eq!(got, Rejected::Malformed);
    assert_eq!(Message::from_vec(&sent.refusal(&got).unwrap()).unwrap().response_code, ResponseCode::ServFail);
}

#[test]
fn a_long_answer_is_cut_to_what_the_asker_takes() {
    let text = |n: u8| (TXT, std::iter::once(100).chain(std::iter::repeat_n(b'a' + n, 100)).collect());
    let records: Vec<_> = (0..10).map(text).collect();
    let sent = forward(&query("example.com", TXT));
    let reply = check_upstream(&sent, &response(&sent.bytes, &records)).unwrap();
    let message = Message::from_vec(&reply).unwrap();
    assert!(reply.len() <= 512 && message.truncation && !message.answers.is_empty());
    let sent = forward(&query_edns("example.com", TXT, 4000, 0));
    let reply = check_upstream(&sent, &response(&sent.bytes, &records)).unwrap();
    let message = Message::from_vec(&reply).unwrap();
    assert!(!message.truncation && message.answers.len() == 10);
}
