//! The shortcut: later packets of an open flow between two instances go from link to link, past the router's stack.
//!
//! [`Shortcut`] holds two programs of the kernel's virtual machine (`bpf/shortcut.c`) and their map of flows. The first
//! packet of every flow is decided by the filter; the programs learn from what came through, and decide nothing. Functions
//! with links run in a thread of the router namespace. Invariants: no link without both programs or none of them counts as
//! attached; a flow that the policy forbids has no entry once [`Shortcut::cut`] returned; without a shortcut everything
//! works as well, only slower.

mod holder;

pub use holder::Holder;

use crate::conntrack::Ends;
use crate::link::{Links, Request};
use aya::maps::{HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use aya::programs::{ProgramFd, ProgramInfo, SchedClassifier, loaded_programs};
use aya::{Ebpf, EbpfError};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

mod limits {
    #![expect(dead_code, clippy::unreadable_literal, reason = "written by the build script; some matter only to the programs")]
    include!(concat!(env!("OUT_DIR"), "/limits.rs"));
}

/// The programs, as the compiler made them.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shortcut.o"));
/// The program at the entry of the router and the one at its exit, with where they are attached.
const PROGRAMS: [(&str, TcHandle); 2] = [
    ("moat_in", TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS }),
    ("moat_out", TcHandle { major: 0xffff, minor: TcHandle::MIN_EGRESS }),
];
const FLOWS: &str = "moat_flows";
const COUNTS: &str = "moat_counts";

/// Sizes and places in the programs' records: `struct key` and `struct flow`.
const KEY: usize = 44;
const FLOW: usize = 108;
const OPENER: u32 = 1;
const ANSWERED: u32 = 2;
const FINISHING: u32 = 4 | 16;
const UDP: u8 = 17;

type Flows = HashMap<MapData, [u8; KEY], [u8; FLOW]>;

