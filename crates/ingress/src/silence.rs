//! Noticing that the other end of a connection is gone without a word, while nothing is sent to it.
//!
//! The system asks (keep-alive of TCP); no PING of HTTP/2 does. A PING waits behind all that a slow client has not read yet, and
//! who reads is there; servers of gRPC end connections over PINGs (`too_many_pings`), and busy ones answer late.

use rustix::net::sockopt;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;

/// The other end is asked after so long a silence, and as often again.
const ASK_AFTER: Duration = Duration::from_secs(20);
/// So many times before the connection is given up.
const ASK_TIMES: u32 = 3;

/// Has an end that is gone noticed, and small writes sent at once: else a small answer waits for the acknowledgement of the
/// one before.
///
/// # Errors
/// When the connection is over already.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_tcp_keepidle(stream, ASK_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, ASK_AFTER)?;
    sockopt::set_tcp_keepcnt(stream, ASK_TIMES)?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}
