//! The log of an instance: one line of text for each line that the program wrote.
//!
//! `TIMESTAMP STREAM TAG TEXT`, as Kubernetes' container runtimes write theirs: TIMESTAMP is RFC 3339 in UTC with
//! microseconds, STREAM is `stdout` or `stderr`, TAG is `F` for a whole line (or its last part) and `P` for a part that the
//! next line of the same stream continues. TEXT is what was written, unchanged.
//!
//! A file that grows past 16 MiB is renamed to `NAME.1` and a new one begins; [`read`] joins both.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

/// Where a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The word of the log.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When, RFC 3339 with microseconds, UTC.
    pub at: String,
    /// Where.
    pub stream: Stream,
    /// Whether the line ends here.
    pub complete: bool,
    /// What; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Reads one line, without its end; `None` for what is no line of a log (a last one half written).
pub fn parse(line: &[u8]) -> Option<LogLine> {
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let at = std::str::from_utf8(parts.next()?).ok()?.to_owned();
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let complete = match parts.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(LogLine { at, stream, complete, text: String::from_utf8_lossy(parts.next()?).into_owned() })
}

/// Reads all that is kept of a log, oldest first; nothing when there is none.
pub fn read(path: &Path) -> io::Result<Vec<LogLine>> {
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    let mut lines = Vec::new();
    for path in [Path::new(&old), path] {
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            lines.extend(parse(&line?));
        }
    }
    Ok(lines)
}

/// Appends one line, with its end, to `out`. `now` counts from the Unix epoch.
pub fn format_line(out: &mut Vec<u8>, now: Duration, stream: Stream, complete: bool, text: &[u8]) {
    let (days, second) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let tag = if complete { 'F' } else { 'P' };
    // Writing to a vector does not fail.
    let _ =
        write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z {} {tag} ", now.subsec_micros(), stream.word());
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Days since 1970-01-01 to year, month, day of the Gregorian calendar: eras of 400 years, years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_778, (2026, 11, 21)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
    }

    #[test]
    fn a_line_comes_back_as_it_was() {
        let mut out = Vec::new();
        format_line(&mut out, Duration::new(1_000_000_000, 5_000), Stream::Stderr, false, b"a  b ");
        let line = parse(out.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!(
            line,
            LogLine { at: "2001-09-09T01:46:40.000005Z".to_owned(), stream: Stream::Stderr, complete: false, text: "a  b ".to_owned() }
        );
        for half in ["", "2001", "2001 stdout", "2001 stdout F", "2001 other F x", "2001 stdout Q x"] {
            assert_eq!(parse(half.as_bytes()), None, "{half}");
        }
    }
}
