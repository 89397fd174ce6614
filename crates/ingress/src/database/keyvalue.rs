//! Key Values: their servers have no password, so that clients from outside are asked for one here.
//!
//! Invariant: nothing that a client sends before it has said the password goes any further.

use super::command::{self, LONGEST};
use super::{HANDSHAKE, finish};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::io;
use std::time::Duration;
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Passwords that a client may say before it is left.
const MOST_TRIES: usize = 3;
/// Before one that was wrong is answered.
const AFTER_A_WRONG_ONE: Duration = Duration::from_secs(1);
/// Commands of a client that has not said the password.
const MOST_COMMANDS: usize = 32;
/// The user whom a client means that names none.
const DEFAULT_USER: &[u8] = b"default";

const NO_PASSWORD: &[u8] = b"-NOAUTH Authentication required.\r\n";
const NO_PASSWORD_IN_HELLO: &[u8] = b"-NOAUTH HELLO must be called with the client already authenticated, otherwise the \
    HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time\r\n";
const WRONG_PASSWORD: &[u8] = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n";
const NOT_ENCRYPTED: &[u8] = b"-ERR connections from outside are encrypted: connect with rediss:// or --tls\r\n";
/// Clients try again who hear this.
pub(super) const NOT_READY: &[u8] = b"-LOADING the Key Value is not ready\r\n";

/// What a client has to say: a user and a password, of which only a digest is known here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    user: String,
    digest: [u8; 32],
}

impl Login {
    /// For this user and for `default`. The password is one that can't be guessed: its digest is quickly made.
    pub fn new(user: &str, password: &str) -> Self {
        Self { user: user.to_owned(), digest: digest(user, password.as_bytes()) }
    }

    fn accepts(&self, user: &[u8], password: &[u8]) -> bool {
        let right: bool = digest(&self.user, password).ct_eq(&self.digest).into();
        right && (user == DEFAULT_USER || user == self.user.as_bytes())
    }
}

/// Of a password; the user's name, which is unlike any other, is its salt.
fn digest(user: &str, password: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(u64::try_from(user.len()).unwrap_or(u64::MAX).to_be_bytes());
    hash.update(user);
    hash.update(password);
    hash.finalize().into()
}

/// A client that said the password.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// It is told so here; its server says nothing of it.
    pub(super) by_auth: bool,
    /// What its server gets first: what is left of its `HELLO`, and what it sent since.
    pub(super) first: Vec<u8>,
}

/// What is done about a command.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Nothing is said.
    Nothing,
    Say(&'static [u8]),
    /// Nothing is said after it.
    End(&'static [u8]),
    /// A wrong password.
    Wrong,
    /// The right one. What its server is to answer, unless this is answered here.
    Right(Option<Vec<u8>>),
}

/// Waits until a client begins TLS. False for one that does not, which is told.
pub(super) async fn begins_tls(stream: &mut TcpStream) -> io::Result<bool> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(false);
    }
    if first[0] == HANDSHAKE {
        return Ok(true);
    }
    stream.write_all(NOT_ENCRYPTED).await?;
    stream.shutdown().await?;
    finish(stream).await;
    Ok(false)
}

/// Asks a client for its password; none for one that is left.
pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, login: &Login) -> io::Result<Option<Passed>> {
    let mut held = Vec::with_capacity(LONGEST);
    let (mut commands, mut tries) = (0, 0);
    loop {
        let (answer, length) = match command::read(&held) {
            Ok(Some(command)) => (answer(&command.words, login), command.length),
            Ok(None) => {
                let more = u64::try_from(LONGEST - held.len()).unwrap_or_default();
                if (&mut *stream).take(more).read_buf(&mut held).await? == 0 {
                    return Ok(None);
                }
                continue;
            }
            Err(broken) => {
                stream.write_all(format!("-ERR Protocol error: {broken}\r\n").as_bytes()).await?;
                stream.shutdown().await?;
                return Ok(None);
            }
        };
        held.drain(..length);
        commands += 1;
        let (said, ends) = match answer {
            Answer::Right(hello) => {
                let by_auth = hello.is_none();
                let first = [hello.unwrap_or_default(), held].concat();
                return Ok(Some(Passed { by_auth, first }));
            }
            Answer::Nothing => (&b""[..], false),
            Answer::Say(said) => (said, false),
            Answer::End(said) => (said, true),
            Answer::Wrong => {
                tries += 1;
                sleep(AFTER_A_WRONG_ONE).await;
                (WRONG_PASSWORD, tries == MOST_TRIES)
            }
        };
        stream.write_all(said).await?;
        stream.flush().await?;
        if ends || commands == MOST_COMMANDS {
            stream.shutdown().await?;
            return Ok(None);
        }
    }
}

