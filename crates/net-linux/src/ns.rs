//! Work inside a network namespace.
//!
//! Every function runs its work in a thread of its own that enters the namespace (setns(2)) and ends with it, so a
//! namespace never leaks to another thread. Invariant: sockets handed back stay in the namespace they were made in.

use moat_model::Family;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::fs::File;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;

/// Runs `f` inside the network namespace `ns` and hands its result back. A panic of `f` goes on in the caller.
pub fn in_ns<T: Send>(ns: &impl AsFd, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let ns = ns.as_fd();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("in-ns".to_owned()).spawn_scoped(scope, move || {
            setns(ns, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        })?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Runs `f` on a thread that has entered the network namespace `ns` and stays there until `f` returns. Comes back once the thread
/// is inside: what it needs to enter may be given up then.
pub fn stay_in(ns: impl AsFd, f: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let ns = ns.as_fd().try_clone_to_owned()?;
    let (entered, inside) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("in-router".to_owned()).spawn(move || {
        let result = setns(&ns, CloneFlags::CLONE_NEWNET);
        drop(ns);
        let inside = result.is_ok();
        // The caller waits for exactly this.
        let _ = entered.send(result);
        if inside {
            f();
        }
    })?;
    inside.recv().map_err(io::Error::other)??;
    Ok(())
}

/// The network namespace of the calling thread.
pub fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// The network namespace of a process.
pub fn of_pid(pid: u32) -> io::Result<File> {
    File::open(format!("/proc/{pid}/ns/net"))
}

/// A network namespace that nothing but the returned file holds, for probes and scratch work.
pub fn scratch() -> io::Result<File> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            current()
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn socket_in(ns: &impl AsFd, family: Family, kind: SockType) -> io::Result<OwnedFd> {
    in_ns(ns, || socket_here(family, kind))?
}

fn socket_here(family: Family, kind: SockType) -> io::Result<OwnedFd> {
    let family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

/// An unbound, non-blocking TCP socket in the namespace of the calling thread.
pub fn tcp_socket(family: Family) -> io::Result<OwnedFd> {
    socket_here(family, SockType::Stream)
}

/// An unbound, non-blocking TCP socket inside a namespace, to dial from or to listen with.
pub fn tcp_socket_in(ns: &impl AsFd, family: Family) -> io::Result<OwnedFd> {
    socket_in(ns, family, SockType::Stream)
}

/// An unbound, non-blocking UDP socket inside a namespace.
pub fn udp_socket_in(ns: &impl AsFd, family: Family) -> io::Result<OwnedFd> {
    socket_in(ns, family, SockType::Datagram)
}

/// A bound, non-blocking UDP socket inside a namespace.
pub fn udp_bound_in(ns: &impl AsFd, address: std::net::SocketAddr) -> io::Result<UdpSocket> {
    let socket = in_ns(ns, || UdpSocket::bind(address))??;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A listening, non-blocking TCP socket inside a namespace.
pub fn tcp_listener_in(ns: &impl AsFd, address: std::net::SocketAddr) -> io::Result<TcpListener> {
    let socket = in_ns(ns, || TcpListener::bind(address))??;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
