//! A client that loads Memcached: one thread, many connections, nine gets to a set, every answer compared.
//!
//! Each turn writes a batch of requests to every connection and then reads all the answers.

use super::figure::Figure;
use crate::failure::{Doing, Failure, Outcome};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The first argument of a process that is this client: then host, port, connections, requests in a batch, requests in all.
pub const CLIENT: &str = "__memcached";

const KEY: &str = "moat";
const VALUE: [u8; 100] = [b'v'; 100];
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Loads a server and prints the [`Figure`].
pub fn client(arguments: &[String]) -> Outcome {
    let wrong = || Failure::new(format!("wanted: {CLIENT} HOST PORT CONNECTIONS BATCH REQUESTS"));
    let [host, port, connections, batch, requests] = arguments else { return Err(wrong()) };
    let number = |text: &String| text.parse::<usize>().ok().filter(|number| *number > 0).ok_or_else(wrong);
    let port = port.parse().map_err(|_| wrong())?;
    let figure = load((host, port), number(connections)?, number(batch)?, number(requests)?).doing("load Memcached")?;
    println!("{figure}");
    Ok(())
}

fn set() -> Vec<u8> {
    [format!("set {KEY} 0 0 {}\r\n", VALUE.len()).as_bytes(), &VALUE, b"\r\n"].concat()
}

fn load(server: (&str, u16), connections: usize, batch: usize, requests: usize) -> io::Result<Figure> {
    let mut streams = (0..connections).map(|_| connect(server)).collect::<io::Result<Vec<_>>>()?;
    for stream in streams.iter_mut().take(1) {
        stream.write_all(&set())?;
        expect(stream, b"STORED\r\n")?;
    }
    let get = format!("get {KEY}\r\n").into_bytes();
    let got = [format!("VALUE {KEY} 0 {}\r\n", VALUE.len()).as_bytes(), &VALUE, b"\r\nEND\r\n"].concat();
    let (mut sent, mut latencies) = (0_usize, Vec::with_capacity(requests / batch + connections));
    let start = Instant::now();
    while sent < requests {
        let mut waiting = Vec::with_capacity(connections);
        for stream in &mut streams {
            let (mut text, mut answer) = (Vec::new(), Vec::new());
            for _ in 0..batch {
                if sent.is_multiple_of(10) {
                    text.extend_from_slice(&set());
                    answer.extend_from_slice(b"STORED\r\n");
                } else {
                    text.extend_from_slice(&get);
                    answer.extend_from_slice(&got);
                }
                sent += 1;
            }
            let asked = Instant::now();
            stream.write_all(&text)?;
            waiting.push((stream, asked, answer));
        }
        for (stream, asked, answer) in waiting {
            expect(stream, &answer)?;
            latencies.push(asked.elapsed());
        }
    }
    let took = start.elapsed();
    latencies.sort_unstable();
    let p99 = latencies.get(latencies.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default();
    let sent = u32::try_from(sent).map_err(io::Error::other)?;
    Ok(Figure { thousands: f64::from(sent) / took.as_secs_f64() / 1e3, p99_ms: p99.as_secs_f64() * 1e3 })
}

fn connect(server: (&str, u16)) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn expect(stream: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0; answer.len()];
    stream.read_exact(&mut buffer)?;
    if buffer == answer { Ok(()) } else { Err(io::Error::other(format!("a wrong answer: {}", String::from_utf8_lossy(&buffer)))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Answers one connection's gets and sets; a get's value is `value`.
    fn serve(listener: &TcpListener, value: &[u8]) -> io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            text.extend_from_slice(&buffer[..count]);
            while let Some(end) = text.windows(2).position(|pair| pair == b"\r\n") {
                if text.starts_with(b"get ") {
                    stream.write_all(&[b"VALUE moat 0 100\r\n", value, b"\r\nEND\r\n"].concat())?;
                    text.drain(..end + 2);
                } else if text.len() >= end + 2 + VALUE.len() + 2 {
                    stream.write_all(b"STORED\r\n")?;
                    text.drain(..end + 2 + VALUE.len() + 2);
                } else {
                    break;
                }
            }
        }
    }

    #[test]
    fn answers_are_counted_when_they_are_right_and_refused_when_not() {
        for (value, right) in [(VALUE, true), ([b'w'; 100], false)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = thread::spawn(move || serve(&listener, &value));
            let figure = load(("127.0.0.1", port), 1, 8, 100);
            assert_eq!(figure.as_ref().is_ok_and(|figure| figure.thousands > 0.0 && figure.p99_ms > 0.0), right, "{figure:?}");
            // A client that gives up resets its connection.
            let _ = server.join().unwrap();
        }
    }
}
