//! What comes first on a connection: a trusted proxy's word for whom it speaks (PROXY protocol), then HTTP/1.1 or HTTP/2.
//!
//! [`proxied`] and [`is_http2`] are pure: bytes so far give an answer, or the wish for more.

use hyper::body::Bytes;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What an HTTP/2 client says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Version 2 of the PROXY protocol (§2.2 of its specification).
pub(crate) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of its version 1, with its end (§2.1).
const LONGEST_LINE: usize = 107;
/// The longest header of version 2 that is read; addresses take 36 bytes, the rest is additions that are skipped.
const LONGEST_BLOCK: usize = 2048;

/// A PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proxied {
    /// How many bytes it has.
    pub length: usize,
    /// The client, and where it connected to; none when the proxy speaks for itself (a health check).
    pub client: Option<(SocketAddr, SocketAddr)>,
}

/// It is no PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection of a trusted proxy does not begin with a PROXY header")]
pub(crate) struct NotProxied;

/// Reads a PROXY header of version 1 or 2; `None` asks for more bytes.
pub(crate) fn proxied(bytes: &[u8]) -> Result<Option<Proxied>, NotProxied> {
    if bytes.starts_with(SIGNATURE) {
        return block(bytes);
    }
    if SIGNATURE.starts_with(bytes) {
        return Ok(None);
    }
    if bytes.starts_with(b"PROXY ") {
        return line(bytes);
    }
    if b"PROXY ".starts_with(bytes) { Ok(None) } else { Err(NotProxied) }
}

fn line(bytes: &[u8]) -> Result<Option<Proxied>, NotProxied> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < LONGEST_LINE { Ok(None) } else { Err(NotProxied) };
    };
    let length = end + 2;
    let text = bytes.get(..end).filter(|_| length <= LONGEST_LINE).and_then(|line| std::str::from_utf8(line).ok()).ok_or(NotProxied)?;
    let words: Vec<&str> = text.split(' ').collect();
    let ends: (IpAddr, IpAddr) = match words[..] {
        ["PROXY", "UNKNOWN", ..] => return Ok(Some(Proxied { length, client: None })),
        ["PROXY", "TCP4", from, to, ..] => {
            let ends: (Ipv4Addr, Ipv4Addr) = (from.parse().map_err(|_| NotProxied)?, to.parse().map_err(|_| NotProxied)?);
            (ends.0.into(), ends.1.into())
        }
        ["PROXY", "TCP6", from, to, ..] => {
            let ends: (Ipv6Addr, Ipv6Addr) = (from.parse().map_err(|_| NotProxied)?, to.parse().map_err(|_| NotProxied)?);
            (ends.0.into(), ends.1.into())
        }
        _ => return Err(NotProxied),
    };
    let [from, to] = words.get(4..).unwrap_or_default() else { return Err(NotProxied) };
    let ports: (u16, u16) = (from.parse().map_err(|_| NotProxied)?, to.parse().map_err(|_| NotProxied)?);
    Ok(Some(Proxied { length, client: Some((SocketAddr::new(ends.0, ports.0), SocketAddr::new(ends.1, ports.1))) }))
}

fn block(bytes: &[u8]) -> Result<Option<Proxied>, NotProxied> {
    let Some(&[command, family, high, low]) = bytes.get(SIGNATURE.len()..SIGNATURE.len() + 4) else { return Ok(None) };
    let rest = usize::from(u16::from_be_bytes([high, low]));
    let length = SIGNATURE.len() + 4 + rest;
    if length > LONGEST_BLOCK || command >> 4 != 2 {
        return Err(NotProxied);
    }
    let Some(addresses) = bytes.get(SIGNATURE.len() + 4..length) else { return Ok(None) };
    let client = match (command & 0xf, family) {
        // LOCAL: nobody is spoken for.
        (0, _) => None,
        (1, 0x11) if rest >= 12 => both_ends::<4>(addresses),
        (1, 0x21) if rest >= 36 => both_ends::<16>(addresses),
        _ => return Err(NotProxied),
    };
    Ok(Some(Proxied { length, client }))
}

/// Two addresses of so many bytes, and their ports.
fn both_ends<const N: usize>(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)>
where
    IpAddr: From<[u8; N]>,
{
    let (from, rest) = bytes.split_first_chunk::<N>()?;
    let (to, rest) = rest.split_first_chunk::<N>()?;
    let (from_port, rest) = rest.split_first_chunk::<2>()?;
    let to_port = rest.first_chunk::<2>()?;
    let end = |address: &[u8; N], port: &[u8; 2]| SocketAddr::new((*address).into(), u16::from_be_bytes(*port));
    Some((end(from, from_port), end(to, to_port)))
}

/// Whether these bytes begin HTTP/2; `None` asks for more.
pub(crate) fn is_http2(bytes: &[u8]) -> Option<bool> {
    if bytes.starts_with(PREFACE) {
        Some(true)
    } else if PREFACE.starts_with(bytes) {
        None
    } else {
        Some(false)
    }
}

