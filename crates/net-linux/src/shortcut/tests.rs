//! Records as the programs write them, and the exchange of what another version of Moat left on a link.

use super::records::{ANSWERED, OPENER};
use super::*;
use crate::ns;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const CLIENT: [u8; 4] = [10, 64, 0, 1];
const SERVICE: [u8; 4] = [10, 128, 0, 9];
const SERVER: [u8; 4] = [10, 64, 0, 2];

/// An address in the programs' records of a family.
trait Address: Copy + Into<IpAddr> {
    fn of(v4: [u8; 4]) -> Self;
    fn bytes(self) -> Vec<u8>;
}

impl Address for Ipv4Addr {
    fn of(v4: [u8; 4]) -> Self {
        v4.into()
    }
    fn bytes(self) -> Vec<u8> {
        self.octets().to_vec()
    }
}

impl Address for Ipv6Addr {
    /// Its last twelve bytes are zero, so that one who guesses the family by them is found out.
    fn of([a, b, c, d]: [u8; 4]) -> Self {
        Self::new(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), 0, 0, 0, 0, 0, 0)
    }
    fn bytes(self) -> Vec<u8> {
        self.octets().to_vec()
    }
}

fn ends<A: Address>(from: [u8; 4], to: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
    [A::of(from).bytes(), A::of(to).bytes(), ports[0].to_be_bytes().to_vec(), ports[1].to_be_bytes().to_vec()].concat()
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

/// A flow through a service address that changed the client's port too: key and record of both ways.
fn flow<A: Address, const KEY: usize, const FLOW: usize>(proto: u32, seen: u32, state: u32) -> [([u8; KEY], [u8; FLOW]); 2] {
    let record = |enters: Vec<u8>, link: u32, leaves: Vec<u8>, to: u32, state: u32| {
        let key = [enters, words(&[link, proto])].concat();
        let flow = [key.clone(), leaves, words(&[to, seen, seen, state, 0, 0, 0])].concat();
        (key.try_into().unwrap(), flow.try_into().unwrap())
    };
    [
        record(ends::<A>(CLIENT, SERVICE, [40_000, 80]), 5, ends::<A>(CLIENT, SERVER, [1025, 8080]), 6, state | OPENER),
        record(ends::<A>(SERVER, CLIENT, [8080, 1025]), 6, ends::<A>(SERVICE, CLIENT, [80, 40_000]), 5, state),
    ]
}

fn names_ends<A: Address, const KEY: usize, const FLOW: usize>() {
    let [(asked, there), (answered, back)] = flow::<A, KEY, FLOW>(6, 1, 0);
    let expected = Ends { source: A::of(CLIENT).into(), responder: A::of(SERVER).into(), proto: 6, port: 80 };
    assert_eq!(Record { key: &asked, flow: &there }.ends(), expected);
    assert_eq!(records::other_way(&asked, &there), answered);
    assert_eq!(records::other_way(&answered, &back), asked);
}

#[test]
fn a_record_names_its_ends_and_its_other_direction() {
    names_ends::<Ipv4Addr, KEY4, FLOW4>();
    names_ends::<Ipv6Addr, KEY6, FLOW6>();
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: needs root to load programs into the kernel");
    }
    root
}

fn is_forgotten_in_time<A: Address, const KEY: usize, const FLOW: usize>(
    shortcut: &Shortcut,
    table: impl Fn(&mut Flows) -> &mut Table<KEY, FLOW>,
) {
    let rows = [
        (17, ANSWERED, limits::UDP_LIMIT),
        (6, 0, limits::TCP_OPENING_LIMIT),
        (6, ANSWERED, limits::TCP_OPEN_LIMIT),
        (6, ANSWERED | 4, limits::TCP_CLOSING_LIMIT),
        (6, ANSWERED | 16, limits::TCP_CLOSING_LIMIT),
    ];
    for (proto, state, limit) in rows {
        let fill = || {
            for (key, flow) in flow::<A, KEY, FLOW>(proto, 1000, state) {
                table(&mut shortcut.flows.lock().unwrap()).insert(key, flow, 0).unwrap();
            }
        };
        fill();
        // The programs' clock may be a moment ahead.
        for now in [999, 1000, 1000 + limit] {
            assert_eq!(shortcut.sweep_at(now).unwrap(), 0, "protocol {proto}, state {state}, at {now}");
        }
        assert_eq!(shortcut.sweep_at(1001 + limit).unwrap(), 2, "protocol {proto}, state {state}");
        assert_eq!(shortcut.counts().unwrap().remembered, 0);
        fill();
        assert_eq!(shortcut.cut(|ends| ends.responder == A::of(SERVER).into()).unwrap(), 0);
        assert_eq!(shortcut.counts().unwrap().remembered, 2);
        assert_eq!(shortcut.cut(|ends| ends.source != A::of(CLIENT).into()).unwrap(), 1);
        assert_eq!(shortcut.counts().unwrap().remembered, 0);
    }
}

