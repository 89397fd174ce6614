//! Reading the access log, which the data plane writes: what was before, then what is written now.

use crate::protocol::{Event, Failure};
use crate::reply::Reply;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks for new lines.
const POLL: Duration = Duration::from_millis(150);
/// Bytes sent at once.
const PIECE: usize = 256 * 1024;

/// Which lines are wanted.
#[derive(Debug, Default)]
pub struct Wanted {
    /// What a line of JSON has of a service.
    service: Option<String>,
    pattern: Option<regex_lite::Regex>,
}

impl Wanted {
    /// Lines of one service, and with a pattern in them; an error is the words for a pattern that is none.
    pub fn new(service: Option<&str>, grep: Option<&str>) -> Result<Self, String> {
        let pattern = grep.map(regex_lite::Regex::new).transpose();
        let pattern = pattern.map_err(|error| format!("the pattern is no regular expression: {error}"))?;
        Ok(Self { service: service.map(|slug| format!(r#","service":"{slug}","#)), pattern })
    }

    fn takes(&self, line: &str) -> bool {
        self.service.as_ref().is_none_or(|service| line.contains(service.as_str()))
            && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(line))
    }
}

/// Where the log is, in a state folder.
pub fn path(state: &Path) -> PathBuf {
    state.join("access.log")
}

/// Sends the lines there are, the last `tail` of them, and those that come until nobody listens.
pub async fn send(path: PathBuf, wanted: Wanted, tail: Option<usize>, follow: bool, reply: Reply) {
    let began = tokio::task::spawn_blocking(move || {
        let mut reader = Reader { path, wanted, offset: 0, inode: 0, partial: Vec::new() };
        let lines = reader.begin(tail);
        (reader, lines)
    });
    let Ok((mut reader, mut lines)) = began.await else { return };
    let outcome = loop {
        match lines {
            Ok(lines) => tell(&lines, &reply).await,
            Err(error) => break Some(error),
        }
        if !follow || reply.is_closed() {
            break None;
        }
        tokio::time::sleep(POLL).await;
        // A few bytes mostly; the file is this machine's.
        lines = reader.more();
    };
    let error = outcome.map(|error| Failure {
        message: format!("can't read the access log: {error}"),
        hint: (error.kind() == io::ErrorKind::NotFound).then(|| "`moat ingress access-log=json` has it written".to_owned()),
        exit_code: 1,
    });
    let _ = reply.send(Event::End { error });
}

async fn tell(lines: &[String], reply: &Reply) {
    let mut text = String::new();
    for line in lines {
        text.push_str(line);
        text.push('\n');
        if text.len() >= PIECE {
            let _ = reply.send_in_turn(Event::AccessLines { text: std::mem::take(&mut text) }).await;
        }
    }
    if !text.is_empty() {
        let _ = reply.send_in_turn(Event::AccessLines { text }).await;
    }
}

struct Reader {
    path: PathBuf,
    wanted: Wanted,
    offset: u64,
    inode: u64,
    partial: Vec<u8>,
}

impl Reader {
    /// The lines of both files.
    fn begin(&mut self, tail: Option<usize>) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        match std::fs::read(self.path.with_extension("log.1")) {
            Ok(bytes) => self.split(&bytes, &mut lines),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        lines.extend(self.more()?);
        if let Some(tail) = tail {
            lines.drain(..lines.len().saturating_sub(tail));
        }
        Ok(lines)
    }

    /// What was written since.
    fn more(&mut self) -> io::Result<Vec<String>> {
        let mut file = File::open(&self.path)?;
        let about = file.metadata()?;
        // Begun anew: what was between two looks is in the other file, and is not told.
        if about.ino() != self.inode || about.len() < self.offset {
            (self.inode, self.offset) = (about.ino(), 0);
            self.partial.clear();
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(about.len().saturating_sub(self.offset)).read_to_end(&mut bytes)?;
        self.offset += u64::try_from(bytes.len()).unwrap_or_default();
        let mut lines = Vec::new();
        self.split(&bytes, &mut lines);
        Ok(lines)
    }

    fn split(&mut self, bytes: &[u8], lines: &mut Vec<String>) {
        self.partial.extend(bytes);
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else { return };
        let whole: Vec<u8> = self.partial.drain(..=end).collect();
        let text = String::from_utf8_lossy(&whole);
        lines.extend(text.lines().filter(|line| self.wanted.takes(line)).map(str::to_owned));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn lines_of_both_files_and_those_that_come() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        let reader = |service, grep| Reader {
            path: path.clone(),
            wanted: Wanted::new(service, grep).unwrap(),
            offset: 0,
            inode: 0,
            partial: Vec::new(),
        };
        assert_eq!(reader(None, None).begin(None).unwrap_err().kind(), io::ErrorKind::NotFound);
        let line = |service: &str, n: u32| format!(r#"{{"n":{n},"service":"{service}","request":"r"}}"#);
        fs::write(path.with_extension("log.1"), format!("{}\n{}\n", line("a", 1), line("b", 2))).unwrap();
        fs::write(&path, format!("{}\n{}", line("a", 3), line("a", 4))).unwrap();
        let mut all = reader(None, None);
        assert_eq!(all.begin(None).unwrap(), [line("a", 1), line("b", 2), line("a", 3)]);
        assert_eq!(reader(Some("a"), None).begin(Some(1)).unwrap(), [line("a", 3)]);
        assert_eq!(reader(None, Some("b|3")).begin(None).unwrap(), [line("b", 2), line("a", 3)]);
        assert!(Wanted::new(None, Some("(")).is_err());
        fs::write(&path, format!("{}\n{}\n{}\n", line("a", 3), line("a", 4), line("a", 5))).unwrap();
        assert_eq!(all.more().unwrap(), [line("a", 4), line("a", 5)]);
        fs::write(&path, format!("{}\n", line("a", 6))).unwrap();
        assert_eq!(all.more().unwrap(), [line("a", 6)]);
    }
}
