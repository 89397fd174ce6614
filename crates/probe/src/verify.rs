//! Makes every attempt and decides by what arrived where.
//!
//! Waves: as many attempts at once as there are file descriptors for; then a marker frame by every link, which must
//! arrive after them; then what arrived is matched with what was sent. What should have arrived and did not, and what
//! was not seen leaving, is tried again. Invariant: an attempt counts as not arrived only when it was seen leaving (or
//! was refused by its own kernel) and every sniffer proved to be awake after it.

use crate::attempt::{Attempt, Choices, Goal, Place, Planner, Prober, STRANGER, WINDOW, with_found_ports};
use crate::drift;
use crate::names;
use crate::neighbour::Neighbour;
use crate::observe::{Book, Eyes, Stage};
use crate::packet::{MARKER, Packet};
use crate::report::{Control, Drift, Observed, ProbeKind, Report, Row, Via};
use crate::scene::Scene;
use crate::send::{FrameWay, Sender, Sent, answer};
use crate::sniff::{self, Capture};
use crate::sys;
use moat_model::net::GATEWAY_V4;
use moat_model::{AddressPair, Family, Peer, Proto, Verdict};
use moat_net_linux::link::{Links, ROUTER_MAC};
use moat_net_linux::ns::{self, in_ns};
use moat_net_linux::outside::Outside;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long markers may take; and once one did not come at all.
const MARKER_PATIENCE: [Duration; 2] = [Duration::from_secs(2), Duration::from_millis(200)];
/// How long late packets are waited for after the markers, by round.
const GRACE: [Duration; 3] = [Duration::from_millis(30), Duration::from_millis(150), Duration::from_millis(600)];
/// Most sockets of one wave.
const WAVE: usize = 4096;

/// Tries everything that is worth trying, from everywhere, and says what came of it. Blocks; the calling thread's network
/// namespace is the host's. Never fails as a whole: what can't be done is a failed control of the report.
pub fn verify(scene: &Scene<'_>) -> Report {
    let start = Instant::now();
    let mut report = Report::default();
    match Run::prepare(scene) {
        Ok(mut run) => run.all(&mut report),
        Err(error) => report.controls.push(Control { name: "sniffers and probers".to_owned(), ok: false, detail: error.to_string() }),
    }
    report.duration_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    report
}

struct Run<'a> {
    scene: &'a Scene<'a>,
    host: File,
    neighbour: Option<Neighbour>,
    neighbour_error: Option<io::Error>,
    capture: Capture,
    eyes: Eyes,
    /// Sends markers by the links of the router.
    markers: OwnedFd,
    /// Index of each target's link in the router namespace, then of the uplink's router end.
    marker_links: Vec<Option<u32>>,
}

