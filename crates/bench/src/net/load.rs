//! The load: TCP between two namespaces, both ends pinned to one processor and run before other work of the machine.
//!
//! Invariant: the server closes first, so that the client never runs out of ports.

use super::scene::Path;
use crate::failure::{Doing, Failure, Outcome};
use crate::sys;
use moat_net_linux::ns;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// How long a load lasts: short, so that what is compared is measured close together.
const LASTS: Duration = Duration::from_millis(150);
/// Turns before the clock starts.
const WARM: usize = 200;
/// How long a connection may take: a path that does not work is an error, not a figure.
const CONNECT: Duration = Duration::from_secs(5);
/// The first byte of the last connection of a load.
const LAST: u8 = b'q';

/// A kind of load.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// One-byte questions and answers over one connection: the median in microseconds.
    Turns,
    /// Connections made, used for one turn and closed: thousands each second.
    Connects,
    /// All that goes over one connection: thousand million bits each second.
    Bulk,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Turns, Self::Connects, Self::Bulk];
}

/// Loads a path; the figure.
pub fn measure(path: &Path, kind: Kind) -> Outcome<f64> {
    let (serve, load): (Serve, Load) = match kind {
        Kind::Turns => (answer_turns, ask_turns),
        Kind::Connects => (answer_connects, ask_connects),
        Kind::Bulk => (swallow, pour),
    };
    let listener = ns::in_ns(&path.server, || TcpListener::bind(path.listen))
        .and_then(|made| made)
        .doing(format_args!("listening for `{}`", path.name))?;
    let figure = both(path, &listener, serve, load).doing(format_args!("{kind:?} over `{}`", path.name))?;
    pause();
    Ok(figure)
}

type Serve = fn(&TcpListener) -> io::Result<()>;
type Load = fn(&Path) -> io::Result<f64>;

/// Leaves the processor to others: the kernel slows down who never does.
fn pause() {
    thread::sleep(LASTS / 3);
}

/// Runs the two ends; the client's figure.
fn both(path: &Path, listener: &TcpListener, serve: Serve, load: Load) -> Outcome<f64> {
    thread::scope(|scope| {
        let server = scope.spawn(|| prepare().and_then(|()| serve(listener)));
        let figure = ns::in_ns(&path.client, || prepare().and_then(|()| load(path))).and_then(|done| done);
        if figure.is_err() {
            // The server may still wait for its first connection.
            let _ = ns::in_ns(&path.server, || {
                TcpStream::connect(("127.0.0.1", path.listen.port())).and_then(|mut last| last.write_all(&[LAST]))
            });
        }
        let answered = server.join().map_err(|_| Failure::new("the server panicked"))?;
        let figure = figure.doing("client")?;
        answered.doing("server")?;
        Ok(figure)
    })
}

/// Pins the calling thread to the last processor it may use, and puts it before others where that is allowed.
fn prepare() -> io::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).unwrap_or(0);
    let mut only = CpuSet::new();
    only.set(last)?;
    sched_setaffinity(this, &only)?;
    sys::run_first()
}

fn connect(path: &Path) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&path.target, CONNECT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CONNECT))?;
    Ok(stream)
}

fn answer_turns(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn ask_turns(path: &Path) -> io::Result<f64> {
    let mut stream = connect(path)?;
    let mut turn = || {
        let start = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        Ok::<_, io::Error>(start.elapsed())
    };
    for _ in 0..WARM {
        turn()?;
    }
    let mut took = Vec::with_capacity(1 << 17);
    let end = Instant::now() + LASTS;
    while Instant::now() < end {
        took.push(turn()?);
    }
    let middle = took.len() / 2;
    let (_, median, _) = took.select_nth_unstable(middle);
    Ok(median.as_secs_f64() * 1e6)
}

fn answer_connects(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
        if byte == [LAST] {
            return Ok(());
        }
    }
}

fn ask_connects(path: &Path) -> io::Result<f64> {
    let visit = |word: u8| {
        let mut stream = connect(path)?;
        stream.write_all(&[word])?;
        let mut answer = [0; 2];
        // The answer, then the end that the server made.
        stream.read_exact(&mut answer[..1])?;
        if stream.read(&mut answer[1..])? == 0 && answer[0] == word { Ok(()) } else { Err(io::Error::other("a wrong answer")) }
    };
    for _ in 0..WARM {
        visit(b'x')?;
    }
    let (mut count, start) = (0_u32, Instant::now());
    while start.elapsed() < LASTS {
        visit(b'x')?;
        count += 1;
    }
    let rate = f64::from(count) / start.elapsed().as_secs_f64() / 1e3;
    visit(LAST)?;
    Ok(rate)
}

fn swallow(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut buffer = vec![0; 1 << 17];
    while stream.read(&mut buffer)? > 0 {}
    // Everything arrived: this ends the client's clock.
    stream.write_all(&[LAST])
}

fn pour(path: &Path) -> io::Result<f64> {
    let mut stream = connect(path)?;
    let buffer = vec![b'x'; 1 << 17];
    let (mut sent, start) = (0_u32, Instant::now());
    while start.elapsed() < LASTS {
        stream.write_all(&buffer)?;
        sent += 1;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(f64::from(sent) * f64::from(1 << 17) * 8.0 / start.elapsed().as_secs_f64() / 1e9)
}
