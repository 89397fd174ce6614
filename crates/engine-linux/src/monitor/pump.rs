//! From the program's pipes to the log file, line by line.
//!
//! The monitor is in no control group of its instance, so that no limit of that one ends it: what it spends is the machine's. So it reads
//! no faster than [`RATE`]; a program that writes more waits for its pipe, and nobody else for it.
//!
//! Invariant: a byte read from a pipe reaches the file, in order, while the disk takes it; the file and its predecessor
//! together stay below twice [`MAX_FILE`] (plus one line).

use crate::log;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A longer line is written in parts.
pub const MAX_LINE: usize = 16 * 1024;
/// Past this size the file becomes `NAME.1` and a new one begins.
pub const MAX_FILE: u64 = 16 * 1024 * 1024;
/// Bytes of one instance that are read in a second, in the long run, and so many more at once.
pub const RATE: u64 = 8 * 1024 * 1024;
/// See [`RATE`].
pub const BURST: u64 = 16 * 1024 * 1024;
/// Lines are gathered up to here, and written at once.
const GATHERED: usize = 256 * 1024;

/// The log file of one instance.
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    lost: u64,
    /// Lines that are not written yet, and how many.
    lines: Vec<u8>,
    count: u64,
}

impl LogFile {
    /// Opens the file to append, making it and its folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = Self::append(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file: Some(file), size, lost: 0, lines: Vec::new(), count: 0 })
    }

    fn append(path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o640).open(path)
    }

    /// Writes one line, or a part of one, at once.
    pub fn write(&mut self, stream: log::Stream, complete: bool, text: &[u8]) {
        self.add(stream, complete, text);
        self.flush();
    }

    /// Takes one line, or a part of one, which [`Self::flush`] writes.
    fn add(&mut self, stream: log::Stream, complete: bool, text: &[u8]) {
        let before = self.lines.len();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        log::format_line(&mut self.lines, now, stream, complete, text);
        if self.size + self.lines.len() as u64 > MAX_FILE && before > 0 {
            // This line is the first of another file.
            let line = self.lines.split_off(before);
            self.flush();
            self.lines = line;
        }
        self.count += 1;
        if self.lines.len() >= GATHERED {
            self.flush();
        }
    }

    /// Writes what was taken.
    pub fn flush(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        let count = std::mem::take(&mut self.count);
        if self.lost > 0 {
            let mut note = Vec::new();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let text = format!("{} lines were lost: the log could not be written", self.lost);
            log::format_line(&mut note, now, log::Stream::Stderr, true, text.as_bytes());
            if self.put(&note).is_ok() {
                self.lost = 0;
            }
        }
        if self.put(&lines).is_err() {
            self.lost += count;
        }
        // Its room is for the next ones, unless it was for a flood.
        self.lines = lines;
        self.lines.clear();
        self.lines.shrink_to(4 * MAX_LINE);
    }

    fn put(&mut self, lines: &[u8]) -> io::Result<()> {
        let length = lines.len() as u64;
        if self.size > 0 && self.size + length > MAX_FILE {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            fs::rename(&self.path, old)?;
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            slot => {
                self.size = 0;
                slot.insert(Self::append(&self.path)?)
            }
        };
        let before = self.size;
        if let Err(error) = file.write_all(lines) {
            // A full disk may have taken a part of them: take it back, so that the next one starts a line.
            let _ = file.set_len(before);
            return Err(error);
        }
        self.size += length;
        Ok(())
    }
}

/// How much may be read now.
///
/// ```text
/// full ──read──▶ less ──▶ empty: not read ──a tenth of a second──▶ some
/// ```
pub struct Allowance {
    left: u64,
    since: Instant,
}

impl Allowance {
    /// All of [`BURST`].
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// What may be read at this time.
    pub fn at(&mut self, now: Instant) -> u64 {
        let earned = now.saturating_duration_since(self.since).as_micros().saturating_mul(u128::from(RATE)) / 1_000_000;
        // A part of a byte that was earned is not lost where nothing is added.
        if earned > 0 {
            self.left = u64::try_from(earned).unwrap_or(BURST).saturating_add(self.left).min(BURST);
            self.since = now;
        }
        self.left
    }

    /// So much was read.
    pub const fn take(&mut self, length: u64) {
        self.left = self.left.saturating_sub(length);
    }

    /// When it is worth while to read again; now, where that is allowed.
    pub fn next(&self) -> Option<Instant> {
        (self.left == 0).then(|| self.since + Duration::from_millis(100))
    }
}

/// Cuts one stream into lines.
pub struct Lines {
    stream: log::Stream,
    pending: Vec<u8>,
}