/// Reads until `look` has an answer; it and everything that was read. `None` when the connection ended before.
pub(crate) async fn read_until<T>(
    io: &mut (impl AsyncRead + Unpin),
    mut read: Vec<u8>,
    mut look: impl FnMut(&[u8]) -> Option<T>,
) -> io::Result<Option<(T, Vec<u8>)>> {
    loop {
        if !read.is_empty()
            && let Some(found) = look(&read)
        {
            return Ok(Some((found, read)));
        }
        if read.capacity() == read.len() {
            read.reserve(512);
        }
        if io.read_buf(&mut read).await? == 0 {
            return Ok(None);
        }
    }
}

/// A connection of which something was read already.
#[derive(Debug)]
pub(crate) struct Rewound<I> {
    read: Bytes,
    io: I,
}

impl<I> Rewound<I> {
    pub fn new(read: Vec<u8>, io: I) -> Self {
        Self { read: Bytes::from(read), io }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Rewound<I> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, into);
        }
        let some = self.read.len().min(into.remaining());
        into.put_slice(&self.read.split_to(some));
        if self.read.is_empty() {
            // Lets the memory go.
            self.read = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Rewound<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, from)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, rest].concat()
    }

    /// What a header says of the client; `-` for nothing, `?` for what is no header.
    fn check(bytes: &[u8], want: &str) {
        let more = b"GET / HTTP/1.1\r\n";
        let got = match proxied(&[bytes, more].concat()) {
            Err(NotProxied) => "?".to_owned(),
            Ok(None) => "more".to_owned(),
            Ok(Some(found)) => {
                assert_eq!(found.length, bytes.len(), "{:?}", String::from_utf8_lossy(bytes));
                for end in 0..bytes.len() {
                    assert_eq!(proxied(&bytes[..end]), Ok(None), "cut at {end}: {:?}", String::from_utf8_lossy(bytes));
                }
                found.client.map_or_else(
                    || "-".to_owned(),
                    |(from, to)| if from.port() == 5000 { format!("{from} > {to}") } else { from.to_string() },
                )
            }
        };
        assert_eq!(got, want, "{:?}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn rows() {
        for (text, want) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 5000 443\r\n", "192.0.2.7:5000 > 198.51.100.1:443"),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 5000 443\r\n", "[2001:db8::7]:5000 > [2001:db8::1]:443"),
            ("PROXY UNKNOWN\r\n", "-"),
            ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "-"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 5000\r\n", "?"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 5000 70000\r\n", "?"),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 5000 443 1\r\n", "?"),
            ("PROXY TCP4 2001:db8::7 198.51.100.1 5000 443\r\n", "?"),
            ("PROXY TCP4  192.0.2.7 198.51.100.1 5000 443\r\n", "?"),
            ("PROXY UDP4 192.0.2.7 198.51.100.1 5000 443\r\n", "?"),
            ("PROXY \r\n", "?"),
            ("proxy TCP4 192.0.2.7 198.51.100.1 5000 443\r\n", "?"),
            ("GET / HTTP/1.1\r\n", "?"),
        ] {
            check(text.as_bytes(), want);
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        assert_eq!(proxied(long.as_bytes()), Err(NotProxied));
        let four = [192, 0, 2, 7, 198, 51, 100, 1, 19, 136, 1, 187];
        let six = ["2001:db8::7".parse::<Ipv6Addr>().unwrap().octets(), [9; 16]].concat();
        check(&v2(0x21, 0x11, &four), "192.0.2.7:5000 > 198.51.100.1:443");
        check(&v2(0x21, 0x11, &[&four[..], &[3, 0, 4, 1, 2, 3, 4]].concat()), "192.0.2.7:5000 > 198.51.100.1:443");
        check(&v2(0x21, 0x21, &[&six[..], &[0; 4]].concat()), "[2001:db8::7]:0");
        check(&v2(0x20, 0x00, &[]), "-");
        check(&v2(0x20, 0x11, &four), "-");
        check(&v2(0x21, 0x00, &[]), "?");
        check(&v2(0x21, 0x12, &four), "?");
        check(&v2(0x21, 0x11, &four[..11]), "?");
        check(&v2(0x21, 0x21, &four), "?");
        check(&v2(0x31, 0x11, &four), "?");
        check(&v2(0x22, 0x11, &four), "?");
        check(&v2(0x21, 0x11, &[0; 3000]), "?");
    }

    #[test]
    fn http2_is_told_by_its_whole_preface() {
        assert_eq!(is_http2(PREFACE), Some(true));
        for end in 0..PREFACE.len() {
            assert_eq!(is_http2(&PREFACE[..end]), None, "{end}");
        }
        for other in [&b"GET"[..], b"POST / HTTP/1.1", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", b"PROPFIND", b"\x16\x03\x01"] {
            assert_eq!(is_http2(other), Some(false));
        }
    }
}
