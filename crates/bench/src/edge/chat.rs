//! WebSockets: small messages to an echo server behind the proxies, and back.

use super::peers::{ECHO, LOAD_CPU, Lane, pinned};
use crate::failure::{Doing, Failure, Outcome};
use crate::figures::{Samples, Table};
use futures_util::{SinkExt as _, StreamExt as _};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, client_async};

/// The roles' names.
pub const SERVER: &str = "__echo";
pub const CLIENT: &str = "__chat";

/// WebSockets at once; each waits for its message before it sends the next.
const SOCKETS: usize = 64;
const LASTS: Duration = Duration::from_secs(2);
/// Of a message, bytes.
const LENGTH: usize = 32;

fn runtime() -> Outcome<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().doing("make a runtime")
}

/// Sends back what it gets, at [`ECHO`], until it is killed.
pub fn serve() -> Outcome {
    runtime()?.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ECHO)).await.doing("listen")?;
        loop {
            let (stream, _) = listener.accept().await.doing("accept")?;
            stream.set_nodelay(true).doing("have small writes sent")?;
            tokio::spawn(async move {
                // Whoever only looks whether the port is open does not open a WebSocket.
                let Ok(mut socket) = accept_async(stream).await else { return };
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() && socket.send(message).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

/// Loads what listens at a port; says how many messages came back each second, and p50 and p99 of their times, microseconds.
pub fn load(arguments: &[String]) -> Outcome {
    let [port] = arguments else { return Err(Failure::new("wrong arguments")) };
    let port: u16 = port.parse().doing("read a port")?;
    runtime()?.block_on(async {
        let mut open = Vec::with_capacity(SOCKETS);
        for _ in 0..SOCKETS {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.doing("connect")?;
            stream.set_nodelay(true).doing("have small writes sent")?;
            open.push(client_async("ws://echo.test/echo", stream).await.doing("open a WebSocket")?.0);
        }
        let began = Instant::now();
        let mut running = JoinSet::new();
        for mut socket in open {
            running.spawn(async move {
                let text = "x".repeat(LENGTH);
                let mut micros = Vec::new();
                while began.elapsed() < LASTS {
                    let sent = Instant::now();
                    socket.send(Message::text(text.clone())).await.doing("send a message")?;
                    let back = socket.next().await.ok_or_else(|| Failure::new("a WebSocket ended"))?.doing("get a message")?;
                    if back.to_text().ok() != Some(&text) {
                        return Err(Failure::new("another message came back"));
                    }
                    micros.push(sent.elapsed().as_micros());
                }
                Ok::<_, Failure>(micros)
            });
        }
        let mut all = Vec::new();
        while let Some(done) = running.join_next().await {
            all.extend(done.doing("run a WebSocket")??);
        }
        let millis = began.elapsed().as_millis().max(1);
        all.sort_unstable();
        let at = |share: usize| all.get(all.len() * share / 100).copied().unwrap_or_default();
        println!("{} {} {}", all.len() as u128 * 1000 / millis, at(50), at(99));
        Ok(())
    })
}

/// Measures nginx, HAProxy and Moat, and prints.
pub fn measure(lanes: &[Lane], rounds: usize) -> Outcome {
    let lanes: Vec<&Lane> = lanes.iter().filter(|lane| lane.is_main || lane.is_ours).collect();
    let mut measured = vec![<[Samples; 3]>::default(); lanes.len()];
    let program = std::env::current_exe().doing("find this program")?;
    for round in 0..rounds {
        for place in 0..lanes.len() {
            let number = (round + place) % lanes.len();
            let (Some(lane), Some(samples)) = (lanes.get(number), measured.get_mut(number)) else { continue };
            let output =
                pinned(LOAD_CPU, &program).args([CLIENT, &lane.plain().to_string()]).output().doing(format_args!("load {}", lane.name))?;
            let said = String::from_utf8_lossy(&output.stdout);
            let numbers: Vec<f64> = said.split_whitespace().filter_map(|number| number.parse().ok()).collect();
            if numbers.len() != samples.len() {
                return Err(Failure::new(format!("WebSockets through {}: {}", lane.name, String::from_utf8_lossy(&output.stderr))));
            }
            for (samples, number) in samples.iter_mut().zip(numbers) {
                samples.push(number / 1e3);
            }
        }
    }
    let title = format!("WebSocket: messages of {LENGTH} bytes there and back, {SOCKETS} connections");
    let ours = measured.last().cloned().unwrap_or_default();
    let mut table = Table::new(title, ["proxy", "thousand messages/s", "p50, ms", "p99, ms", "Moat ×"]);
    for (lane, [each_second, p50, p99]) in lanes.iter().zip(&measured) {
        let over = if lane.is_ours { String::new() } else { ours[0].over(each_second).show(2) };
        table.row([&lane.name, &each_second.show(2), &p50.show(2), &p99.show(2), &over]);
    }
    println!("{table}");
    Ok(())
}
