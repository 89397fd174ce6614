//! Changes of a policy of ten thousand services: one service more, one less, and all of them at once.

use super::scene::Room;
use super::{Site, policy};
use crate::failure::{Doing, Failure, Outcome};
use crate::figures::{Samples, Table, verdict};
use moat_model::LinkName;
use moat_model::policy::NetPolicy;
use moat_net_linux::ns;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Runtime;

const GOAL_MS: f64 = 20.0;
const GOAL_LOAD_MS: f64 = 500.0;

/// Measures and prints. The site's policy is empty afterwards.
pub fn run(runtime: &Runtime, site: &Site, situation: &str, rounds: usize) -> Outcome {
    let flows = tracked(site)?;
    let base = Arc::new(policy::of(site.size));
    let [mut open, mut attach, mut close, mut detach, mut gone, mut turn, mut load, mut unload] = <[Samples; 8]>::default();
    let network = &site.network;
    // Each round another service: an address is not given again at once.
    for number in (site.size + 1..).take(rounds) {
        let mut more = NetPolicy::clone(&base);
        policy::add(&mut more, number);
        let more = Arc::new(more);
        let address = policy::instance(number).ok_or_else(|| Failure::new("no such address"))?;
        let link = LinkName::of(address.v4);
        let room = Room::new()?;
        runtime.block_on(async {
            let start = Instant::now();
            network.set_policy(Arc::clone(&more)).await.doing("add to the policy")?;
            open.push_ms(start.elapsed());
            let start = Instant::now();
            network.attach(room.pid(), address, &link).await.doing("attach")?;
            attach.push_ms(start.elapsed());
            let start = Instant::now();
            network.set_policy(Arc::clone(&base)).await.doing("take from the policy")?;
            close.push_ms(start.elapsed());
            let start = Instant::now();
            network.detach(&link).await.doing("detach")?;
            detach.push_ms(start.elapsed());
            network.links().await.doing("wait until the link has left")?;
            gone.push_ms(start.elapsed());
            Ok(())
        })?;
    }
    for number in (1..site.size).take(rounds) {
        let mut turned = NetPolicy::clone(&base);
        let (vip, other) = (policy::service(number), policy::instance(number + 1));
        let (vip, other) = vip.zip(other).ok_or_else(|| Failure::new("no such address"))?;
        turned.services.insert(vip, BTreeSet::from([other]));
        let turned = Arc::new(turned);
        runtime.block_on(async {
            let start = Instant::now();
            network.set_policy(turned).await.doing("turn a service address")?;
            turn.push_ms(start.elapsed());
            network.set_policy(Arc::clone(&base)).await.doing("turn a service address back").map(drop)
        })?;
    }
    for _ in 0..rounds {
        runtime.block_on(async {
            let start = Instant::now();
            network.set_policy(NetPolicy::default()).await.doing("empty the policy")?;
            unload.push_ms(start.elapsed());
            let start = Instant::now();
            network.set_policy(Arc::clone(&base)).await.doing("load the policy")?;
            load.push_ms(start.elapsed());
            Ok(())
        })?;
    }
    runtime.block_on(network.set_policy(NetPolicy::default())).doing("empty the policy")?;

    let mut table = Table::new(
        format!("A policy of {} services, {situation} ({flows} tracked flows): ms, {rounds} rounds", site.size),
        ["what", "median (least–most)", "goal"],
    );
    let goal = |samples: &Samples, bound: f64| format!("≤ {bound:.0}: {}", verdict(samples.median() <= bound));
    let (added, removed) = (open.plus(&attach), close.plus(&detach));
    table.row([&"one service more: `set_policy`", &open.show(1), &""]);
    table.row([&"one service more: `attach`", &attach.show(1), &""]);
    table.row([&"one service more, together", &added.show(1), &goal(&added, GOAL_MS)]);
    table.row([&"one service less: `set_policy`", &close.show(1), &""]);
    table.row([&"one service less: `detach`", &detach.show(1), &""]);
    table.row([&"one service less, together", &removed.show(1), &goal(&removed, GOAL_MS)]);
    table.row([&"its link and flows have left, from `detach` on", &gone.show(1), &""]);
    table.row([&"a service address turns to another instance: `set_policy`", &turn.show(1), &goal(&turn, GOAL_MS)]);
    table.row([&"all from nothing: `set_policy`", &load.show(0), &goal(&load, GOAL_LOAD_MS)]);
    table.row([&"all to nothing: `set_policy`", &unload.show(0), &""]);
    println!("{table}");
    Ok(())
}

/// How many flows the router tracks.
fn tracked(site: &Site) -> Outcome<usize> {
    let router = site.network.router_ns().doing("open the router namespace")?;
    let count = ns::in_ns(&router, || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"));
    count.and_then(|read| read).doing("count the tracked flows")?.trim().parse().doing("count the tracked flows")
}