/// What servers that have a password answer to a client that has not said it.
fn answer(words: &[&[u8]], login: &Login) -> Answer {
    let Some((name, arguments)) = words.split_first() else { return Answer::Nothing };
    let judged = |user, password, then| if login.accepts(user, password) { Answer::Right(then) } else { Answer::Wrong };
    match (name.to_ascii_uppercase().as_slice(), arguments) {
        (b"AUTH", [password]) => judged(DEFAULT_USER, *password, None),
        (b"AUTH", [user, password]) => judged(*user, *password, None),
        (b"AUTH", []) => Answer::Say(b"-ERR wrong number of arguments for 'auth' command\r\n"),
        (b"AUTH", _) => Answer::Say(b"-ERR syntax error\r\n"),
        (b"HELLO", [version, options @ ..]) => match hello(version, options) {
            Ok(Hello { user, password, rest }) => judged(user, password, Some(rest)),
            Err(said) => Answer::Say(said),
        },
        (b"HELLO", []) => Answer::Say(NO_PASSWORD_IN_HELLO),
        (b"RESET", []) => Answer::Say(b"+RESET\r\n"),
        (b"QUIT", _) => Answer::End(b"+OK\r\n"),
        // A browser, whom somebody has send something that looks like commands.
        (b"POST" | b"HOST:", _) => Answer::End(b""),
        _ => Answer::Say(NO_PASSWORD),
    }
}

/// A `HELLO` that says a password.
struct Hello<'a> {
    user: &'a [u8],
    password: &'a [u8],
    /// The same command without them.
    rest: Vec<u8>,
}

