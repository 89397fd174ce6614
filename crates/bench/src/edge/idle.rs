//! Memory of connections that wait.

use super::peers::{Lane, ask};
use crate::failure::{Doing, Failure, Outcome};
use crate::figures::{Table, verdict};
use std::net::{Ipv4Addr, TcpStream};

/// Connections that are kept, each after one request.
const COUNT: u16 = 10_000;

/// Measures and prints.
pub fn measure(lanes: &[Lane]) -> Outcome {
    let mut table = Table::new(
        format!("Memory with {COUNT} idle connections over HTTP/1.1, each after one request"),
        ["proxy", "before, MiB", "with them, MiB", "each, KiB"],
    );
    let mut totals = Vec::new();
    for lane in lanes {
        let before = lane.running.memory()?;
        let mut open = Vec::with_capacity(COUNT.into());
        for number in 0..COUNT {
            let doing = format_args!("open connection {number} to {}", lane.name).to_string();
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, lane.plain())).doing(&doing)?;
            ask(&mut stream).doing(&doing)?;
            open.push(stream);
        }
        let with = lane.running.memory()?;
        drop(open);
        totals.push((lane, with));
        let each = (with - before).max(0.0) * 1024.0 / f64::from(COUNT);
        table.row([&lane.name, &format!("{before:.1}"), &format!("{with:.1}"), &format!("{each:.0}")]);
    }
    println!("{table}");
    let of = |wanted: &dyn Fn(&Lane) -> bool| totals.iter().find(|(lane, _)| wanted(lane)).map(|(_, total)| *total);
    let ours = of(&|lane| lane.is_ours).ok_or_else(|| Failure::new("nothing was measured"))?;
    match of(&|lane| lane.name == "Envoy") {
        Some(envoy) => println!("Never more than Envoy: {}.\n", verdict(ours <= envoy)),
        None => println!("Never more than Envoy: it was not there.\n"),
    }
    Ok(())
}
