//! Many hosts, many certificates.

use super::load::wrk;
use super::peers::Stage;
use crate::failure::{Failure, Outcome};
use crate::figures::{Samples, Table};
use crate::place::Folder;

const FEW: u32 = 10;
const MANY: u32 = 10_000;

/// Measures and prints.
pub fn measure(stage: &Stage, rounds: usize) -> Outcome {
    let folder = Folder::new()?;
    let sides = [(9200, FEW), (9210, MANY)];
    let running = sides.map(|(port, hosts)| stage.ours(port, hosts, 1));
    let [few, many] = running;
    let (_few, _many) = (few?, many?);
    let mut measured = <[Samples; 2]>::default();
    for round in 0..rounds {
        for place in [round % 2, (round + 1) % 2] {
            let (Some((port, hosts)), Some(samples)) = (sides.get(place), measured.get_mut(place)) else { continue };
            let names = format!(
                "request = function() return wrk.format('GET', '/small', {{ Host = 'site-' .. math.random(0, {}) .. '.test' }}) end\n",
                hosts - 1
            );
            let said = wrk(&format!("http://127.0.0.1:{port}/"), 64, &names, &folder)?;
            if said.failed > 0 {
                return Err(Failure::new(format!("{} requests failed with {hosts} hosts", said.failed)));
            }
            samples.push(said.each_second / 1e3);
        }
    }
    let mut table = Table::new("Many hosts: HTTP/1.1, 1 kB, 64 connections, another host each time", ["hosts", "thousand requests/s", "×"]);
    let [few, many] = &measured;
    table.row([&FEW, &few.show(2), &""]);
    table.row([&MANY, &many.show(2), &many.over(few).show(2)]);
    println!("{table}");

    let one = stage.ours(9220, FEW, 1)?;
    let all = stage.ours(9230, FEW, MANY)?;
    let took = stage.said(9230)?;
    let took =
        took.lines().find_map(|line| line.strip_prefix("LOADED ")).ok_or_else(|| Failure::new("the ingress said no time"))?.to_owned();
    let mut table = Table::new("Many certificates", ["certificates", "until they are loaded, ms", "memory, MiB"]);
    table.row([&1, &"", &format!("{:.0}", one.memory()?)]);
    table.row([&MANY, &took, &format!("{:.0}", all.memory()?)]);
    println!("{table}");
    Ok(())
}
