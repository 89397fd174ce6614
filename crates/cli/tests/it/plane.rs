//! The data plane is a process of its own: whoever dies, what is public goes on.

use crate::host::{Host, example, host, service, wait_for};
use moat_dataplane::channel::Channel;
use moat_dataplane::message::{Hello, Order, PROTOCOL, ROLE, Report};
use moat_dataplane::{Config, Doors, Sockets, Stamp};
use moat_model::state::Generation;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use tokio::net::UnixStream;

/// A web service that answers slowly and for long, and echoes over an upgraded connection; and a worker that looks names up.
const SERVER: &str = r"
import http.server, socketserver, time, os, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def do_GET(self):
        if self.headers.get('Upgrade'):
            self.send_response(101); self.send_header('Connection', 'Upgrade'); self.send_header('Upgrade', 'echo'); self.end_headers()
            while True:
                data = self.connection.recv(1000)
                if not data: return
                self.connection.sendall(data)
        if self.path == '/slow':
            # Goes on only as the test lets it.
            self.send_response(200); self.send_header('Content-Length', '8000'); self.end_headers()
            for n in range(8):
                while not os.path.exists(f'/opt/render/project/src/step{n}') and not os.path.exists(f'/tmp/step{n}'): time.sleep(0.02)
                self.wfile.write(b'x' * 1000); self.wfile.flush()
            return
        body = os.environ.get('WORDS', 'here').encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 1024
Server(('0.0.0.0', int(os.environ['PORT'])), Handler).serve_forever()
";

fn blueprint(more: &str) -> String {
    format!(
        "services:\n  - type: web\n    name: talker\n    runtime: python\n    buildCommand: 'true'\n    startCommand: exec python3 -u server.py\n    maxShutdownDelaySeconds: 5\n{more}"
    )
}

/// The blueprint runs.
fn talker(host: &Host, more: &str) -> String {
    host.write("b/server.py", SERVER);
    let file = host.write("b/render.yaml", &blueprint(more)).to_str().unwrap().to_owned();
    host.moat(&["up", "-d", &file]).ok();
    file
}

/// The data plane's pid, of whoever accepts connections now.
fn dataplane(host: &Host) -> u32 {
    let pid = host.ps()["dataplane_pid"].as_u64().expect("a data plane");
    u32::try_from(pid).unwrap()
}

fn dataplanes(host: &Host) -> Vec<u32> {
    host.processes().into_iter().filter(|(_, line)| line.contains("__dataplane")).map(|(pid, _)| pid).collect()
}

/// Lets the slow answer go on by one piece.
fn step(host: &Host, n: u32) {
    host.moat(&["exec", "talker", "--", "touch", &format!("/tmp/step{n}")]).ok();
}

struct Download {
    child: Child,
    out: ChildStdout,
}

