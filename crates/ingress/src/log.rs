//! The access log: a line for each request, written by a thread of its own to a file that is bounded.
//!
//! The file is one that whoever starts the ingress opened, and so is the one that keeps what was before: when the first is
//! full, what it holds is copied to the second, and it begins anew. Nothing of the file system is needed for that.
//!
//! Invariant: a request never waits for the log. What comes faster than it can be written is dropped, and counted.

use crate::meters::Known;
use arc_swap::ArcSwapOption;
use http::{Method, Version};
use jiff::Timestamp;
use moat_model::Slug;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Lines that wait to be written; more are dropped.
const MOST_WAITING: usize = 8192;
/// Bytes written at once.
const BATCH: usize = 64 * 1024;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// A JSON object.
    Json,
    /// The Common Log Format: `client - - [time] "METHOD path version" status bytes`.
    Common,
}

/// Where lines go.
#[derive(Debug)]
pub struct LogFiles {
    /// Appended to.
    pub current: File,
    /// What was before.
    pub older: File,
    /// `current` is begun anew when it is longer, bytes.
    pub most: u64,
}

/// The log. Until it is told where to, nothing is written.
#[derive(Debug, Default)]
pub struct Log {
    queue: ArcSwapOption<SyncSender<Box<Line>>>,
    written: Arc<AtomicU64>,
    dropped: Arc<AtomicU64>,
}

impl Log {
    /// Writes there from now on; `None` ends it.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn set(&self, to: Option<(LogFormat, LogFiles)>) -> io::Result<()> {
        let Some((format, files)) = to else {
            self.queue.store(None);
            return Ok(());
        };
        let (queue, lines) = sync_channel(MOST_WAITING);
        let (written, dropped) = (Arc::clone(&self.written), Arc::clone(&self.dropped));
        let writer = Writer { format, files, written, dropped, said: false };
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run(&lines))?;
        self.queue.store(Some(Arc::new(queue)));
        Ok(())
    }

    /// Whether lines are written.
    pub(crate) fn is_on(&self) -> bool {
        self.queue.load().is_some()
    }

    /// Lines that were written, and those that were dropped instead.
    pub fn lines(&self) -> (u64, u64) {
        (self.written.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }

    /// Takes a line, unless too many wait.
    pub(crate) fn take(&self, line: Box<Line>) {
        if let Some(queue) = &*self.queue.load()
            && queue.try_send(line).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub at: Timestamp,
    pub client: IpAddr,
    pub secure: bool,
    pub method: Method,
    pub host: String,
    /// Without its query, which carries secrets too often.
    pub path: String,
    pub version: Version,
    pub id: String,
    pub service: Option<Slug>,
    pub instance: Option<Known>,
    pub status: u16,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// Until the answer began, and until it was over.
    pub took: (Duration, Duration),
    pub failure: Option<String>,
}

impl Line {
    fn write(&self, format: LogFormat, to: &mut Vec<u8>) {
        match format {
            LogFormat::Json => self.json(to),
            LogFormat::Common => self.common(to),
        }
        to.push(b'\n');
    }

    fn json(&self, to: &mut Vec<u8>) {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Shown<'a> {
            time: String,
            client: IpAddr,
            method: &'a str,
            scheme: &'static str,
            host: &'a str,
            path: &'a str,
            protocol: String,
            status: u16,
            bytes: u64,
            ms: f64,
            total_ms: f64,
            #[serde(skip_serializing_if = "Option::is_none")]
            service: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            instance: Option<&'a str>,
            request: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            failure: Option<&'a str>,
        }
        let ms = |took: Duration| (took.as_secs_f64() * 1e6).round() / 1e3;
        let shown = Shown {
            time: format!("{:.6}", self.at),
            client: self.client,
            method: self.method.as_str(),
            scheme: if self.secure { "https" } else { "http" },
            host: &self.host,
            path: &self.path,
            protocol: format!("{:?}", self.version),
            status: self.status,
            bytes: self.sent,
            ms: ms(self.took.0),
            total_ms: ms(self.took.1),
            service: self.service.as_ref().map(Slug::as_str),
            instance: self.instance.as_ref().map(|known| &*known.id),
            request: &self.id,
            failure: self.failure.as_deref(),
        };
        // Nothing in it can't be JSON.
        let _ = serde_json::to_writer(to, &shown);
    }

    fn common(&self, to: &mut Vec<u8>) {
        let time = self.at.strftime("%d/%b/%Y:%H:%M:%S +0000");
        let bytes = if self.sent == 0 { "-".to_owned() } else { self.sent.to_string() };
        let (client, method, path) = (self.client, quoted(self.method.as_str()), quoted(&self.path));
        let line = format!("{client} - - [{time}] \"{method} {path} {:?}\" {} {bytes}", self.version, self.status);
        to.extend(line.into_bytes());
    }
}

/// A text between quotes: quotes, backslashes and what is not printable are written as `\xHH`.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
    text.bytes().map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("\\x{byte:02x}") }).collect()
}

struct Writer {
    format: LogFormat,
    files: LogFiles,
    written: Arc<AtomicU64>,
    dropped: Arc<AtomicU64>,
    /// That it can't be written was said.
    said: bool,
}

