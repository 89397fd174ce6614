//! When an instance may take traffic: by its sockets, its health check, or, for what receives nothing, by staying up.
//!
//! All checks are made from inside the instance's own namespace, so that they need no hole in the policy.

pub(crate) mod postgres;

use crate::core::Msg;
use crate::machine::{HealthCheck, Machine, Unwell};
use moat_model::net::{MAX_OPEN_PORTS, RESERVED_PORTS};
use moat_model::state::{Listener, Workload};
use moat_model::{AddressPair, InstanceId, Proto, Service, ServiceKind};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

/// What a check saw.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Takes traffic.
    pub ready: bool,
    /// Sockets.
    pub listeners: Vec<Listener>,
    /// The HTTP port (the main port of a private service).
    pub http_port: Option<u16>,
    /// What is missing, in words.
    pub seen: Option<String>,
    /// Worth telling once.
    pub notice: Option<String>,
}

/// A program that stays up this long is up.
const UP_AFTER: Duration = Duration::from_millis(1500);
/// Another port than `PORT` is taken only after the program had this long to bind `PORT` too.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
/// The same of a private service whose blueprint says its `PORT`: large servers open smaller ports of theirs long before it.
const WRITTEN_PORT_PATIENCE: Duration = Duration::from_mins(2);
/// A UDP socket that stays so long where no TCP port is open is a server's: one that a client sends from looks the same.
const UDP_PATIENCE: Duration = Duration::from_secs(3);
/// Listening on nothing is no surprise before.
const STARTING: Duration = Duration::from_secs(8);
/// Between two looks at an instance that does not take traffic yet: the least, which grows by half each time, and the most.
const SOON: Duration = Duration::from_millis(15);
const SOON_AT_MOST: Duration = Duration::from_millis(150);
/// Between two looks at one that takes traffic and is asked for its health.
const OFTEN: Duration = Duration::from_secs(2);
/// Between two looks at one that takes traffic and is known by its open port alone: in its first minute, in its first ten, later.
const BY_PORT: [Duration; 3] = [OFTEN, Duration::from_secs(5), Duration::from_secs(30)];
/// The same of one that receives nothing: only whether it listens all the same is looked for.
const RECEIVES_NOTHING: [Duration; 3] = [Duration::from_secs(10), Duration::from_mins(5), Duration::from_mins(5)];
const FIRST_MINUTE: Duration = Duration::from_mins(1);
const FIRST_MINUTES: Duration = Duration::from_mins(10);
const OUT_OF_ROTATION_AFTER: Duration = Duration::from_secs(15);
const RESTART_AFTER: Duration = Duration::from_mins(1);