#[test]
fn flows_are_forgotten_when_they_are_idle_for_their_limit() {
    if is_root() {
        let shortcut = Shortcut::load().unwrap();
        is_forgotten_in_time::<Ipv4Addr, KEY4, FLOW4>(&shortcut, |flows| &mut flows.v4);
        is_forgotten_in_time::<Ipv6Addr, KEY6, FLOW6>(&shortcut, |flows| &mut flows.v6);
    }
}

/// The programs of a Moat whose table has another name: another layout.
fn of_another_version() -> ([ProgramFd; 2], [u32; 2], Ebpf) {
    let mut object = OBJECT.to_vec();
    let (old, new) = (FLOWS4.as_bytes(), b"moat_flows0");
    let places: Vec<usize> = (0..object.len() - old.len()).filter(|at| object[*at..].starts_with(old)).collect();
    assert!(places.len() >= 2, "the name stands in the table of symbols and in that of types");
    for at in places {
        object[at..at + new.len()].copy_from_slice(new);
    }
    let mut object = Ebpf::load(&object).unwrap();
    let mut ids = [0, 0];
    let programs = [0, 1].map(|i| {
        let program: &mut SchedClassifier = object.program_mut(PLACES[i].program).unwrap().try_into().unwrap();
        program.load().unwrap();
        ids[i] = program.info().unwrap().id();
        program.fd().unwrap().try_clone().unwrap()
    });
    (programs, ids, object)
}

/// What is on the links of a namespace is exchanged when somebody comes who can't take it over, whichever way it was attached.
#[test]
fn programs_of_another_version_are_exchanged_before_anybody_relies_on_a_cut() {
    if !is_root() {
        return;
    }
    let (programs, ids, _object) = of_another_version();
    ns::in_ns(&ns::scratch().unwrap(), || {
        let mut links = Links::open().unwrap();
        for name in ["by-tcx", "by-clsact", "bare"] {
            let status = std::process::Command::new("ip").args(["link", "add", name, "type", "veth"]).status().unwrap();
            assert!(status.success());
        }
        let [tcx, clsact, bare] = ["by-tcx", "by-clsact", "bare"].map(|name| links.find(name).unwrap().unwrap().index);
        hooks::attach(&mut links, tcx, &programs).unwrap();
        hooks::attach_by_clsact(&mut links, clsact, &programs).unwrap();
        let found = |links: &mut Links, index| Found::of(links, index, &links_with_clsact()).unwrap();
        assert_eq!(found(&mut links, clsact).clsact, ids.map(Some));
        assert_eq!(found(&mut links, tcx).pair(&hooks::named()), Some(ids));
        let shortcut = Shortcut::open(&mut links).unwrap();
        assert_ne!(shortcut.ids, ids);
        let with_clsact = links_with_clsact();
        for index in [tcx, clsact] {
            assert!(shortcut.holds(&mut links, index, &with_clsact).unwrap());
        }
        assert!(with_clsact.is_empty(), "{with_clsact:?}");
        assert!(!found(&mut links, bare).any(&hooks::named()));
        // Who comes next takes that over.
        assert_eq!(Shortcut::open(&mut links).unwrap().ids, shortcut.ids);
        // Half of it is not whole, and neither is one of another version beside it.
        shortcut.mend(&mut links, bare).unwrap();
        hooks::attach(&mut links, bare, &programs).unwrap();
        assert!(!shortcut.holds(&mut links, bare, &with_clsact).unwrap());
        shortcut.mend(&mut links, bare).unwrap();
        assert!(shortcut.holds(&mut links, bare, &with_clsact).unwrap());
        // Nobody wants it: nothing stays.
        remove(&mut links).unwrap();
        for index in [tcx, clsact, bare] {
            assert!(!found(&mut links, index).any(&hooks::named()));
        }
    })
    .unwrap();
}

fn links_with_clsact() -> BTreeSet<u32> {
    Links::open().unwrap().with_clsact().unwrap()
}
