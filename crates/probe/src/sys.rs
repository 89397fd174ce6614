//! The few system calls that have no safe wrapper: packet filters, packet statistics and sending by a link.
#![expect(unsafe_code, reason = "socket options and addresses that nix does not wrap")]
#![expect(clippy::cast_possible_truncation, reason = "sizes of structures and numbers of families are small")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes the kernel hand only packets to `socket` that `program` (classic BPF, see socket(7) SO_ATTACH_FILTER) accepts.
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: `program` points at `len` instructions that live through the call; the kernel copies and checks them.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many packets a packet socket lost since the last question (packet(7), PACKET_STATISTICS).
pub(crate) fn lost_packets(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the buffer is as long as `len` says and lives through the call.
    let code = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, (&raw mut statistics).cast(), &raw mut len)
    };
    if code == 0 { Ok(statistics.tp_drops) } else { Err(io::Error::last_os_error()) }
}

/// Sends one frame by the link `index`: `payload` after an Ethernet header with the type `ether_type` to `mac`
/// (packet(7), SOCK_DGRAM).
pub(crate) fn send_frame(socket: BorrowedFd<'_>, index: u32, ether_type: u16, mac: [u8; 6], payload: &[u8]) -> io::Result<()> {
    let mut address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::c_ushort,
        sll_protocol: ether_type.to_be(),
        sll_ifindex: i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    address.sll_addr[..6].copy_from_slice(&mac);
    // SAFETY: buffer and address are valid for the lengths given and live through the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            payload.as_ptr().cast(),
            payload.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
