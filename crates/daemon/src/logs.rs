//! Reading what services wrote.
//!
//! The monitors write `STATE/logs/SLUG/INSTANCE.log` in the format of [`moat_engine_linux::log`]. A rotated older part lies
//! beside it as `INSTANCE.log.1`.

mod kept;

use crate::protocol::{Event, LogFilter, LogLine};
use crate::reply::Reply;
use kept::Kept;
use moat_model::{InstanceId, Slug};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::broadcast;

/// Between two looks for new lines.
const POLL: Duration = Duration::from_millis(150);
/// Read from the end of a file when only its last lines are wanted.
const TAIL_BYTES: u64 = 256 * 1024;
/// Lines that are read before they are told.
const BATCH: usize = 256;
/// Lines that are looked at for these.
const LOOKED: usize = 16 * 1024;
/// Of what was added to a file so many bytes are read at once.
const LOOK_BYTES: u64 = 1 << 20;

/// Joins the parts of long lines.
#[derive(Debug, Default)]
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
    let Ok(bytes) = end_of(path) else { return Vec::new() };
    let lines: Vec<String> = bytes.split(|b| *b == b'\n').filter_map(moat_engine_linux::log::parse).map(|l| l.text).collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

/// The last bytes of a file, from a line's begin on.
fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let end = file.metadata()?.len();
    let start = end.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(end - start).read_to_end(&mut bytes)?;
    if start > 0 {
        let first = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes.drain(..first);
    }
    Ok(bytes)
}

/// How far one file is read.
#[derive(Debug)]
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
    /// What is kept of each instance, while it is being read, and its next line where that is known.
    kept: Vec<(Kept, Option<LogLine>)>,
    /// Of each of these that is not at its end, a time that its next line is not before.
    heap: BinaryHeap<Reverse<(String, usize)>>,
    cursors: BTreeMap<PathBuf, Cursor>,
}

impl Reader {
    fn new(folder: PathBuf, services: BTreeSet<Slug>, only: Option<BTreeSet<String>>, lines: Wanted) -> Self {
        Self { folder, services, only, lines, kept: Vec::new(), heap: BinaryHeap::new(), cursors: BTreeMap::new() }
    }

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

    /// Looks at all that is there now, for [`Self::batch`]; `tail` keeps the last lines of each instance.
    fn begin(&mut self, tail: Option<usize>) {
        // Where lines are chosen, the last ones may be anywhere.
        let near_end = tail.is_some() && self.lines.is_all();
        for (path, service, instance) in self.files() {
            let wanted = self.only.as_ref().is_none_or(|only| only.contains(&instance));
            let most = (near_end || !wanted).then_some(TAIL_BYTES);
            let Ok(mut kept) = Kept::of(path, service, instance, most) else { continue };
            if !wanted {
                kept.skip = usize::MAX;
            } else if let Some(tail) = tail {
                let mut counted = kept.again();
                let count = std::iter::from_fn(|| counted.line()).filter(|line| self.lines.takes(line)).count();
                kept.skip = count.saturating_sub(tail);
            }
            match kept.begins() {
                Some(begins) => {
                    self.heap.push(Reverse((begins, self.kept.len())));
                    self.kept.push((kept, None));
                }
                // What it has of a line is the begin of one that is still to come.
                None => self.follow(kept),
            }
        }
    }

    /// The next lines of what was there, oldest first; none at its end. Few enough that whoever waits for them may hang up.
    fn batch(&mut self) -> Option<Vec<LogLine>> {
        let mut lines = Vec::new();
        let mut looked = 0;
        while lines.len() < BATCH && looked < LOOKED {
            let Some(Reverse((_, at))) = self.heap.pop() else { break };
            lines.extend(self.kept[at].1.take());
            looked += self.advance(at);
        }
        if lines.is_empty() && self.heap.is_empty() {
            for (kept, _) in std::mem::take(&mut self.kept) {
                self.follow(kept);
            }
            return None;
        }
        Some(lines)
    }

