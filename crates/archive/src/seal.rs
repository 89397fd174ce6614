//! A stream as sealed chunks, each for its number and for whether it is the last: none can be changed, left out, moved or cut off.

use moat_store::Key;
use std::io::{self, Read, Write};

/// Bytes of a chunk before it is sealed.
const CHUNK: usize = 256 << 10;
/// More than what sealing adds.
const LONGEST: usize = CHUNK + 256;

fn place(id: &str, number: u64, last: bool) -> String {
    format!("backup\0{id}\0{number}\0{}", if last { "last" } else { "more" })
}

/// Seals what is written.
pub(crate) struct Sealer<W: Write> {
    inner: W,
    key: Key,
    id: String,
    number: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    pub(crate) fn new(inner: W, key: Key, id: &str) -> Self {
        Self { inner, key, id: id.to_owned(), number: 0, buffer: Vec::with_capacity(CHUNK) }
    }

    fn chunk(&mut self, last: bool) -> io::Result<()> {
        let sealed = self.key.seal(&place(&self.id, self.number, last), &self.buffer).map_err(io::Error::other)?;
        write_framed(&mut self.inner, &sealed)?;
        self.number += 1;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the last chunk.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.chunk(true)?;
        self.inner.flush()?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == CHUNK {
            self.chunk(false)?;
        }
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Opens what a [`Sealer`] sealed.
pub(crate) struct Opener<R: Read> {
    inner: R,
    key: Key,
    id: String,
    number: u64,
    buffer: Vec<u8>,
    at: usize,
    over: bool,
}

impl<R: Read> Opener<R> {
    pub(crate) fn new(inner: R, key: Key, id: &str) -> Self {
        Self { inner, key, id: id.to_owned(), number: 0, buffer: Vec::new(), at: 0, over: false }
    }

    fn chunk(&mut self) -> io::Result<()> {
        let sealed = read_framed(&mut self.inner, LONGEST)?;
        let open = |last| self.key.open(&place(&self.id, self.number, last), &sealed);
        self.buffer = if let Some(plain) = open(false) {
            plain
        } else {
            self.over = true;
            let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("chunk {} is not what was written", self.number));
            open(true).ok_or_else(wrong)?
        };
        self.at = 0;
        self.number += 1;
        if self.over && self.inner.read(&mut [0])? != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "something follows its end"));
        }
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.buffer.len() {
            if self.over {
                return Ok(0);
            }
            self.chunk()?;
        }
        let rest = &self.buffer[self.at..];
        let taken = rest.len().min(out.len());
        out[..taken].copy_from_slice(&rest[..taken]);
        self.at += taken;
        Ok(taken)
    }
}

/// Writes bytes after their length.
pub(crate) fn write_framed(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(bytes)
}

/// Reads what [`write_framed`] wrote.
pub(crate) fn read_framed(from: &mut impl Read, longest: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).map_err(cut)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > longest {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a length in it can't be"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).map_err(cut)?;
    Ok(bytes)
}

fn cut(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof { io::Error::new(error.kind(), "its end is missing") } else { error }
}
