//! Reads commands of clients that have not said their password yet, as Redis' protocol has them: a list of words, or a line.
//!
//! Invariants: what is read does not depend on the pieces that it comes in; a client's next command is known, or known to be
//! broken, before [`LONGEST`] bytes of it are held.

use std::fmt;

/// The longest command, bytes with everything around its words.
pub(super) const LONGEST: usize = 4096;
/// The most words of a list; servers take as many of clients that have not said their password.
const MOST_WORDS: usize = 10;
/// The most digits of a length.
const MOST_DIGITS: usize = 5;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command<'a> {
    /// Its name and what follows; none where it is an empty list or line.
    pub(super) words: Vec<&'a [u8]>,
    /// The bytes that it took.
    pub(super) length: usize,
}

/// Why nothing more can be read of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// A list has too many words, or it is not said how many.
    Words,
    /// A word has too many bytes, or it is not said how many.
    Word,
    /// Something else stands where a word should begin or end.
    Frame,
    /// It goes on for too long.
    Long,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Words => "unauthenticated multibulk length",
            Self::Word => "unauthenticated bulk length",
            Self::Frame => "expected a bulk string",
            Self::Long => "too big request of an unauthenticated client",
        })
    }
}

/// The first command in these bytes; none while more of it is to come.
pub(super) fn read(bytes: &[u8]) -> Result<Option<Command<'_>>, Broken> {
    let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
    let found = match bytes.first() {
        None => None,
        Some(b'*') => list(bytes)?,
        Some(_) => line(bytes),
    };
    if found.is_none() && bytes.len() == LONGEST { Err(Broken::Long) } else { Ok(found) }
}

/// `*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n`: words that may hold any byte.
fn list(bytes: &[u8]) -> Result<Option<Command<'_>>, Broken> {
    let Some((count, mut rest)) = number(bytes).map_err(|()| Broken::Words)? else { return Ok(None) };
    if count > MOST_WORDS {
        return Err(Broken::Words);
    }
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        if rest.first().is_some_and(|mark| *mark != b'$') {
            return Err(Broken::Frame);
        }
        let Some((length, after)) = number(rest).map_err(|()| Broken::Word)? else { return Ok(None) };
        if length > LONGEST {
            return Err(Broken::Word);
        }
        let Some((word, after)) = after.split_at_checked(length) else { return Ok(None) };
        let Some((end, after)) = after.split_at_checked(2) else { return Ok(None) };
        if end != b"\r\n" {
            return Err(Broken::Frame);
        }
        words.push(word);
        rest = after;
    }
    Ok(Some(Command { words, length: bytes.len() - rest.len() }))
}

/// The number between a mark of one byte and the line's end, and what follows; none while the line goes on.
fn number(bytes: &[u8]) -> Result<Option<(usize, &[u8])>, ()> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < MOST_DIGITS + 3 { Ok(None) } else { Err(()) };
    };
    let digits = bytes[..end].get(1..).and_then(|line| line.strip_suffix(b"\r")).ok_or(())?;
    if digits.is_empty() || digits.len() > MOST_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return Err(());
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
    Ok(Some((number, &bytes[end + 1..])))
}

/// `AUTH secret\r\n`, as people write it by hand; none without its end.
fn line(bytes: &[u8]) -> Option<Command<'_>> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let words = bytes[..end].split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    Some(Command { words, length: end + 1 })
}

/// A command as a list of words.
pub(super) fn write(words: &[&[u8]]) -> Vec<u8> {
    let mut written = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        written.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        written.extend_from_slice(word);
        written.extend_from_slice(b"\r\n");
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_and_lines_are_read_and_what_is_broken_is_said() {
        let reads = |bytes: &[u8]| {
            read(bytes).map(|command| {
                command.map(|command| {
                    let words: Vec<_> = command.words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
                    (words.join("|"), command.length)
                })
            })
        };
        let long = |length: usize| [format!("*1\r\n${length}\r\n").as_bytes(), &vec![b'x'; length], b"\r\n"].concat();
        for (bytes, want) in [
            (&b"*2\r\n$4\r\nAUTH\r\n$6\r\nse\r\net\r\n"[..], Ok(Some(("AUTH|se\r\net", 26)))),
            (b"*2\r\n$4\r\nAUTH\r\n$0\r\n\r\nmore", Ok(Some(("AUTH|", 20)))),
            (b"*0\r\n*1\r\n", Ok(Some(("", 4)))),
            (b"AUTH  default secret\r\nPING", Ok(Some(("AUTH|default|secret", 22)))),
            (b"PING\n", Ok(Some(("PING", 5)))),
            (b"\r\n", Ok(Some(("", 2)))),
            (b"", Ok(None)),
            (b"*", Ok(None)),
            (b"*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r", Ok(None)),
            (b"AUTH secret", Ok(None)),
            (b"*11\r\n", Err(Broken::Words)),
            (b"*1000000000", Err(Broken::Words)),
            (b"*-1\r\n", Err(Broken::Words)),
            (b"*\r\n", Err(Broken::Words)),
            (b"*1\n$4\r\nPING\r\n", Err(Broken::Words)),
            (b"*1\r\n$4097\r\n", Err(Broken::Word)),
            (b"*1\r\n$x\r\n", Err(Broken::Word)),
            (b"*1\r\n*1\r\n", Err(Broken::Frame)),
            (b"*1\r\n$4\r\nPINGED", Err(Broken::Frame)),
            (&long(LONGEST - 13), Ok(Some((&"x".repeat(LONGEST - 13), LONGEST)))),
            (&long(LONGEST - 12), Err(Broken::Long)),
            (&vec![b'x'; LONGEST], Err(Broken::Long)),
        ] {
            assert_eq!(reads(bytes), want.map(|found| found.map(|(words, length)| (words.to_owned(), length))), "{bytes:?}");
        }
    }

    /// Bytes in which commands are likely, whole and broken.
    fn likely() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            8 => proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..12)
                .prop_map(|words| write(&words.iter().map(Vec::as_slice).collect::<Vec<_>>())),
            3 => "[A-Z]{1,6}( [a-z]{0,5}){0,3}\r?\n".prop_map(String::into_bytes),
            2 => r"[*$][0-9]{0,7}\r\n".prop_map(String::into_bytes),
            1 => proptest::collection::vec(any::<u8>(), 0..40),
            1 => (4000_usize..4200).prop_map(|length| write(&[&vec![b'x'; length]])),
        ];
        proptest::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn what_is_read_does_not_depend_on_pieces(bytes in likely()) {
            let whole = read(&bytes);
            for end in 0..bytes.len() {
                let part = read(&bytes[..end]);
                // What is known of a part stays so; a client is never waited for that sent as much as is held.
                prop_assert!(part == whole || part == Ok(None), "{part:?} {whole:?} {end}");
                prop_assert!(end < LONGEST || part != Ok(None));
            }
            if let Ok(Some(command)) = whole {
                prop_assert!(command.length <= bytes.len().min(LONGEST) && command.length > 0);
            }
        }

        #[test]
        fn what_is_written_is_read(words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..=MOST_WORDS)) {
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            let written = write(&words);
            prop_assert_eq!(read(&written), Ok(Some(Command { length: written.len(), words })));
        }
    }
}