    /// Finds the next line of one instance that is wanted, or looks at many that are not: how many it looked at.
    fn advance(&mut self, at: usize) -> usize {
        let (kept, next) = &mut self.kept[at];
        let mut looked = 0;
        while let Some(line) = kept.line() {
            looked += 1;
            let mut told = self.lines.takes(&line);
            if told && kept.skip > 0 {
                kept.skip -= 1;
                told = false;
            }
            if told || looked == LOOKED {
                self.heap.push(Reverse((line.time.clone(), at)));
                *next = told.then_some(line);
                return looked;
            }
        }
        looked
    }

    fn follow(&mut self, mut kept: Kept) {
        // To its end: all that is there was told, or is not wanted.
        while kept.line().is_some() {}
        let (path, cursor) = kept.followed();
        self.cursors.insert(path, cursor);
    }

    /// Lines added since the last look, and whether there are more already.
    fn news(&mut self) -> (Vec<LogLine>, bool) {
        let mut all = Vec::new();
        let mut more = false;
        for (path, service, instance) in self.files() {
            let Ok(file) = File::open(&path) else { continue };
            let Ok(metadata) = file.metadata() else { continue };
            let cursor = self.cursors.entry(path.clone()).or_insert_with(|| Cursor::at_begin(service, instance, metadata.ino()));
            more |= look(cursor, &path, file, &metadata, LOOK_BYTES, &mut all);
        }
        all.retain(|line| self.lines.takes(line));
        all.sort_by(|a, b| a.time.cmp(&b.time));
        (all, more)
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
            look(cursor, &self.path, file, &metadata, u64::MAX, &mut all);
        }
        all
    }
}

impl Cursor {
    fn at_begin(service: Slug, instance: String, inode: u64) -> Self {
        Self { service, instance, inode, offset: 0, partial: Vec::new(), joiner: Joiner::default() }
    }
}

/// Takes what was added to a log, and before it what was not read of the part that was rotated away; at most about so many bytes of
/// each. Whether there is more.
fn look(cursor: &mut Cursor, path: &Path, mut file: File, metadata: &fs::Metadata, most: u64, all: &mut Vec<LogLine>) -> bool {
    if cursor.inode != metadata.ino() {
        if let Ok(old) = File::open(kept::rotated(path))
            && old.metadata().is_ok_and(|m| m.ino() == cursor.inode)
            && drain(cursor, old, most, all)
        {
            return true;
        }
        cursor.inode = metadata.ino();
        cursor.offset = 0;
        cursor.partial.clear();
    }
    metadata.len() > cursor.offset && file.rewind().is_ok() && drain(cursor, file, most, all)
}

/// Takes what was added to a file, at most so many bytes; whether there is more.
fn drain(cursor: &mut Cursor, mut file: File, most: u64, all: &mut Vec<LogLine>) -> bool {
    let mut bytes = std::mem::take(&mut cursor.partial);
    let before = bytes.len();
    if file.seek(SeekFrom::Start(cursor.offset)).is_ok() {
        // What was read before an error counts.
        let _ = file.take(most).read_to_end(&mut bytes);
    }
    let read = (bytes.len() - before) as u64;
    cursor.offset += read;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    cursor.partial = bytes.split_off(whole);
    let lines = bytes.split_inclusive(|b| *b == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
    all.extend(lines.filter_map(|line| cursor.joiner.take(&cursor.service, &cursor.instance, line)));
    read == most
}

/// Sends what there is and, with `events`, what is added until the asker hangs up or the services are stopped. It reads no faster than
/// the asker does.
pub async fn serve(
    folder: PathBuf,
    services: BTreeSet<Slug>,
    only: Option<BTreeSet<String>>,
    lines: Wanted,
    tail: Option<usize>,
    events: Option<broadcast::Receiver<Event>>,
    reply: Reply,
) {
    let mut reader = Reader::new(folder, services.clone(), only, lines);
    let begun = tokio::task::spawn_blocking(move || {
        reader.begin(tail);
        reader
    });
    let Ok(mut reader) = begun.await else { return };
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let lines = reader.batch();
            (reader, lines)
        });
        let Ok((back, lines)) = read.await else { return };
        reader = back;
        let Some(lines) = lines else { break };
        if reply.is_closed() || !tell(lines, &reply).await {
            return;
        }
    }
    let Some(mut events) = events else {
        let _ = reply.send(Event::End { error: None });
        return;
    };
    let mut stopping: BTreeSet<Slug> = BTreeSet::new();
    let mut more = false;
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
            () = tokio::time::sleep(if more { Duration::ZERO } else { POLL }) => {}
            () = reply.closed() => return,
        }
        let read = tokio::task::spawn_blocking(move || {
            let (lines, more) = reader.news();
            (reader, lines, more)
        });
        let Ok((back, lines, is_more)) = read.await else { return };
        (reader, more) = (back, is_more);
        if !tell(lines, &reply).await {
            return;
        }
        if !more && !services.is_empty() && stopping.len() == services.len() {
            break;
        }
    }
    let _ = reply.send(Event::End { error: None });
}

