//! Accepted blueprints together: read, resolved, judged.

use crate::deploy::Deployed;
use crate::protocol::{RefusedDiagnostic, UpRequest};
use moat_blueprint::Blueprint;
use moat_model::policy::NetPolicy;
use moat_model::state::{InstancePhase, ObservedInstance, ObservedState};
use moat_model::{DesiredState, Diagnostic, LinkName, Severity, Slug};
use moat_planner::Plan;
use moat_planner::memory::Memory;
use moat_planner::policy::LiveInstance;
use moat_planner::push::PushRule;
use moat_planner::resolve::{GitFacts, Input, Missing, Settings};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Web services are `SLUG.localhost`: browsers and systemd-resolved take it to loopback.
pub const DOMAIN: &str = "localhost";

/// 256 random bits of the kernel, each given once.
pub fn random() -> [u8; 32] {
    /// How many are fetched at once: a large blueprint needs thousands.
    const STOCK: usize = 64;
    thread_local! {
        static LEFT: RefCell<Vec<[u8; 32]>> = const { RefCell::new(Vec::new()) };
    }
    #[cfg(test)]
    if let Some(bytes) = seeded::next() {
        return bytes;
    }
    LEFT.with_borrow_mut(|left| {
        left.pop().unwrap_or_else(|| {
            let mut bytes = [[0; 32]; STOCK];
            if getrandom::fill(bytes.as_flattened_mut()).is_err() {
                // Without randomness nothing that is secret can be made: better to end than to go on with a constant.
                std::process::abort();
            }
            let [first, rest @ ..] = bytes;
            left.extend(rest);
            first
        })
    })
}

/// What became of all blueprints.
pub struct Outcome {
    /// The state.
    pub state: DesiredState,
    /// What was said, by file.
    pub diagnostics: Vec<(PathBuf, Diagnostic)>,
    /// What is asked for.
    pub missing: Vec<Missing>,
    /// What a push means for each service.
    pub push_rules: BTreeMap<Slug, PushRule>,
}

impl Outcome {
    /// What stops `up` of `file`: errors and what this Moat can't run.
    pub fn refusals(&self, file: &Path, texts: &BTreeMap<PathBuf, UpRequest>) -> Vec<RefusedDiagnostic> {
        self.diagnostics
            .iter()
            .filter(|(at, d)| at == file && matches!(d.severity, Severity::Error | Severity::Unsupported))
            .map(|(at, d)| RefusedDiagnostic {
                file: at.clone(),
                code: d.code.to_owned(),
                severity: format!("{:?}", d.severity).to_lowercase(),
                line: d.span.line,
                column: d.span.column,
                rendered: texts.get(at).map(|t| moat_blueprint::render(d, &at.display().to_string(), &t.text, false)).unwrap_or_default(),
            })
            .collect()
    }
}

/// Where the ingress listens, as it is written: for HTTP, and for HTTPS where it does.
#[derive(Debug, Clone, Copy)]
pub struct Doors<'a> {
    /// `ADDRESS:PORT`.
    pub http: &'a str,
    /// `ADDRESS:PORT`; services are told that they are reached by HTTPS where there is one.
    pub https: Option<&'a str>,
}

impl<'a> Doors<'a> {
    /// What a request asks for by itself.
    pub fn of(up: &'a UpRequest) -> Self {
        Self { http: &up.listen, https: up.listen_tls.as_deref().filter(|https| *https != NO_HTTPS) }
    }
}

/// What is written for the address of HTTPS to end it.
pub const NO_HTTPS: &str = "off";

