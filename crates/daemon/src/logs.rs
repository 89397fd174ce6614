//! Reading what services wrote.
//!
//! The monitors write `STATE/logs/SLUG/INSTANCE.log` in the format of [`moat_engine_linux::log`]. A rotated older part lies
//! beside it as `INSTANCE.log.1`.

use crate::protocol::{Event, LogFilter, LogLine};
use moat_model::{InstanceId, Slug};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};

/// Between two looks for new lines.
const POLL: Duration = Duration::from_millis(150);
/// Read from the end of a file when only its last lines are wanted.
const TAIL_BYTES: u64 = 256 * 1024;

/// Joins the parts of long lines.
#[derive(Default)]
struct Joiner {
    begun: BTreeMap<&'static str, String>,
}

impl Joiner {
    /// Takes a line of the file; gives a whole line of the program when one is complete.
    fn take(&mut self, service: &Slug, instance: &str, line: &[u8]) -> Option<LogLine> {
        let part = moat_engine_linux::log::parse(line)?;
        let stream = part.stream.word();
        if !part.complete {
            self.begun.entry(stream).or_default().push_str(&part.text);
            return None;
        }
        let text = match self.begun.remove(stream) {
            Some(begun) => begun + &part.text,
            None => part.text,
        };
        Some(LogLine { service: service.clone(), instance: instance.to_owned(), time: part.at, stream: stream.to_owned(), text })
    }
}

/// The texts of the last lines of one instance's log; none when there is no log.
pub fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let Ok(Content { bytes, .. }) = content(path, Some(TAIL_BYTES)) else { return Vec::new() };
    let lines: Vec<String> = bytes.split(|b| *b == b'\n').filter_map(moat_engine_linux::log::parse).map(|l| l.text).collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

/// What one look at a file gave.
struct Content {
    bytes: Vec<u8>,
    /// Where the look ended.
    end: u64,
    inode: u64,
}

/// Reads a file up to its present end; with `most`, only that many bytes before it, from a line's begin on.
fn content(path: &Path, most: Option<u64>) -> io::Result<Content> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let end = metadata.len();
    let start = most.map_or(0, |most| end.saturating_sub(most));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(end - start).read_to_end(&mut bytes)?;
    if start > 0 {
        let first = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes.drain(..first);
    }
    Ok(Content { bytes, end, inode: metadata.ino() })
}

/// How far one file is read.
struct Cursor {
    service: Slug,
    instance: String,
    inode: u64,
    offset: u64,
    partial: Vec<u8>,
    joiner: Joiner,
}

/// The lines that somebody wants.
#[derive(Debug, Default)]
pub struct Wanted {
    instance: Option<String>,
    since: Option<String>,
    pattern: Option<regex_lite::Regex>,
}

impl Wanted {
    /// By a filter; an error is the words for a pattern that is none.
    pub fn new(filter: LogFilter) -> Result<Self, String> {
        let pattern = filter.grep.as_deref().map(regex_lite::Regex::new).transpose();
        let pattern = pattern.map_err(|error| format!("the pattern is no regular expression: {error}"))?;
        Ok(Self { instance: filter.instance, since: filter.since, pattern })
    }

    /// Times are all written alike, so that their texts are in order.
    fn takes(&self, line: &LogLine) -> bool {
        self.instance.as_ref().is_none_or(|id| *id == line.instance)
            && self.since.as_ref().is_none_or(|since| line.time >= *since)
            && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(&line.text))
    }

    fn is_all(&self) -> bool {
        self.instance.is_none() && self.since.is_none() && self.pattern.is_none()
    }
}

/// Reads a folder of logs, and what is added to it.
struct Reader {
    folder: PathBuf,
    services: BTreeSet<Slug>,
    /// Instances whose history is wanted; none is all.
    only: Option<BTreeSet<String>>,
    lines: Wanted,
    cursors: BTreeMap<PathBuf, Cursor>,
}

