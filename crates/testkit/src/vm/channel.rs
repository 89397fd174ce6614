//! The talk with the agent inside: a line of JSON for each command, a line for each end.
//!
//! Invariant: an answer is taken only for the command that was asked, so that what a machine said before it lost its power is never
//! taken for what it says now.

use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its exit code, 128 and the signal's number when one ended it.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// The host's end.
pub struct Channel {
    stream: UnixStream,
    /// What came after the last whole line.
    rest: Vec<u8>,
    asked: u64,
}

impl Channel {
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        Ok(Self { stream, rest: Vec::new(), asked: 0 })
    }

    /// Waits until the agent says that it listens.
    pub fn hello(&mut self, within: Duration) -> io::Result<()> {
        let end = Instant::now() + within;
        while self.line(end)?["boot"].is_null() {}
        Ok(())
    }

    /// Has the agent run a script, and does not wait for it.
    pub fn send(&mut self, script: &str) -> io::Result<()> {
        self.asked += 1;
        let request = json!({ "id": self.asked, "script": script });
        self.stream.write_all(format!("{request}\n").as_bytes())
    }

    /// Has the agent run a script.
    pub fn run(&mut self, script: &str, within: Duration) -> io::Result<Said> {
        let end = Instant::now() + within;
        self.send(script)?;
        loop {
            let said = self.line(end)?;
            if said["id"].as_u64() == Some(self.asked) {
                let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
                let code = said["code"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(-1);
                return Ok(Said { code, out: text("out"), err: text("err") });
            }
        }
    }

    /// The next line that is JSON.
    fn line(&mut self, end: Instant) -> io::Result<Value> {
        loop {
            while let Some(at) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=at).collect();
                // A machine that lost its power left half a line.
                if let Ok(value) = serde_json::from_slice(&line) {
                    return Ok(value);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the machine does not answer"));
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 8 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the machine went off")),
                Ok(length) => self.rest.extend_from_slice(&buffer[..length]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_the_one_that_was_asked_for() {
        let (mine, mut theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel { stream: mine, rest: Vec::new(), asked: 6 };
        theirs.write_all(b"{\"id\":3,\"co\n{\"id\":6,\"code\":1}\n{\"boot\":\"two\"}\n").unwrap();
        channel.hello(Duration::from_secs(5)).unwrap();
        theirs.write_all(b"{\"id\":6,\"code\":1}\n{\"id\":7,\"code\":0,\"out\":\"here\\n\",\"err\":\"\"}\n").unwrap();
        let said = channel.run("echo here", Duration::from_secs(5)).unwrap();
        assert_eq!((said.code, said.out.as_str()), (0, "here\n"));
        assert_eq!(channel.run("x", Duration::from_millis(1)).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(theirs);
        assert!(channel.run("x", Duration::from_secs(5)).is_err());
    }
}
