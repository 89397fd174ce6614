//! The lines that are kept of one instance, one after the other: its older file, then its present one.
//!
//! Invariant: no more of a file is in memory than a line and a small buffer, and a file is open only while its lines are wanted.

use super::{Cursor, Joiner};
use crate::protocol::LogLine;
use moat_model::Slug;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Read at once; so much memory is taken for each file that is open.
const PIECE: usize = 8 * 1024;

/// A file, or its end, as it was when it was looked at.
#[derive(Debug, Clone)]
struct Part {
    path: PathBuf,
    inode: u64,
    from: u64,
    end: u64,
}

impl Part {
    /// A file up to its present end; with `most`, only that many bytes before it.
    fn of(path: &Path, most: Option<u64>) -> io::Result<Self> {
        let about = std::fs::metadata(path)?;
        let from = most.map_or(0, |most| about.len().saturating_sub(most));
        Ok(Self { path: path.to_owned(), inode: about.ino(), from, end: about.len() })
    }

    /// Opens it, from a line's begin on, wherever it was rotated to meanwhile.
    fn open(&self) -> Option<BufReader<io::Take<File>>> {
        let is_it = |file: &File| file.metadata().is_ok_and(|about| about.ino() == self.inode);
        let older = || File::open(rotated(&self.path)).ok().filter(is_it);
        let mut file = File::open(&self.path).ok().filter(is_it).or_else(older)?;
        file.seek(SeekFrom::Start(self.from)).ok()?;
        let mut reader = BufReader::with_capacity(PIECE, file.take(self.end - self.from));
        if self.from > 0 {
            reader.skip_until(b'\n').ok()?;
        }
        Some(reader)
    }
}

/// Where the older part of a log is.
pub fn rotated(log: &Path) -> PathBuf {
    log.with_extension("log.1")
}

/// What is kept of one instance.
#[derive(Debug)]
pub struct Kept {
    service: Slug,
    instance: String,
    path: PathBuf,
    parts: VecDeque<Part>,
    reader: Option<BufReader<io::Take<File>>>,
    joiner: Joiner,
    /// A line without its end.
    partial: Vec<u8>,
    /// Where the present file ends, and which one that is.
    end: u64,
    inode: u64,
    /// Lines that are wanted and not told.
    pub skip: usize,
}

impl Kept {
    /// A log as it is now; with `most`, only so many bytes of its end.
    pub fn of(path: PathBuf, service: Slug, instance: String, most: Option<u64>) -> io::Result<Self> {
        let present = Part::of(&path, most)?;
        let older = Part::of(&rotated(&path), None).ok();
        // One that was rotated between the two looks is there twice.
        let older = older.filter(|older| most.is_none() && older.inode != present.inode);
        let (end, inode) = (present.end, present.inode);
        let parts = older.into_iter().chain([present]).collect();
        let (reader, joiner, partial) = (None, Joiner::default(), Vec::new());
        Ok(Self { service, instance, path, parts, reader, joiner, partial, end, inode, skip: 0 })
    }

    /// The same, from its begin on.
    pub fn again(&self) -> Self {
        let (service, instance, path, parts) = (self.service.clone(), self.instance.clone(), self.path.clone(), self.parts.clone());
        let (reader, joiner, partial) = (None, Joiner::default(), Vec::new());
        Self { service, instance, path, parts, reader, joiner, partial, end: self.end, inode: self.inode, skip: self.skip }
    }

    /// The time of its first line; none where there is no line.
    pub fn begins(&self) -> Option<String> {
        self.parts.iter().find_map(|part| {
            let mut line = Vec::new();
            part.open()?.read_until(b'\n', &mut line).ok()?;
            moat_engine_linux::log::parse(line.strip_suffix(b"\n")?).map(|part| part.at)
        })
    }

    /// The next whole line of the program.
    pub fn line(&mut self) -> Option<LogLine> {
        loop {
            let Some(reader) = &mut self.reader else {
                let part = self.parts.pop_front()?;
                self.reader = part.open();
                continue;
            };
            let read = reader.read_until(b'\n', &mut self.partial);
            if self.partial.last() == Some(&b'\n') {
                self.partial.pop();
                let line = self.joiner.take(&self.service, &self.instance, &self.partial);
                self.partial.clear();
                if line.is_some() {
                    return line;
                }
            } else if matches!(read, Ok(0) | Err(_)) {
                self.reader = None;
            }
        }
    }

    /// Goes on with what is written from now on.
    pub fn followed(self) -> (PathBuf, Cursor) {
        let Self { service, instance, path, joiner, partial, end, inode, .. } = self;
        (path, Cursor { service, instance, inode, offset: end, partial, joiner })
    }
}
