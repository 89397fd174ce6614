//! Key Values that clients from outside come to: who may, with which password, and what is said of it.

use crate::host::{Host, Said, host, service, wait_for};
use std::path::Path;
use std::process::{Child, Stdio};

const BLUEPRINT: &str = "
services:
  - {type: keyvalue, name: cache, ipAllowList: [{source: 192.0.2.0/24, description: the office}]}
  - {type: keyvalue, name: vault, ipAllowList: []}
";
const INSIDE: &str = "192.0.2.77";

/// A client as people start one: user, password, the address that it goes to and the name that it asks for.
struct Client<'h> {
    host: &'h Host,
    user: Option<String>,
    password: String,
    address: &'static str,
    name: &'static str,
}

impl<'h> Client<'h> {
    /// By the URL that `moat env get` shows.
    fn of(host: &'h Host, url: &str) -> Self {
        let (user, rest) = url.strip_prefix("rediss://").unwrap().split_once(':').unwrap();
        let (password, at) = rest.split_once('@').unwrap();
        assert_eq!(at, "cache.localhost:6379");
        assert!(user.starts_with("red-") && password.len() == 24, "{url}");
        Self { host, user: Some(user.to_owned()), password: password.to_owned(), address: INSIDE, name: "cache.localhost" }
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.host.command("redis-cli");
        command.args(["-h", self.address, "-p", "6379", "--tls", "--sni", self.name, "--cacert"]);
        command.arg(self.host.path("authority.pem")).env("REDISCLI_AUTH", &self.password);
        if let Some(user) = &self.user {
            command.args(["--user", user]);
        }
        command.arg("-e").args(args).stdin(Stdio::null());
        command
    }

    /// What comes of a command.
    fn asks(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }
}

/// A client that waits for what is published under a mark.
struct Session<'h>(&'h Host, Child, String);

