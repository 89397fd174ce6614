//! Matches what was seen with what was sent.
//!
//! Main types: [`Eyes`] (which sniffer is where), [`Book`] (what is known of every attempt).

use crate::attempt::{Attempt, Goal, Place, Prober};
use crate::packet::Packet;
use crate::report::Observed;
use crate::scene::Scene;
use crate::send::{Answer, Sent};
use crate::sniff::Seen;
use moat_model::net::{GATEWAY_V4, GATEWAY_V6};
use moat_model::{Family, InstanceId, Proto};
use nix::errno::Errno;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

/// Which sniffer is where: one for each target, then the router's, then the host's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Eyes {
    /// How many targets there are.
    pub(crate) targets: usize,
    /// Index of the uplink's link in the host's namespace.
    pub(crate) uplink: u32,
}

impl Eyes {
    pub(crate) const fn router(self) -> usize {
        self.targets
    }
    pub(crate) const fn host(self) -> usize {
        self.targets + 1
    }
    pub(crate) const fn count(self) -> usize {
        self.targets + 2
    }
    /// Who sees the marker sent by this link: a target, or for the last link (the uplink) the host.
    pub(crate) const fn marker_at(self, link: usize) -> usize {
        if link < self.targets { link } else { self.host() }
    }
}

/// What is known of one attempt.
#[derive(Debug, Default, Clone)]
struct Entry {
    /// Seen outside of its prober.
    left: bool,
    /// Its own kernel refused to send it.
    refused: bool,
    /// It could not be made for another reason.
    failed: Option<Errno>,
    /// Targets it was seen at.
    arrived: Vec<usize>,
    /// Seen at the host's end of the uplink, or where a control is meant to arrive.
    passed: bool,
    answer: Option<Answer>,
}

/// What is known of every attempt.
#[derive(Debug, Default)]
pub(crate) struct Book {
    entries: Vec<Entry>,
    sent: u64,
    /// This wave's TCP attempts by family, source port and destination port.
    by_port: HashMap<(Family, u16, u16), Vec<usize>>,
    wave: Vec<usize>,
    waiting: Vec<(usize, OwnedFd)>,
    /// Markers (seen, wanted) by sniffer.
    markers: HashMap<usize, (u64, u64)>,
    lost_last: bool,
}

const fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// What does not change while attempts are made.
#[derive(Clone, Copy)]
pub(crate) struct Stage<'a> {
    pub(crate) scene: &'a Scene<'a>,
    pub(crate) attempts: &'a [Attempt],
    pub(crate) probers: &'a [Prober],
    pub(crate) eyes: Eyes,
    /// The high half of every datagram's nonce.
    pub(crate) run: u64,
}

impl Stage<'_> {
    /// Whether a SYN with the ports of an attempt, seen by the sniffer `at`, is the attempt's.
    fn sent_it(&self, index: usize, at: usize, source: IpAddr, destination: IpAddr) -> bool {
        let attempt = &self.attempts[index];
        let Place::Instance(own) = self.probers[attempt.prober].place else { return true };
        let target = &self.scene.targets[own];
        if target.address.contains(source) {
            return true;
        }
        match &attempt.goal {
            // Who reaches itself by its service address comes back from the gateway.
            Goal::Service(slug) => {
                at == own && *slug == target.slug && (source == IpAddr::V4(GATEWAY_V4) || source == IpAddr::V6(GATEWAY_V6))
            }
            // Egress hides behind the uplink's address; each prober asks for an address of its own.
            Goal::Uplink => at == self.eyes.host() && destination == attempt.address,
            Goal::Instance(_) | Goal::Gateway | Goal::Control(_) => false,
        }
    }
}

/// A refusal that proves that nothing was sent: no route, no address of the family, or the filter on output.
const fn proves_nothing_sent(errno: Errno) -> bool {
    matches!(errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EPERM | Errno::EACCES | Errno::EADDRNOTAVAIL)
}

impl Book {
    pub(crate) fn new(attempts: usize) -> Self {
        Self { entries: vec![Entry::default(); attempts], ..Self::default() }
    }

