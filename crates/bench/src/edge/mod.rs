//! `moat-bench edge`: the ingress beside nginx, HAProxy, Caddy, Traefik and Envoy. Requests each second, latencies, messages of
//! WebSockets, memory with idle connections, many hosts, many certificates.
//!
//! Every proxy has processor 0 for itself, with one worker thread; the load and the server behind (nginx) share processor 1. They
//! all run at once and one is loaded at a time, in interleaved rounds. Certificate, backend and clients are the same for all.

pub mod chat;
mod idle;
mod load;
mod many;
mod ours;
mod peers;

pub use ours::{SERVE, serve};

use crate::failure::{Doing, Failure, Outcome};
use crate::figures::{Samples, Table, verdict};
use crate::place::Folder;
use load::{LOADS, Load};
use peers::{Lane, Stage};

/// Of the better of nginx and HAProxy.
const GOAL: f64 = 1.0;

/// What one lane did under one load, once a round.
#[derive(Debug, Clone, Default)]
struct Measured {
    /// Thousand requests each second.
    thousands: Samples,
    /// Milliseconds.
    p50: Samples,
    p99: Samples,
    p999: Samples,
    failed: u64,
}

/// Measures and prints.
pub fn run(rounds: usize) -> Outcome {
    let folder = Folder::new()?;
    let stage = Stage::set(&folder)?;
    let lanes = stage.lanes();
    let mut measured = vec![vec![Measured::default(); lanes.len()]; LOADS.len()];
    for round in 0..rounds {
        for (load, row) in LOADS.iter().zip(&mut measured) {
            for place in 0..lanes.len() {
                let number = (round + place) % lanes.len();
                let (Some(lane), Some(one)) = (lanes.get(number), row.get_mut(number)) else { continue };
                let said = load.run(lane, &folder).doing(format_args!("load {} with `{}`", lane.name, load.name))?;
                one.thousands.push(said.each_second / 1e3);
                one.p50.push(said.p50);
                one.p99.push(said.p99);
                one.p999.push(said.p999);
                one.failed += said.failed;
            }
        }
    }
    for (load, row) in LOADS.iter().zip(&measured) {
        print(load, &lanes, row);
    }
    goals(&lanes, &measured)?;
    chat::measure(&lanes, rounds)?;
    idle::measure(&lanes)?;
    many::measure(&stage, rounds)
}

fn print(load: &Load, lanes: &[Lane], row: &[Measured]) {
    let mut table = Table::new(load.name, ["proxy", "thousand requests/s", "p50, ms", "p99, ms", "p99.9, ms", "failed"]);
    for (lane, one) in lanes.iter().zip(row) {
        table.row([&lane.name, &one.thousands.show(2), &one.p50.show(2), &one.p99.show(2), &one.p999.show(2), &one.failed]);
    }
    println!("{table}");
}

/// Moat, the last lane, against each peer.
fn goals(lanes: &[Lane], measured: &[Vec<Measured>]) -> Outcome {
    let mut table = Table::new(
        "The goal: Moat's requests each second against the better of nginx and HAProxy, ratios within each round",
        ["load", "Moat ×", "goal of the median", "against the others"],
    );
    for (load, row) in LOADS.iter().zip(measured) {
        let ours = row.last().ok_or_else(|| Failure::new("nothing was measured"))?;
        let over = |place: usize| row.get(place).map(|peer| ours.thousands.over(&peer.thousands));
        let mut main: Vec<Samples> =
            lanes.iter().enumerate().filter(|(_, lane)| lane.is_main).filter_map(|(place, _)| over(place)).collect();
        main.sort_by(|a, b| a.median().total_cmp(&b.median()));
        let Some(worst) = main.first() else { continue };
        let others: Vec<String> = lanes
            .iter()
            .enumerate()
            .filter(|(_, lane)| !lane.is_ours)
            .filter_map(|(place, lane)| Some(format!("{} {:.2}", lane.name, over(place)?.median())))
            .collect();
        table.row([&load.name, &worst.show(2), &format!("≥ {GOAL}: {}", verdict(worst.median() >= GOAL)), &others.join(", ")]);
    }
    println!("{table}");
    Ok(())
}