impl Writer {
    /// Until nobody sends lines any more.
    fn run(mut self, lines: &Receiver<Box<Line>>) {
        let mut bytes = Vec::new();
        while let Ok(first) = lines.recv() {
            let mut count = 0;
            let mut next = Some(first);
            while let Some(line) = next {
                line.write(self.format, &mut bytes);
                count += 1;
                next = if bytes.len() < BATCH { lines.try_recv().ok() } else { None };
            }
            match self.append(&bytes) {
                Ok(()) => {
                    self.written.fetch_add(count, Ordering::Relaxed);
                    self.said = false;
                }
                Err(error) => {
                    self.dropped.fetch_add(count, Ordering::Relaxed);
                    if !std::mem::replace(&mut self.said, true) {
                        tracing::warn!(%error, "the access log can't be written");
                    }
                }
            }
            bytes.clear();
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let LogFiles { current, older, most } = &mut self.files;
        // Asked each time: another process may write to it too, while one takes over.
        if current.metadata()?.len() + u64::try_from(bytes.len()).unwrap_or(u64::MAX) > *most {
            older.set_len(0)?;
            older.seek(SeekFrom::Start(0))?;
            current.seek(SeekFrom::Start(0))?;
            let kept = io::copy(current, older);
            current.set_len(0)?;
            kept?;
        }
        current.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str) -> Line {
        Line {
            at: "2026-11-22T01:02:03.5Z".parse().unwrap(),
            client: "192.0.2.7".parse().unwrap(),
            secure: true,
            method: Method::GET,
            host: "shop.localhost".to_owned(),
            path: path.to_owned(),
            version: Version::HTTP_2,
            id: "id-1".to_owned(),
            service: Some(Slug::new("shop").unwrap()),
            instance: Some(Known { counters: Arc::default(), id: "shop-1".into() }),
            status: 200,
            sent: 12,
            took: (Duration::from_micros(1500), Duration::from_millis(20)),
            failure: None,
        }
    }

    fn written(line: &Line, format: LogFormat) -> String {
        let mut bytes = Vec::new();
        line.write(format, &mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines() {
        for (line, format, want) in [
            (
                line("/a b\"\\\n\u{e9}"),
                LogFormat::Common,
                r#"192.0.2.7 - - [22/Nov/2026:01:02:03 +0000] "GET /a b\x22\x5c\x0a\xc3\xa9 HTTP/2.0" 200 12"#,
            ),
            (
                Line { sent: 0, version: Version::HTTP_11, ..line("/") },
                LogFormat::Common,
                r#"192.0.2.7 - - [22/Nov/2026:01:02:03 +0000] "GET / HTTP/1.1" 200 -"#,
            ),
            (
                line("/\"\n"),
                LogFormat::Json,
                r#"{"time":"2026-11-22T01:02:03.500000Z","client":"192.0.2.7","method":"GET","scheme":"https","host":"shop.localhost","path":"/\"\n","protocol":"HTTP/2.0","status":200,"bytes":12,"ms":1.5,"totalMs":20.0,"service":"shop","instance":"shop-1","request":"id-1"}"#,
            ),
            (
                Line { service: None, instance: None, failure: Some("it broke".to_owned()), secure: false, ..line("/") },
                LogFormat::Json,
                r#"{"time":"2026-11-22T01:02:03.500000Z","client":"192.0.2.7","method":"GET","scheme":"http","host":"shop.localhost","path":"/","protocol":"HTTP/2.0","status":200,"bytes":12,"ms":1.5,"totalMs":20.0,"request":"id-1","failure":"it broke"}"#,
            ),
        ] {
            assert_eq!(written(&line, format), format!("{want}\n"));
        }
    }

    #[test]
    fn a_full_file_is_begun_anew_and_what_was_before_is_kept_once() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| File::options().read(true).append(true).create(true).open(folder.path().join(name)).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let files = LogFiles { current: open("log"), older: open("log.1"), most: 40 };
        let mut writer = Writer { format: LogFormat::Json, files, written: Arc::default(), dropped: Arc::default(), said: false };
        for n in 0..5 {
            writer.append(format!("line {n} of fifteen\n").as_bytes()).unwrap();
        }
        assert_eq!(read("log"), "line 4 of fifteen\n");
        assert_eq!(read("log.1"), "line 2 of fifteen\nline 3 of fifteen\n");
    }

    #[test]
    fn what_comes_too_fast_is_dropped_and_counted() {
        let (pipe, far) = io::pipe().unwrap();
        let null = || File::options().read(true).write(true).open("/dev/null").unwrap();
        let log = Log::default();
        log.take(Box::new(line("/")));
        assert_eq!(log.lines(), (0, 0), "it is off");
        // A pipe that nobody reads is a disk that does not write.
        let files = LogFiles { current: File::from(std::os::fd::OwnedFd::from(far)), older: null(), most: u64::MAX };
        log.set(Some((LogFormat::Common, files))).unwrap();
        let sent = u64::try_from(MOST_WAITING).unwrap() * 2;
        for _ in 0..sent {
            log.take(Box::new(line("/")));
        }
        assert!(log.lines().1 > 0, "{:?}", log.lines());
        log.set(None).unwrap();
        let length = u64::try_from(written(&line("/"), LogFormat::Common).len()).unwrap();
        let mut read = Vec::new();
        io::Read::read_to_end(&mut { pipe }, &mut read).unwrap();
        assert_eq!(u64::try_from(read.len()).unwrap() / length + log.lines().1, sent);
    }
}
