//! `answer`, row by row.

use crate::support::{
    A, AAAA, ANY, HTTPS, NS, PTR, SOA, TXT, ask, closed, code, has_soa, instance, query, query_edns, reply, service, shop, texts,
    wire_name, zones,
};
use hickory_proto::op::{Message, ResponseCode};
use moat_dns::{Answer, Transport, answer};
use std::collections::HashSet;
use std::net::IpAddr;

/// What a row expects.
enum Want {
    /// These answers.
    Data(&'static [&'static str]),
    /// NOERROR without answers, with SOA.
    Empty,
    /// NXDOMAIN with SOA.
    Nothing,
    Refused,
    Forwarded,
}
use Want::{Data, Empty, Forwarded, Nothing, Refused};

fn check(asker: IpAddr, name: &str, kind: u16, want: &Want) {
    let bytes = query(name, kind);
    let got = ask(asker, &bytes);
    let row = format!("{asker} asks {name} {kind}");
    let Answer::Reply(reply) = got else {
        assert!(matches!((&got, want), (Answer::Forward(_), Forwarded)), "{row}: {got:?}");
        return;
    };
    let message = Message::from_vec(&reply).unwrap();
    assert_eq!(reply[..2], bytes[..2], "{row}: id");
    assert_eq!(reply[12..bytes.len()], bytes[12..], "{row}: the question, byte for byte");
    assert!(message.recursion_available && message.recursion_desired, "{row}");
    let (want_code, want_soa, want_texts): (_, _, &[&str]) = match want {
        Data(texts) => (ResponseCode::NoError, false, texts),
        Empty => (ResponseCode::NoError, true, &[]),
        Nothing => (ResponseCode::NXDomain, true, &[]),
        Refused => (ResponseCode::Refused, false, &[]),
        Forwarded => panic!("{row}: not forwarded but {message}"),
    };
    assert_eq!((code(&message), has_soa(&message)), (want_code, want_soa), "{row}: {message}");
    assert_eq!(texts(&message), want_texts, "{row}");
    assert!(message.answers.iter().all(|record| record.ttl == 5), "{row}");
    let made_up = kind == ANY && matches!(want, Data(_));
    assert_eq!(message.authoritative, !matches!(want, Refused) && !made_up, "{row}");
}

#[test]
fn names() {
    for (name, kind, want) in [
        ("catalog", A, Data(&["10.128.0.9"])),
        ("catalog", AAAA, Data(&["fd12:3456:789a:200::9"])),
        ("cATaLoG", A, Data(&["10.128.0.9"])),
        ("cache", A, Data(&["10.128.0.10"])),
        ("catalog", TXT, Empty),
        ("catalog", HTTPS, Empty),
        ("catalog", SOA, Empty),
        ("catalog", NS, Empty),
        ("catalog", ANY, Data(&["RFC8482 "])),
        ("cache-discovery", A, Empty),
        // An instance's host name, which no service's name gives way to.
        ("SRV-c4-abcde", A, Data(&["10.64.0.14"])),
        ("srv-c4-abcde", AAAA, Data(&["fd12:3456:789a:100::e"])),
        ("srv-c4-abcde-discovery", A, Nothing),
        ("old", A, Data(&["10.128.0.13"])),
        ("old-discovery", A, Data(&["10.128.0.12"])),
        ("old-discovery-discovery", A, Data(&["10.64.0.20"])),
        ("catalogue", A, Nothing),
        ("catalogue", TXT, Nothing),
        ("catalogue", ANY, Nothing),
        ("-discovery", A, Nothing),
        ("com", A, Nothing),
        ("wpad", A, Nothing),
        ("localhost", A, Data(&["127.0.0.1"])),
        ("api.localhost", AAAA, Data(&["::1"])),
        ("localhost", TXT, Empty),
        ("catalog.local", A, Nothing),
        ("_dns.resolver.arpa", 64, Nothing),
        ("x.onion", A, Nothing),
        ("catalog", 252, Refused),
        ("catalog", 251, Refused),
        ("catalog", 250, Refused),
        ("catalog", 41, Refused),
        ("example.com", A, Forwarded),
        ("example.com", 252, Refused),
        ("example.com", ANY, Data(&["RFC8482 "])),
        ("catalog.example", A, Forwarded),
        ("a.resolver.arpa.com", A, Forwarded),
        (".", NS, Forwarded),
    ] {
        check(shop(), name, kind, &want);
    }
}

#[test]
fn a_closed_service_learns_nothing() {
    for (name, kind, want) in [
        ("catalog", A, Nothing),
        ("catalog", ANY, Nothing),
        ("catalog-discovery", A, Nothing),
        ("9.0.128.10.in-addr.arpa", PTR, Nothing),
        ("128.10.in-addr.arpa", PTR, Nothing),
        ("example.com", A, Refused),
        ("example.com", ANY, Refused),
        ("secret-data.attacker.example", TXT, Refused),
        ("8.8.8.8.in-addr.arpa", PTR, Refused),
    ] {
        check(closed(), name, kind, &want);
    }
}

