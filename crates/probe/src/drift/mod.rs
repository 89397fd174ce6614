//! What is in the router and the host that should not be, and what should be and is not.
//!
//! Probes see what a change does to the ports they try; this sees the change itself, and tells the probes which ports to
//! try because of it.

mod ruleset;
mod system;

use crate::report::Drift;
use crate::scene::{Scene, Target};
use moat_model::{Peer, ZoneId};
use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Every difference, and the ports that differing rules speak of.
pub(crate) fn find(scene: &Scene<'_>, host: &File) -> (Result<Vec<Drift>, Error>, BTreeSet<u16>) {
    let mut suspects = BTreeSet::new();
    let result = ruleset::find(scene, &mut suspects).and_then(|mut drift| {
        drift.extend(system::of_router(scene)?);
        drift.extend(system::of_host(scene, host)?);
        drift.sort();
        drift.dedup();
        Ok(drift)
    });
    (result, suspects)
}

/// Who has this address: an instance, or a service by its service address.
fn peer_of_address(scene: &Scene<'_>, address: IpAddr) -> Option<Peer> {
    let by_instance = scene.targets.iter().find(|t| t.address.contains(address)).map(Target::peer);
    by_instance.or_else(|| {
        scene.state.services.values().find(|s| s.vip.is_some_and(|vip| vip.contains(address))).map(|s| Peer::Service(s.slug.clone()))
    })
}

/// Who has this link.
fn peer_of_link(scene: &Scene<'_>, link: &str) -> Option<Peer> {
    scene.targets.iter().find(|t| t.link().as_str() == link).map(Target::peer)
}

/// Peers that live, other than `but`.
fn others<'a>(scene: &'a Scene<'_>, but: &'a Peer) -> impl Iterator<Item = Peer> + use<'a> {
    let all: BTreeSet<Peer> = scene.targets.iter().map(Target::peer).collect();
    all.into_iter().filter(move |peer| peer != but)
}

/// Services that send and are in the zone that packets with this mark come from: the engine's mark is the zone's number
/// plus one in the low 31 bits, the highest bit says something else.
fn senders_by_mark<'a>(scene: &'a Scene<'_>, mark: u64) -> impl Iterator<Item = Peer> + use<'a> {
    let of_zone = move |zone: ZoneId| u64::from(zone.0) + 1 == mark & 0x7fff_ffff;
    scene.state.services.values().filter(move |s| s.kind.sends() && of_zone(s.zone)).map(|s| Peer::Service(s.slug.clone()))
}

/// One drift for each pair, or one without when no pair is known.
fn per_pair(pairs: BTreeSet<(Peer, Peer)>, what: &str) -> Vec<Drift> {
    if pairs.is_empty() {
        return vec![Drift { pair: None, what: what.to_owned() }];
    }
    pairs.into_iter().map(|pair| Drift { pair: Some(pair), what: what.to_owned() }).collect()
}
