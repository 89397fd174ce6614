//! From the program's pipes to the log file, line by line.
//!
//! Invariant: a byte read from a pipe reaches the file, in order, while the disk takes it; the file and its predecessor
//! together stay below twice [`MAX_FILE`] (plus one line).

use crate::log;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A longer line is written in parts.
pub const MAX_LINE: usize = 16 * 1024;
/// Past this size the file becomes `NAME.1` and a new one begins.
pub const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The log file of one instance.
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    lost: u64,
    line: Vec<u8>,
}

impl LogFile {
    /// Opens the file to append, making it and its folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = Self::append(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file: Some(file), size, lost: 0, line: Vec::new() })
    }

    fn append(path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o640).open(path)
    }

    /// Writes one line, or a part of one.
    pub fn write(&mut self, stream: log::Stream, complete: bool, text: &[u8]) {
        if self.lost > 0 {
            let note = format!("{} lines were lost: the log could not be written", self.lost);
            if self.put(log::Stream::Stderr, true, note.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
        if self.put(stream, complete, text).is_err() {
            self.lost += 1;
        }
    }

    fn put(&mut self, stream: log::Stream, complete: bool, text: &[u8]) -> io::Result<()> {
        self.line.clear();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        log::format_line(&mut self.line, now, stream, complete, text);
        let length = self.line.len() as u64;
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
        if let Err(error) = file.write_all(&self.line) {
            // A full disk may have taken a part of the line: take it back, so that the next one starts a line.
            let _ = file.set_len(before);
            return Err(error);
        }
        self.size += length;
        Ok(())
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
            log.write(self.stream, false, &self.pending);
            self.pending = rest;
        }
    }

    /// The stream ended: what is left is a line.
    pub fn finish(&mut self, log: &mut LogFile) {
        if !self.pending.is_empty() {
            let rest = std::mem::take(&mut self.pending);
            self.emit(&rest, log);
        }
    }

    fn emit(&self, mut line: &[u8], log: &mut LogFile) {
        while line.len() > MAX_LINE {
            let (part, rest) = line.split_at(MAX_LINE);
            log.write(self.stream, false, part);
            line = rest;
        }
        log.write(self.stream, true, line.strip_suffix(b"\r").unwrap_or(line));
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
}