/// Reads and resolves them all.
pub fn read_and_resolve(all: &BTreeMap<PathBuf, UpRequest>, memory: &mut Memory, doors: Doors<'_>) -> Outcome {
    let reads: Vec<_> = all.values().map(|up| moat_blueprint::read_beside(&up.text, &up.remotes)).collect();
    for (up, read) in all.values().zip(&reads).filter(|(up, _)| up.prune) {
        memory.prune_values(&up.file, &read.blueprint);
    }
    let read: Vec<_> = all.values().zip(&reads).map(|(up, read)| (up, &read.blueprint)).collect();
    let mut outcome = resolve(&read, memory, doors);
    let said = all.keys().zip(reads).flat_map(|(path, read)| read.diagnostics.into_iter().map(|d| (path.clone(), d)));
    outcome.diagnostics.splice(0..0, said);
    outcome
}

/// Resolves blueprints that were read; what reading them said is not repeated.
pub fn resolve(read: &[(&UpRequest, &Blueprint)], memory: &mut Memory, doors: Doors<'_>) -> Outcome {
    let inputs: Vec<Input<'_>> = read
        .iter()
        .map(|(up, blueprint)| {
            let path = up.file.as_path();
            let [branch, commit, repo_slug] = up.git.clone();
            let (pushed_to, pins) = up.pushed.clone().map_or_else(Default::default, |pushed| (Some(pushed.repository), pushed.pins));
            Input {
                path,
                source: path.parent().unwrap_or(Path::new("/")),
                blueprint,
                given: &up.given,
                files: &up.files,
                git: GitFacts { branch, commit, repo_slug, pushed_to, pins },
            }
        })
        .collect();
    let (scheme, at) = doors.https.map_or(("http", doors.http), |https| ("https", https));
    let port = at.rsplit(':').next().and_then(|port| port.parse().ok());
    let settings = Settings { domain: DOMAIN.to_owned(), public_scheme: scheme.to_owned(), public_port: port, cpu_count: cpus() };
    let resolved = moat_planner::resolve::resolve(&inputs, memory, &mut random, &settings);
    Outcome { state: resolved.state, diagnostics: resolved.diagnostics, missing: resolved.missing, push_rules: resolved.push_rules }
}

fn cpus() -> u32 {
    std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok()).unwrap_or(1)
}

/// The plan from what runs to a state, as if every build were done.
pub fn preview(
    state: &DesiredState,
    now: &DesiredState,
    deployed: &BTreeMap<Slug, Deployed>,
    policy: &NetPolicy,
    live: &[LiveInstance],
    memory: &mut Memory,
) -> Plan {
    let instances = live
        .iter()
        .filter_map(|l| {
            let service = now.services.get(&l.slug)?;
            // What runs of an unchanged definition stays.
            let fingerprint = deployed.get(&l.slug).map(|d| d.service.fingerprint.clone()).unwrap_or_default();
            let found = ObservedInstance {
                id: l.id.clone(),
                service: service.id.clone(),
                slug: l.slug.clone(),
                purpose: l.purpose,
                fingerprint,
                address: l.address,
                link: LinkName::of(l.address.v4),
                phase: InstancePhase::Running,
                monitor_pid: None,
                pid: None,
            };
            Some((l.id.clone(), found))
        })
        .collect();
    let observed = ObservedState { router: !live.is_empty(), instances, policy: policy.clone() };
    let releases = state.services.keys().map(|slug| (slug.clone(), "new".to_owned())).collect();
    let ready = live.iter().filter(|l| l.ready).map(|l| l.id.clone()).collect();
    moat_planner::diff::diff(state, &observed, &releases, &ready, memory, &mut random)
}

#[cfg(test)]
pub(crate) use seeded::seed;

/// Bytes that a test can have again.
#[cfg(test)]
mod seeded {
    use sha2::{Digest as _, Sha256};
    use std::cell::Cell;

    thread_local! {
        static NEXT: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
    }

    /// From now on [`random`](super::random) of this thread gives what follows from this number.
    pub(crate) fn seed(number: u64) {
        NEXT.set(Some((number, 0)));
    }

    pub(super) fn next() -> Option<[u8; 32]> {
        let (number, count) = NEXT.get()?;
        NEXT.set(Some((number, count + 1)));
        Some(Sha256::digest([number.to_be_bytes(), count.to_be_bytes()].concat()).into())
    }
}