impl Reader {
    /// Log files of the wanted services, rotated parts left out.
    fn files(&self) -> Vec<(PathBuf, Slug, String)> {
        let mut found = Vec::new();
        for slug in &self.services {
            let Ok(entries) = fs::read_dir(self.folder.join(slug.as_str())) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Some(instance) = name.strip_suffix(".log") {
                    found.push((entry.path(), slug.clone(), instance.to_owned()));
                }
            }
        }
        found
    }

    /// All lines that are there now, oldest first; `tail` keeps the last of each instance.
    fn history(&mut self, tail: Option<usize>) -> Vec<LogLine> {
        let mut all = Vec::new();
        // Where lines are chosen, the last ones may be anywhere.
        let near_end = tail.is_some() && self.lines.is_all();
        for (path, service, instance) in self.files() {
            let Ok(Content { bytes: last, end, inode }) = content(&path, near_end.then_some(TAIL_BYTES)) else { continue };
            let wanted = self.only.as_ref().is_none_or(|only| only.contains(&instance));
            let mut bytes = if !near_end && wanted { fs::read(path.with_extension("log.1")).unwrap_or_default() } else { Vec::new() };
            bytes.extend(last);
            // An unfinished last line is left for later.
            let complete = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let partial = bytes.split_off(complete);
            let mut joiner = Joiner::default();
            let lines = bytes.split(|b| *b == b'\n').filter_map(|l| joiner.take(&service, &instance, l));
            let lines: Vec<LogLine> = lines.filter(|line| self.lines.takes(line)).collect();
            if wanted {
                let skip = tail.map_or(0, |n| lines.len().saturating_sub(n));
                all.extend(lines.into_iter().skip(skip));
            }
            self.cursors.insert(path, Cursor { service, instance, inode, offset: end, partial, joiner });
        }
        all.sort_by(|a, b| a.time.cmp(&b.time));
        all
    }

    /// Lines added since the last look.
    fn news(&mut self) -> Vec<LogLine> {
        let mut all = Vec::new();
        for (path, service, instance) in self.files() {
            let Ok(file) = File::open(&path) else { continue };
            let Ok(metadata) = file.metadata() else { continue };
            let cursor = self.cursors.entry(path.clone()).or_insert_with(|| Cursor::at_begin(service, instance, metadata.ino()));
            look(cursor, &path, file, &metadata, &mut all);
        }
        all.retain(|line| self.lines.takes(line));
        all.sort_by(|a, b| a.time.cmp(&b.time));
        all
    }
}

/// The log of one instance from its begin on, which may not be there yet.
pub struct Tail {
    path: PathBuf,
    cursor: Option<Cursor>,
    service: Slug,
    instance: String,
}

impl Tail {
    /// The log of an instance below the folder of all logs.
    pub fn new(folder: &Path, service: &Slug, instance: &InstanceId) -> Self {
        let path = folder.join(service.as_str()).join(format!("{instance}.log"));
        Self { path, cursor: None, service: service.clone(), instance: instance.to_string() }
    }

    /// Lines added since the last look.
    pub fn news(&mut self) -> Vec<LogLine> {
        let mut all = Vec::new();
        if let Some((file, metadata)) = File::open(&self.path).ok().and_then(|file| file.metadata().ok().map(|about| (file, about))) {
            let (service, instance) = (&self.service, &self.instance);
            let cursor = self.cursor.get_or_insert_with(|| Cursor::at_begin(service.clone(), instance.clone(), metadata.ino()));
            look(cursor, &self.path, file, &metadata, &mut all);
        }
        all
    }
}

impl Cursor {
    fn at_begin(service: Slug, instance: String, inode: u64) -> Self {
        Self { service, instance, inode, offset: 0, partial: Vec::new(), joiner: Joiner::default() }
    }
}

/// Takes what was added to a log, and before it what was not read of the part that was rotated away.
fn look(cursor: &mut Cursor, path: &Path, mut file: File, metadata: &fs::Metadata, all: &mut Vec<LogLine>) {
    if cursor.inode != metadata.ino() {
        if let Ok(old) = File::open(path.with_extension("log.1"))
            && old.metadata().is_ok_and(|m| m.ino() == cursor.inode)
        {
            drain(cursor, old, all);
        }
        cursor.inode = metadata.ino();
        cursor.offset = 0;
        cursor.partial.clear();
    }
    if metadata.len() > cursor.offset && file.rewind().is_ok() {
        drain(cursor, file, all);
    }
}

fn drain(cursor: &mut Cursor, mut file: File, all: &mut Vec<LogLine>) {
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(cursor.offset)).is_err() || file.read_to_end(&mut bytes).is_err() {
        return;
    }
    cursor.offset += bytes.len() as u64;
    cursor.partial.extend(bytes);
    while let Some(at) = cursor.partial.iter().position(|b| *b == b'\n') {
        let line: Vec<u8> = cursor.partial.drain(..=at).collect();
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        all.extend(cursor.joiner.take(&cursor.service, &cursor.instance, line));
    }
}

