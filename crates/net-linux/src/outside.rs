//! What a Moat in a user namespace of its own asks of the one process that stays outside: sockets of the machine's own network
//! namespace, the machine's addresses, and the namespaces themselves for whoever comes in later.
//!
//! [`Outside`] asks, [`Door`] answers; one question and one answer for each connection to a Unix socket in the runtime folder,
//! descriptors beside them (unix(7), `SCM_RIGHTS`). Invariant: only the user who made the socket is answered, and a socket that is
//! handed in can do no more than that user can.

use crate::link::Links;
use crate::{ns, outward};
use moat_model::Family;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names the socket of the process outside, for every process inside.
pub const VARIABLE: &str = "MOAT_OUTSIDE";
/// Its name in the runtime folder.
const SOCKET: &str = "outside.sock";
/// How long a question or an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most descriptors of one answer.
const MOST_FDS: usize = 3;
/// Most bytes of a question.
const LONGEST: u64 = 4096;
/// Connections that may wait for the ingress to accept them, as the standard library has it.
const BACKLOG: i32 = 4096;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Question {
    /// A TCP socket of this family, bound to nothing.
    Socket { v6: bool },
    /// The user, mount and network namespaces.
    Namespaces,
    /// The machine's own addresses.
    Addresses,
    /// Those by which others may come to it.
    Outward,
    /// What is there and what is not.
    About,
    /// Everything is down: end.
    End,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    /// As asked; what was asked for is beside it.
    Done,
    Addresses(BTreeSet<IpAddr>),
    About(About),
    /// In words.
    Refused(String),
}

/// What a Moat without root has, and what it has to do without.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The program by which services reach the internet.
    pub egress: Option<String>,
    /// The control group below which those of instances are; `None` where nothing was delegated to the user.
    #[serde(default)]
    pub group: Option<String>,
    /// What is not as it is with root, each in words.
    pub lacks: Vec<String>,
}

/// Asks the process outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    socket: PathBuf,
}

impl Outside {
    /// The one that belongs to this process; `None` where it runs on the machine itself.
    pub fn of_process() -> Option<Self> {
        std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(|path| Self { socket: path.into() })
    }

    /// The one of a runtime folder, whether it runs or not.
    pub fn at(run: &Path) -> Self {
        Self { socket: run.join(SOCKET) }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What there is, and what there is not.
    pub fn about(&self) -> io::Result<About> {
        match self.ask(Question::About)? {
            (Answer::About(about), _) => Ok(about),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The machine's own addresses, loopback left out.
    pub fn addresses(&self) -> io::Result<BTreeSet<IpAddr>> {
        match self.ask(Question::Addresses)? {
            (Answer::Addresses(addresses), _) => Ok(addresses),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Those by which others may come to it; all, where the process outside is of a version that can't tell.
    pub fn outward(&self) -> io::Result<BTreeSet<IpAddr>> {
        match self.ask(Question::Outward) {
            Ok((Answer::Addresses(addresses), _)) => Ok(addresses),
            _ => self.addresses(),
        }
    }

    /// The user, mount and network namespaces that everything is in.
    pub fn namespaces(&self) -> io::Result<[OwnedFd; 3]> {
        let (_, fds) = self.ask(Question::Namespaces)?;
        fds.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// A TCP socket of the machine's own network namespace, bound to nothing.
    pub fn tcp_socket(&self, family: Family) -> io::Result<OwnedFd> {
        let (_, fds) = self.ask(Question::Socket { v6: family == Family::V6 })?;
        fds.into_iter().next().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Has it end, and the namespaces with the last process in them.
    pub fn end(&self) -> io::Result<()> {
        self.ask(Question::End).map(drop)
    }

    fn ask(&self, question: Question) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&serde_json::to_vec(&question)?)?;
        stream.shutdown(Shutdown::Write)?;
        let (text, fds) = receive(&stream)?;
        match serde_json::from_slice(&text)? {
            Answer::Refused(why) => Err(io::Error::other(why)),
            answer @ (Answer::Done | Answer::Addresses(_) | Answer::About(_)) => Ok((answer, fds)),
        }
    }
}

/// Listens on an address of the machine, from wherever this process runs. Non-blocking.
pub fn public_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = match Outside::of_process() {
        None => TcpListener::bind(address)?,
        Some(outside) => {
            let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
            let socket = outside.tcp_socket(family)?;
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &address)?;
            rustix::net::listen(&socket, BACKLOG)?;
            TcpListener::from(socket)
        }
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The socket that questions come to, and what answers are made of.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    namespaces: [OwnedFd; 3],
}

/// Who is found at a door's place in the runtime folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// This door.
    Own,
    /// Another one, which took its place.
    Other,
    /// Nobody: the folder was removed.
    Nobody,
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// It was answered, or it was none.
    Answered,
    /// It was to end.
    End,
}

impl Door {
    /// Takes the place in a runtime folder; `namespaces` are user, mount and network.
    pub fn open(run: &Path, namespaces: [OwnedFd; 3]) -> io::Result<Self> {
        let path = Outside::at(run).socket;
        let aside = path.with_extension("new");
        let _ = fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside)?;
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))?;
        let inode = fs::metadata(&aside)?.ino();
        fs::rename(&aside, &path)?;
        Ok(Self { listener, path, inode, namespaces })
    }