#[test]
fn reverse_names() {
    let ula = |address: std::net::Ipv6Addr| -> String {
        let hex = format!("{:032x}", u128::from(address));
        hex.chars().rev().flat_map(|digit| [digit, '.']).collect::<String>() + "ip6.arpa"
    };
    for (name, kind, want) in [
        ("9.0.128.10.in-addr.arpa".to_owned(), PTR, Data(&["catalog."])),
        ("11.0.64.10.in-addr.arpa".to_owned(), PTR, Data(&["catalog."])),
        ("14.0.64.10.in-addr.arpa".to_owned(), PTR, Data(&["srv-c4-abcde."])),
        (ula(instance(14).v6), PTR, Data(&["srv-c4-abcde."])),
        (ula(service(9).v6), PTR, Data(&["catalog."])),
        (ula(instance(12).v6).to_uppercase(), PTR, Data(&["catalog."])),
        ("9.0.128.10.in-addr.arpa".to_owned(), A, Empty),
        ("128.10.in-addr.arpa".to_owned(), PTR, Empty),
        ("10.in-addr.arpa".to_owned(), SOA, Empty),
        ("d.f.ip6.arpa".to_owned(), NS, Empty),
        ("1.0.64.10.in-addr.arpa".to_owned(), PTR, Nothing),
        ("1.168.192.in-addr.arpa".to_owned(), PTR, Nothing),
        ("x.9.0.128.10.in-addr.arpa".to_owned(), PTR, Nothing),
        ("_dns-sd.128.10.in-addr.arpa".to_owned(), PTR, Nothing),
        ("254.169.254.169.in-addr.arpa".to_owned(), PTR, Nothing),
        (ula("fe80::1".parse().unwrap()), PTR, Nothing),
        (ula("::ffff:10.0.0.1".parse().unwrap()), PTR, Nothing),
        (ula("2606:4700::1111".parse().unwrap()), PTR, Forwarded),
        ("8.8.8.8.in-addr.arpa".to_owned(), PTR, Forwarded),
    ] {
        check(shop(), &name, kind, &want);
    }
}

#[test]
fn discovery_gives_every_ready_instance_in_random_order() {
    let mut orders = HashSet::new();
    let mut first = [0; 3];
    for shuffle in 0..300 {
        let Answer::Reply(bytes) = answer(&zones(), shop(), &query("catalog-discovery", A), Transport::Udp, shuffle) else { panic!() };
        let order = texts(&Message::from_vec(&bytes).unwrap());
        let mut sorted = order.clone();
        sorted.sort();
        assert_eq!(sorted, ["10.64.0.11", "10.64.0.12", "10.64.0.13"]);
        first[usize::from(order[0].as_bytes()[9] - b'1')] += 1;
        orders.insert(order);
    }
    assert_eq!(orders.len(), 6, "each order occurs");
    assert!(first.iter().all(|count| (60..=140).contains(count)), "evenly: {first:?}");
}

#[test]
fn ipv6_askers_and_mapped_ones_are_the_same_service() {
    let mapped: IpAddr = instance(1).v4.to_ipv6_mapped().into();
    for asker in [instance(1).v6.into(), mapped] {
        check(asker, "catalog", A, &Data(&["10.128.0.9"]));
    }
}

#[test]
fn strangers_and_responses_get_nothing() {
    let bytes = query("catalog", A);
    for stranger in ["10.64.0.99", "192.168.1.7", "::1", "fe80::2"] {
        assert_eq!(ask(stranger.parse().unwrap(), &bytes), Answer::Drop);
    }
    let mut response = bytes.clone();
    response[2] |= 0x80;
    assert_eq!(ask(shop(), &response), Answer::Drop);
    for length in 0..12 {
        assert_eq!(ask(shop(), &bytes[..length]), Answer::Drop);
    }
}

#[test]
fn other_classes_opcodes_and_question_counts() {
    let mut chaos = query("version.bind", TXT);
    let last = chaos.len() - 1;
    chaos[last] = 3;
    assert_eq!(code(&reply(shop(), &chaos)), ResponseCode::Refused);
    for opcode in [1, 2, 4, 5, 15] {
        let mut bytes = query("catalog", A);
        bytes[2] = opcode << 3;
        let got = reply(shop(), &bytes);
        assert_eq!(code(&got), ResponseCode::NotImp, "{opcode}");
        assert_eq!(got.queries.len(), 1);
    }
    let mut two = query("catalog", A);
    two[5] = 2;
    two.extend(wire_name("cache"));
    two.extend([0, 1, 0, 1]);
    assert_eq!(code(&reply(shop(), &two)), ResponseCode::FormErr);
    let mut none = query("catalog", A)[..12].to_vec();
    none[5] = 0;
    assert_eq!(code(&reply(shop(), &none)), ResponseCode::FormErr);
}

#[test]
fn edns() {
    let plain = reply(shop(), &query("catalog", A));
    assert!(plain.edns.is_none(), "an asker without EDNS gets none");
    let with = reply(shop(), &query_edns("catalog", A, 4096, 0));
    assert_eq!(with.edns.as_ref().unwrap().max_payload(), 1232);
    let future = reply(shop(), &query_edns("catalog", A, 4096, 1));
    assert_eq!(u16::from(code(&future)), u16::from(ResponseCode::BADVERS));
    assert_eq!(future.edns.unwrap().version(), 0);
    let mut twice = query_edns("catalog", A, 4096, 0);
    let opt = twice[twice.len() - 11..].to_vec();
    twice.extend(opt);
    twice[11] = 2;
    assert_eq!(code(&reply(shop(), &twice)), ResponseCode::FormErr);
}

#[test]
fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    for (bytes, room) in [
        (query("many-discovery", AAAA), 512),
        (query_edns("many-discovery", AAAA, 100, 0), 512),
        (query_edns("many-discovery", AAAA, 65000, 0), 1232),
    ] {
        let Answer::Reply(cut) = ask(shop(), &bytes) else { panic!() };
        assert!(cut.len() <= room && cut.len() > room - 100, "{} of {room}", cut.len());
        let message = Message::from_vec(&cut).unwrap();
        assert!(message.truncation && !message.answers.is_empty());
        let Answer::Reply(whole) = answer(&zones(), shop(), &bytes, Transport::Tcp, 1) else { panic!() };
        let message = Message::from_vec(&whole).unwrap();
        assert!(!message.truncation);
        assert_eq!(message.answers.len(), 200);
    }
}
