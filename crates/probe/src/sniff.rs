//! Sniffers: packet sockets inside namespaces, read by one thread.
//!
//! A sniffer sees what reaches a namespace's links before any filter of that namespace does. Main types: [`Capture`],
//! [`Seen`]. Invariant: what a sniffer lost is counted, so "nothing was seen" is never said of a deaf one.

use crate::packet::{IPV4, IPV6, MAGIC, MARKER, Packet};
use crate::sys;
use moat_net_linux::ns::in_ns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BUFFER_BYTES: usize = 16 << 20;
/// `sll_pkttype` of what this namespace sends itself (PACKET_OUTGOING of packet(7)).
const OUTGOING: u8 = 4;
/// `sll_hatype` of `lo` (ARPHRD_LOOPBACK).
const LOOPBACK: u16 = 772;

/// One packet at one sniffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// Index of the sniffer.
    pub(crate) at: usize,
    /// Index of the link in the sniffer's namespace.
    pub(crate) link: u32,
    /// Sent by the namespace itself, not received.
    pub(crate) outgoing: bool,
    /// What it was.
    pub(crate) packet: Packet,
}

/// Opens a sniffer in a namespace; it keeps everything a probe may send and nothing else.
pub(crate) fn open(ns: &impl AsFd) -> io::Result<OwnedFd> {
    in_ns(ns, || {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)?;
        sys::attach_filter(socket.as_fd(), &mut filter())?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES))?;
        Ok(socket)
    })?
}

/// A sender of frames by the links of a namespace.
pub(crate) fn frame_socket(ns: &impl AsFd) -> io::Result<OwnedFd> {
    in_ns(ns, || Ok(socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?))?
}

#[expect(clippy::cast_possible_truncation, reason = "codes of BPF instructions are 16 bits wide, the constants of libc are not")]
const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

#[expect(clippy::cast_possible_truncation, reason = "codes of BPF instructions are 16 bits wide, the constants of libc are not")]
const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | code | libc::BPF_K) as u16, jt, jf, k }
}

/// Markers, TCP packets with SYN but not ACK, and datagrams that begin with [`MAGIC`]; cut after 128 bytes.
fn filter() -> [libc::sock_filter; 20] {
    use libc::{
        BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JA, BPF_JEQ, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET, BPF_W,
    };
    let protocol = u32::from_ne_bytes((libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL).to_ne_bytes());
    let magic = u32::from_be_bytes(MAGIC);
    [
        statement(BPF_LD | BPF_H | BPF_ABS, protocol),
        jump(BPF_JEQ, u32::from(MARKER), 16, 0),
        jump(BPF_JEQ, u32::from(IPV4), 0, 3),
        statement(BPF_LDX | BPF_B | BPF_MSH, 0),
        statement(BPF_LD | BPF_B | BPF_ABS, 9),
        jump(BPF_JA, 3, 0, 0),
        // 6: IPv6 or nothing
        jump(BPF_JEQ, u32::from(IPV6), 0, 12),
        statement(BPF_LDX | BPF_IMM, 40),
        statement(BPF_LD | BPF_B | BPF_ABS, 6),
        // 9: the transport protocol is in A, the length of the IP header in X
        jump(BPF_JEQ, 6, 0, 3),
        statement(BPF_LD | BPF_B | BPF_IND, 13),
        statement(BPF_ALU | BPF_AND | BPF_K, 0x12),
        jump(BPF_JEQ, 0x02, 5, 6),
        // 13: UDP or nothing
        jump(BPF_JEQ, 17, 0, 5),
        statement(BPF_LD | BPF_W | BPF_IND, 8),
        jump(BPF_JEQ, magic, 2, 3),
        statement(BPF_RET | BPF_K, 0),
        statement(BPF_RET | BPF_K, 0),
        // 18: keep; 19: drop
        statement(BPF_RET | BPF_K, 128),
        statement(BPF_RET | BPF_K, 0),
    ]
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    more: Condvar,
    stop: AtomicBool,
}

/// Reads sniffers in a thread of its own until it is dropped.
pub(crate) struct Capture {
    shared: Arc<Shared>,
    sniffers: Arc<Vec<OwnedFd>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts reading; a sniffer is named by its index.
    pub(crate) fn start(sniffers: Vec<OwnedFd>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let sniffers = Arc::new(sniffers);
        let thread = std::thread::Builder::new().name("sniffers".to_owned()).spawn({
            let (shared, sniffers) = (Arc::clone(&shared), Arc::clone(&sniffers));
            move || read_all(&shared, &sniffers)
        })?;
        Ok(Self { shared, sniffers, thread: Some(thread) })
    }

    /// Takes what was seen since the last time, after waiting until `enough` holds or time is up. `enough` is shown each
    /// packet once, some at a time (none at first, perhaps), in order. Says whether it held.
    pub(crate) fn wait(&self, patience: Duration, mut enough: impl FnMut(&[Seen]) -> bool) -> (Vec<Seen>, bool) {
        let deadline = Instant::now() + patience;
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = enough(&seen);
        let mut shown = seen.len();
        while !held {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else { break };
            seen = self.shared.more.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
            held = enough(&seen[shown..]);
            shown = seen.len();
        }
        (std::mem::take(&mut *seen), held)
    }

    /// How many packets each sniffer lost since the last question.
    pub(crate) fn lost(&self) -> Vec<u32> {
        self.sniffers.iter().map(|s| sys::lost_packets(s.as_fd()).unwrap_or(u32::MAX)).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the reader has been printed already; nothing is left to be done about it.
            let _ = thread.join();
        }
    }
}

fn read_all(shared: &Shared, sniffers: &[OwnedFd]) {
    let mut buffer = [0_u8; 256];
    let mut batch = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let mut fds: Vec<PollFd<'_>> = sniffers.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
        if poll(&mut fds, PollTimeout::from(20_u8)).unwrap_or(0) == 0 {
            continue;
        }
        for (at, _) in fds.iter().enumerate().filter(|(_, fd)| fd.any().unwrap_or(false)) {
            read_one(at, sniffers[at].as_fd(), &mut buffer, &mut batch);
        }
        if !batch.is_empty() {
            shared.seen.lock().unwrap_or_else(PoisonError::into_inner).append(&mut batch);
            shared.more.notify_all();
        }
    }
}

fn read_one(at: usize, sniffer: BorrowedFd<'_>, buffer: &mut [u8], out: &mut Vec<Seen>) {
    // Bounded, so that one busy namespace does not starve the others.
    for _ in 0..1024 {
        let Ok((len, Some(link))) = recvfrom::<LinkAddr>(sniffer.as_raw_fd(), buffer) else { return };
        if link.hatype() == LOOPBACK {
            continue;
        }
        let bytes = buffer.get(..len).unwrap_or(buffer);
        if let Some(packet) = Packet::read(u16::from_be(link.protocol()), bytes) {
            out.push(Seen { at, link: u32::try_from(link.ifindex()).unwrap_or(0), outgoing: link.pkttype() == OUTGOING, packet });
        }
    }
}