/// Sends lines as they are read; false once nobody reads them.
async fn tell(lines: Vec<LogLine>, reply: &Reply) -> bool {
    for line in lines {
        if reply.send_in_turn(Event::Log(line)).await.is_err() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    fn reader(folder: &Path) -> Reader {
        Reader::new(folder.to_owned(), BTreeSet::from([Slug::new("web").unwrap()]), None, Wanted::default())
    }

    fn history(reader: &mut Reader, tail: Option<usize>) -> Vec<LogLine> {
        reader.begin(tail);
        std::iter::from_fn(|| reader.batch()).flatten().collect()
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
            let texts: Vec<String> = history(&mut reader, tail).into_iter().map(|line| line.text).collect();
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
        assert_eq!(texts(history(&mut reader, None)), ["one", "two words"]);
        let mut all = fs::read(&log).unwrap();
        all.extend(b"ished\nT4 stdout F four\n");
        fs::write(&log, &all).unwrap();
        fs::rename(&log, web.join("srv-1-aaaaa.log.1")).unwrap();
        fs::write(&log, "T5 stdout F five\n").unwrap();
        assert_eq!(texts(reader.news().0), ["unfinished", "four", "five"]);
        assert!(reader.news().0.is_empty());
    }

    #[test]
    fn the_tail_of_each_instance_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let web = folder.path().join("web");
        fs::create_dir(&web).unwrap();
        fs::write(web.join("a.log"), "T1 stdout F a1\nT3 stdout F a2\n").unwrap();
        fs::write(web.join("b.log"), "T2 stdout F b1\nT4 stdout F b2\n").unwrap();
        let texts: Vec<String> = history(&mut reader(folder.path()), Some(1)).into_iter().map(|l| l.text).collect();
        assert_eq!(texts, ["a2", "b2"]);
        assert_eq!(last_lines(&web.join("a.log"), 1), ["a2"]);
    }

    #[test]
    fn what_is_read_is_in_order_and_only_a_few_lines_are_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let web = folder.path().join("web");
        fs::create_dir(&web).unwrap();
        let count = 10 * BATCH;
        // Three instances in turn, the last with an older file; what each says twice at a time comes one after the other.
        let at = |n: usize| format!("T{:06}", n / 6);
        let mut texts: Vec<String> = vec![String::new(); 3];
        for n in 0..count {
            writeln!(texts[n % 3], "{} stdout F {n}", at(n)).unwrap();
        }
        fs::write(web.join("a.log"), &texts[0]).unwrap();
        fs::write(web.join("b.log"), &texts[1]).unwrap();
        let half = texts[2][..texts[2].len() / 2].rfind('\n').unwrap() + 1;
        fs::write(web.join("c.log.1"), &texts[2][..half]).unwrap();
        fs::write(web.join("c.log"), format!("{}T999999 stdout F unfin", &texts[2][half..])).unwrap();
        let mut reader = reader(folder.path());
        reader.begin(None);
        let mut all = Vec::new();
        while let Some(lines) = reader.batch() {
            assert!(lines.len() <= BATCH);
            all.extend(lines);
        }
        assert_eq!(all.len(), count);
        assert!(all.is_sorted_by(|a, b| a.time <= b.time));
        for (nth, instance) in ["a", "b", "c"].into_iter().enumerate() {
            let told: Vec<usize> = all.iter().filter(|line| line.instance == instance).map(|line| line.text.parse().unwrap()).collect();
            assert_eq!(told, (nth..count).step_by(3).collect::<Vec<_>>(), "{instance}");
        }
        // Goes on where that ended, however much is added, a bounded part at a time.
        let mut more = fs::read(web.join("c.log")).unwrap();
        let wide = "x".repeat(1000);
        let added = 3 * usize::try_from(LOOK_BYTES).unwrap() / 1000;
        more.extend(b"ished\n");
        for _ in 0..added {
            more.extend(format!("T999999 stdout F {wide}\n").as_bytes());
        }
        fs::write(web.join("c.log"), &more).unwrap();
        let (mut news, mut looks) = (Vec::new(), 0);
        loop {
            let (lines, more) = reader.news();
            looks += 1;
            news.extend(lines);
            if !more {
                break;
            }
        }
        assert_eq!((news[0].text.as_str(), news.len()), ("unfinished", added + 1));
        assert!(looks >= 3, "{looks}");
    }

    #[test]
    fn a_pattern_that_is_rare_is_looked_for_in_parts() {
        let folder = tempfile::tempdir().unwrap();
        let web = folder.path().join("web");
        fs::create_dir(&web).unwrap();
        let mut text = String::new();
        for n in 0..3 * LOOKED {
            writeln!(text, "T{n:06} stdout F {}", if n == 5 || n == 2 * LOOKED + 7 { "here" } else { "there" }).unwrap();
        }
        fs::write(web.join("a.log"), text).unwrap();
        let filter = LogFilter { grep: Some("^here".to_owned()), ..LogFilter::default() };
        let mut reader = Reader { lines: Wanted::new(filter).unwrap(), ..reader(folder.path()) };
        reader.begin(None);
        let batches: Vec<usize> = std::iter::from_fn(|| reader.batch()).map(|lines| lines.len()).collect();
        assert_eq!(batches.iter().sum::<usize>(), 2);
        assert!(batches.len() >= 3, "{batches:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_reads_slowly_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let web = folder.path().join("web");
        fs::create_dir(&web).unwrap();
        let count = 20 * BATCH;
        let mut text = String::new();
        for n in 0..count {
            writeln!(text, "T{n:06} stdout F {n}").unwrap();
        }
        fs::write(web.join("a.log"), text).unwrap();
        let (reply, mut answers) = crate::reply::channel();
        let services = BTreeSet::from([Slug::new("web").unwrap()]);
        let task = tokio::spawn(serve(folder.path().to_owned(), services, None, Wanted::default(), None, None, reply));
        let mut told = 0;
        let ended = loop {
            let event = answers.recv().await.unwrap();
            if let Event::End { error } = event {
                break error;
            }
            let Event::Log(line) = event else { panic!("{event:?}") };
            assert_eq!(line.text, told.to_string());
            told += 1;
            if told == BATCH {
                // The file is gone when the rest would be read, had it not been read before: it was not.
                tokio::time::sleep(Duration::from_secs(1)).await;
                fs::write(web.join("a.log"), "").unwrap();
            }
        };
        assert!(ended.is_none());
        assert!((BATCH..8 * BATCH).contains(&told), "{told} lines of {count} were read ahead of who reads");
        task.await.unwrap();
    }
}
