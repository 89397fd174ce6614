//! Bodies that are read from a file as they are sent.

use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::task::JoinHandle;

/// Bytes read at once.
const CHUNK: u64 = 128 * 1024;
/// Shorter content is read together with everything else about the file.
const SHORT: u64 = 64 * 1024;

/// Parts of a file, and texts between them.
#[derive(Debug)]
pub struct Content {
    file: Option<Arc<File>>,
    pieces: VecDeque<Piece>,
    left: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

#[derive(Debug)]
enum Piece {
    Text(Bytes),
    Part(Range<u64>),
}

impl Content {
    /// Nothing.
    pub fn empty() -> Self {
        Self { file: None, pieces: VecDeque::new(), left: 0, reading: None }
    }

    /// One part of a file. A short one is read here and now.
    pub fn part(file: File, part: Range<u64>) -> io::Result<Self> {
        let mut content = Self::empty();
        if part.end - part.start <= SHORT {
            content.push_text(read(&file, part)?);
        } else {
            content.file = Some(Arc::new(file));
            content.push_part(part);
        }
        Ok(content)
    }

    /// Several parts of a file, each after a text of its own, and a text at the end.
    pub fn parts(file: File, parts: impl IntoIterator<Item = (String, Range<u64>)>, end: String) -> Self {
        let mut content = Self { file: Some(Arc::new(file)), ..Self::empty() };
        for (text, part) in parts {
            content.push_text(Bytes::from(text));
            content.push_part(part);
        }
        content.push_text(Bytes::from(end));
        content
    }

    /// Bytes that it still has.
    pub fn length(&self) -> u64 {
        self.left
    }

    fn push_text(&mut self, text: Bytes) {
        self.left += u64::try_from(text.len()).unwrap_or_default();
        if !text.is_empty() {
            self.pieces.push_back(Piece::Text(text));
        }
    }

    fn push_part(&mut self, part: Range<u64>) {
        self.left += part.end - part.start;
        self.pieces.push_back(Piece::Part(part));
    }
}

/// Reads a part in whole; a file that is shorter is an error.
fn read(file: &File, part: Range<u64>) -> io::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(part.end - part.start).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, part.start)?;
    Ok(bytes.into())
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.reading.is_none() {
            match (self.pieces.pop_front(), self.file.clone()) {
                (None, _) => return Poll::Ready(None),
                (Some(Piece::Text(text)), _) => return Poll::Ready(Some(Ok(self.sent(text)))),
                (Some(Piece::Part(part)), Some(file)) => {
                    let now = part.start..part.end.min(part.start + CHUNK);
                    if now.end < part.end {
                        self.pieces.push_front(Piece::Part(now.end..part.end));
                    }
                    self.reading = Some(tokio::task::spawn_blocking(move || read(&file, now)));
                }
                (Some(Piece::Part(_)), None) => return Poll::Ready(Some(Err(io::ErrorKind::NotFound.into()))),
            }
        }
        let Some(reading) = &mut self.reading else { return Poll::Ready(None) };
        let bytes = ready!(Pin::new(reading).poll(context)).map_err(io::Error::other).flatten();
        self.reading = None;
        Poll::Ready(Some(match bytes {
            Ok(bytes) => Ok(self.sent(bytes)),
            Err(error) => {
                self.pieces.clear();
                Err(error)
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.reading.is_none() && self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Content {
    fn sent(&mut self, bytes: Bytes) -> Frame<Bytes> {
        self.left = self.left.saturating_sub(u64::try_from(bytes.len()).unwrap_or_default());
        Frame::data(bytes)
    }
}
