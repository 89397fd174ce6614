//! A strict, streaming reader of tar archives: v7, ustar, GNU and PAX, as tools that build images write them.
//!
//! It holds no more than one extended header in memory, believes no size beyond its limits and knows nothing of the file system.
//! Source: POSIX.1-2024 `pax`, GNU tar manual *Basic Tar Format*.

use std::io::{self, Read};

const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// The header of an entry; its content is read from the reader that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As written: not yet checked in any way, except that it has no NUL.
    pub(crate) path: Vec<u8>,
    /// The target of a link.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    /// Content bytes; 0 for all but files.
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why an archive can't be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(String),
}

fn malformed<T>(reason: impl Into<String>) -> Result<T, TarError> {
    Err(TarError::Malformed(reason.into()))
}

/// Reads entries one after the other.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Content of the current entry that was not read.
    left: u64,
    /// Zeros after that content, to the next block.
    padding: u64,
    /// Largest extended header.
    header_limit: u64,
    /// Bytes consumed so far, for places of content.
    position: u64,
}

/// What extended headers said about the next entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R, header_limit: u64) -> Self {
        Self { inner, left: 0, padding: 0, header_limit, position: 0 }
    }

    /// Where the next content byte stands in the archive.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next entry, or none at the end of the archive. What was left of the entry before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extended = Extended::default();
        let mut pending = false;
        loop {
            self.skip()?;
            let mut header = [0; BLOCK];
            if !self.fill_block(&mut header)? || header.iter().all(|byte| *byte == 0) {
                return if pending { malformed("it ends after an extended header") } else { Ok(None) };
            }
            check_sum(&header)?;
            let size = number(field(&header, 124, 12)).ok_or_else(|| TarError::Malformed("an entry's size is not a number".into()))?;
            match header[156] {
                b'L' => extended.path = Some(self.long_text(size)?),
                b'K' => extended.link = Some(self.long_text(size)?),
                b'x' => {
                    let records = self.extended_header(size)?;
                    pax(&records, &mut extended)?;
                }
                // Comments of `git archive` and the like, which builders of layers ignore too.
                b'g' => {
                    self.extended_header(size)?;
                    continue;
                }
                flag => return self.entry(&header, flag, size, extended).map(Some),
            }
            pending = true;
        }
    }

    fn entry(&mut self, header: &[u8; BLOCK], flag: u8, size: u64, extended: Extended) -> Result<Entry, TarError> {
        let path = extended.path.unwrap_or_else(|| header_path(header));
        let shown = String::from_utf8_lossy(&path).into_owned();
        let kind = match flag {
            b'0' | 0 | b'7' if !(flag == 0 && path.ends_with(b"/")) => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' | 0 => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return malformed(format!("`{shown}` is stored as a sparse file, which layers do not have")),
            other => return malformed(format!("`{shown}` is of the unknown kind {:?}", char::from(other))),
        };
        let get = |start, length, what: &str| {
            number(field(header, start, length)).ok_or_else(|| TarError::Malformed(format!("the {what} of `{shown}` is not a number")))
        };
        let (mode, uid, gid) = (get(100, 8, "mode")?, get(108, 8, "owner")?, get(116, 8, "group")?);
        let mtime = signed(field(header, 136, 12)).unwrap_or(0);
        let link = extended.link.unwrap_or_else(|| until_nul(field(header, 157, 100)).to_vec());
        if path.contains(&0) || link.contains(&0) {
            return malformed("a path has a NUL byte");
        }
        // Only files have content: Go's reader, which most builders use, takes the size of others as 0.
        let size = if kind == Kind::File { extended.size.unwrap_or(size) } else { 0 };
        self.begin(size)?;
        Ok(Entry {
            path,
            link,
            kind,
            mode: (mode & 0o7777) as u32,
            uid: extended.uid.unwrap_or(uid),
            gid: extended.gid.unwrap_or(gid),
            mtime: extended.mtime.unwrap_or((mtime, 0)),
            size,
            xattrs: extended.xattrs,
        })
    }

    fn begin(&mut self, size: u64) -> Result<(), TarError> {
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        if size.checked_add(self.padding).is_none_or(|all| all > i64::MAX as u64) {
            return malformed(format!("an entry says that it has {size} bytes"));
        }
        self.left = size;
        Ok(())
    }

    /// Reads content of the current entry; 0 at its end. An archive that ends before is an error.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let count = self.inner.read(buffer.get_mut(..most).unwrap_or_default())?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends {} bytes before the end of an entry", self.left)));
        }
        self.left -= count as u64;
        self.position += count as u64;
        Ok(count)
    }

    fn skip(&mut self) -> Result<(), TarError> {
        self.left += std::mem::take(&mut self.padding);
        let mut buffer = [0; 16 << 10];
        while self.read_content(&mut buffer)? > 0 {}
        Ok(())
    }

    /// Reads to the end of what lies under the archive, so that all of it is hashed.
    pub(crate) fn drain(mut self) -> io::Result<R> {
        io::copy(&mut self.inner, &mut io::sink())?;
        Ok(self.inner)
    }

    /// A whole block, or nothing at the end.
    fn fill_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        let mut have = 0;
        while have < BLOCK {
            match self.inner.read(block.get_mut(have..).unwrap_or_default()) {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return malformed("it ends in the middle of a header"),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position += BLOCK as u64;
        Ok(true)
    }

    fn extended_header(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > self.header_limit {
            return malformed(format!("an extended header has {size} bytes, more than the {} allowed", self.header_limit));
        }
        self.begin(size)?;
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = self.read_content(&mut buffer)?;
            if count == 0 {
                return Ok(bytes);
            }
            bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        }
    }

    fn long_text(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let bytes = self.extended_header(size)?;
        Ok(until_nul(&bytes).to_vec())
    }
}

