//! Where the programs are attached to a link, and which of a link's programs are Moat's.
//!
//! Two ways: `tcx` (kernels from 6.6), which the kernel reaches by one step, and before it filters of the queueing
//! discipline `clsact`. Either goes with its link, whoever holds it. Functions run in a thread of the router namespace.
//! Invariant: while programs are exchanged, a link always has some.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper that attaches to a link without a file that must be kept open")]

use crate::link::{Links, Request};
use aya::programs::{ProgramFd, loaded_programs};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// A place of a link where a program is attached.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The program's name.
    pub program: &'static str,
    /// `BPF_TCX_INGRESS` or `BPF_TCX_EGRESS`.
    tcx: u32,
    clsact: TcHandle,
}

/// The entry of the router and its exit.
pub const PLACES: [Place; 2] = [
    Place { program: "moat_in", tcx: 46, clsact: TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS } },
    Place { program: "moat_out", tcx: 47, clsact: TcHandle { major: 0xffff, minor: TcHandle::MIN_EGRESS } },
];

/// Commands of bpf(2).
const ATTACH: libc::c_int = 8;
const DETACH: libc::c_int = 9;
const QUERY: libc::c_int = 16;
/// More than the kernel takes at one place.
const MOST: u32 = 64;

/// Numbers of the programs that one link has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// All of both places, in the order in which they run; nothing in a kernel without `tcx`.
    pub tcx: Option<[Vec<u32>; 2]>,
    /// Moat's filters.
    pub clsact: [Option<u32>; 2],
}

/// Numbers of all loaded programs that are named like Moat's.
pub fn named() -> BTreeSet<u32> {
    let ours = |name: &str| PLACES.iter().any(|place| place.program == name);
    loaded_programs().filter_map(Result::ok).filter(|info| info.name_as_str().is_some_and(ours)).map(|info| info.id()).collect()
}

impl Found {
    /// What a link has, but no filters of one whose number is not in `with_clsact`.
    pub fn of(links: &mut Links, index: u32, with_clsact: &BTreeSet<u32>) -> io::Result<Self> {
        let clsact = if with_clsact.contains(&index) { filters(links, index)? } else { [None, None] };
        let [enter, leave] = [tcx(index, &PLACES[0])?, tcx(index, &PLACES[1])?];
        Ok(Self { tcx: enter.zip(leave).map(|(enter, leave)| [enter, leave]), clsact })
    }

    /// Moat's programs by one of the two ways, if both are there.
    pub fn pair(&self, named: &BTreeSet<u32>) -> Option<[u32; 2]> {
        let first = |place: &Vec<u32>| place.iter().copied().find(|id| named.contains(id));
        match self.tcx.as_ref().map(|[enter, leave]| (first(enter), first(leave))) {
            Some((Some(enter), Some(leave))) => Some([enter, leave]),
            _ => Some([self.clsact[0]?, self.clsact[1]?]),
        }
    }

    /// Whether there is anything of Moat's.
    pub fn any(&self, named: &BTreeSet<u32>) -> bool {
        self.tcx.iter().flatten().flatten().any(|id| named.contains(id)) || self.clsact.iter().any(Option::is_some)
    }

    /// Whether both places have these programs by the best way of this kernel, and nothing else of Moat's. `named` is asked
    /// only when somebody else's programs are there too.
    pub fn is_whole(&self, own: [u32; 2], named: impl FnOnce() -> BTreeSet<u32>) -> bool {
        let Some(places) = &self.tcx else { return self.clsact == own.map(Some) };
        let alone = || places.iter().zip(own).all(|(place, own)| place.as_slice() == [own]);
        let among = |named: &BTreeSet<u32>| {
            places.iter().zip(own).all(|(place, own)| place.contains(&own) && !place.iter().any(|id| *id != own && named.contains(id)))
        };
        self.clsact == [None, None] && (alone() || among(&named()))
    }
}