impl Lines {
    /// Nothing read yet.
    pub fn new(stream: log::Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes what was read.
    pub fn take(&mut self, mut bytes: &[u8], log: &mut LogFile) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.pending.is_empty() {
                self.emit(line, log);
            } else {
                self.pending.extend_from_slice(line);
                let whole = std::mem::take(&mut self.pending);
                self.emit(&whole, log);
                self.pending = whole;
                self.pending.clear();
            }
            bytes = rest;
        }
        self.pending.extend_from_slice(bytes);
        while self.pending.len() >= MAX_LINE {
            let rest = self.pending.split_off(MAX_LINE);
            log.add(self.stream, false, &self.pending);
            self.pending = rest;
        }
        log.flush();
    }

    /// The stream ended: what is left is a line.
    pub fn finish(&mut self, log: &mut LogFile) {
        if !self.pending.is_empty() {
            let rest = std::mem::take(&mut self.pending);
            self.emit(&rest, log);
            log.flush();
        }
    }

    fn emit(&self, mut line: &[u8], log: &mut LogFile) {
        while line.len() > MAX_LINE {
            let (part, rest) = line.split_at(MAX_LINE);
            log.add(self.stream, false, part);
            line = rest;
        }
        log.add(self.stream, true, line.strip_suffix(b"\r").unwrap_or(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Stream, read};

    fn texts(path: &Path) -> Vec<(bool, String)> {
        read(path).unwrap().into_iter().map(|line| (line.complete, line.text)).collect()
    }

    #[test]
    fn lines_are_cut_where_they_end_however_they_arrive() {
        let folder = tempfile::tempdir().unwrap();
        let wide = "x".repeat(MAX_LINE + 5);
        for (name, chunks, expect) in [
            ("a", vec!["one\ntwo\n"], vec![(true, "one"), (true, "two")]),
            ("b", vec!["o", "ne\nt", "wo"], vec![(true, "one"), (true, "two")]),
            ("c", vec!["\n\n", "end\r\n"], vec![(true, ""), (true, ""), (true, "end")]),
            ("d", vec![&wide, "y\n"], vec![(false, &wide[..MAX_LINE]), (true, "xxxxxy")]),
            ("e", vec![], vec![]),
        ] {
            let path = folder.path().join(name);
            let mut log = LogFile::open(&path).unwrap();
            let mut lines = Lines::new(Stream::Stdout);
            for chunk in chunks {
                lines.take(chunk.as_bytes(), &mut log);
            }
            lines.finish(&mut log);
            let expect: Vec<(bool, String)> = expect.into_iter().map(|(complete, text)| (complete, text.to_owned())).collect();
            assert!(texts(&path) == expect, "{name}");
        }
    }

    #[test]
    fn a_log_is_bounded_and_loses_nothing_at_its_seam() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        let text = "x".repeat(MAX_LINE - 16);
        let count = 3 * usize::try_from(MAX_FILE).unwrap() / MAX_LINE;
        for number in 0..count {
            log.write(Stream::Stderr, true, format!("{number:08} {text}").as_bytes());
        }
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path) <= MAX_FILE && size(&folder.path().join("log.1")) <= MAX_FILE);
        let numbers: Vec<usize> = read(&path).unwrap().iter().map(|line| line.text[..8].parse().unwrap()).collect();
        assert!(numbers.len() > count / 3, "{}", numbers.len());
        assert_eq!(numbers, (count - numbers.len()..count).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_read_at_once_is_written_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        let mut lines = Lines::new(Stream::Stdout);
        let writes = || {
            let text = fs::read_to_string("/proc/thread-self/io").unwrap();
            text.lines().find_map(|line| line.strip_prefix("syscw: ")).unwrap().parse::<u64>().unwrap()
        };
        let before = writes();
        for _ in 0..10 {
            lines.take(&b"a line\n".repeat(2000), &mut log);
        }
        assert!(writes() - before <= 10 * (2000 * 50 / GATHERED as u64 + 1), "{} writes", writes() - before);
        assert_eq!(read(&path).unwrap().len(), 20_000);
    }

    #[test]
    fn a_flood_is_read_as_fast_as_it_may_be() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert_eq!((allowance.at(start), allowance.next()), (BURST, None));
        let mut read = 0;
        // Ten seconds, looked at in steps that earn no whole number of bytes.
        for step in 0..30_000_u64 {
            let now = start + Duration::from_micros(step * 333);
            let most = allowance.at(now).min(16 * 1024);
            allowance.take(most);
            read += most;
        }
        let most = BURST + 10 * RATE;
        assert!((most - RATE / 10..=most).contains(&read), "{read} of {most}");
        // At rest it is earned again, and no more than that.
        assert_eq!(allowance.at(start + Duration::from_mins(10)), BURST);
        allowance.take(BURST);
        let empty = start + Duration::from_mins(10);
        assert_eq!(allowance.next(), Some(empty + Duration::from_millis(100)));
        assert_eq!(allowance.at(empty + Duration::from_millis(100)), RATE / 10);
        assert_eq!(allowance.next(), None);
    }
}