fn field(header: &[u8; BLOCK], start: usize, length: usize) -> &[u8] {
    header.get(start..start + length).unwrap_or_default()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(field(header, 0, 100));
    let prefix = if field(header, 257, 6) == b"ustar\0" { until_nul(field(header, 345, 155)) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// The sum of all bytes with the sum's own field as spaces; old tools added signed bytes.
fn check_sum(header: &[u8; BLOCK]) -> Result<(), TarError> {
    let said = number(field(header, 148, 8));
    let bytes = || header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    let unsigned: u64 = bytes().map(u64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    if said == Some(unsigned) || said.map(u64::cast_signed) == Some(signed) {
        return Ok(());
    }
    malformed("a header's checksum is wrong: it is not a tar archive, or damaged")
}

/// Octal digits between spaces and NULs, or GNU's base-256; empty is 0.
fn number(bytes: &[u8]) -> Option<u64> {
    signed(bytes).and_then(|value| u64::try_from(value).ok())
}

fn signed(bytes: &[u8]) -> Option<i64> {
    let first = *bytes.first()?;
    if first & 0x80 != 0 {
        // Bit 6 is the sign; two's complement over the whole field.
        let start = if first & 0x40 != 0 { -1i64 << 6 } else { 0 } | i64::from(first & 0x3f);
        return bytes.get(1..)?.iter().try_fold(start, |value, byte| Some(value.checked_mul(256)? | i64::from(*byte)));
    }
    let text = until_nul(bytes.trim_ascii_start()).trim_ascii();
    text.iter().try_fold(0i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// `LENGTH KEY=VALUE\n` records.
fn pax(mut records: &[u8], extended: &mut Extended) -> Result<(), TarError> {
    let wrong = || TarError::Malformed("an extended header is malformed".into());
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length: usize =
            text_number(records.get(..space).unwrap_or_default()).and_then(|length| length.try_into().ok()).ok_or_else(wrong)?;
        let record = records.get(space + 1..length).ok_or_else(wrong)?;
        records = records.get(length..).ok_or_else(wrong)?;
        let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        let (key, value) = (record.get(..equals).unwrap_or_default(), record.get(equals + 1..).unwrap_or_default());
        match key {
            b"path" => extended.path = Some(value.to_vec()),
            b"linkpath" => extended.link = Some(value.to_vec()),
            b"size" => extended.size = Some(text_number(value).ok_or_else(wrong)?),
            b"uid" => extended.uid = Some(text_number(value).ok_or_else(wrong)?),
            b"gid" => extended.gid = Some(text_number(value).ok_or_else(wrong)?),
            b"mtime" => extended.mtime = Some(time(value).ok_or_else(wrong)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return malformed("an entry is stored as a sparse file, which layers do not have");
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    extended.xattrs.retain(|(there, _)| there != name);
                    extended.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

fn text_number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

/// `-12.5` as seconds and nanoseconds, where the nanoseconds count forward.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if nanos > 0 && whole.starts_with('-') { Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)) } else { Some((seconds, nanos)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_all_dialects() {
        for (bytes, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"\x80\0\0\0\0\x01\0\0", Some(0x1_0000)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"777777777777", Some(0o777_777_777_777)),
        ] {
            assert_eq!(signed(bytes), want, "{bytes:?}");
        }
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), None);
    }

    #[test]
    fn times_count_forward() {
        for (text, want) in [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("1.x", None),
            ("", None),
            ("1.1234567899", Some((1, 123_456_789))),
        ] {
            assert_eq!(time(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn records_that_lie_about_their_length() {
        for records in [
            "5 a=b\n",
            "7 a=b\n",
            "x a=b\n",
            "6 a=b",
            "6 abc\n",
            "99999999999999999999 a=b\n",
            "0 a=b\n",
            "2 a=b\n",
            "6",
            "16 uid=12345678\nx",
        ] {
            assert!(pax(records.as_bytes(), &mut Extended::default()).is_err(), "{records:?}");
        }
        let mut extended = Extended::default();
        pax(b"6 a=b\n9 path=x\n", &mut extended).unwrap();
        assert_eq!(extended.path.as_deref(), Some(&b"x"[..]));
    }
}