/// Attaches both programs to a link, which may have them already.
pub fn attach(links: &mut Links, index: u32, programs: &[ProgramFd; 2]) -> io::Result<()> {
    for (place, program) in PLACES.iter().zip(programs) {
        match change(ATTACH, index, program, place) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            // A kernel without `tcx`.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return attach_by_clsact(links, index, programs),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Attaches both programs as filters.
pub fn attach_by_clsact(links: &mut Links, index: u32, programs: &[ProgramFd; 2]) -> io::Result<()> {
    let mut requests = vec![hooks(index)];
    requests.extend(PLACES.iter().zip(programs).map(|(place, program)| filter(index, place, program)));
    links.run(requests)
}

/// Takes away what a link has of Moat's, but for the programs with these numbers.
pub fn strip(links: &mut Links, index: u32, but: Option<[u32; 2]>, named: &BTreeSet<u32>) -> io::Result<()> {
    let mut by_tcx = false;
    for (i, place) in PLACES.iter().enumerate() {
        for id in tcx(index, place)?.unwrap_or_default() {
            if but.is_some_and(|but| but[i] == id) {
                by_tcx = true;
            } else if named.contains(&id)
                && let Some(info) = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id)
            {
                gone_or(change(DETACH, index, &info.fd().map_err(io::Error::other)?, place))?;
            }
        }
    }
    if (but.is_none() || by_tcx) && filters(links, index)?.iter().any(Option::is_some) {
        let RouteNetlinkMessage::NewQueueDiscipline(message) = hooks(index).0 else { return Ok(()) };
        links.run(vec![(RouteNetlinkMessage::DelQueueDiscipline(message), 0)])?;
    }
    Ok(())
}

/// Attaches a program to a place of a link by `tcx`, behind what is there, or detaches it.
fn change(command: libc::c_int, index: u32, program: &ProgramFd, place: &Place) -> io::Result<()> {
    let mut attributes = [0; 16];
    attributes[..3].copy_from_slice(&[index, number(program), place.tcx]);
    // SAFETY: the attributes of these two commands hold numbers only.
    unsafe { bpf(command, &mut attributes) }
}

/// Numbers of the programs that `tcx` has at a place of a link, none of a link that is gone; nothing in a kernel without it.
fn tcx(index: u32, place: &Place) -> io::Result<Option<Vec<u32>>> {
    let mut ids = [0_u32; MOST as usize];
    let mut attributes = [0; 16];
    let at = ((&raw mut ids).expose_provenance() as u64).to_ne_bytes();
    let word = |i: usize| u32::from_ne_bytes([at[i], at[i + 1], at[i + 2], at[i + 3]]);
    attributes[..7].copy_from_slice(&[index, place.tcx, 0, 0, word(0), word(4), MOST]);
    // SAFETY: the kernel writes at most as many numbers as the last attribute says, into `ids`, which is as long and lives on.
    match unsafe { bpf(QUERY, &mut attributes) } {
        Ok(()) => Ok(Some(ids.into_iter().take(attributes[6] as usize).collect())),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) if is_gone(&error) => Ok(Some(Vec::new())),
        Err(error) => Err(error),
    }
}

/// The same, but fine if the link, or a program of it, went meanwhile: it goes with its instance, at any moment.
pub fn gone_or(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}

/// bpf(2).
///
/// # Safety
/// Whatever the attributes point to must be as the command wants it, for the length of the call.
unsafe fn bpf(command: libc::c_int, attributes: &mut [u32; 16]) -> io::Result<()> {
    // SAFETY: the attributes are as long as is said; the rest is the caller's.
    let refused = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn number(program: &ProgramFd) -> u32 {
    u32::try_from(program.as_fd().as_raw_fd()).unwrap_or(0)
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
fn filter(index: u32, place: &Place, program: &ProgramFd) -> Request {
    let options = vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(number(program))),
        TcOption::Bpf(TcFilterBpfOption::ProgName(place.program.to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ];
    let attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned()), TcAttribute::Options(options)];
    let mut message = message(index, 1, place.clsact, attributes);
    // Priority 1, every protocol.
    message.header.info = 1 << 16 | u32::from(3_u16.to_be());
    (RouteNetlinkMessage::NewTrafficFilter(message), crate::netlink::REPLACE)
}

/// The numbers of Moat's filters at both places of a link.
fn filters(links: &mut Links, index: u32) -> io::Result<[Option<u32>; 2]> {
    let mut found = [None, None];
    for (place, slot) in PLACES.iter().zip(&mut found) {
        let query = message(index, 0, place.clsact, vec![]);
        for answer in links.query(RouteNetlinkMessage::GetTrafficFilter(query))? {
            let RouteNetlinkMessage::NewTrafficFilter(answer) = answer else { continue };
            let options =
                answer.attributes.iter().filter_map(|part| if let TcAttribute::Options(options) = part { Some(options) } else { None });
            let options: Vec<&TcOption> = options.flatten().collect();
            if options.contains(&&TcOption::Bpf(TcFilterBpfOption::ProgName(place.program.to_owned()))) {
                *slot = options
                    .iter()
                    .find_map(|option| if let TcOption::Bpf(TcFilterBpfOption::ProgId(id)) = option { Some(*id) } else { None });
            }
        }
    }
    Ok(found)
}

impl Links {
    /// Numbers of the links that filters can be attached to.
    pub fn with_clsact(&mut self) -> io::Result<BTreeSet<u32>> {
        use netlink_packet_route::RouteNetlinkMessage::{GetQueueDiscipline, NewQueueDiscipline};
        let found = self.query(GetQueueDiscipline(TcMessage::default()))?;
        Ok(found
            .iter()
            .filter_map(|message| if let NewQueueDiscipline(message) = message { Some(message) } else { None })
            .filter(|message| message.attributes.contains(&TcAttribute::Kind("clsact".to_owned())))
            .filter_map(|message| u32::try_from(message.header.index).ok())
            .collect())
    }
}