impl Download {
    /// A download that has begun: its first piece is here.
    fn begin(host: &Host) -> Self {
        let mut child = host
            .command("curl")
            .args(["-sN", "-m", "120", "-H", "Host: talker.localhost", "http://127.0.0.1:8080/slow"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut download = Self { out: child.stdout.take().unwrap(), child };
        step(host, 0);
        download.piece();
        download
    }

    fn piece(&mut self) {
        let mut piece = [0; 1000];
        self.out.read_exact(&mut piece).expect("the download goes on");
        assert_eq!(piece, [b'x'; 1000]);
    }

    fn end(mut self) {
        let mut rest = Vec::new();
        self.out.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        assert!(self.child.wait().unwrap().success(), "the download is whole");
    }
}

/// A connection that was upgraded.
struct Tunnel(Child);

impl Tunnel {
    fn open(host: &Host) -> Self {
        let script = r"
import socket, sys
s = socket.create_connection(('127.0.0.1', 8080))
s.sendall(b'GET / HTTP/1.1\r\nHost: talker.localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n')
head = b''
while b'\r\n\r\n' not in head: head += s.recv(1)
assert b' 101 ' in head, head
for line in sys.stdin:
    s.sendall(line.encode())
    got = b''
    while not got.endswith(b'\n'):
        more = s.recv(100)
        if not more: sys.exit('cut')
        got += more
    print(got.decode(), end='', flush=True)
";
        let child = host.command("python3").args(["-uc", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut tunnel = Self(child);
        tunnel.echo("hello");
        tunnel
    }

    fn echo(&mut self, word: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{word}").unwrap();
        let mut got = vec![0; word.len() + 1];
        self.0.stdout.as_mut().unwrap().read_exact(&mut got).expect("the tunnel goes on");
        assert_eq!(String::from_utf8_lossy(&got).trim_end(), word);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What an instance resolves its own name to, without the daemon.
fn lookup(host: &Host, pid: u64) -> String {
    let ask = "import socket,struct; q=b'\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\6talker\\0\\0\\1\\0\\1'; s=socket.socket(2,2); s.settimeout(9); s.sendto(q,('169.254.1.1',53)); print(socket.inet_ntoa(s.recv(512)[-4:]))";
    host.sh(&format!("nsenter --net=/proc/{pid}/ns/net python3 -c \"{ask}\"")).ok().out.trim().to_owned()
}

#[test]
fn a_killed_daemon_leaves_downloads_tunnels_and_names_alone() {
    let Some(host) = host() else { return };
    let before = host.inventory();
    let file = talker(&host, "");
    let ps = host.ps();
    let pid = service(&ps, "talker")["instances"][0]["pid"].as_u64().unwrap();
    let vip = service(&ps, "talker")["address"]["v4"].as_str().unwrap().to_owned();
    let process = dataplane(&host);
    let (mut download, mut tunnel) = (Download::begin(&host), Tunnel::open(&host));

    host.kill(host.daemon().unwrap(), "KILL");
    wait_for("the daemon's end", || host.daemon().is_none());
    // Nobody is there to be asked: what was configured holds.
    tunnel.echo("alone");
    assert_eq!(host.http(8080, "talker.localhost", "/"), (200, "here".to_owned()));
    assert_eq!(host.http(8080, "other.localhost", "/").0, 404);
    assert_eq!(lookup(&host, pid), vip);
    host.sh(&format!("touch /proc/{pid}/root/tmp/step1")).ok();
    download.piece();

    // The next daemon goes on with the same process.
    host.moat(&["up", "-d", &file]).ok();
    assert_eq!(dataplane(&host), process);
    assert_eq!(dataplanes(&host), [process]);
    tunnel.echo("again");
    assert_eq!(lookup(&host, pid), vip);
    for n in 2..8 {
        step(&host, n);
        download.piece();
    }
    download.end();
    // An orderly end of the daemon is the same.
    host.kill(host.daemon().unwrap(), "TERM");
    wait_for("the daemon's end", || host.daemon().is_none());
    tunnel.echo("still");
    assert_eq!(host.http(8080, "talker.localhost", "/").0, 200);
    host.moat(&["up", "-d", &file]).ok();
    assert_eq!(dataplane(&host), process);
    host.moat(&["verify"]).ok();
    drop(tunnel);

    host.moat(&["down"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
    assert!(!host.path("run/dataplane").exists());
}

#[test]
fn a_killed_data_plane_is_replaced_and_nobody_is_refused() {
    let Some(host) = host() else { return };
    let before = host.inventory();
    talker(&host, "");
    let pid = service(&host.ps(), "talker")["instances"][0]["pid"].as_u64().unwrap();
    for _ in 0..3 {
        let process = dataplane(&host);
        // The listening socket stays: who connects in the gap waits, and tries nothing twice.
        let killed = host.sh(&format!(
            "kill -9 {process}; for n in 1 2 3 4 5 6 7 8; do curl -sf -m 20 -H 'Host: talker.localhost' http://127.0.0.1:8080/ || echo \"failed: $?\"; echo; done"
        ));
        assert_eq!(killed.out.lines().collect::<Vec<_>>(), ["here"; 8], "{}", killed.err);
        assert_ne!(dataplane(&host), process);
        assert!(!lookup(&host, pid).is_empty());
    }
    assert_eq!(dataplanes(&host).len(), 1);
    host.moat(&["verify"]).ok();

    // Both die: the next daemon has another process.
    let (process, daemon) = (dataplane(&host), host.daemon().unwrap());
    host.kill(daemon, "KILL");
    host.kill(process, "KILL");
    wait_for("their ends", || host.daemon().is_none() && dataplanes(&host).is_empty());
    assert_eq!(host.http(8080, "talker.localhost", "/").0, 0);
    host.moat(&["up", "-d", host.path("b/render.yaml").to_str().unwrap()]).ok();
    assert_eq!(host.http(8080, "talker.localhost", "/").0, 200);
    assert!(!lookup(&host, pid).is_empty());

    host.moat(&["down"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
}

/// Runs what speaks to processes of the machine.
fn talking<T>(talk: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(talk)
}

#[test]
fn an_older_configuration_is_refused_and_strangers_end_nothing() {
    let Some(host) = host() else { return };
    talker(&host, "");
    let process = dataplane(&host);
    let socket = host.path(&format!("run/dataplane/{process}.sock"));
    talking(async {
        let connect = || async { Channel::new(UnixStream::connect(&socket).await.unwrap()) };
        let mut channel = connect().await;
        let (hello, fds) = channel.receive::<Hello>().await.unwrap().unwrap();
        let stamp = hello.stamp.expect("it is configured");
        assert_eq!((hello.protocol, hello.pid, hello.draining), (PROTOCOL, process, false));
        assert_eq!(Sockets::received(fds).unwrap().listening().unwrap().to_string(), "127.0.0.1:8080");
        // Nothing serves by what is older, by its generation or by its revision.
        let older = [
            Stamp { generation: Generation(stamp.generation.0 - 1), revision: u64::MAX },
            Stamp { generation: stamp.generation, revision: stamp.revision - 1 },
        ];
        for older in older {
            channel.send(&Order::Configure(Box::new(Config { stamp: older, ..Config::default() })), &[]).await.unwrap();
            let (report, _) = channel.receive::<Report>().await.unwrap().unwrap();
            assert_eq!(report, Report::Refused { have: stamp });
        }
        // What is not understood ends its conversation only.
        let mut odd = connect().await;
        odd.receive::<Hello>().await.unwrap().unwrap();
        odd.send(&"nonsense", &[]).await.unwrap();
        assert!(odd.receive::<Report>().await.unwrap().is_none());
    });
    assert_eq!(host.http(8080, "talker.localhost", "/").0, 200);
    assert_eq!(dataplanes(&host), [process]);
}

/// A process of another version: it hands its sockets over, understands when it is to end, and nothing else.
fn of_another_version(host: &Host) -> std::thread::JoinHandle<Order> {
    let ns = moat_net_linux::ns::of_pid(host.holder_pid()).unwrap();
    let ingress = moat_net_linux::ns::tcp_listener_in(&ns, "127.0.0.1:8080".parse().unwrap()).unwrap();
    // Of a router namespace that is gone.
    let router = moat_net_linux::ns::scratch().unwrap();
    let dns = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into();
    let sockets = Sockets {
        ingress: ingress.into(),
        router: router.into(),
        dns_udp: dns(),
        dns_tcp: dns(),
        https: None,
        databases: Doors::default(),
    };
    let folder = host.path("run/dataplane");
    std::fs::create_dir_all(&folder).unwrap();
    // What a process left that was killed.
    drop(std::os::unix::net::UnixListener::bind(folder.join("1.sock")).unwrap());
    let listener = std::os::unix::net::UnixListener::bind(folder.join("2.sock")).unwrap();
    std::thread::spawn(move || {
        talking(async move {
            listener.set_nonblocking(true).unwrap();
            let (stream, _) = tokio::net::UnixListener::from_std(listener).unwrap().accept().await.unwrap();
            let mut channel = Channel::new(stream);
            let hello = Hello {
                role: ROLE.to_owned(),
                protocol: PROTOCOL + 1,
                pid: std::process::id(),
                stamp: None,
                draining: false,
                holds: std::collections::BTreeSet::new(),
            };
            channel.send(&hello, &sockets.each()).await.unwrap();
            let (order, _) = channel.receive::<Order>().await.unwrap().unwrap();
            order
        })
    })
}

#[test]
fn one_of_another_version_hands_its_listener_over() {
    let Some(host) = host() else { return };
    let before = host.inventory();
    let other = of_another_version(&host);
    talker(&host, "");
    // The address was never free: the listener is the same.
    assert_eq!(other.join().unwrap(), Order::Drain);
    assert_eq!(host.http(8080, "talker.localhost", "/").0, 200);
    assert_eq!(dataplanes(&host), [dataplane(&host)]);
    assert!(!host.path("run/dataplane/1.sock").exists());
    host.moat(&["down"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
}

#[test]
fn the_data_plane_can_do_little() {
    let Some(host) = host() else { return };
    let file = example(&host, "hello");
    host.moat(&["up", "-d", "--listen", "127.0.0.1:80", file.to_str().unwrap()]).ok();
    assert_eq!(host.http(80, "hello.localhost", "/healthz").0, 200);
    let process = dataplane(&host);
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!((field("CapEff:"), field("CapPrm:")), ("0".repeat(16), "0".repeat(16)));
    assert_eq!(field("NoNewPrivs:"), "1");
    // Somebody whom nothing belongs to, in no other group.
    let nobody = "1967080000\t1967080000\t1967080000\t1967080000";
    assert_eq!((field("Uid:"), field("Gid:"), field("Groups:")), (nobody.to_owned(), nobody.to_owned(), String::new()));
    for task in std::fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        assert!(status.contains(&format!("CapEff:\t{}", "0".repeat(16))) && status.contains(nobody), "{status}");
    }
    let root = std::fs::read_link(format!("/proc/{process}/root")).unwrap();
    assert_eq!(root, host.path("state/releases").canonicalize().unwrap());
    // Of its own session: what ends the daemon's does not end it.
    let session = |pid: u32| host.sh(&format!("ps -o sid= -p {pid}")).out.trim().to_owned();
    assert_eq!(session(process), process.to_string());
    println!("data plane: VmRSS {}, RssAnon {}", field("VmRSS:"), field("RssAnon:"));
}

/// Asks again and again, each time anew or over kept connections, until told to stop; counts what was not answered well.
struct Load {
    child: Child,
    stop: std::path::PathBuf,
}

impl Load {
    fn begin(host: &Host, word: &str) -> Self {
        let stop = host.path("stop-load");
        let _ = std::fs::remove_file(&stop);
        let script = format!(
            r"
import http.client, os, threading, sys
asked, failed = [0] * 4, []
def ask(n):
    kept = None
    while not os.path.exists('{stop}'):
        try:
            if n % 2 or kept is None: kept = http.client.HTTPConnection('127.0.0.1', 8080, timeout=60)
            kept.request('GET', '/', headers={{'Host': 'talker.localhost'}})
            answer = kept.getresponse(); body = answer.read()
            if answer.status != 200 or not body.startswith(b'{word}'): failed.append((answer.status, body))
            if answer.getheader('connection') == 'close': kept.close()
        except Exception as error: failed.append(repr(error)); kept = None
        asked[n] += 1
all = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
for thread in all: thread.start()
print('begun', flush=True)
for thread in all: thread.join()
print(sum(asked), min(asked), len(failed), failed[:3])
",
            stop = stop.display()
        );
        let mut child = host.command("python3").args(["-uc", &script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut begun = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
        Self { child, stop }
    }

    /// How many were asked for, and how many of them failed, with the first words of these.
    fn end(self) -> (u32, String) {
        std::fs::write(&self.stop, "").unwrap();
        let output = self.child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut words = text.trim().splitn(3, ' ');
        (words.next().unwrap().parse().unwrap(), words.nth(1).unwrap().to_owned())
    }
}

#[test]
fn another_program_takes_over_under_load() {
    let Some(host) = host() else { return };
    let before = host.inventory();
    talker(&host, "");
    let (daemon, process) = (host.daemon().unwrap(), dataplane(&host));
    let instance = service(&host.ps(), "talker")["instances"][0]["pid"].clone();
    let (mut tunnel, load) = (Tunnel::open(&host), Load::begin(&host, "here"));

    // What can't take over changes nothing.
    for wrong in [Path::new("/bin/true"), &host.path("b/server.py")] {
        let said = host.moat(&["upgrade", "--binary", wrong.to_str().unwrap()]);
        assert!(said.code == 1 && said.err.contains("can't take over"), "{said:?}");
    }
    assert_eq!(host.moat(&["upgrade", "--binary", "nowhere"]).code, 2);
    let writable = host.path("moat-writable");
    std::fs::copy(env!("CARGO_BIN_EXE_moat"), &writable).unwrap();
    host.sh(&format!("chmod 777 {}", writable.display())).ok();
    assert_eq!(host.moat(&["upgrade", "--binary", writable.to_str().unwrap()]).code, 1);
    assert_eq!((host.daemon().unwrap(), dataplane(&host)), (daemon, process));

    // Begun anew, over and over: each new process takes over from the one before.
    let mut download = Download::begin(&host);
    for n in 1..4 {
        let before = dataplane(&host);
        host.moat(&["ingress", "--restart"]).ok();
        assert_ne!(dataplane(&host), before);
        step(&host, n);
        download.piece();
        tunnel.echo("again");
    }
    for n in 4..8 {
        step(&host, n);
        download.piece();
    }
    download.end();
    let latest = dataplane(&host);

    let other = host.path("moat-new");
    std::fs::copy(env!("CARGO_BIN_EXE_moat"), &other).unwrap();
    let said = host.moat(&["upgrade", "--binary", other.to_str().unwrap()]).ok();
    assert!(said.err.contains("runs now"), "{}", said.err);
    let program = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(host.daemon(), Some(daemon), "the same process");
    wait_for("the new data plane", || dataplane(&host) != latest);
    let new = dataplane(&host);
    assert_eq!((program(daemon), program(new)), (other.clone(), other));
    // The first one goes on with what is open there, and ends with it.
    tunnel.echo("over");
    assert!(dataplanes(&host).contains(&process));
    assert_eq!(service(&host.ps(), "talker")["instances"][0]["pid"], instance);
    let (asked, failed) = load.end();
    assert!(asked > 0 && failed == "0 []", "{asked}: {failed}");
    drop(tunnel);
    wait_for("the old data plane's end", || dataplanes(&host) == [new]);
    host.moat(&["verify"]).ok();

    host.moat(&["down"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
}

#[test]
fn requests_wait_while_a_service_with_a_disk_is_between_two_instances() {
    let Some(host) = host() else { return };
    let disk = "    disk: {name: data, mountPath: /data, sizeGB: 1}\n    envVars: [{key: WORDS, value: here}]\n";
    let file = talker(&host, disk);
    let load = Load::begin(&host, "here");
    for word in ["here-2", "here-3"] {
        host.write("b/render.yaml", &blueprint(&disk.replace("here", word)));
        host.moat(&["up", "-d", &file]).ok();
        assert_eq!(host.http(8080, "talker.localhost", "/"), (200, word.to_owned()));
    }
    let (asked, failed) = load.end();
    assert!(asked > 0 && failed == "0 []", "{asked}: {failed}");
}