/// Why there is no shortcut.
#[derive(Debug, thiserror::Error)]
pub enum ShortcutError {
    /// The kernel refused the programs or their maps.
    #[error("the kernel refused the programs: {0}")]
    Load(#[from] EbpfError),
    /// A program could not be loaded, looked up or used.
    #[error("the kernel refused a program: {0}")]
    Program(#[from] aya::programs::ProgramError),
    /// A map could not be opened or used.
    #[error("the kernel refused a map of flows: {0}")]
    Map(#[from] MapError),
    /// A link's programs could not be listed or attached.
    #[error("programs could not be attached to a link: {0}")]
    Link(#[from] io::Error),
    /// The object lacks a part, or what runs here is of another version.
    #[error("the programs lack `{0}`")]
    Missing(&'static str),
}

/// What the shortcut did since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets that took it.
    pub taken: u64,
    /// Flows that were learned.
    pub learned: u64,
    /// Flows that found no room and take the router's path.
    pub no_room: u64,
    /// Directions of flows that are remembered now: two for each flow.
    pub remembered: u64,
}

/// The loaded programs and their map.
pub struct Shortcut {
    programs: [ProgramFd; 2],
    flows: Mutex<Flows>,
    counts: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for Shortcut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shortcut").finish_non_exhaustive()
    }
}

/// Whether this kernel takes the programs, for who may ask it (root).
pub fn check() -> Result<(), ShortcutError> {
    Shortcut::load().map(drop)
}

impl Shortcut {
    /// Takes over what the links of this namespace already have, else loads anew.
    pub fn open(links: &mut Links) -> Result<Self, ShortcutError> {
        for link in links.all()? {
            let [Some(enter), Some(leave)] = attached(links, link.index)? else { continue };
            match Self::adopt(enter, leave) {
                Ok(shortcut) => return Ok(shortcut),
                Err(error) => tracing::warn!(%error, "the shortcut that runs can't be taken over; open connections may break"),
            }
            break;
        }
        Self::load()
    }

    fn load() -> Result<Self, ShortcutError> {
        let mut object = Ebpf::load(OBJECT)?;
        let mut load = |name: &'static str| -> Result<ProgramFd, ShortcutError> {
            let program = object.program_mut(name).ok_or(ShortcutError::Missing(name))?;
            let program: &mut SchedClassifier = program.try_into()?;
            program.load()?;
            Ok(program.fd()?.try_clone()?)
        };
        let programs = [load(PROGRAMS[0].0)?, load(PROGRAMS[1].0)?];
        let flows = object.take_map(FLOWS).ok_or(ShortcutError::Missing(FLOWS))?;
        let counts = object.take_map(COUNTS).ok_or(ShortcutError::Missing(COUNTS))?;
        Ok(Self { programs, flows: Mutex::new(Flows::try_from(flows)?), counts: PerCpuArray::try_from(counts)? })
    }

    /// Programs by their numbers, with the maps they use.
    fn adopt(enter: u32, leave: u32) -> Result<Self, ShortcutError> {
        let all: Vec<ProgramInfo> = loaded_programs().filter_map(Result::ok).filter(|info| [enter, leave].contains(&info.id())).collect();
        let program = |id: u32| all.iter().find(|info| info.id() == id).ok_or(ShortcutError::Missing("a program"));
        let (enter, leave) = (program(enter)?, program(leave)?);
        let (mut flows, mut counts) = (None, None);
        for id in enter.map_ids()?.unwrap_or_default() {
            let info = MapInfo::from_id(id)?;
            match info.name_as_str() {
                Some(FLOWS) => flows = Some(Flows::try_from(Map::HashMap(MapData::from_id(id)?))?),
                Some(COUNTS) => counts = Some(PerCpuArray::try_from(Map::PerCpuArray(MapData::from_id(id)?))?),
                _ => {}
            }
        }
        Ok(Self {
            programs: [enter.fd()?, leave.fd()?],
            flows: Mutex::new(flows.ok_or(ShortcutError::Missing(FLOWS))?),
            counts: counts.ok_or(ShortcutError::Missing(COUNTS))?,
        })
    }

    /// Attaches both programs to the link with this number.
    pub fn attach(&self, links: &mut Links, index: u32) -> Result<(), ShortcutError> {
        let mut requests = vec![hooks(index)];
        requests.extend(PROGRAMS.iter().zip(&self.programs).map(|(program, fd)| filter(index, *program, fd)));
        Ok(links.run(requests)?)
    }

    /// Forgets every flow that `keep` refuses; how many.
    pub fn cut(&self, keep: impl Fn(&Ends) -> bool) -> Result<usize, ShortcutError> {
        self.forget(|key, flow| (number(flow, STATE) & OPENER != 0 && !keep(&ends_of(key, flow))).then(|| Some(other_way(key, flow))))
    }

    /// Forgets flows without a packet for longer than the limits; how many. They take no shortcut any more anyway: this
    /// makes room.
    pub fn sweep(&self) -> Result<usize, ShortcutError> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).map_err(io::Error::from)?;
        self.sweep_at(u32::try_from(Duration::from(now).as_secs()).unwrap_or(u32::MAX))
    }

    fn sweep_at(&self, now: u32) -> Result<usize, ShortcutError> {
        self.forget(|key, flow| {
            // The programs' clock may be a moment ahead of this one.
            let idle = now.wrapping_sub(number(flow, SEEN));
            (idle < u32::MAX / 2 && idle > limit_of(key, flow)).then_some(None)
        })
    }

    /// Removes the entries that `which` gives something for, and the entries that it gives.
    fn forget(&self, which: impl Fn(&[u8; KEY], &[u8; FLOW]) -> Option<Option<[u8; KEY]>>) -> Result<usize, ShortcutError> {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = Vec::new();
        let mut count = 0;
        for entry in flows.iter() {
            // One that went meanwhile is passed over; a walk that stopped early must not look like a whole one.
            let (key, flow) = entry?;
            if let Some(other) = which(&key, &flow) {
                count += 1;
                gone.push(key);
                gone.extend(other);
            }
        }
        for key in gone {
            match flows.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => {}
                Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(count)
    }

    /// What it did since it was loaded.
    pub fn counts(&self) -> Result<Counts, ShortcutError> {
        let sum = |index: u32| -> Result<u64, ShortcutError> { Ok(self.counts.get(&index, 0)?.iter().sum()) };
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = flows.keys().flatten().fold(0, |count, _| count + 1);
        Ok(Counts { taken: sum(0)?, learned: sum(1)?, no_room: sum(2)?, remembered })
    }
}

/// Places in a record of the map, in bytes.
const PROTO: usize = 40;
const LINK: usize = 80;
const SEEN: usize = 84;
const STATE: usize = 92;

fn number(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

/// An address in the programs' records: 16 bytes, of which IPv4 fills the first four. No instance has an IPv6 address
/// whose last twelve bytes are zero.
fn address(bytes: &[u8]) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[..16]);
    match octets {
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] => Ipv4Addr::new(a, b, c, d).into(),
        _ => Ipv6Addr::from(octets).into(),
    }
}