/// Sends what there is and, with `events`, what is added until the asker hangs up or the services are stopped.
pub async fn serve(
    folder: PathBuf,
    services: BTreeSet<Slug>,
    only: Option<BTreeSet<String>>,
    lines: Wanted,
    tail: Option<usize>,
    events: Option<broadcast::Receiver<Event>>,
    reply: mpsc::UnboundedSender<Event>,
) {
    let mut reader = Reader { folder, services: services.clone(), only, lines, cursors: BTreeMap::new() };
    for line in reader.history(tail) {
        if reply.send(Event::Log(line)).is_err() {
            return;
        }
    }
    let Some(mut events) = events else {
        let _ = reply.send(Event::End { error: None });
        return;
    };
    let mut stopping: BTreeSet<Slug> = BTreeSet::new();
    loop {
        tokio::select! {
            event = events.recv() => {
                match event {
                    Ok(Event::Service(state)) if services.contains(&state.service) => {
                        if state.phase == crate::protocol::ServicePhase::Stopping {
                            stopping.insert(state.service.clone());
                        }
                        let _ = reply.send(Event::Service(state));
                    }
                    Ok(Event::Notice { service, text }) if service.as_ref().is_none_or(|s| services.contains(s)) => {
                        let _ = reply.send(Event::Notice { service, text });
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                }
            }
            () = tokio::time::sleep(POLL) => {}
            () = reply.closed() => return,
        }
        for line in reader.news() {
            if reply.send(Event::Log(line)).is_err() {
                return;
            }
        }
        if !services.is_empty() && stopping.len() == services.len() {
            break;
        }
    }
    let _ = reply.send(Event::End { error: None });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(folder: &Path) -> Reader {
        Reader {
            folder: folder.to_owned(),
            services: BTreeSet::from([Slug::new("web").unwrap()]),
            only: None,
            lines: Wanted::default(),
            cursors: BTreeMap::new(),
        }
    }

    #[test]
    fn lines_are_chosen_before_the_last_ones_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let web = folder.path().join("web");
        fs::create_dir(&web).unwrap();
        fs::write(web.join("a.log.1"), "T0 stdout F error 0\n").unwrap();
        fs::write(web.join("a.log"), "T1 stdout F error 1\nT2 stdout F fine\nT4 stdout F fine\n").unwrap();
        fs::write(web.join("b.log"), "T3 stdout P err\nT3 stdout F or 3\n").unwrap();
        let filter = |instance: Option<&str>, since: Option<&str>, grep: Option<&str>| LogFilter {
            instance: instance.map(str::to_owned),
            since: since.map(str::to_owned),
            grep: grep.map(str::to_owned),
        };
        for (filter, tail, expect) in [
            (filter(None, None, Some("^err.r")), None, &["error 0", "error 1", "error 3"][..]),
            (filter(None, None, Some("error")), Some(1), &["error 1", "error 3"]),
            (filter(Some("a"), None, None), None, &["error 0", "error 1", "fine", "fine"]),
            (filter(Some("a"), Some("T2"), None), None, &["fine", "fine"]),
            (filter(None, Some("T1"), Some("error")), None, &["error 1", "error 3"]),
            (filter(Some("c"), None, None), None, &[]),
        ] {
            let mut reader = Reader { lines: Wanted::new(filter.clone()).unwrap(), ..reader(folder.path()) };
            let texts: Vec<String> = reader.history(tail).into_iter().map(|line| line.text).collect();
            assert_eq!(texts, expect, "{filter:?}");
        }
        assert!(Wanted::new(filter(None, None, Some("("))).is_err());
    }

    #[test]
    fn no_line_is_lost_or_told_twice_over_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let web = folder.path().join("web");
        fs::create_dir(&web).unwrap();
        let log = web.join("srv-1-aaaaa.log");
        fs::write(&log, "T1 stdout F one\nT2 stderr P two \nT2 stderr F words\nT3 stdout F unfin").unwrap();
        let mut reader = reader(folder.path());
        let texts = |lines: Vec<LogLine>| lines.into_iter().map(|l| l.text).collect::<Vec<_>>();
        assert_eq!(texts(reader.history(None)), ["one", "two words"]);
        let mut all = fs::read(&log).unwrap();
        all.extend(b"ished\nT4 stdout F four\n");
        fs::write(&log, &all).unwrap();
        fs::rename(&log, web.join("srv-1-aaaaa.log.1")).unwrap();
        fs::write(&log, "T5 stdout F five\n").unwrap();
        assert_eq!(texts(reader.news()), ["unfinished", "four", "five"]);
        assert!(reader.news().is_empty());
    }

    #[test]
    fn the_tail_of_each_instance_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let web = folder.path().join("web");
        fs::create_dir(&web).unwrap();
        fs::write(web.join("a.log"), "T1 stdout F a1\nT3 stdout F a2\n").unwrap();
        fs::write(web.join("b.log"), "T2 stdout F b1\nT4 stdout F b2\n").unwrap();
        let texts: Vec<String> = reader(folder.path()).history(Some(1)).into_iter().map(|l| l.text).collect();
        assert_eq!(texts, ["a2", "b2"]);
        assert_eq!(last_lines(&web.join("a.log"), 1), ["a2"]);
    }
}
