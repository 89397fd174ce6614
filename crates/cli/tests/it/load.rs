//! Clients that never rest, in a process of their own, on a machine or in an instance's network; they count, and remember what failed.

use crate::host::Host;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LANES: &str = "MOAT_TEST_LANES";
/// Nobody waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client: connects, talks for a while, hangs up, again and again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lane {
    /// What it is called.
    pub name: String,
    /// Where to.
    pub at: SocketAddr,
    /// In which words.
    pub talk: Talk,
    /// How long with one connection, in milliseconds.
    pub held: u64,
}

/// A protocol.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Talk {
    /// GET requests to this host, each to be answered with 200.
    Http(String),
    /// A WebSocket of this host that echoes (RFC 6455).
    WebSocket(String),
    /// Lines that come back.
    Echo,
}

/// What came of the lanes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Counted {
    /// Exchanges by lane.
    pub counts: BTreeMap<String, u64>,
    /// What failed.
    pub faults: Vec<String>,
}

/// Lanes that run.
pub struct Load(Child);

impl Load {
    /// On the machine, or in the network of the instance with this pid.
    pub fn start(host: &Host, instance: Option<u64>, lanes: &[Lane]) -> Self {
        let mut command = match instance {
            Some(pid) => {
                let mut command = host.command("nsenter");
                command.arg(format!("--net=/proc/{pid}/ns/net")).arg(std::env::current_exe().unwrap());
                command
            }
            None => host.command(std::env::current_exe().unwrap()),
        };
        command.args(["load::clients", "--exact", "--ignored", "--nocapture"]).env(LANES, serde_json::to_string(lanes).unwrap());
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Ends them.
    pub fn end(mut self) -> Counted {
        drop(self.0.stdin.take());
        let said: Vec<String> = BufReader::new(self.0.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
        assert!(self.0.wait().unwrap().success(), "{said:?}");
        let counted = said.iter().find(|line| line.starts_with('{')).expect("what was counted");
        serde_json::from_str(counted).unwrap()
    }
}

/// No test: what [`Load`] runs, until its input ends.
#[test]
#[ignore = "other tests run it beside them"]
fn clients() {
    let lanes: Vec<Lane> = serde_json::from_str(&std::env::var(LANES).expect("lanes")).unwrap();
    let (over, counted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Counted::default())));
    let threads: Vec<_> = lanes
        .into_iter()
        .map(|lane| {
            let (over, counted) = (Arc::clone(&over), Arc::clone(&counted));
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    if let Err(why) = lane.once(&over, &counted) {
                        counted.lock().unwrap().faults.push(format!("{}: {why}", lane.name));
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        })
        .collect();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    over.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    println!("\n{}", serde_json::to_string(&*counted.lock().unwrap()).unwrap());
}

impl Lane {
    fn once(&self, over: &AtomicBool, counted: &Mutex<Counted>) -> Result<(), String> {
        let stream = TcpStream::connect_timeout(&self.at, PATIENCE).map_err(|error| format!("connect: {error}"))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        let mut talk = BufReader::new(stream);
        if let Talk::WebSocket(host) = &self.talk {
            let ask = format!(
                "GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            write(&mut talk, ask.as_bytes())?;
            let head = head(&mut talk)?;
            // The answer to that key, of RFC 6455, 1.3.
            if !head.starts_with("HTTP/1.1 101") || !head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
                return Err(format!("no WebSocket: {head}"));
            }
        }
        let until = Instant::now() + Duration::from_millis(self.held);
        loop {
            self.exchange(&mut talk)?;
            *counted.lock().unwrap().counts.entry(self.name.clone()).or_default() += 1;
            if over.load(Ordering::Relaxed) || Instant::now() >= until {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn exchange(&self, talk: &mut BufReader<TcpStream>) -> Result<(), String> {
        match &self.talk {
            Talk::Http(host) => {
                write(talk, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
                let head = head(talk)?;
                let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
                let mut body = vec![0; length.ok_or_else(|| format!("no length: {head}"))?];
                talk.read_exact(&mut body).map_err(|error| format!("body: {error}"))?;
                if head.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(format!("{head}{}", String::from_utf8_lossy(&body))) }
            }
            Talk::WebSocket(_) => {
                // A text frame, masked with zeros as a client's has to be, and the same unmasked.
                write(talk, b"\x81\x85\0\0\0\0hello")?;
                expect(talk, b"\x81\x05hello")
            }
            Talk::Echo => {
                write(talk, b"hello\n")?;
                expect(talk, b"hello\n")
            }
        }
    }
}

fn write(talk: &mut BufReader<TcpStream>, bytes: &[u8]) -> Result<(), String> {
    talk.get_mut().write_all(bytes).map_err(|error| format!("write: {error}"))
}

fn head(talk: &mut BufReader<TcpStream>) -> Result<String, String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = talk.read_line(&mut head).map_err(|error| format!("read: {error}"))?;
        if read == 0 {
            return Err(format!("closed after `{head}`"));
        }
    }
    Ok(head)
}

fn expect(talk: &mut BufReader<TcpStream>, bytes: &[u8]) -> Result<(), String> {
    let mut got = vec![0; bytes.len()];
    talk.read_exact(&mut got).map_err(|error| format!("read: {error}"))?;
    if got == bytes { Ok(()) } else { Err(format!("{got:?} instead of {bytes:?}")) }
}
