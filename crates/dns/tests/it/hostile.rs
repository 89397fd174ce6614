//! Bytes that nobody honest sends: random ones, mutated ones, and the packets of `tests/hostile`.

use crate::support::{A, AAAA, PTR, instance, query, query_edns, response, shop, zones};
use moat_dns::{Answer, Transport, Zones, answer, check_upstream};
use proptest::prelude::*;
use std::path::Path;
use std::sync::LazyLock;

static ZONES: LazyLock<Zones> = LazyLock::new(zones);

/// Holds for every input: no panic; a reply has the query's id, QR set, and either the query's own question or none;
/// what goes upstream has one question of two labels or more.
fn check(bytes: &[u8]) -> &'static str {
    for transport in [Transport::Udp, Transport::Tcp] {
        assert_eq!(answer(&ZONES, "192.0.2.1".parse().unwrap(), bytes, transport, 3), Answer::Drop);
        for asker in [shop(), instance(2).v6.into()] {
            match answer(&ZONES, asker, bytes, transport, 3) {
                Answer::Drop => {}
                Answer::Reply(reply) => check_reply(bytes, &reply, transport),
                Answer::Forward(forward) => {
                    assert_eq!(asker, shop(), "only who may ask outside");
                    let name = &hickory_proto::op::Message::from_vec(&forward.bytes).unwrap().queries[0].name;
                    assert_ne!(name.iter().count(), 1, "{name} leaves");
                    check_reply(bytes, &forward.failure().unwrap(), transport);
                }
            }
        }
    }
    match answer(&ZONES, shop(), bytes, Transport::Udp, 3) {
        Answer::Drop => "drop",
        Answer::Forward(_) => "forward",
        Answer::Reply(reply) => match reply[3] & 0x0f {
            0 if reply[6..8] == [0, 0] => "empty",
            0 => "data",
            1 => "formerr",
            3 => "nxdomain",
            4 => "notimp",
            5 => "refused",
            other => panic!("code {other}"),
        },
    }
}

fn check_reply(bytes: &[u8], reply: &[u8], transport: Transport) {
    assert_eq!(reply[..2], bytes[..2], "id");
    assert_eq!(reply[2] & 0x80, 0x80, "QR");
    match reply[4..6] {
        [0, 0] => {}
        [0, 1] => {
            let end = 12 + reply[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
            assert_eq!(bytes[4..6], [0, 1]);
            assert_eq!(reply[12..end], bytes[12..end], "question");
        }
        _ => panic!("more questions than asked"),
    }
    assert!(transport == Transport::Tcp || reply.len() <= 1232);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check(&bytes);
    }

    #[test]
    fn random_bytes_behind_a_plausible_header(
        counts in proptest::array::uniform4(0u8..4),
        flags in any::<[u8; 2]>(),
        rest in proptest::collection::vec(prop_oneof![any::<u8>(), 0u8..4, Just(0xc0)], 0..120),
    ) {
        let mut bytes = vec![1, 2, flags[0] & 0x7f, flags[1]];
        for count in counts {
            bytes.extend([0, count]);
        }
        bytes.extend(rest);
        check(&bytes);
    }

    #[test]
    fn mutated_queries(
        which in 0usize..5,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let seeds = [
            query("catalog", A), query("many-discovery", AAAA), query("9.0.128.10.in-addr.arpa", PTR), query_edns("catalog-discovery", A, 4096, 0), query("example.com", A),
        ];
        let mut bytes = seeds[which].clone();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        check(&bytes);
    }

    #[test]
    fn mutated_responses_never_bring_a_private_address_in(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        address in any::<[u8; 4]>(),
    ) {
        let Answer::Forward(sent) = answer(&ZONES, shop(), &query_edns("www.example.com", A, 1232, 0), Transport::Udp, 3) else { panic!() };
        let mut bytes = response(&sent.bytes, &[(A, address.to_vec()), (A, vec![93, 184, 216, 34]), (5, b"\x01x\x07example\x00".to_vec())]);
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(reply) = check_upstream(&sent, &bytes) {
            check_reply(&query("www.example.com", A), &reply, Transport::Udp);
            for record in &hickory_proto::op::Message::from_vec(&reply).unwrap().answers {
                prop_assert!(record.data.ip_addr().is_none_or(|address| !moat_dns::is_private(address)));
            }
        }
    }
}

/// Each file: a line `# WANT: why`, then the packet in hexadecimal.
#[test]
fn the_corpus_of_hostile_packets() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let (head, body) = text.split_once('\n').unwrap();
        let want = head.trim_start_matches("# ").split(':').next().unwrap();
        let digits: Vec<u8> = body.bytes().filter(u8::is_ascii_hexdigit).collect();
        let bytes: Vec<u8> = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
        assert_eq!(check(&bytes), want, "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 20, "{seen} packets");
}
