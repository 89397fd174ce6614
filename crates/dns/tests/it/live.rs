//! `serve` on real sockets, with clients and upstream servers of our own.

use crate::support::{A, AAAA, TXT, query, query_edns, response, texts, zones};
use arc_swap::ArcSwap;
use hickory_proto::op::{Message, ResponseCode};
use moat_dns::{Zones, serve};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Long enough for a busy machine; nothing waits this long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

struct Running {
    address: SocketAddr,
    zones: Arc<ArcSwap<Zones>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// A UDP and a TCP socket on one port of 127.0.0.1.
async fn both() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

async fn start(upstreams: Vec<SocketAddr>) -> Running {
    let (udp, tcp) = both().await;
    let address = udp.local_addr().unwrap();
    let zones = Arc::new(ArcSwap::from_pointee(zones()));
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(serve(vec![udp], vec![tcp], Arc::clone(&zones), Arc::new(ArcSwap::from_pointee(upstreams)), async {
        let _ = stopped.await;
    }));
    Running { address, zones, stop, task }
}

/// An upstream that makes its answer of each query; an empty one is not sent. Counts queries over UDP and TCP.
async fn upstream(over_udp: fn(&[u8]) -> Vec<u8>, over_tcp: fn(&[u8]) -> Vec<u8>) -> (SocketAddr, Arc<[AtomicUsize; 2]>) {
    let (udp, tcp) = both().await;
    let address = udp.local_addr().unwrap();
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let seen = Arc::clone(&counts);
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            seen[0].fetch_add(1, Ordering::SeqCst);
            let answer = over_udp(&buffer[..length]);
            if !answer.is_empty() {
                udp.send_to(&answer, from).await.unwrap();
            }
        }
    });
    let seen = Arc::clone(&counts);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let length = stream.read_u16().await.unwrap();
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await.unwrap();
            seen[1].fetch_add(1, Ordering::SeqCst);
            let answer = over_tcp(&query);
            if !answer.is_empty() {
                stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        }
    });
    (address, counts)
}

fn public(query: &[u8]) -> Vec<u8> {
    response(query, &[(A, vec![93, 184, 216, 34])])
}

fn private(query: &[u8]) -> Vec<u8> {
    response(query, &[(A, vec![93, 184, 216, 34]), (A, vec![10, 64, 0, 11])])
}

fn servfail(query: &[u8]) -> Vec<u8> {
    let mut answer = response(query, &[]);
    answer[3] |= 2;
    answer
}

fn cut(query: &[u8]) -> Vec<u8> {
    let mut answer = response(query, &[]);
    answer[2] |= 2;
    answer
}

fn silent(_: &[u8]) -> Vec<u8> {
    Vec::new()
}

