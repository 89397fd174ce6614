//! The C library's resolver as a client, in network and mount namespaces of its own.

use crate::support::zones;
use arc_swap::ArcSwap;
use moat_dns::serve;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::net::{TcpListener, UdpSocket};

/// Set for the copy of this test that runs inside the namespaces.
const INSIDE: &str = "MOAT_DNS_TEST_INSIDE";
const NAME: &str = "libc::the_c_library_understands_the_answers";

const PROGRAM: &str = r#"
import socket
def names(name, family=socket.AF_UNSPEC):
    try:
        return sorted({entry[4][0] for entry in socket.getaddrinfo(name, 80, family, socket.SOCK_STREAM)})
    except socket.gaierror as error:
        return error.errno
print(names("catalog"))
print(names("CATALOG."))
print(names("catalog-discovery", socket.AF_INET))
print(len(names("many-discovery", socket.AF_INET6)))
print(names("absent") == socket.EAI_NONAME)
print(names("cache-discovery") in (socket.EAI_NODATA, socket.EAI_NONAME))
print(socket.gethostbyaddr("10.128.0.9")[0])
"#;

const WANT: &str = "['10.128.0.9', 'fd12:3456:789a:200::9']
['10.128.0.9', 'fd12:3456:789a:200::9']
['10.64.0.11', '10.64.0.12', '10.64.0.13']
200
True
True
catalog
";

#[test]
fn the_c_library_understands_the_answers() {
    if std::env::var_os(INSIDE).is_some() {
        inside();
        return;
    }
    for (tool, args) in [("unshare", &["--net", "--mount", "true"][..]), ("python3", &["-c", ""]), ("ip", &["-V"])] {
        let works = Command::new(tool).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if !works {
            println!("skipped: `{tool} {}` does not work here (it needs root)", args.join(" "));
            return;
        }
    }
    let script = "ip link set lo up && mount --make-rprivate / && mount -t tmpfs none /mnt \
        && echo 'nameserver 127.0.0.1' > /mnt/resolv.conf && echo 'hosts: files dns' > /mnt/nsswitch.conf \
        && mount --bind /mnt/resolv.conf /etc/resolv.conf && { [ ! -e /etc/nsswitch.conf ] || mount --bind /mnt/nsswitch.conf /etc/nsswitch.conf; } \
        && exec \"$0\" --exact \"$1\" --nocapture";
    let output = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(NAME)
        .env(INSIDE, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "the inner test ran");
}

#[tokio::main]
async fn inside() {
    let udp = UdpSocket::bind("127.0.0.1:53").await.unwrap();
    let tcp = TcpListener::bind("127.0.0.1:53").await.unwrap();
    let serving =
        tokio::spawn(serve(vec![udp], vec![tcp], Arc::new(ArcSwap::from_pointee(zones())), Arc::default(), std::future::pending()));
    let output = tokio::task::spawn_blocking(|| Command::new("python3").args(["-c", PROGRAM]).output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), WANT, "{}", String::from_utf8_lossy(&output.stderr));
    serving.abort();
}