impl<'a> Run<'a> {
    fn prepare(scene: &'a Scene<'a>) -> io::Result<Self> {
        let host = ns::current()?;
        let mut sniffers = Vec::new();
        for target in &scene.targets {
            sniffers.push(sniff::open(&target.ns)?);
        }
        sniffers.push(sniff::open(&scene.router_ns)?);
        sniffers.push(sniff::open(&host)?);
        let (neighbour, neighbour_error) = match Neighbour::join(scene.seed) {
            Ok(neighbour) => (Some(neighbour), None),
            Err(error) => (None, Some(error)),
        };
        let uplink = Links::open()?.find(&scene.uplink.host_link)?.map(|link| link.index);
        let links = in_ns(&scene.router_ns, || Links::open()?.all())??;
        let index_of = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.index);
        let mut marker_links: Vec<Option<u32>> = scene.targets.iter().map(|target| index_of(target.link().as_str())).collect();
        marker_links.push(index_of(&scene.uplink.router_link));
        Ok(Self {
            scene,
            capture: Capture::start(sniffers)?,
            eyes: Eyes { targets: scene.targets.len(), uplink: uplink.unwrap_or(0) },
            markers: sniff::frame_socket(&scene.router_ns)?,
            marker_links,
            host,
            neighbour,
            neighbour_error,
        })
    }

    fn all(&mut self, report: &mut Report) {
        let (drift, suspects) = drift::find(self.scene, &self.host);
        match drift {
            Ok(drift) => report.drift = drift,
            Err(error) => report.controls.push(Control {
                name: "drift".to_owned(),
                ok: false,
                detail: format!("what is there can't be read: {error}"),
            }),
        }
        let state = with_found_ports(self.scene);
        let host_addresses = host_addresses().unwrap_or_default();
        let base = Planner::base_of(self.scene.seed);
        let planner = Planner { scene: self.scene, state: &state, suspects: &suspects, host_addresses: &host_addresses, base };
        let probers = self.probers();
        let mut attempts = planner.attempts(&probers);
        attempts.extend(self.control_attempts(&probers));
        let listener = in_ns(&self.scene.router_ns, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, base - 1))).and_then(|result| result);
        if let Err(error) = &listener {
            report.controls.push(Control { name: "listener on the gateway".to_owned(), ok: false, detail: error.to_string() });
        }
        let mut book = Book::new(attempts.len());
        match self.senders(&probers, base) {
            Ok(mut senders) => self.rounds(&attempts, &probers, &mut senders, &mut book, report),
            Err(error) => report.controls.push(Control { name: "probers".to_owned(), ok: false, detail: error.to_string() }),
        }
        drop(listener);
        self.judge(&attempts, &probers, &book, report);
        if self.scene.names {
            self.names(report);
        }
        report.probes += book.sent();
        self.sniffer_controls(&book, report);
        Self::name_the_pairs(report);
    }

    fn probers(&self) -> Vec<Prober> {
        let instances = self.scene.targets.iter().enumerate().map(|(t, target)| Prober { place: Place::Instance(t), peer: target.peer() });
        let others = [
            (Place::Router, Peer::Ingress),
            (Place::Host, Peer::Host),
            (Place::HostFrames, Peer::Host),
            (Place::StrangerFrames, Peer::Internet),
        ];
        let neighbour = self.neighbour.iter().map(|_| Prober { place: Place::Neighbour, peer: Peer::Internet });
        instances.chain(others.into_iter().map(|(place, peer)| Prober { place, peer })).chain(neighbour).collect()
    }

    /// Datagrams that must arrive where no policy is: at the router's end of the uplink, and at the host.
    fn control_attempts(&self, probers: &[Prober]) -> Vec<Attempt> {
        let mut out = Vec::new();
        for (prober, what) in probers.iter().enumerate() {
            let (at, address) = match what.place {
                Place::Host => (self.eyes.router(), Some(self.scene.uplink.router_address)),
                Place::Neighbour => (self.eyes.host(), self.neighbour.as_ref().map(|n| n.host)),
                Place::Instance(_) | Place::Router | Place::HostFrames | Place::StrangerFrames => continue,
            };
            let Some(address) = address else { continue };
            let expected = Verdict::Deny { because: moat_model::DenyReason::HostIsOutside };
            out.push(Attempt {
                prober,
                goal: Goal::Control(at),
                to: what.peer.clone(),
                via: Via::Uplink,
                address: address.v4.into(),
                proto: Proto::Udp,
                port: 9,
                expected,
                ttl: Some(2),
            });
        }
        out
    }

    fn senders<'s>(&'s self, probers: &[Prober], base: u16) -> io::Result<Vec<Sender<'s>>> {
        let uplink = self.eyes.uplink;
        let frames = |source| -> io::Result<Option<FrameWay>> {
            Ok(Some(FrameWay { socket: sniff::frame_socket(&self.host)?, index: uplink, mac: ROUTER_MAC, source }))
        };
        probers
            .iter()
            .map(|prober| {
                let (ns, frames, scope) = match prober.place {
                    Place::Instance(t) => {
                        let ns = self.scene.targets[t].ns.as_fd();
                        let links = in_ns(&ns, || Links::open()?.all())??;
                        (ns, None, links.iter().find(|link| link.name != "lo").map_or(0, |link| link.index))
                    }
                    Place::Router => (self.scene.router_ns.as_fd(), None, 0),
                    Place::Host => (self.host.as_fd(), None, 0),
                    Place::Neighbour => (self.neighbour.as_ref().map_or(self.host.as_fd(), |n| n.ns.as_fd()), None, 0),
                    Place::HostFrames => {
                        let host = self.scene.uplink.host_address;
                        let v6 = if host.v6.is_unspecified() { STRANGER.v6 } else { host.v6 };
                        (self.host.as_fd(), frames(AddressPair { v4: host.v4, v6 })?, 0)
                    }
                    Place::StrangerFrames => (self.host.as_fd(), frames(STRANGER)?, 0),
                };
                Ok(Sender { place: prober.place, ns, frames, scope, base, used: 0 })
            })
            .collect()
    }

    fn rounds(&self, attempts: &[Attempt], probers: &[Prober], senders: &mut [Sender<'_>], book: &mut Book, report: &mut Report) {
        let run = Choices::new(self.scene.seed ^ (u64::from(std::process::id()) << 20)).next();
        let stage = Stage { scene: self.scene, attempts, probers, eyes: self.eyes, run };
        let mut open: Vec<usize> = (0..attempts.len()).collect();
        let mut marked = 0;
        for grace in GRACE {
            // Probers take turns, so that each wave has some of every one.
            open.sort_by_key(|index| (attempts[*index].port, attempts[*index].proto, attempts[*index].prober));
            for wave in open.chunks(wave_size()) {
                let mut sent: Vec<Sent> = Vec::with_capacity(wave.len());
                for (index, sender) in senders.iter_mut().enumerate() {
                    for part in
                        wave.iter().copied().filter(|i| attempts[*i].prober == index).collect::<Vec<_>>().chunks(usize::from(WINDOW))
                    {
                        sent.extend(sender.send(attempts, part, run));
                    }
                }
                book.begin(attempts, probers, sent);
                self.settle(&stage, book, grace, &mut marked);
            }
            let lost = self.capture.lost().iter().any(|lost| *lost > 0);
            book.note_lost(lost);
            open.retain(|index| book.is_open(*index, &attempts[*index], lost));
            if open.is_empty() {
                break;
            }
        }
        if book.lost_last() {
            report.controls.push(Control {
                name: "no packet was lost by a sniffer".to_owned(),
                ok: false,
                detail: "a sniffer's buffer overflowed in every round".to_owned(),
            });
        }
    }

    /// Waits until everything sent so far has been seen or is not coming.
    fn settle(&self, stage: &Stage<'_>, book: &mut Book, grace: Duration, marked: &mut u64) {
        *marked += 1;
        let nonce = stage.run ^ *marked;
        let patience = MARKER_PATIENCE[usize::from(!book.all_awake())];
        for (index, link) in self.marker_links.iter().enumerate() {
            if let Some(link) = link {
                // When it can't be sent nobody sees it, and the control says so.
                let _ = sys::send_frame(self.markers.as_fd(), *link, MARKER, [0xff; 6], &nonce.to_be_bytes());
            }
            book.expect_marker(self.eyes.marker_at(index));
        }
        book.expect_marker(self.eyes.router());
        let expected = self.marker_links.iter().flatten().count();
        let is_marker = |seen: &sniff::Seen| !seen.outgoing && seen.packet == Packet::Marker(nonce);
        let mut heard = 0;
        let (seen, _) = self.capture.wait(patience, |seen| {
            heard += seen.iter().filter(|one| is_marker(one)).count();
            heard >= expected
        });
        book.read(stage, &seen, nonce);
        let deadline = Instant::now() + grace;
        loop {
            // Late packets, and answers to what should be answered.
            let left = deadline.saturating_duration_since(Instant::now());
            let (seen, _) = self.capture.wait(left.min(Duration::from_millis(10)), |_| false);
            book.read(stage, &seen, nonce);
            book.answers(answer);
            if left.is_zero() || (left < grace / 2 && book.is_settled(stage.attempts)) {
                break;
            }
        }
        book.end_wave();
    }

    fn judge(&self, attempts: &[Attempt], probers: &[Prober], book: &Book, report: &mut Report) {
        for (index, attempt) in attempts.iter().enumerate() {
            let prober = &probers[attempt.prober];
            if let Goal::Control(_) = attempt.goal {
                let (name, ok) = (format!("{} can send", place_words(prober)), book.arrived_anywhere(index));
                let detail = if ok {
                    format!("a datagram to {} was seen arriving", attempt.address)
                } else {
                    format!("a datagram to {} was not seen arriving", attempt.address)
                };
                report.controls.push(Control { name, ok, detail });
                continue;
            }
            let (observed, to_instance, detail) = book.observed(index, attempt, self.scene);
            let agrees = match observed {
                Observed::Reached => attempt.expected.is_allowed() && detail.is_none(),
                Observed::NotReached => !attempt.expected.is_allowed(),
                Observed::Unproven(_) => false,
            };
            let family = if attempt.address.is_ipv4() { Family::V4 } else { Family::V6 };
            report.rows.push(Row {
                from: prober.peer.clone(),
                from_instance: if let Place::Instance(t) = prober.place { Some(self.scene.targets[t].instance.clone()) } else { None },
                to: attempt.to.clone(),
                to_instance,
                what: ProbeKind::Flow { proto: attempt.proto, family, via: attempt.via },
                address: attempt.address,
                port: attempt.port,
                expected: attempt.expected,
                observed,
                detail,
                agrees,
            });
        }
        for (index, prober) in probers.iter().enumerate() {
            report.controls.push(Self::prober_control(index, prober, attempts, book));
        }
        if let Some(error) = &self.neighbour_error {
            report.controls.push(Control { name: "a pretended LAN neighbour".to_owned(), ok: false, detail: error.to_string() });
        }
    }

    /// A prober works when its packets were seen outside of it, or, where every one of them must be refused, when its
    /// own kernel said so.
    fn prober_control(index: usize, prober: &Prober, attempts: &[Attempt], book: &Book) -> Control {
        let own = || (0..attempts.len()).filter(|i| attempts[*i].prober == index && !matches!(attempts[*i].goal, Goal::Control(_)));
        let total = own().count();
        let left = own().filter(|i| book.left(*i)).count();
        let refused = own().filter(|i| book.refused(*i)).count();
        let reached = own().filter(|i| attempts[*i].expected.is_allowed() && book.arrived_anywhere(*i)).count();
        let allowed = own().filter(|i| attempts[*i].expected.is_allowed()).count();
        let ok = total == 0 || ((left > 0 || refused > 0) && (allowed == 0 || reached > 0));
        Control {
            name: format!("probes from {}", place_words(prober)),
            ok,
            detail: format!(
                "{total} attempts: {left} sent, {refused} refused by its own kernel, {reached} of {allowed} allowed ones arrived"
            ),
        }
    }

    fn names(&self, report: &mut Report) {
        let (rows, answered) = names::ask_all(self.scene);
        report.probes += rows.len() as u64;
        report.rows.extend(rows);
        for (index, result) in answered {
            let target = &self.scene.targets[index];
            let wanted = names::may_ask(self.scene, target);
            let (ok, detail) = match result {
                Ok(count) => (count > 0 || !wanted, format!("{count} answers from {GATEWAY_V4}")),
                Err(error) => (false, error.to_string()),
            };
            report.controls.push(Control { name: format!("names asked by {} ({})", target.peer(), target.instance), ok, detail });
        }
    }

    fn sniffer_controls(&self, book: &Book, report: &mut Report) {
        for at in 0..self.eyes.count() {
            let name = match self.scene.targets.get(at) {
                Some(target) => format!("sniffer in {} ({})", target.peer(), target.instance),
                None if at == self.eyes.router() => "sniffer in the router".to_owned(),
                None => "sniffer at the host's end of the uplink".to_owned(),
            };
            let (seen, wanted) = book.markers(at);
            report.controls.push(Control { name, ok: seen >= wanted && wanted > 0, detail: format!("{seen} of {wanted} markers seen") });
        }
    }

    /// Each disagreement says its pair by itself; drift that names no pair gets those that it moved.
    fn name_the_pairs(report: &mut Report) {
        let mut moved: Vec<(Peer, Peer)> = report.disagreements().map(|row| (row.from.clone(), row.to.clone())).collect();
        moved.sort();
        moved.dedup();
        let nameless: Vec<Drift> = report.drift.iter().filter(|drift| drift.pair.is_none()).cloned().collect();
        for drift in nameless {
            report.drift.extend(moved.iter().map(|pair| Drift { pair: Some(pair.clone()), what: drift.what.clone() }));
        }
        report.drift.sort();
        report.drift.dedup();
    }
}

fn place_words(prober: &Prober) -> String {
    match prober.place {
        Place::Instance(_) => prober.peer.to_string(),
        Place::Router => "the ingress".to_owned(),
        Place::Host => "the host".to_owned(),
        Place::Neighbour => "a pretended LAN neighbour".to_owned(),
        Place::HostFrames => "the host by frames on the uplink".to_owned(),
        Place::StrangerFrames => "a stranger by frames on the uplink".to_owned(),
    }
}

/// The host's own addresses, but loopback and link-local ones; in a user namespace the machine's beside those of the namespace.
fn host_addresses() -> io::Result<Vec<IpAddr>> {
    let own = Links::open()?.addresses()?.into_iter().map(|(_, net)| net.addr());
    let beyond = Outside::of_process().map(|outside| outside.addresses()).transpose()?.unwrap_or_default();
    let usable = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    Ok(own.chain(beyond).filter(usable).collect())
}

/// How many sockets may be open at once.
fn wave_size() -> usize {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let open = std::fs::read_dir("/proc/self/fd").map_or(256, Iterator::count);
    usize::try_from(limit).unwrap_or(WAVE).saturating_sub(open + 64).clamp(64, WAVE)
}
