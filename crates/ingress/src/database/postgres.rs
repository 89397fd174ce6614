//! PostgreSQL: how a client asks for TLS, and how it is told what is wrong.

use super::{HANDSHAKE, finish};
use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What clients that begin with TLS say they speak.
pub(crate) const PROTOCOL: &[u8] = b"postgresql";
/// `SSLRequest` and `GSSENCRequest`: their length and their code.
pub(super) const ASKS_TLS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
pub(super) const ASKS_GSS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

/// Waits until a client begins TLS: at once, or after it asked. `None` for one that wants none, which is told.
pub(super) async fn asks_for_tls(stream: &mut TcpStream) -> io::Result<Option<bool>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
    if first[0] == HANDSHAKE {
        return Ok(Some(true));
    }
    // Encryption by GSSAPI is tried before TLS, once.
    for _ in 0..2 {
        let mut asked = [0; 8];
        stream.read_exact(&mut asked).await?;
        match asked {
            ASKS_TLS => {
                stream.write_all(b"S").await?;
                return Ok(Some(false));
            }
            ASKS_GSS => stream.write_all(b"N").await?,
            _ => break,
        }
    }
    say(stream, "28000", "connections from outside are encrypted: connect with sslmode=verify-full or sslmode=require").await?;
    finish(stream).await;
    Ok(None)
}

/// Ends with an `ErrorResponse`, which clients show.
pub(super) async fn say(stream: &mut (impl AsyncWrite + Unpin), code: &str, words: &str) -> io::Result<()> {
    let fields = format!("SFATAL\0VFATAL\0C{code}\0M{words}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
    stream.write_all(&[b"E", &length.to_be_bytes()[..], fields.as_bytes()].concat()).await?;
    stream.shutdown().await
}