    /// Notes what was sent in a wave.
    pub(crate) fn begin(&mut self, attempts: &[Attempt], probers: &[Prober], sent: Vec<Sent>) {
        self.by_port.clear();
        self.wave.clear();
        for Sent { attempt: index, source_port, result } in sent {
            let attempt = &attempts[index];
            self.wave.push(index);
            let entry = &mut self.entries[index];
            entry.failed = None;
            match result {
                Ok(socket) => {
                    self.sent += 1;
                    // What the host sends to nowhere may wait for a neighbour that never answers; the way into the
                    // router needs no such answer, and the host's control shows that it is open. What the router's own
                    // filter drops on output is told to senders of datagrams only; its dials show that it can send.
                    entry.left |= matches!(probers[attempt.prober].place, Place::Host | Place::Router);
                    if attempt.proto == Proto::Tcp {
                        self.by_port.entry((family_of(attempt.address), source_port, attempt.port)).or_default().push(index);
                    }
                    self.waiting.extend(socket.map(|socket| (index, socket)));
                }
                Err(errno) if proves_nothing_sent(errno) => entry.refused = true,
                Err(errno) => entry.failed = Some(errno),
            }
        }
    }

    /// A marker was sent by a link (or could not be); this sniffer has to see it.
    pub(crate) fn expect_marker(&mut self, at: usize) {
        self.markers.entry(at).or_default().1 += 1;
    }

    /// Notes what was seen; `marker` is the nonce of this wave's markers.
    pub(crate) fn read(&mut self, stage: &Stage<'_>, seen: &[Seen], marker: u64) {
        for one in seen {
            match one.packet {
                Packet::Marker(nonce) => {
                    // The router sends the markers itself; everyone else receives them.
                    if nonce == marker && one.outgoing == (one.at == stage.eyes.router()) {
                        let count = self.markers.entry(one.at).or_default();
                        count.0 = (count.0 + 1).min(count.1);
                    }
                }
                Packet::Datagram { nonce, .. } => {
                    let index = usize::try_from(nonce & 0xffff_ffff).unwrap_or(usize::MAX);
                    if index < stage.attempts.len() && crate::send::nonce(stage.run, index) == nonce {
                        self.note(index, stage, *one);
                    }
                }
                Packet::Syn { source, destination, source_port, port } => {
                    let candidates = self.by_port.get(&(family_of(destination), source_port, port)).cloned().unwrap_or_default();
                    for index in candidates.into_iter().filter(|index| stage.sent_it(*index, one.at, source, destination)) {
                        self.note(index, stage, *one);
                    }
                }
            }
        }
    }

    fn note(&mut self, index: usize, stage: &Stage<'_>, seen: Seen) {
        let (attempt, eyes) = (&stage.attempts[index], stage.eyes);
        let entry = &mut self.entries[index];
        if seen.at < eyes.targets {
            if !seen.outgoing && !entry.arrived.contains(&seen.at) {
                entry.arrived.push(seen.at);
            }
            return;
        }
        if attempt.goal == Goal::Control(seen.at) && !seen.outgoing {
            entry.passed = true;
        }
        let at_router = seen.at == eyes.router();
        match stage.probers[attempt.prober].place {
            Place::Instance(_) if at_router => entry.left |= !seen.outgoing,
            Place::Instance(_) => entry.passed |= !seen.outgoing && seen.link == eyes.uplink,
            Place::Router | Place::Host => {}
            Place::Neighbour => entry.left |= !at_router && !seen.outgoing,
            Place::HostFrames | Place::StrangerFrames => entry.left |= at_router && !seen.outgoing,
        }
    }

    /// Looks at connecting sockets.
    pub(crate) fn answers(&mut self, look: impl Fn(&OwnedFd) -> Answer) {
        self.waiting.retain(|(index, socket)| match look(socket) {
            Answer::None => true,
            answer @ (Answer::Reset | Answer::Connected) => {
                self.entries[*index].answer = Some(answer);
                // A finished one stays open until the wave ends: its port must not be used again.
                answer == Answer::Connected
            }
        });
    }

    /// Closes the wave's sockets.
    pub(crate) fn end_wave(&mut self) {
        self.waiting.clear();
    }