async fn ask_udp(server: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(bytes).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(buffer[..2], bytes[..2]);
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn read_framed(stream: &mut TcpStream) -> Message {
    let length = timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

#[tokio::test]
async fn local_names_over_udp_and_tcp() {
    let server = start(Vec::new()).await;
    assert_eq!(texts(&ask_udp(server.address, &query("catalog", A)).await), ["10.128.0.9"]);
    assert!(ask_udp(server.address, &query("many-discovery", AAAA)).await.truncation);

    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // Two in one segment, then one byte by byte.
    stream.write_all(&[framed(&query("catalog", A)), framed(&query("many-discovery", AAAA))].concat()).await.unwrap();
    assert_eq!(texts(&read_framed(&mut stream).await), ["10.128.0.9"]);
    let whole = read_framed(&mut stream).await;
    assert_eq!((whole.answers.len(), whole.truncation), (200, false));
    stream.set_nodelay(true).unwrap();
    for byte in framed(&query("nothing-here", A)) {
        stream.write_all(&[byte]).await.unwrap();
    }
    assert_eq!(read_framed(&mut stream).await.response_code, ResponseCode::NXDomain);

    server.stop.send(()).unwrap();
    timeout(PATIENCE, server.task).await.unwrap().unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "streams end with the server");
    UdpSocket::bind(server.address).await.expect("the port is free again");
}

#[tokio::test]
async fn a_swap_of_zones_holds_from_the_next_query_on() {
    let server = start(Vec::new()).await;
    assert_eq!(ask_udp(server.address, &query("catalog", A)).await.response_code, ResponseCode::NoError);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&framed(&query("catalog", A))).await.unwrap();
    read_framed(&mut stream).await;
    let mut without = zones();
    without.views.clear();
    server.zones.store(Arc::new(without));
    assert_eq!(ask_udp(server.address, &query("catalog", A)).await.response_code, ResponseCode::NXDomain);
    // A stranger's open stream is closed at its next query.
    server.zones.store(Arc::default());
    stream.write_all(&framed(&query("catalog", A))).await.unwrap();
    assert_eq!(timeout(PATIENCE, stream.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
}

#[tokio::test]
async fn strangers_get_no_packet() {
    let server = start(Vec::new()).await;
    // 127.0.0.2 is not known; 127.0.0.1 is, and proves that the server had its turn.
    let stranger = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    stranger.connect(server.address).await.unwrap();
    stranger.send(&query("catalog", A)).await.unwrap();
    ask_udp(server.address, &query("catalog", A)).await;
    assert!(stranger.try_recv(&mut [0; 512]).is_err());
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    assert_eq!(timeout(PATIENCE, stream.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
}

#[tokio::test]
async fn outside_names_are_looked_up() {
    let (address, counts) = upstream(public, public).await;
    let server = start(vec![address]).await;
    assert_eq!(texts(&ask_udp(server.address, &query("example.com", A)).await), ["93.184.216.34"]);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&framed(&query_edns("example.com", A, 1232, 0))).await.unwrap();
    assert_eq!(texts(&read_framed(&mut stream).await), ["93.184.216.34"]);
    for kept in ["catalog", "nothing-here", "com", "x.local", "1.0.64.10.in-addr.arpa"] {
        ask_udp(server.address, &query(kept, TXT)).await;
    }
    assert_eq!(counts[0].load(Ordering::SeqCst), 2, "names that never leave did not");
}

#[tokio::test]
async fn rebinding_is_refused_over_udp_and_tcp() {
    for over_udp in [private, cut] {
        let (address, counts) = upstream(over_udp, private).await;
        let (other, other_counts) = upstream(public, public).await;
        let server = start(vec![address, other]).await;
        let got = ask_udp(server.address, &query("rebind.example", A)).await;
        assert_eq!((got.response_code, got.answers.len()), (ResponseCode::NoError, 0), "{got}");
        assert_eq!(counts[0].load(Ordering::SeqCst), 1);
        assert_eq!(other_counts[0].load(Ordering::SeqCst), 0, "nobody else is asked");
    }
}

#[tokio::test]
async fn a_cut_answer_is_fetched_over_tcp() {
    let (address, counts) = upstream(cut, public).await;
    let server = start(vec![address]).await;
    assert_eq!(texts(&ask_udp(server.address, &query("example.com", A)).await), ["93.184.216.34"]);
    assert_eq!([counts[0].load(Ordering::SeqCst), counts[1].load(Ordering::SeqCst)], [1, 1]);
}

#[tokio::test]
async fn a_failing_upstream_is_passed_over_and_then_asked_last() {
    let closed = both().await.0.local_addr().unwrap();
    let (failing, failing_counts) = upstream(servfail, servfail).await;
    let (good, good_counts) = upstream(public, public).await;
    let server = start(vec![closed, failing, good]).await;
    for asked in 1..=3 {
        assert_eq!(texts(&ask_udp(server.address, &query("example.com", A)).await), ["93.184.216.34"]);
        assert_eq!([failing_counts[0].load(Ordering::SeqCst), good_counts[0].load(Ordering::SeqCst)], [1, asked]);
    }
}

#[tokio::test]
async fn without_an_upstream_that_works_it_is_servfail() {
    let (failing, _) = upstream(servfail, servfail).await;
    for upstreams in [Vec::new(), vec![failing]] {
        let server = start(upstreams).await;
        assert_eq!(ask_udp(server.address, &query("example.com", A)).await.response_code, ResponseCode::ServFail);
        assert_eq!(texts(&ask_udp(server.address, &query("catalog", A)).await), ["10.128.0.9"]);
    }
}

#[tokio::test]
async fn guessed_answers_do_not_count() {
    // A wrong id, a wrong question, then the real answer: only the last is taken.
    async fn guesser() -> SocketAddr {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let query = &buffer[..length];
            let forged = response(query, &[(A, vec![6, 6, 6, 6])]);
            let mut wrong_id = forged.clone();
            wrong_id[0] ^= 0xff;
            let mut wrong_name = forged;
            wrong_name[13] ^= 1;
            for answer in [wrong_id, wrong_name, vec![0; 5], public(query)] {
                udp.send_to(&answer, from).await.unwrap();
            }
        });
        address
    }
    let server = start(vec![guesser().await]).await;
    assert_eq!(texts(&ask_udp(server.address, &query("example.com", A)).await), ["93.184.216.34"]);
}

#[tokio::test]
async fn one_asker_can_not_take_every_lookup() {
    let (address, counts) = upstream(silent, silent).await;
    let server = start(vec![address]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.address).await.unwrap();
    for _ in 0..64 {
        socket.send(&query("slow.example", A)).await.unwrap();
    }
    let patience = std::time::Instant::now();
    while counts[0].load(Ordering::SeqCst) < 64 {
        assert!(patience.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
    // The next one fails at once, and local names still work.
    assert_eq!(ask_udp(server.address, &query("one.more.example", A)).await.response_code, ResponseCode::ServFail);
    assert_eq!(texts(&ask_udp(server.address, &query("catalog", A)).await), ["10.128.0.9"]);
}