/// Checks until aborted; reports what changed, and an instance that was ready and is unhealthy for too long. `before`: what an earlier
/// daemon saw of an instance that takes traffic. Where nothing can be seen or asked (no descriptor is left), what was seen last holds.
pub async fn watch(
    engine: Arc<dyn Machine>,
    id: InstanceId,
    service: Service,
    address: AddressPair,
    host: String,
    before: Option<Readiness>,
    tx: UnboundedSender<Msg>,
) {
    let began = Instant::now();
    let mut health = Health { was_healthy: before.is_some(), failing_since: None };
    // One that takes traffic had its time to bind its port.
    let mut patience = Patience { is_over: before.is_some(), ..Patience::default() };
    let mut last = before;
    let mut soon = SOON;
    loop {
        let mut unseen = false;
        let mut now = match look(&*engine, &id, &service, began, &mut patience).await {
            Ok(now) => now,
            Err(why) => {
                unseen = true;
                Readiness { seen: Some(why), ..Readiness::default() }
            }
        };
        if let Some(path) = service.health_check_path.as_ref().filter(|_| !unseen) {
            let answer = match now.http_port.filter(|_| now.ready) {
                Some(port) => engine
                    .ask_health(
                        &id,
                        SocketAddr::new(address.v4.into(), port),
                        HealthCheck { host: &host, path, proxy_header: service.public.proxy_header },
                    )
                    .await
                    .map_err(|why| {
                        let why = match why {
                            Unwell::Answer(why) => why,
                            Unwell::NotAsked(why) => {
                                unseen = true;
                                why
                            }
                        };
                        format!("health check `{path}` on port {port}: {why}")
                    }),
                // Its port is closed: that is no answer either, and nothing that traffic can be sent to.
                None => Err(now.seen.clone().unwrap_or_else(|| "listens on nothing".to_owned())),
            };
            let listens = now.ready;
            let verdict = if unseen { Verdict::Out } else { health.take(answer.is_ok(), Instant::now()) };
            now.ready = listens && verdict == Verdict::In;
            if let Err(why) = answer {
                let seconds = OUT_OF_ROTATION_AFTER.as_secs();
                now.notice = (verdict != Verdict::In && health.was_healthy && !unseen)
                    .then(|| format!("{id} takes no traffic: for {seconds} s it has not been healthy"));
                if verdict == Verdict::Restart {
                    let _ = tx.send(Msg::Unhealthy(id.clone(), format!("unhealthy for {} s: {why}", RESTART_AFTER.as_secs())));
                }
                now.seen = Some(why);
            }
        }
        if unseen && let Some(last) = last.as_ref().filter(|last| last.ready || health.was_healthy) {
            tracing::debug!(%id, why = now.seen.as_deref().unwrap_or_default(), "can't be looked at");
            now = last.clone();
        }
        // Once only: a session costs the server a process.
        if now.ready
            && !last.as_ref().is_some_and(|l: &Readiness| l.ready)
            && let (Workload::Postgres(server), Some(port)) = (&service.workload, now.http_port)
            && let Err(why) = engine.ask_postgres(&id, SocketAddr::new(address.v4.into(), port), server).await
        {
            now.ready = false;
            now.seen = Some(why);
        }
        let up = began.elapsed();
        let pause = if now.ready || health.was_healthy {
            soon = SOON;
            rest(&service, up)
        } else if service.kind.receives() {
            let now = soon;
            soon = (soon * 3 / 2).min(SOON_AT_MOST);
            now
        } else {
            // Nothing but time makes it ready.
            UP_AFTER.saturating_sub(up).max(SOON)
        };
        if last.as_ref() != Some(&now) {
            last = Some(now.clone());
            if tx.send(Msg::Checked(id.clone(), now)).is_err() {
                return;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Between two looks at an instance that takes traffic and has been watched for so long.
fn rest(service: &Service, watched: Duration) -> Duration {
    let [first, then, later] = match (service.kind.receives(), &service.health_check_path) {
        (true, Some(_)) => [OFTEN; 3],
        (true, None) => BY_PORT,
        (false, _) => RECEIVES_NOTHING,
    };
    match watched {
        watched if watched < FIRST_MINUTE => first,
        watched if watched < FIRST_MINUTES => then,
        _ => later,
    }
}

/// What health checks so far mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It takes traffic.
    In,
    /// It takes none.
    Out,
    /// It should be started anew.
    Restart,
}

/// An instance's health over time.
///
/// ```text
/// new ──ok──▶ healthy ──fails for 15 s──▶ out ──for 60 s in all──▶ restart
///                ▲────────────ok───────────┘
/// ```
#[derive(Debug, Default)]
struct Health {
    was_healthy: bool,
    failing_since: Option<Instant>,
}

impl Health {
    fn take(&mut self, healthy: bool, now: Instant) -> Verdict {
        if healthy {
            *self = Self { was_healthy: true, failing_since: None };
            return Verdict::In;
        }
        let failing = now.saturating_duration_since(*self.failing_since.get_or_insert(now));
        match (self.was_healthy, failing) {
            (false, _) => Verdict::Out,
            (true, failing) if failing >= RESTART_AFTER => Verdict::Restart,
            (true, failing) if failing >= OUT_OF_ROTATION_AFTER => Verdict::Out,
            (true, _) => Verdict::In,
        }
    }
}

async fn look(
    engine: &dyn Machine,
    id: &InstanceId,
    service: &Service,
    began: Instant,
    patience: &mut Patience,
) -> Result<Readiness, String> {
    let listeners = engine.listeners(id).await.map_err(|error| error.to_string())?;
    Ok(judge(service, listeners, began.elapsed(), patience))
}

/// What was seen and is not believed at once; times are counted from the first look.
#[derive(Debug, Default)]
struct Patience {
    /// An earlier daemon had it.
    is_over: bool,
    /// Since when it listens elsewhere than on `PORT`.
    elsewhere: Option<Duration>,
    /// Since when UDP ports are open.
    udp: BTreeMap<u16, Duration>,
}

impl Patience {
    /// Whether it listens elsewhere than on `PORT` for so long.
    fn elsewhere(&mut self, up: Duration, patience: Duration) -> bool {
        self.is_over || up.saturating_sub(*self.elsewhere.get_or_insert(up)) >= patience
    }

    /// Whether one of the UDP ports that are open now is a server's.
    fn udp(&mut self, open: &[u16], up: Duration) -> bool {
        self.udp.retain(|port, _| open.contains(port));
        open.iter().any(|port| up.saturating_sub(*self.udp.entry(*port).or_insert(up)) >= UDP_PATIENCE) || self.is_over && !open.is_empty()
    }
}

/// What a set of sockets means for a service that runs for `up` already.
fn judge(service: &Service, listeners: Vec<Listener>, up: Duration, patience: &mut Patience) -> Readiness {
    let open: BTreeSet<(Proto, u16)> = listeners.iter().filter(|l| !l.loopback_only).map(|l| (l.endpoint.proto, l.endpoint.port)).collect();
    if !service.kind.receives() {
        let notice = open.iter().next().map(|(proto, port)| {
            format!("it listens on {port}/{proto}, but a {} receives nothing: nobody can reach it", service.kind.phrase())
        });
        return Readiness {
            ready: up >= UP_AFTER,
            listeners,
            http_port: None,
            seen: (up < UP_AFTER).then(|| "has just started".to_owned()).or_else(|| notice.clone()),
            notice,
        };
    }
    let tcp: Vec<u16> = open.iter().filter(|(proto, _)| *proto == Proto::Tcp).map(|(_, port)| *port).collect();
    let expected = service.port;
    let loopback: Vec<&Listener> = listeners.iter().filter(|l| l.loopback_only).collect();
    let mut notice = None;
    if open.len() > MAX_OPEN_PORTS {
        notice = Some(format!("it listens on {} ports; {MAX_OPEN_PORTS} are the most a service should open", open.len()));
    }
    if let Some((_, port)) = open.iter().find(|(_, port)| RESERVED_PORTS.contains(port)) {
        notice = Some(format!("it listens on {port}, a reserved port: nobody can reach it there"));
    }
    let usable: Vec<u16> = tcp.iter().copied().filter(|port| !RESERVED_PORTS.contains(port)).collect();
    let udp: Vec<u16> =
        open.iter().filter(|(proto, port)| *proto == Proto::Udp && !RESERVED_PORTS.contains(port)).map(|(_, p)| *p).collect();
    let is_private = service.kind == ServiceKind::Pserv;
    let written = service.written_keys.contains("PORT");
    let list = || open.iter().map(|(proto, port)| format!("{port}/{proto}")).collect::<Vec<_>>().join(", ");
    let (ready, http_port, seen) = match expected {
        Some(port) if usable.contains(&port) => (true, Some(port), None),
        Some(port) if is_private && (if written { udp.contains(&port) } else { usable.is_empty() && !udp.is_empty() }) => {
            let is_server = patience.udp(if written { std::slice::from_ref(&port) } else { &udp }, up);
            (is_server, None, (!is_server).then(|| format!("listens on {} so far", list())))
        }
        Some(port) if is_private && written && !open.is_empty() => {
            let words = format!("listens on {}, not on PORT {port}", list());
            let over = patience.elsewhere(up, WRITTEN_PORT_PATIENCE);
            if over {
                notice = Some(words.clone());
            }
            (over, usable.first().copied().filter(|_| over), Some(words))
        }
        Some(port) if is_private && !usable.is_empty() => {
            let other = usable.first().copied();
            // Whoever was given the other port is told with it, by the loop, which knows them.
            notice = other
                .filter(|_| service.port_given_to.is_empty())
                .map(|other| format!("listens on {}, not on PORT {port}: {other} is taken as its port", list()))
                .or(notice);
            (true, other, notice.clone())
        }
        Some(port) if !usable.is_empty() => {
            let other = usable.first().copied();
            let words = other.map(|other| format!("listens on {other}, not on PORT {port}"));
            if patience.elsewhere(up, PORT_PATIENCE) {
                notice = words.as_ref().zip(other).map(|(words, other)| format!("{words}: {other} is taken as its HTTP port"));
                (true, other, notice.clone())
            } else {
                (false, None, words)
            }
        }
        _ => {
            let words = match loopback.first() {
                Some(l) => format!("listens on 127.0.0.1:{} only: bind to 0.0.0.0 (and ::)", l.endpoint.port),
                None if service.kind.is_datastore() => "the server does not listen yet".to_owned(),
                None if up < STARTING => format!("waits for port {}", expected.unwrap_or(moat_model::net::DEFAULT_HTTP_PORT)),
                None => format!(
                    "listens on nothing yet (expected: port {}); make it a background worker if it never will",
                    expected.unwrap_or(moat_model::net::DEFAULT_HTTP_PORT)
                ),
            };
            (false, None, Some(words))
        }
    };
    Readiness { ready, listeners, http_port, seen, notice }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_lost_after_15_s_and_an_instance_after_60() {
        let start = Instant::now();
        let mut health = Health::default();
        for (second, healthy, expect) in [
            (0, false, Verdict::Out),
            // Before it was ever healthy a deploy waits, however long.
            (100, false, Verdict::Out),
            (101, true, Verdict::In),
            (103, false, Verdict::In),
            (117, false, Verdict::In),
            (118, false, Verdict::Out),
            (140, false, Verdict::Out),
            // One answer brings it back, and the count begins anew.
            (141, true, Verdict::In),
            (150, false, Verdict::In),
            (165, false, Verdict::Out),
            (209, false, Verdict::Out),
            (210, false, Verdict::Restart),
        ] {
            assert_eq!(health.take(healthy, start + Duration::from_secs(second)), expect, "at {second} s");
        }
    }

    /// A private service as a blueprint says it.
    fn pserv(more: &str) -> Service {
        let text = format!("services:\n  - {{type: pserv, name: a, runtime: image, image: {{url: a}}{more}}}\n");
        let read = moat_blueprint::read(&text);
        let input = moat_planner::resolve::Input {
            path: std::path::Path::new("/a/render.yaml"),
            source: std::path::Path::new("/a"),
            blueprint: &read.blueprint,
            given: &BTreeMap::new(),
            files: &BTreeMap::new(),
            git: moat_planner::resolve::GitFacts::default(),
        };
        let mut memory = moat_planner::memory::Memory::default();
        let resolved = moat_planner::resolve::resolve(&[input], &mut memory, &mut || [7; 32], &moat_planner::resolve::Settings::default());
        resolved.state.services.into_values().next().unwrap()
    }

    fn open(list: &str) -> Vec<Listener> {
        let one = |word: &str| {
            let (port, proto) = word.trim_end_matches('!').split_once('/').unwrap();
            let proto = if proto == "udp" { Proto::Udp } else { Proto::Tcp };
            Listener { endpoint: moat_model::Endpoint { proto, port: port.parse().unwrap() }, loopback_only: word.ends_with('!') }
        };
        list.split_whitespace().map(one).collect()
    }

    /// Seconds, what is open, whether it takes traffic, by which port, and what is said.
    type Row = (u64, &'static str, bool, Option<u16>, Option<&'static str>);

    #[test]
    fn a_private_service_is_ready_by_its_tcp_port_and_by_a_udp_port_that_stays() {
        let (bare, written) = (pserv(""), pserv(", envVars: [{key: PORT, value: 53}]"));
        let rows: [(&Service, &[Row]); 6] = [
            (&bare, &[(0, "", false, None, Some("waits for port 10000")), (1, "10000/tcp", true, Some(10000), None)]),
            (
                &bare,
                &[(
                    0,
                    "8000/tcp 514/udp",
                    true,
                    Some(8000),
                    Some("listens on 8000/tcp, 514/udp, not on PORT 10000: 8000 is taken as its port"),
                )],
            ),
            // A socket that it asks a name server by is gone again, or another, before it listens.
            (
                &bare,
                &[
                    (0, "40000/udp", false, None, Some("so far")),
                    (2, "41000/udp", false, None, Some("so far")),
                    (4, "42000/udp 127/tcp!", false, None, Some("so far")),
                    (5, "5000/udp 10000/tcp", true, Some(10000), None),
                ],
            ),
            (
                &bare,
                &[
                    (0, "514/udp", false, None, Some("so far")),
                    (2, "514/udp", false, None, Some("so far")),
                    (3, "514/udp", true, None, None),
                ],
            ),
            (
                &bare,
                &[(0, "8000/tcp!", false, None, Some("127.0.0.1:8000 only")), (9, "514/udp!", false, None, Some("127.0.0.1:514 only"))],
            ),
            (
                &written,
                &[
                    (0, "53/udp", false, None, Some("so far")),
                    (3, "53/udp", true, None, None),
                    (4, "53/udp 53/tcp", true, Some(53), None),
                    (5, "54/tcp", false, None, Some("not on PORT 53")),
                    (200, "54/tcp", true, Some(54), Some("not on PORT 53")),
                ],
            ),
        ];
        for (service, looks) in rows {
            let mut patience = Patience::default();
            for (second, listeners, ready, port, says) in looks {
                let found = judge(service, open(listeners), Duration::from_secs(*second), &mut patience);
                assert_eq!((found.ready, found.http_port), (*ready, *port), "{listeners} at {second} s: {found:?}");
                let said = found.seen.clone().unwrap_or_default();
                assert!(says.map_or(said.is_empty(), |says| said.contains(says)), "{listeners} at {second} s: {found:?}");
            }
        }
        // What an earlier daemon sent traffic to goes on.
        let mut known = Patience { is_over: true, ..Patience::default() };
        assert!(judge(&bare, open("514/udp"), Duration::ZERO, &mut known).ready);
        assert!(judge(&written, open("54/tcp"), Duration::ZERO, &mut known).ready);
    }
}