    /// Whether all of this wave came to what was expected.
    pub(crate) fn is_settled(&self, attempts: &[Attempt]) -> bool {
        self.wave.iter().all(|index| !self.is_open(*index, &attempts[*index], false))
    }

    /// Whether an attempt is worth making again.
    pub(crate) fn is_open(&self, index: usize, attempt: &Attempt, lost: bool) -> bool {
        let entry = &self.entries[index];
        match attempt.goal {
            Goal::Control(_) => !entry.passed,
            Goal::Instance(_) | Goal::Service(_) | Goal::Uplink | Goal::Gateway => {
                let arrived = self.arrived_anywhere(index);
                if attempt.expected.is_allowed() {
                    !arrived || (wants_answer(attempt) && entry.answer.is_none())
                } else {
                    !arrived && (lost || !(entry.left || entry.refused))
                }
            }
        }
    }

    /// Whether every sniffer saw every marker so far.
    pub(crate) fn all_awake(&self) -> bool {
        self.markers.values().all(|(seen, wanted)| seen == wanted)
    }

    pub(crate) fn note_lost(&mut self, lost: bool) {
        self.lost_last = lost;
    }
    pub(crate) const fn lost_last(&self) -> bool {
        self.lost_last
    }
    /// Packets sent.
    pub(crate) const fn sent(&self) -> u64 {
        self.sent
    }
    pub(crate) fn left(&self, index: usize) -> bool {
        self.entries[index].left
    }
    pub(crate) fn refused(&self, index: usize) -> bool {
        self.entries[index].refused
    }
    pub(crate) fn arrived_anywhere(&self, index: usize) -> bool {
        let entry = &self.entries[index];
        entry.passed || !entry.arrived.is_empty()
    }
    /// Markers (seen, wanted) of a sniffer.
    pub(crate) fn markers(&self, at: usize) -> (u64, u64) {
        self.markers.get(&at).copied().unwrap_or_default()
    }

    /// What an attempt came to, the instance that got it, and what is odd about it.
    pub(crate) fn observed(&self, index: usize, attempt: &Attempt, scene: &Scene<'_>) -> (Observed, Option<InstanceId>, Option<String>) {
        let entry = &self.entries[index];
        let meant = |t: &usize| match &attempt.goal {
            Goal::Instance(target) => t == target,
            Goal::Service(slug) => scene.targets[*t].slug == *slug && scene.targets[*t].ready,
            Goal::Uplink | Goal::Gateway | Goal::Control(_) => false,
        };
        let named = match attempt.goal {
            Goal::Instance(target) => Some(scene.targets[target].instance.clone()),
            Goal::Service(_) | Goal::Uplink | Goal::Gateway | Goal::Control(_) => None,
        };
        if let Some(astray) = entry.arrived.iter().find(|t| !meant(t)) {
            let target = &scene.targets[*astray];
            return (
                Observed::Reached,
                Some(target.instance.clone()),
                Some(format!("arrived at {} ({}) instead", target.peer(), target.instance)),
            );
        }
        let arrived = match attempt.goal {
            Goal::Instance(_) | Goal::Service(_) => !entry.arrived.is_empty(),
            Goal::Uplink | Goal::Control(_) => entry.passed,
            Goal::Gateway => entry.answer == Some(Answer::Connected),
        };
        let to = entry.arrived.first().map(|t| scene.targets[*t].instance.clone()).or(named);
        let observed = if arrived && attempt.expected.is_allowed() && wants_answer(attempt) && entry.answer.is_none() {
            Observed::Unproven("it arrived, but no answer came back".to_owned())
        } else if arrived {
            Observed::Reached
        } else if entry.left || entry.refused {
            Observed::NotReached
        } else if let Some(errno) = entry.failed {
            Observed::Unproven(format!("it could not be sent: {}", errno.desc()))
        } else {
            Observed::Unproven("it was not seen leaving".to_owned())
        };
        (observed, to, None)
    }
}

/// Every kernel answers a SYN, with a reset where nothing listens.
const fn wants_answer(attempt: &Attempt) -> bool {
    matches!(attempt.proto, Proto::Tcp) && matches!(attempt.goal, Goal::Instance(_) | Goal::Service(_))
}