/// Who opened a flow, who answers, and to which port it was opened, from the entry of the opening direction.
fn ends_of(key: &[u8; KEY], flow: &[u8; FLOW]) -> Ends {
    Ends {
        source: address(&key[..16]),
        responder: address(&flow[KEY + 16..KEY + 32]),
        proto: u8::try_from(number(key, PROTO)).unwrap_or(0),
        port: u16::from_be_bytes([key[34], key[35]]),
    }
}

/// The key of the other direction.
fn other_way(key: &[u8; KEY], flow: &[u8; FLOW]) -> [u8; KEY] {
    let mut other = [0; KEY];
    other[..16].copy_from_slice(&flow[KEY + 16..KEY + 32]);
    other[16..32].copy_from_slice(&flow[KEY..KEY + 16]);
    other[32..34].copy_from_slice(&flow[KEY + 34..KEY + 36]);
    other[34..36].copy_from_slice(&flow[KEY + 32..KEY + 34]);
    other[36..40].copy_from_slice(&flow[LINK..LINK + 4]);
    other[40..44].copy_from_slice(&key[40..44]);
    other
}

fn limit_of(key: &[u8; KEY], flow: &[u8; FLOW]) -> u32 {
    let state = number(flow, STATE);
    if number(key, PROTO) == u32::from(UDP) {
        limits::UDP_LIMIT
    } else if state & ANSWERED == 0 {
        limits::TCP_OPENING_LIMIT
    } else if state & FINISHING != 0 {
        limits::TCP_CLOSING_LIMIT
    } else {
        limits::TCP_OPEN_LIMIT
    }
}

fn message(index: u32, handle: u32, parent: TcHandle, attributes: Vec<TcAttribute>) -> TcMessage {
    let index = i32::try_from(index).unwrap_or(0);
    TcMessage::from_parts(TcHeader { index, handle: handle.into(), parent, ..TcHeader::default() }, attributes)
}

/// The places of a link where programs can be attached.
fn hooks(index: u32) -> Request {
    let message = message(index, 0xffff_0000, TcHandle::CLSACT, vec![TcAttribute::Kind("clsact".to_owned())]);
    (RouteNetlinkMessage::NewQueueDiscipline(message), crate::netlink::REPLACE)
}

/// One program at one of them, which decides directly.
fn filter(index: u32, (name, place): (&str, TcHandle), program: &ProgramFd) -> Request {
    let options = vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(u32::try_from(program.as_fd().as_raw_fd()).unwrap_or(0))),
        TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ];
    let attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned()), TcAttribute::Options(options)];
    let mut message = message(index, 1, place, attributes);
    // Priority 1, every protocol.
    message.header.info = 1 << 16 | u32::from(3_u16.to_be());
    (RouteNetlinkMessage::NewTrafficFilter(message), crate::netlink::REPLACE)
}

