//! The load: `wrk` for HTTP/1.1, `h2load` for HTTP/2.

use super::peers::{LOAD_CPU, Lane, Port, pinned};
use crate::failure::{Doing, Failure, Outcome};
use crate::place::Folder;
use std::fs;
use std::process::Command;

/// Seconds that a load lasts.
const SECONDS: u32 = 2;

/// What is asked for, how, and by how many.
#[derive(Debug)]
pub struct Load {
    /// For tables.
    pub name: &'static str,
    port: Port,
    path: &'static str,
    connections: u32,
    /// Requests at once on each connection of HTTP/2; none is HTTP/1.1.
    streams: Option<u32>,
}

/// Everything that is measured.
pub const LOADS: &[Load] = &[
    Load { name: "HTTP/1.1, 1 kB, 64 connections", port: Port::Plain, path: "/small", connections: 64, streams: None },
    Load { name: "HTTP/1.1, 1 kB, 1,000 connections", port: Port::Plain, path: "/small", connections: 1000, streams: None },
    Load { name: "HTTP/1.1, 1 MB, 64 connections", port: Port::Plain, path: "/large", connections: 64, streams: None },
    Load { name: "HTTP/1.1 over TLS, 1 kB, 64 connections", port: Port::Tls, path: "/small", connections: 64, streams: None },
    Load { name: "HTTP/1.1 over TLS, 1 kB, 1,000 connections", port: Port::Tls, path: "/small", connections: 1000, streams: None },
    Load { name: "HTTP/1.1 over TLS, 1 MB, 64 connections", port: Port::Tls, path: "/large", connections: 64, streams: None },
    Load { name: "HTTP/2, 1 kB, 64 connections of 10 streams", port: Port::Http2, path: "/small", connections: 64, streams: Some(10) },
    Load {
        name: "HTTP/2 over TLS, 1 kB, 64 connections of 10 streams",
        port: Port::Tls,
        path: "/small",
        connections: 64,
        streams: Some(10),
    },
    Load {
        name: "HTTP/2 over TLS, 1 MB, 64 connections of one stream",
        port: Port::Tls,
        path: "/large",
        connections: 64,
        streams: Some(1),
    },
];

/// What came of it; milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Said {
    pub each_second: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub failed: u64,
}

/// Has `wrk` say what is read here.
const SCRIPT: &str = "done = function(s, l, r)\n local e = s.errors\n io.write(string.format('FIGURES %d %d %d %d %d %d\\n', \
    s.requests, s.duration, l:percentile(50), l:percentile(99), l:percentile(99.9), e.connect + e.read + e.write + e.status + e.timeout))\nend\n";

impl Load {
    /// Loads one proxy.
    pub fn run(&self, lane: &Lane, folder: &Folder) -> Outcome<Said> {
        let url = lane.url(self.port, self.path);
        match self.streams {
            None => wrk(&url, self.connections, "", folder),
            Some(streams) => self.h2load(&url, streams, folder),
        }
    }

    fn h2load(&self, url: &str, streams: u32, folder: &Folder) -> Outcome<Said> {
        let log = folder.path().join("h2load.log");
        let _ = fs::remove_file(&log);
        let mut command = pinned(LOAD_CPU, "h2load");
        command.args(["--duration", &SECONDS.to_string(), "--warm-up-time", "0", "--threads", "1"]);
        command.args(["--clients", &self.connections.to_string(), "--max-concurrent-streams", &streams.to_string()]);
        command.arg(format!("--log-file={}", log.display())).arg(url);
        let text = said(&mut command)?;
        let each_second = rate(&text).ok_or_else(|| Failure::new(format!("h2load said no rate: {text}")))?;
        let (mut micros, mut failed): (Vec<u64>, u64) = (Vec::new(), 0);
        for line in fs::read_to_string(&log).doing("read what h2load wrote down")?.lines() {
            let mut fields = line.split('\t').skip(1);
            match (fields.next(), fields.next().and_then(|field| field.parse().ok())) {
                (Some("200"), Some(took)) => micros.push(took),
                _ => failed += 1,
            }
        }
        micros.sort_unstable();
        let at = |share: usize| micros.get(micros.len() * share / 1000).map_or(f64::NAN, |micros| ms(*micros));
        Ok(Said { each_second, p50: at(500), p99: at(990), p999: at(999), failed })
    }
}

/// Loads a URL by `wrk`; `more` is Lua before what says the figures.
pub fn wrk(url: &str, connections: u32, more: &str, folder: &Folder) -> Outcome<Said> {
    let script = folder.path().join("wrk.lua");
    fs::write(&script, format!("{more}{SCRIPT}")).doing("write wrk's script")?;
    let mut command = pinned(LOAD_CPU, "wrk");
    command.args(["-t1", "-c", &connections.to_string(), "-d", &format!("{SECONDS}s"), "--timeout", "10s", "-s"]).arg(script).arg(url);
    let text = said(&mut command)?;
    let numbers = text.lines().find_map(|line| line.strip_prefix("FIGURES ")).unwrap_or_default();
    let numbers: Vec<u64> = numbers.split(' ').filter_map(|number| number.parse().ok()).collect();
    let [requests, micros, p50, p99, p999, failed] = numbers[..] else {
        return Err(Failure::new(format!("wrk said no figures: {text}")));
    };
    Ok(Said { each_second: count(requests) * 1e6 / count(micros), p50: ms(p50), p99: ms(p99), p999: ms(p999), failed })
}

/// The number before `req/s`.
fn rate(text: &str) -> Option<f64> {
    text.split(" req/s").next()?.rsplit([' ', ',']).next()?.parse().ok()
}

fn said(command: &mut Command) -> Outcome<String> {
    let output = command.output().doing(format_args!("run {command:?}"))?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() { Ok(text) } else { Err(Failure::new(format!("{command:?}: {text}"))) }
}

#[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
fn count(number: u64) -> f64 {
    number as f64
}

fn ms(micros: u64) -> f64 {
    count(micros) / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_found() {
        let text = "finished in 2.00s, 30123.50 req/s, 31.2MB/s\nrequests: 60247 total";
        assert_eq!(rate(text), Some(30_123.5));
        assert_eq!(rate("nothing"), None);
    }
}
