//! A client of HTTP/2 that writes whatever frames it is told to (RFC 9113 §4, RFC 7541 without compression).

use crate::support::PATIENCE;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const ERRORS: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A setting's bytes (§6.5.1).
pub fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// A field block of literals that are not indexed.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            number(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// The length of a string without Huffman's code (RFC 7541 §5.1, 7 bits of prefix).
fn number(block: &mut Vec<u8>, value: usize) {
    let Some(mut rest) = value.checked_sub(127) else { return block.push(u8::try_from(value).unwrap()) };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// What a plain request begins with.
pub const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "shop.localhost"), (":path", "/")];
pub const POST: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":authority", "shop.localhost"), (":path", "/")];

/// A request's head in one frame; `more` comes behind `head`.
pub fn request(stream: u32, flags: u8, head: &[(&str, &str)], more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, block(&[head, more].concat()))
}

/// A whole request without body.
pub fn get(stream: u32) -> Vec<u8> {
    request(stream, END_STREAM, &GET, &[])
}

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// What a server says of a failure, or of a request's success; nothing for what keeps a connection going.
    pub fn word(&self) -> Option<String> {
        let code = |at: usize| {
            let code = u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap());
            ERRORS.get(code as usize).map_or_else(|| format!("error {code}"), |name| (*name).to_owned())
        };
        match self.kind {
            GOAWAY => Some(format!("goaway {}", code(4))),
            RST_STREAM => Some(format!("reset {}", code(0))),
            // The status comes first; those of the static table are one byte (RFC 7541, appendix A).
            HEADERS => Some(match self.payload.iter().find(|byte| **byte & 0xe0 != 0x20)? {
                0x88 => "200".to_owned(),
                0x8c => "400".to_owned(),
                0x8d => "404".to_owned(),
                _ => "another status".to_owned(),
            }),
            _ => None,
        }
    }
}

/// One connection.
pub struct Raw {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    /// With the preface and these settings.
    pub async fn connect(address: SocketAddr, settings: &[u8]) -> Self {
        let mut raw = Self { stream: TcpStream::connect(address).await.unwrap(), read: Vec::new() };
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await;
        raw
    }

    /// Without anything said.
    pub async fn silent(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), read: Vec::new() }
    }

    /// Writes; the other side may have closed.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next frame, or none at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        while self.read.len() < 9 || self.read.len() < 9 + length(&self.read) {
            if timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await.expect("the server says no more").unwrap_or(0) == 0 {
                return None;
            }
        }
        let head: Vec<u8> = self.read.drain(..9).collect();
        let payload = self.read.drain(..length(&head)).collect();
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap()) & 0x7fff_ffff;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Everything until the end.
    pub async fn rest(&mut self) -> Vec<u8> {
        // A reset is an end too.
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut self.read)).await.expect("the server does not end");
        std::mem::take(&mut self.read)
    }

    /// The next that is a failure or an answer; `closed` at the end.
    pub async fn word(&mut self) -> (u32, String) {
        loop {
            let Some(frame) = self.next().await else { return (0, "closed".to_owned()) };
            if let Some(word) = frame.word() {
                return (frame.stream, word);
            }
        }
    }
}

fn length(head: &[u8]) -> usize {
    u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize
}