/// The numbers of the programs that a link has at its two places.
pub fn attached(links: &mut Links, index: u32) -> io::Result<[Option<u32>; 2]> {
    let mut found = [None, None];
    for ((name, place), slot) in PROGRAMS.iter().zip(&mut found) {
        let query = message(index, 0, *place, vec![]);
        for answer in links.query(RouteNetlinkMessage::GetTrafficFilter(query))? {
            let RouteNetlinkMessage::NewTrafficFilter(answer) = answer else { continue };
            let options =
                answer.attributes.iter().filter_map(|part| if let TcAttribute::Options(options) = part { Some(options) } else { None });
            let options: Vec<&TcOption> = options.flatten().collect();
            if options.contains(&&TcOption::Bpf(TcFilterBpfOption::ProgName((*name).to_owned()))) {
                *slot = options
                    .iter()
                    .find_map(|option| if let TcOption::Bpf(TcFilterBpfOption::ProgId(id)) = option { Some(*id) } else { None });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One direction's record, as the programs write it.
    fn record(key: [u8; KEY], ends: [u8; 36], numbers: [u32; 4]) -> ([u8; KEY], [u8; FLOW]) {
        let mut flow = [0; FLOW];
        flow[..KEY].copy_from_slice(&key);
        flow[KEY..KEY + 36].copy_from_slice(&ends);
        for (i, number) in numbers.into_iter().enumerate() {
            flow[LINK + 4 * i..LINK + 4 * i + 4].copy_from_slice(&number.to_ne_bytes());
        }
        (key, flow)
    }

    fn ends(from: [u8; 4], to: [u8; 4], ports: [u16; 2]) -> [u8; 36] {
        let mut out = [0; 36];
        out[..4].copy_from_slice(&from);
        out[16..20].copy_from_slice(&to);
        out[32..34].copy_from_slice(&ports[0].to_be_bytes());
        out[34..].copy_from_slice(&ports[1].to_be_bytes());
        out
    }

    fn key(ends: [u8; 36], link: u32, proto: u32) -> [u8; KEY] {
        let mut out = [0; KEY];
        out[..36].copy_from_slice(&ends);
        out[36..40].copy_from_slice(&link.to_ne_bytes());
        out[40..].copy_from_slice(&proto.to_ne_bytes());
        out
    }

    const CLIENT: [u8; 4] = [10, 64, 0, 1];
    const SERVICE: [u8; 4] = [10, 128, 0, 9];
    const SERVER: [u8; 4] = [10, 64, 0, 2];

    /// A flow through a service address that changed the client's port too, both ways.
    fn flow(proto: u32, seen: u32, state: u32) -> [([u8; KEY], [u8; FLOW]); 2] {
        let (asked, answered) = (ends(CLIENT, SERVICE, [40_000, 80]), ends(SERVER, CLIENT, [8080, 1025]));
        [
            record(key(asked, 5, proto), ends(CLIENT, SERVER, [1025, 8080]), [6, seen, seen, state | OPENER]),
            record(key(answered, 6, proto), ends(SERVICE, CLIENT, [80, 40_000]), [5, seen, seen, state]),
        ]
    }

    #[test]
    fn a_record_names_its_ends_and_its_other_direction() {
        let [(asked, there), (answered, back)] = flow(6, 1, 0);
        let expected = Ends { source: IpAddr::from(CLIENT), responder: IpAddr::from(SERVER), proto: 6, port: 80 };
        assert_eq!(ends_of(&asked, &there), expected);
        assert_eq!(other_way(&asked, &there), answered);
        assert_eq!(other_way(&answered, &back), asked);
    }

    #[test]
    fn flows_are_forgotten_when_they_are_idle_for_their_limit() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root to load programs into the kernel");
            return;
        }
        let shortcut = Shortcut::load().unwrap();
        let rows = [
            (17, ANSWERED, limits::UDP_LIMIT),
            (6, 0, limits::TCP_OPENING_LIMIT),
            (6, ANSWERED, limits::TCP_OPEN_LIMIT),
            (6, ANSWERED | 4, limits::TCP_CLOSING_LIMIT),
            (6, ANSWERED | 16, limits::TCP_CLOSING_LIMIT),
        ];
        for (proto, state, limit) in rows {
            let fill = || {
                for (key, flow) in flow(proto, 1000, state) {
                    shortcut.flows.lock().unwrap().insert(key, flow, 0).unwrap();
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
            assert_eq!(shortcut.cut(|ends| ends.responder == IpAddr::from(SERVER)).unwrap(), 0);
            assert_eq!(shortcut.counts().unwrap().remembered, 2);
            assert_eq!(shortcut.cut(|ends| ends.source != IpAddr::from(CLIENT)).unwrap(), 1);
            assert_eq!(shortcut.counts().unwrap().remembered, 0);
        }
    }
}
