//! When a release first answers.

use crate::failure::{Doing, Failure, Outcome};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a release may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(1);

/// What a deploy took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// From running the command to the first answer of the new release.
    pub to_traffic_ms: f64,
    /// Of that, the program's own: from its first instruction until it listens.
    pub program_ms: f64,
    /// Until the command had ended.
    pub command_ms: f64,
    /// Requests meanwhile that got no answer.
    pub unanswered: usize,
}

/// Runs a command and asks `at` for `host` until this release answers.
pub fn until(command: &mut Command, at: SocketAddr, host: &str, release: usize) -> Outcome<Took> {
    let began = Instant::now();
    let failed = AtomicBool::new(false);
    let (asked, ran) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask_until(at, host, release, began, &failed));
        let ran = crate::process::timed(command);
        failed.store(ran.is_err(), Ordering::Relaxed);
        (asking.join(), ran)
    });
    let command_ms = ran?.as_secs_f64() * 1e3;
    let (to_traffic, program_ms, unanswered) = asked.map_err(|_| Failure::new("a thread panicked"))??;
    Ok(Took { to_traffic_ms: to_traffic.as_secs_f64() * 1e3, program_ms, command_ms, unanswered })
}

fn ask_until(at: SocketAddr, host: &str, release: usize, began: Instant, failed: &AtomicBool) -> Outcome<(Duration, f64, usize)> {
    let mark = format!("release={release} ");
    let mut unanswered = 0;
    while began.elapsed() < PATIENCE && !failed.load(Ordering::Relaxed) {
        match ask(at, host) {
            Ok(answer) if answer.contains(&mark) => {
                let nanos = answer.rsplit_once("start=").and_then(|(_, nanos)| nanos.trim().parse::<f64>().ok());
                return Ok((began.elapsed(), nanos.ok_or_else(|| Failure::new(format!("not understood: {answer}")))? / 1e6, unanswered));
            }
            Ok(answer) if answer.contains("release=") => {}
            Ok(_) | Err(_) => unanswered += 1,
        }
        std::thread::sleep(PAUSE);
    }
    Err(Failure::new(format!("release {release} never answered at {at}")))
}

fn ask(at: SocketAddr, host: &str) -> Outcome<String> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(1)).doing("connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).doing("limit a connection")?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes()).doing("ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).doing("read the answer")?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_first_answer_of_the_release_ends_it() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in [
                "HTTP/1.1 503 no\r\n\r\n",
                "HTTP/1.1 200 OK\r\n\r\nrelease=1 start=5\n",
                "HTTP/1.1 200 OK\r\n\r\nrelease=2 start=2000000\n",
            ] {
                let (mut stream, _) = server.accept().unwrap();
                let _ = stream.read(&mut [0; 1000]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let took = until(&mut Command::new("true"), at, "x", 2).unwrap();
        assert!(
            (took.program_ms - 2.0).abs() < 1e-9 && took.unanswered == 1 && took.to_traffic_ms >= 2e3 * PAUSE.as_secs_f64(),
            "{took:?}"
        );
        assert!(until(&mut Command::new("false"), at, "x", 3).is_err());
    }
}
