//! Clients that never rest while releases change; they count, and remember what failed.

use crate::failure::{Failure, Outcome};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Nobody waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two exchanges.
const PAUSE: Duration = Duration::from_millis(2);

/// A client: connects, talks for a while, hangs up, again and again.
#[derive(Debug, Clone)]
pub struct Lane {
    /// What the table calls its faults.
    pub name: &'static str,
    /// Where to.
    pub at: SocketAddr,
    /// Requests for this host, or lines that come back.
    pub host: Option<&'static str>,
    /// How long with one connection; zero for one exchange each.
    pub held: Duration,
}

/// What came of them.
#[derive(Debug, Default, Clone)]
pub struct Counted {
    /// Exchanges.
    pub exchanges: u64,
    /// Connections and requests without an answer, by lane.
    pub faults: BTreeMap<&'static str, u64>,
    /// The longest that one lane had no answer.
    pub longest: Duration,
}

/// Lanes that run.
pub struct Clients {
    over: Arc<AtomicBool>,
    counted: Arc<Mutex<Counted>>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// None yet.
    pub fn new() -> Self {
        Self { over: Arc::default(), counted: Arc::default(), threads: Vec::new() }
    }

    /// Adds one, in a network namespace if it is given.
    pub fn add(&mut self, lane: Lane, ns: Option<OwnedFd>) {
        let (over, counted) = (Arc::clone(&self.over), Arc::clone(&self.counted));
        let work = move || {
            let mut last = Instant::now();
            while !over.load(Ordering::Relaxed) {
                let outcome = lane.once(&over, &counted, &mut last);
                if outcome.is_err() {
                    *lock(&counted).faults.entry(lane.name).or_default() += 1;
                }
                std::thread::sleep(PAUSE);
            }
        };
        self.threads.push(std::thread::spawn(move || match ns {
            // It counts nothing where it can't enter, which is an error at the end.
            Some(ns) => drop(moat_net_linux::ns::in_ns(&ns, work)),
            None => work(),
        }));
    }

    /// Ends them.
    pub fn end(self) -> Outcome<Counted> {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| Failure::new("a client panicked"))?;
        }
        let counted = lock(&self.counted).clone();
        if counted.exchanges == 0 { Err(Failure::new("the clients had no answer at all")) } else { Ok(counted) }
    }
}

fn lock(counted: &Mutex<Counted>) -> std::sync::MutexGuard<'_, Counted> {
    counted.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    fn once(&self, over: &AtomicBool, counted: &Mutex<Counted>, last: &mut Instant) -> std::io::Result<()> {
        let stream = TcpStream::connect_timeout(&self.at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (mut talk, began) = (BufReader::new(stream), Instant::now());
        loop {
            let ends = began.elapsed() >= self.held || over.load(Ordering::Relaxed);
            match self.host {
                Some(host) => ask(&mut talk, host, ends)?,
                None => echo(&mut talk)?,
            }
            let mut counted = lock(counted);
            counted.exchanges += 1;
            counted.longest = counted.longest.max(last.elapsed());
            drop(counted);
            *last = Instant::now();
            if ends {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn ask(talk: &mut BufReader<TcpStream>, host: &str, last: bool) -> std::io::Result<()> {
    let close = if last { "Connection: close\r\n" } else { "" };
    talk.get_mut().write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n{close}\r\n").as_bytes())?;
    let (mut line, mut length, mut first) = (String::new(), 0, true);
    loop {
        line.clear();
        talk.read_line(&mut line)?;
        if std::mem::take(&mut first) && !line.contains(" 200 ") {
            return Err(std::io::Error::other(line));
        }
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            length = value.trim().parse().map_err(|_| std::io::Error::other(name.to_owned()))?;
        }
    }
    talk.read_exact(&mut vec![0; length])
}

fn echo(talk: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    talk.get_mut().write_all(b"still there?\n")?;
    let mut line = String::new();
    talk.read_line(&mut line)?;
    if line == "still there?\n" { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_answer_counts_and_a_closed_connection_is_a_fault() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        std::thread::spawn(move || {
            for (number, stream) in server.incoming().enumerate() {
                let mut talk = BufReader::new(stream.unwrap());
                let mut line = String::new();
                talk.read_line(&mut line).unwrap();
                if number % 2 == 0 {
                    talk.get_mut().write_all(line.as_bytes()).unwrap();
                }
            }
        });
        let mut clients = Clients::new();
        clients.add(Lane { name: "echo", at, host: None, held: Duration::ZERO }, None);
        while lock(&clients.counted).faults.is_empty() {
            std::thread::sleep(PAUSE);
        }
        let counted = clients.end().unwrap();
        assert!(counted.exchanges > 0 && counted.faults["echo"] > 0, "{counted:?}");
    }
}
