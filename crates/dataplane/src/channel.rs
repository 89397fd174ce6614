//! Messages with descriptors over a Unix socket.
//!
//! A message is eight bytes (the length of what follows and the number of descriptors, both big-endian), then JSON. The
//! descriptors travel with the first of the eight bytes (`SCM_RIGHTS`, unix(7)).

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// Longer messages are refused; ten thousand services make some ten MiB.
const LONGEST: usize = 256 << 20;
/// More descriptors at once are refused.
const MOST_FDS: usize = 8;
const HEAD: usize = 8;
const PIECE: usize = 64 << 10;

/// One end of a conversation.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    read: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

/// A [`Channel`] between two runtimes.
#[derive(Debug)]
pub struct Parked {
    stream: std::os::unix::net::UnixStream,
    read: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Channel {
    /// A conversation over this connection.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, read: Vec::new(), fds: VecDeque::new() }
    }

    /// A conversation over a connection that no runtime has yet.
    ///
    /// # Errors
    /// When it is no socket, or there is no runtime.
    pub fn of_std(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::new(UnixStream::from_std(stream)?))
    }

    /// User and process at the other end.
    pub fn peer(&self) -> io::Result<tokio::net::unix::UCred> {
        self.stream.peer_cred()
    }

    /// Takes it out of its runtime.
    pub fn park(self) -> io::Result<Parked> {
        Ok(Parked { stream: self.stream.into_std()?, read: self.read, fds: self.fds })
    }

    /// Sends a message. When this is given up half-way the conversation is broken.
    pub async fn send(&mut self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
        if text.len() > LONGEST || fds.len() > MOST_FDS {
            return Err(too_long());
        }
        let mut frame = Vec::with_capacity(HEAD + text.len());
        frame.extend(u32::try_from(text.len()).map_err(|_| too_long())?.to_be_bytes());
        frame.extend(u32::try_from(fds.len()).map_err(|_| too_long())?.to_be_bytes());
        frame.extend(text);
        let sent = self
            .stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
                let mut rights = SendAncillaryBuffer::new(&mut space);
                if !fds.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(fds)) {
                    return Err(too_long());
                }
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(rustix::net::sendmsg(&self.stream, &[IoSlice::new(&frame)], &mut rights, flags)?)
            })
            .await?;
        self.stream.write_all(frame.get(sent..).unwrap_or_default()).await
    }

    /// The next message with its descriptors; `None` at the end. May be given up and asked for again.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let broken = || io::Error::from(io::ErrorKind::InvalidData);
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_be_bytes).ok().and_then(|n| usize::try_from(n).ok());
        loop {
            if let Some((head, rest)) = self.read.split_at_checked(HEAD) {
                let (length, fds) = head.split_at(HEAD / 2);
                let (length, fds) = (number(length).ok_or_else(broken)?, number(fds).ok_or_else(broken)?);
                if length > LONGEST || fds > self.fds.len() {
                    return Err(broken());
                }
                if let Some(text) = rest.get(..length) {
                    let message = serde_json::from_slice(text)?;
                    self.read.drain(..HEAD + length);
                    return Ok(Some((message, self.fds.drain(..fds).collect())));
                }
            }
            if self.more().await? == 0 {
                return if self.read.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    async fn more(&mut self) -> io::Result<usize> {
        let Self { stream, read, fds } = self;
        let mut piece = vec![0; PIECE];
        let length = stream
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
                let mut rights = RecvAncillaryBuffer::new(&mut space);
                let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
                let got = rustix::net::recvmsg(&*stream, &mut [IoSliceMut::new(&mut piece)], &mut rights, flags)?;
                for message in rights.drain() {
                    if let RecvAncillaryMessage::ScmRights(received) = message {
                        fds.extend(received);
                    }
                }
                Ok(got.bytes)
            })
            .await?;
        read.extend_from_slice(piece.get(..length).unwrap_or_default());
        Ok(length)
    }
}

impl Parked {
    /// Goes on in the runtime of the caller.
    pub fn go_on(self) -> io::Result<Channel> {
        Ok(Channel { stream: UnixStream::from_std(self.stream)?, read: self.read, fds: self.fds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    fn pair() -> (Channel, Channel) {
        let (a, b) = UnixStream::pair().unwrap();
        (Channel::new(a), Channel::new(b))
    }

    #[tokio::test]
    async fn messages_and_descriptors_arrive_together_and_in_order() {
        let (mut here, mut there) = pair();
        let (mut reader, writer) = io::pipe().unwrap();
        let large = "x".repeat(3_000_000);
        let sending = async {
            here.send(&"first", &[]).await.unwrap();
            here.send(&large, &[writer.as_fd(), writer.as_fd()]).await.unwrap();
            here.send(&"last", &[writer.as_fd()]).await.unwrap();
            drop(here);
        };
        let receiving = async {
            let (text, fds) = there.receive::<String>().await.unwrap().unwrap();
            assert_eq!((text.as_str(), fds.len()), ("first", 0));
            let (text, fds) = there.receive::<String>().await.unwrap().unwrap();
            assert!(text == large && fds.len() == 2);
            let (text, mut fds) = there.receive::<String>().await.unwrap().unwrap();
            assert_eq!((text.as_str(), fds.len()), ("last", 1));
            std::fs::File::from(fds.remove(0)).write_all(b"!").unwrap();
            assert!(there.receive::<String>().await.unwrap().is_none());
        };
        tokio::join!(sending, receiving);
        drop(writer);
        let mut got = String::new();
        reader.read_to_string(&mut got).unwrap();
        assert_eq!(got, "!");
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_conversation() {
        for bytes in [&[0xff; 8][..], &[0, 0, 0, 1, 0, 0, 0, 0, b'{'], &[0, 0, 0, 2, 0, 0, 0, 1, b'"', b'"'], &[0, 0, 0]] {
            let (mut here, mut there) = pair();
            here.stream.write_all(bytes).await.unwrap();
            drop(here);
            assert!(there.receive::<String>().await.is_err(), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_receive_that_was_given_up_loses_nothing() {
        let (mut here, mut there) = pair();
        let frame = [&[0, 0, 0, 4, 0, 0, 0, 0][..], b"\"ab\""].concat();
        for byte in frame {
            tokio::select! {
                biased;
                got = there.receive::<String>() => panic!("{got:?}"),
                () = std::future::ready(()) => {}
            }
            here.stream.write_all(&[byte]).await.unwrap();
        }
        assert_eq!(there.receive::<String>().await.unwrap().unwrap().0, "ab");
    }
}