    /// Where questions arrive.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Who is found by those who look for it.
    pub fn found(&self) -> Found {
        match fs::metadata(&self.path) {
            Ok(about) if about.ino() == self.inode => Found::Own,
            Ok(_) => Found::Other,
            Err(_) => Found::Nobody,
        }
    }

    /// Closes it for those who come later.
    pub fn close(&self) {
        // Whoever connects finds nobody.
        let _ = fs::remove_file(&self.path);
    }

    /// Waits for one question and answers it.
    pub fn serve(&self, about: &About) -> io::Result<Asked> {
        let (mut stream, _) = self.listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let peer = rustix::net::sockopt::socket_peercred(&stream)?;
        if peer.uid != rustix::process::geteuid() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut text = Vec::new();
        (&mut stream).take(LONGEST).read_to_end(&mut text)?;
        let question: Question = serde_json::from_slice(&text)?;
        let (answer, fds) = self.answer(question, about).unwrap_or_else(|error| (Answer::Refused(error.to_string()), Vec::new()));
        if question == Question::End {
            self.close();
        }
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        send(&stream, &serde_json::to_vec(&answer)?, &fds)?;
        Ok(if question == Question::End { Asked::End } else { Asked::Answered })
    }

    fn answer(&self, question: Question, about: &About) -> io::Result<(Answer, Vec<OwnedFd>)> {
        Ok(match question {
            Question::Socket { v6 } => (Answer::Done, vec![ns::tcp_socket(if v6 { Family::V6 } else { Family::V4 })?]),
            Question::Namespaces => (Answer::Done, self.namespaces.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>()?),
            Question::Addresses => {
                let all = Links::open()?.addresses()?;
                (
                    Answer::Addresses(all.into_iter().map(|(_, net)| net.addr()).filter(|address| !address.is_loopback()).collect()),
                    Vec::new(),
                )
            }
            Question::Outward => (Answer::Addresses(outward::addresses()?), Vec::new()),
            Question::About => (Answer::About(about.clone()), Vec::new()),
            Question::End => (Answer::Done, Vec::new()),
        })
    }
}

fn send(mut stream: &UnixStream, text: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(stream, &[IoSlice::new(text)], &mut rights, SendFlags::NOSIGNAL)?;
    stream.write_all(text.get(sent..).unwrap_or_default())
}

/// Everything until the other side closes.
fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut text, mut fds) = (Vec::new(), Vec::new());
    loop {
        let mut piece = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(stream, &mut [IoSliceMut::new(&mut piece)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
        for message in rights.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if got.bytes == 0 {
            return Ok((text, fds));
        }
        text.extend_from_slice(piece.get(..got.bytes).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_addresses_and_namespaces_come_through_the_door_until_it_is_closed() {
        let run = tempfile::tempdir().unwrap();
        let outside = Outside::at(run.path());
        assert!(outside.about().is_err(), "nobody is there yet");
        let open = |kind: &str| OwnedFd::from(fs::File::open(format!("/proc/self/ns/{kind}")).unwrap());
        let door = Door::open(run.path(), [open("user"), open("mnt"), open("net")]).unwrap();
        let about = About { egress: Some("a way".to_owned()), group: Some("/a/b".to_owned()), lacks: vec!["limits".to_owned()] };
        let told = about.clone();
        let server = std::thread::spawn(move || {
            while door.serve(&told).unwrap() != Asked::End {}
            door.found()
        });
        assert_eq!(outside.about().unwrap(), about);
        let all = outside.addresses().unwrap();
        assert!(all.iter().all(|address| !address.is_loopback()) && outside.outward().unwrap().is_subset(&all));
        let [user, mnt, net] = outside.namespaces().unwrap();
        for (kind, fd) in [("user", user), ("mnt", mnt), ("net", net)] {
            let inode = |file: fs::File| file.metadata().unwrap().ino();
            assert_eq!(inode(fd.into()), inode(open(kind).into()), "{kind}");
        }
        for family in [Family::V4, Family::V6] {
            assert!(TcpListener::from(outside.tcp_socket(family).unwrap()).local_addr().is_ok_and(|address| address.port() == 0));
        }
        outside.end().unwrap();
        assert_eq!(server.join().unwrap(), Found::Nobody);
        assert!(outside.end().is_err());
    }
}
