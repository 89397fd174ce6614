//! Databases that clients from outside come to: who may, how, and what is said of it.

use crate::host::{Host, Said, host, service, wait_for};
use std::process::{Child, Stdio};

const BLUEPRINT: &str = "
databases:
  - {name: books, ipAllowList: [{source: 192.0.2.0/24, description: the office}]}
  - {name: diary}
";

/// A URL with other words after it than `sslmode=verify-full`, so that a client finds the name at an address.
fn at(host: &Host, url: &str, address: &str) -> String {
    let root = host.path("authority.pem");
    format!("{url}&hostaddr={address}&sslrootcert={}&connect_timeout=20", root.display())
}

fn psql(host: &Host, url: &str, sql: &str) -> Said {
    let mut command = host.command("psql");
    command.args(["-XAtq", url, "-c", sql]).stdin(Stdio::null()).output().unwrap().into()
}

/// A client that begins with TLS at once, as those of PostgreSQL 17 do (`sslnegotiation=direct`), and asks for nobody's database:
/// the first byte of the answer.
fn at_once(host: &Host, name: &str, says: &str) -> String {
    let script = format!(
        "
import socket, ssl
context = ssl.create_default_context(cafile='{}')
{says}
plain = socket.create_connection(('192.0.2.77', 5432), 20)
try:
    stream = context.wrap_socket(plain, server_hostname='{name}')
    words = b'user\\0nobody\\0database\\0nothing\\0\\0'
    stream.sendall((len(words) + 8).to_bytes(4, 'big') + (3 << 16).to_bytes(4, 'big') + words)
    print(stream.recv(1))
except (ssl.SSLError, OSError) as error: print(type(error).__name__)
",
        host.path("authority.pem").display()
    );
    host.command("python3").args(["-c", &script]).output().map(Said::from).unwrap().out.trim().to_owned()
}

struct Session(Child);

impl Session {
    /// A client whose statement goes on; the server does so with one whose client was cut off, so each has a mark of its own.
    fn begin(host: &Host, url: &str, mark: &str) -> Self {
        let mut command = host.command("psql");
        command
            .args(["-XAtq", url, "-c", &format!("select '{mark}', pg_sleep(600)")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let session = Self(command.spawn().unwrap());
        let query = format!("select count(*) from pg_stat_activity where query like 'select ''{mark}''%'");
        wait_for("the statement", || psql(host, url, &query).out.trim() == "1");
        session
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_database_is_open_to_those_it_names_and_to_nobody_else() {
    let Some(host) = host() else { return };
    let before = host.inventory();
    let file = host.write("b/render.yaml", BLUEPRINT);
    let up = ["up", "-d", file.to_str().unwrap()];
    let said = host.moat(&["check", file.to_str().unwrap()]).ok();
    assert!(format!("{}{}", said.out, said.err).contains("moat ingress postgres=ADDRESS:PORT"), "{said:?}");
    host.moat(&up).ok();
    let explain = |what: &str| host.moat(&["explain", "internet", what]).ok().out;
    assert!(explain("books:5432").starts_with("deny: internet"), "off unless asked for");
    assert!(host.sh("ss -Hltn 'sport = 5432'").out.is_empty());
    assert_eq!(host.moat(&["env", "get", "books", "EXTERNAL_URL"]).code, 1);

    host.moat(&["ingress", "postgres=0.0.0.0:5432"]).ok();
    let authority = host.moat(&["trust", "--print"]).ok().out;
    host.write("authority.pem", &authority);
    let url = host.moat(&["env", "get", "books", "EXTERNAL_URL"]).ok().out.trim().to_owned();
    assert!(url.contains("@books.localhost:5432/"), "{url}");
    let shown = service(&host.ps(), "books")["url"].as_str().unwrap().to_owned();
    let (user, rest) = url.split_once(':').unwrap().1.trim_start_matches('/').split_once(':').unwrap();
    assert!(shown.starts_with(&format!("postgresql://{user}@books.localhost:5432/")) && !shown.contains(rest.split('@').next().unwrap()));
    assert!(service(&host.ps(), "diary")["url"].is_null());
    let inside = "192.0.2.77";
    // A client at an address that it names, whose certificate and name are looked at.
    let said = psql(&host, &at(&host, &url, inside), "select 40 + 2").ok();
    assert_eq!(said.out.trim(), "42");

    // Nobody else: another address, another database, another name, no encryption, another protocol.
    let refused = |what: &str, said: Said, words: &str| assert!(said.code != 0 && said.err.contains(words), "{what}: {said:?}");
    refused("another address", psql(&host, &at(&host, &url, "127.0.0.1"), "select 1"), "closed the connection");
    refused("another database", psql(&host, &at(&host, &url.replace("books.", "diary."), inside), "select 1"), "EOF detected");
    refused(
        "no encryption",
        psql(&host, &at(&host, &url.replace("verify-full", "disable"), inside), "select 1"),
        "connections from outside are encrypted",
    );
    refused(
        "a wrong password",
        psql(&host, &at(&host, &url.replacen(rest.split('@').next().unwrap(), "guess", 1), inside), "select 1"),
        "password authentication failed",
    );
    let alpn = "context.set_alpn_protocols(['postgresql'])";
    assert_eq!(at_once(&host, "books.localhost", alpn), "b'R'");
    assert_ne!(at_once(&host, "books.localhost", "pass"), "b'R'", "who does not say what it speaks");
    assert_ne!(at_once(&host, "diary.localhost", alpn), "b'R'");

    // What is said is so, and holds on the private network.
    let allowed = explain("books:5432");
    assert!(allowed.starts_with("allow: internet → books:5432/tcp by public-database") && allowed.contains("192.0.2.0/24"), "{allowed}");
    for what in ["books:5433", "books:22", "diary:5432"] {
        assert!(explain(what).starts_with("deny: internet"), "{what}");
    }
    let verify = host.moat(&["verify"]);
    assert_eq!(verify.code, 0, "{}\n{}", verify.out, verify.err);

    // A session goes on where it is while the ingress is restarted, and new ones come to the next process.
    let mut session = Session::begin(&host, &at(&host, &url, inside), "first");
    host.moat(&["ingress", "--restart"]).ok();
    psql(&host, &at(&host, &url, inside), "select 1").ok();
    host.kill(host.daemon().unwrap(), "KILL");
    psql(&host, &at(&host, &url, inside), "select 1").ok();
    host.moat(&up).ok();
    psql(&host, &at(&host, &url, inside), "select 1").ok();
    assert!(!session.has_ended());
    // Whom it names no more is cut off.
    host.write("b/render.yaml", &BLUEPRINT.replace("192.0.2.0/24", "198.51.100.0/24"));
    host.moat(&up).ok();
    wait_for("the session's end", || session.has_ended());
    refused("withdrawn", psql(&host, &at(&host, &url, inside), "select 1"), "closed the connection");
    host.write("b/render.yaml", BLUEPRINT);
    host.moat(&up).ok();
    wait_for("being let in again", || psql(&host, &at(&host, &url, inside), "select 1").code == 0);
    let mut session = Session::begin(&host, &at(&host, &url, inside), "second");
    host.moat(&["ingress", "postgres=off"]).ok();
    wait_for("the session's end", || session.has_ended());
    wait_for("a free port", || host.sh("ss -Hltn 'sport = 5432'").out.is_empty());
    assert!(explain("books:5432").starts_with("deny: internet"));
    host.moat(&["verify"]).ok();

    host.moat(&["down"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
}