impl<'h> Session<'h> {
    fn begin(client: &Client<'h>, mark: &str) -> Self {
        let child = client.command(&["subscribe", mark]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let session = Self(client.host, child, mark.to_owned());
        wait_for("the session", || session.is_there());
        session
    }

    /// Whether its server knows it.
    fn is_there(&self) -> bool {
        let said = self.0.moat(&["exec", "cache", "--", "redis-cli", "pubsub", "numsub", &self.2]).ok();
        said.out.split_whitespace().last() == Some("1")
    }

    fn has_ended(&mut self) -> bool {
        self.1.try_wait().unwrap().is_some()
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let _ = self.1.kill();
        let _ = self.1.wait();
    }
}

/// What a client hears that sends these words as they are, within TLS, piece by piece.
fn hears(host: &Host, name: &str, pieces: &[String]) -> String {
    let script = format!(
        "
import socket, ssl, sys, time
context = ssl.create_default_context(cafile='{}')
plain = socket.create_connection(('{INSIDE}', 6379), 20)
try:
    stream = context.wrap_socket(plain, server_hostname='{name}')
    for piece in sys.argv[1:]:
        stream.sendall(piece.encode())
        time.sleep(0.3)
    stream.settimeout(2)
    heard = b''
    while piece := stream.recv(4096): heard += piece
except TimeoutError: heard += b'(open)'
except (ssl.SSLError, OSError) as error: heard = type(error).__name__.encode()
print(heard.decode())
",
        host.path("authority.pem").display()
    );
    let said: Said = host.command("python3").args(["-c", &script]).args(pieces).output().unwrap().into();
    said.ok().out
}

#[test]
fn a_key_value_is_open_to_those_it_names_who_say_its_password() {
    let Some(host) = host() else { return };
    let before = host.inventory();
    let file = host.write("b/render.yaml", BLUEPRINT);
    let up = ["up", "-d", file.to_str().unwrap()];
    let said = host.moat(&["check", file.to_str().unwrap()]).ok();
    assert_eq!(format!("{}{}", said.out, said.err).matches("moat ingress keyvalue=ADDRESS:PORT").count(), 1, "{said:?}");
    host.moat(&up).ok();
    let explain = |what: &str| host.moat(&["explain", "internet", what]).ok().out;
    let variable = |key: &str| host.moat(&["env", "get", "cache", key]);
    assert!(explain("cache:6379").starts_with("deny: internet"), "off unless asked for");
    assert!(host.sh("ss -Hltn 'sport = 6379'").out.is_empty());
    assert_eq!(variable("EXTERNAL_URL").code, 1);
    assert_eq!(variable("INTERNAL_URL").ok().out.trim(), "redis://cache:6379");

    host.moat(&["ingress", "keyvalue=0.0.0.0:6379"]).ok();
    let authority = host.moat(&["trust", "--print"]).ok().out;
    host.write("authority.pem", &authority);
    let url = variable("EXTERNAL_URL").ok().out.trim().to_owned();
    let client = Client::of(&host, &url);
    let user = client.user.clone().unwrap();
    assert_eq!(service(&host.ps(), "cache")["url"], format!("rediss://{user}@cache.localhost:6379"));
    assert!(service(&host.ps(), "vault")["url"].is_null());
    assert_eq!(host.moat(&["env", "get", "vault", "EXTERNAL_URL"]).code, 1);

    // Who says the password comes through, by every way to say it.
    let ask = |client: &Client<'_>| client.asks(&["incr", "count"]);
    assert_eq!(ask(&client).ok().out.trim(), "1");
    assert_eq!(ask(&Client { user: None, ..Client::of(&host, &url) }).ok().out.trim(), "2");
    assert_eq!(client.asks(&["-3", "incr", "count"]).ok().out.trim(), "3");
    assert_eq!(host.moat(&["exec", "cache", "--", "redis-cli", "get", "count"]).ok().out.trim(), "3");
    let password = &client.password;
    let hello =
        format!("*7\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$24\r\n{password}\r\n$7\r\nSETNAME\r\n$2\r\nme\r\n");
    let heard = hears(&host, "cache.localhost", &[format!("{hello}CLIENT GETNAME\r\nQUIT\r\n")]);
    assert!(
        heard.starts_with('%') && heard.contains("proto\r\n:3") && heard.contains("\r\n$2\r\nme\r\n"),
        "the server's own answer: {heard}"
    );
    let halves = hello.split_at(40);
    let heard = hears(&host, "cache.localhost", &["PI".to_owned(), format!("NG\r\n{}", halves.0), format!("{}QUIT\r\n", halves.1)]);
    assert!(heard.starts_with("-NOAUTH Authentication required.\r\n%"), "{heard}");

    // Nobody else: another password, none, another address, another name, no encryption; nothing of it gets to the server.
    let refused = |what: &str, said: Said, words: &str| {
        // `redis-cli` ends in different ways when nobody answers.
        let heard = format!("{}{}", said.out, said.err);
        assert!(said.code != 0 && heard.contains(words) && !heard.starts_with(char::is_numeric), "{what}: {said:?}");
    };
    let wrong = Client { password: "guess".to_owned(), ..Client::of(&host, &url) };
    refused("a wrong password", wrong.asks(&["set", "count", "9"]), "WRONGPASS");
    let wrong = Client { user: Some("someone".to_owned()), ..Client::of(&host, &url) };
    refused("another user", wrong.asks(&["set", "count", "9"]), "WRONGPASS");
    let mut silent = client.command(&["set", "count", "9"]);
    refused("no password", silent.env_remove("REDISCLI_AUTH").output().unwrap().into(), "NOAUTH Authentication required");
    let heard =
        hears(&host, "cache.localhost", &["AUTH a\r\nSET count 9\r\nAUTH b\r\nAUTH c\r\n".to_owned(), format!("AUTH {password}\r\n")]);
    assert_eq!(heard.matches("-WRONGPASS").count(), 3, "{heard}");
    assert!(!heard.contains("+OK") && !heard.contains("(open)"), "{heard}");
    refused("another address", ask(&Client { address: "127.0.0.1", ..Client::of(&host, &url) }), "");
    refused("another name", ask(&Client { name: "vault.localhost", ..Client::of(&host, &url) }), "");
    let plain = host.sh(&format!("redis-cli -e -h {INSIDE} -a {password} --no-auth-warning set count 9"));
    refused("no encryption", plain, "connections from outside are encrypted");
    assert_eq!(client.asks(&["get", "count"]).ok().out.trim(), "3");

    // What went on is told: to its numbers count who was let in, and who asked for it and was not.
    let text = host.moat(&["metrics"]).ok().out;
    let number = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("moat_database_{name}{{service=\"cache\"}} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    };
    assert_eq!((number("connections_total"), number("refused_total"), number("connections_open")), (6, 4, 0));
    assert!(number("received_bytes_total") > 60 && number("sent_bytes_total") > 100, "{text}");
    assert!(!text.contains("service=\"vault\"} "), "{text}");

    // What is said is so, and holds on the private network.
    let allowed = explain("cache:6379");
    assert!(allowed.starts_with("allow: internet → cache:6379/tcp by public-database") && allowed.contains("its password"), "{allowed}");
    for what in ["cache:6380", "cache:22", "vault:6379"] {
        assert!(explain(what).starts_with("deny: internet"), "{what}");
    }
    for (from, what, word) in [
        ("ingress", "cache:6379", "allow"),
        ("ingress", "vault:6379", "deny"),
        ("host", "cache:6379", "deny"),
        ("vault", "cache:6379", "deny"),
    ] {
        assert!(host.moat(&["explain", from, what]).ok().out.starts_with(word), "{from} {what}");
    }
    let cache = service(&host.ps(), "cache")["instances"][0]["address"]["v4"].as_str().unwrap().to_owned();
    let vault = service(&host.ps(), "vault")["instances"][0]["address"]["v4"].as_str().unwrap().to_owned();
    let from_router = |address: &str| host.router(&format!("timeout 3 redis-cli -h {address} ping")).out.trim().to_owned();
    assert_eq!((from_router(&cache).as_str(), from_router(&vault).as_str()), ("PONG", ""));
    host.moat(&["verify"]).ok();

    // A session goes on where it is while the ingress is restarted, and new ones come to the next process, with the same password.
    let mut session = Session::begin(&client, "first");
    let top = host.moat(&["top", "--once", "-o", "json"]).ok().json();
    let row = top["services"].as_array().unwrap().iter().find(|row| row["service"] == "cache").unwrap();
    assert_eq!(row["open"], 1, "{row}");
    host.moat(&["ingress", "--restart"]).ok();
    ask(&client).ok();
    host.kill(host.daemon().unwrap(), "KILL");
    ask(&client).ok();
    host.moat(&up).ok();
    ask(&client).ok();
    assert!(!session.has_ended() && session.is_there());
    assert_eq!(variable("EXTERNAL_URL").ok().out.trim(), url);
    // Whom it names no more is cut off.
    host.write("b/render.yaml", &BLUEPRINT.replace("192.0.2.0/24", "198.51.100.0/24"));
    host.moat(&up).ok();
    wait_for("the session's end", || session.has_ended());
    refused("withdrawn", ask(&client), "");
    host.write("b/render.yaml", BLUEPRINT);
    host.moat(&up).ok();
    wait_for("being let in again", || ask(&client).code == 0);
    // One that does not run says so to those who know its password.
    host.moat(&["suspend", "cache"]).ok();
    refused("suspended", ask(&client), "LOADING the Key Value is not ready");
    host.moat(&["resume", "cache"]).ok();
    wait_for("its return", || ask(&client).code == 0);
    let mut session = Session::begin(&client, "second");
    host.moat(&["ingress", "keyvalue=off"]).ok();
    wait_for("the session's end", || session.has_ended());
    wait_for("a free port", || host.sh("ss -Hltn 'sport = 6379'").out.is_empty());
    assert!(explain("cache:6379").starts_with("deny: internet"));
    assert_eq!((from_router(&cache).as_str(), variable("EXTERNAL_URL").code), ("", 1));
    host.moat(&["verify"]).ok();
    host.moat(&["ingress", "keyvalue=0.0.0.0:6379"]).ok();

    host.moat(&["down"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
    // The password is the same after everything was down, and in no log or file in clear.
    host.moat(&up).ok();
    assert_eq!(variable("EXTERNAL_URL").ok().out.trim(), url);
    wait_for("being let in", || ask(&client).code == 0);
    let holds = |words: &str| {
        let words = host.write("words", words);
        let places = "\"$MOAT_STATE_DIR\" \"$MOAT_RUN_DIR\" /proc/[0-9]*/cmdline";
        host.sh(&format!("grep -rlsF --text -f {} {places}", words.display())).out
    };
    assert!(holds(&format!("{user}\n")).contains("/run/"), "the words are looked for");
    assert_eq!(holds(&format!("{password}\n")), "");
    host.moat(&["down"]).ok();
}

/// A client that nobody here wrote (redis-py), over both versions of the protocol.
#[test]
fn redis_py_works_from_outside() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/python/bin/python");
    let Some(host) = host() else { return };
    if !python.exists() {
        println!("skipped: there is no {}; `cargo xtask test` installs it", python.display());
        return;
    }
    let file = host.write("b/render.yaml", BLUEPRINT);
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    host.moat(&["ingress", "keyvalue=0.0.0.0:6379"]).ok();
    let authority = host.moat(&["trust", "--print"]).ok().out;
    let authority = host.write("authority.pem", &authority);
    let url = host.moat(&["env", "get", "cache", "EXTERNAL_URL"]).ok().out.trim().to_owned();
    // As who uses it from another machine writes it down there.
    let names = host.write("hosts", &format!("127.0.0.1 localhost\n{INSIDE} cache.localhost\n"));
    host.sh(&format!("mount --bind {} /etc/hosts", names.display())).ok();
    let script = "
import os, redis, threading
for protocol in (2, 3):
    options = dict(ssl_ca_certs=os.environ['AUTHORITY'], protocol=protocol, client_name='me', socket_timeout=20)
    client = redis.Redis.from_url(os.environ['URL'], **options)
    client.flushall()
    large = os.urandom(3 << 20)
    assert client.set('large', large) and client.get('large') == large
    with client.pipeline() as pipe:
        for i in range(1000): pipe.incr('count')
        assert pipe.execute()[-1] == 1000
    threads = [threading.Thread(target=lambda: [client.incr('shared') for _ in range(50)]) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert client.get('shared') == b'400' and client.client_getname() in ('me', b'me')
    heard = client.pubsub()
    heard.subscribe('news')
    assert heard.get_message(timeout=10)['type'] == 'subscribe'
    client.publish('news', 'hello')
    assert heard.get_message(timeout=10)['data'] == b'hello'
    for url in (os.environ['URL'].replace('@', 'x@'), os.environ['URL'].replace('red-', 'rad-')):
        try:
            redis.Redis.from_url(url, **options).ping()
            raise SystemExit('a wrong password was taken')
        except redis.AuthenticationError as error: assert 'invalid username-password pair' in str(error), error
print('good')
";
    let said = host.command(&python).args(["-c", script]).env("URL", &url).env("AUTHORITY", &authority).output().map(Said::from).unwrap();
    assert_eq!(said.ok().out.trim(), "good");
    host.moat(&["down"]).ok();
}