/// An error is what is answered.
fn hello<'a>(version: &'a [u8], mut options: &[&'a [u8]]) -> Result<Hello<'a>, &'static [u8]> {
    match version {
        b"2" | b"3" => {}
        digits if digits.iter().all(u8::is_ascii_digit) && !digits.is_empty() => return Err(b"-NOPROTO unsupported protocol version\r\n"),
        _ => return Err(b"-ERR Protocol version is not an integer or out of range\r\n"),
    }
    let (mut says, mut rest) = (None, vec![&b"HELLO"[..], version]);
    while let Some((option, after)) = options.split_first() {
        options = match (option.to_ascii_uppercase().as_slice(), after) {
            (b"AUTH", [user, password, after @ ..]) => {
                says = Some((*user, *password));
                after
            }
            (b"SETNAME", [name, after @ ..]) => {
                rest.extend([*option, *name]);
                after
            }
            _ => return Err(b"-ERR Syntax error in HELLO option\r\n"),
        };
    }
    let (user, password) = says.ok_or(NO_PASSWORD_IN_HELLO)?;
    Ok(Hello { user, password, rest: command::write(&rest) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::time::Instant;

    const PASSWORD: &str = "k3y0fthehouse";

    fn login() -> Login {
        Login::new("red-1", PASSWORD)
    }

    /// What comes of a client that sends these bytes, each piece for itself, and what it hears.
    async fn asked(pieces: &[&[u8]]) -> (Option<Passed>, String) {
        // A small pipe, so that pieces stay such.
        let (mut client, mut server) = tokio::io::duplex(64);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let asking = tokio::spawn(async move { ask(&mut server, &login()).await.unwrap() });
        let (mut from_server, mut says) = tokio::io::split(&mut client);
        let saying = async {
            for piece in pieces {
                if says.write_all(&piece).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            // The server may have ended first.
            let _ = says.shutdown().await;
        };
        let mut heard = Vec::new();
        let hearing = from_server.read_to_end(&mut heard);
        let ((), read) = tokio::join!(saying, hearing);
        read.unwrap();
        (asking.await.unwrap(), String::from_utf8(heard).unwrap())
    }

    fn passed(by_auth: bool, first: &[u8]) -> Passed {
        Passed { by_auth, first: first.to_vec() }
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_the_password_comes_through_with_what_follows() {
        for (says, want) in [
            (&format!("AUTH {PASSWORD}\r\n")[..], passed(true, b"")),
            (&format!("auth default {PASSWORD}\r\nPING\r\nGET"), passed(true, b"PING\r\nGET")),
            (&format!("*3\r\n$4\r\nAUTH\r\n$5\r\nred-1\r\n$13\r\n{PASSWORD}\r\n"), passed(true, b"")),
            (
                &format!("*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$13\r\n{PASSWORD}\r\n*1\r\n$4\r\nPING\r\n"),
                passed(false, b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*1\r\n$4\r\nPING\r\n"),
            ),
            (
                &format!("hello 2 setname me auth red-1 {PASSWORD}\r\n"),
                passed(false, b"*4\r\n$5\r\nHELLO\r\n$1\r\n2\r\n$7\r\nsetname\r\n$2\r\nme\r\n"),
            ),
        ] {
            assert_eq!(asked(&[says.as_bytes()]).await, (Some(want), String::new()), "{says}");
        }
        let (came, heard) = asked(&[format!("PING\r\n\r\nHELLO 3\r\nAUTH wrong\r\nAUTH {PASSWORD}\r\n").as_bytes()]).await;
        assert_eq!(came, Some(passed(true, b"")));
        assert!(
            heard.starts_with("-NOAUTH Authentication") && heard.contains("-NOAUTH HELLO") && heard.ends_with("disabled.\r\n"),
            "{heard}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_is_told_so_slowly_and_left() {
        let many = "PING\r\n".repeat(100);
        for (says, ends, lines, seconds) in [
            ("AUTH a\r\nAUTH b c\r\nHELLO 3 AUTH default d\r\nAUTH k3y0fthehouse\r\n", "-WRONGPASS", 3, 3),
            ("AUTH red-2 k3y0fthehouse\r\n", "-WRONGPASS", 1, 1),
            (&many, "-NOAUTH", MOST_COMMANDS, 0),
            ("AUTH\r\n", "-ERR wrong number", 1, 0),
            ("AUTH a b c\r\n", "-ERR syntax", 1, 0),
            ("HELLO 4 AUTH default k3y0fthehouse\r\n", "-NOPROTO", 1, 0),
            ("HELLO x\r\n", "-ERR Protocol version", 1, 0),
            ("HELLO 3 AUTH default\r\n", "-ERR Syntax", 1, 0),
            ("RESET\r\n", "+RESET", 1, 0),
            ("QUIT\r\nAUTH k3y0fthehouse\r\n", "+OK", 1, 0),
            ("POST / HTTP/1.1\r\nAUTH k3y0fthehouse\r\n", "", 0, 0),
            ("*1\r\n$9999\r\n", "-ERR Protocol error: unauthenticated bulk", 1, 0),
            ("AUTH k3y0fthehouse", "", 0, 0),
            ("", "", 0, 0),
        ] {
            let begun = Instant::now();
            let (came, heard) = asked(&[says.as_bytes()]).await;
            let last = heard.lines().last().unwrap_or_default();
            assert!(came.is_none() && last.starts_with(ends) && heard.lines().count() == lines, "{says}: {heard}");
            assert_eq!(begun.elapsed().as_secs(), seconds, "{says}");
        }
    }

    #[test]
    fn only_the_password_of_this_user_is_right() {
        let login = login();
        assert!(login.accepts(b"red-1", PASSWORD.as_bytes()) && login.accepts(b"default", PASSWORD.as_bytes()));
        for (user, password) in [("red-2", PASSWORD), ("", PASSWORD), ("RED-1", PASSWORD), ("red-1", "k3y0fthehous"), ("red-1", "")] {
            assert!(!login.accepts(user.as_bytes(), password.as_bytes()), "{user} {password}");
        }
        assert_ne!(Login::new("a", "bc").digest, Login::new("ab", "c").digest);
        assert!(!serde_json::to_string(&login).unwrap().contains(PASSWORD));
    }

    proptest! {
        #[test]
        fn nobody_comes_through_without_the_password(bytes in proptest::collection::vec(any::<u8>(), 0..200), words in proptest::collection::vec("[A-Za-z0-9]{1,8}", 0..9)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
            for first in [&b"AUTH"[..], b"HELLO", b"HELLO 3 AUTH"] {
                let said = [&command::write(&[&[first], words.as_slice()].concat()), &bytes[..]].concat();
                let (came, _) = runtime.block_on(asked(&[&said]));
                prop_assert_eq!(came, None);
            }
        }

        #[test]
        fn pieces_make_no_difference(at in proptest::collection::btree_set(1_usize..100, 0..20)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let said = format!("PING\r\nAUTH no\r\n*7\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$5\r\nred-1\r\n$13\r\n{PASSWORD}\r\n$7\r\nSETNAME\r\n$1\r\na\r\nINFO\r\n");
            let ends = at.iter().copied().chain([said.len()]);
            let mut begin = 0;
            let pieces: Vec<&[u8]> = ends.map(|end| &said.as_bytes()[std::mem::replace(&mut begin, end)..end]).collect();
            let (came, heard) = runtime.block_on(asked(&pieces));
            let came = came.unwrap();
            let hello = command::write(&[b"HELLO", b"3", b"SETNAME", b"a"]);
            // What comes later stays where it is.
            prop_assert!(!came.by_auth && [&hello[..], b"INFO\r\n"].concat().starts_with(&came.first) && came.first.starts_with(&hello));
            prop_assert_eq!(heard.lines().count(), 2);
        }
    }
}
