//! Properties over random blueprints and states.

use super::policy::{PORTS, agree, permits};
use super::support::{Addresses, Given, apply, counter, read, releases, resolve_files};
use moat_model::state::ObservedState;
use moat_model::{DesiredState, InstanceId, Purpose};
use moat_planner::check::check;
use moat_planner::diff::diff;
use moat_planner::memory::Memory;
use moat_planner::plan::{InstanceSpec, Step};
use moat_planner::reach::{reach, verdict};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// One service of a random blueprint.
#[derive(Debug, Clone)]
struct Wild {
    kind: usize,
    region: usize,
    /// 0: at the root; 1–3: an environment.
    environment: usize,
    allow_from: Option<Vec<usize>>,
    egress: usize,
    port: usize,
    instances: u32,
    /// (target, property) of references.
    references: Vec<(usize, usize)>,
}

fn wild() -> impl Strategy<Value = Wild> {
    (
        0..7_usize,
        0..2_usize,
        0..4_usize,
        proptest::option::weighted(0.3, proptest::collection::vec(0..10_usize, 0..4)),
        0..3_usize,
        0..5_usize,
        1..4_u32,
        proptest::collection::vec((0..12_usize, 0..8_usize), 0..4),
    )
        .prop_map(|(kind, region, environment, allow_from, egress, port, instances, references)| Wild {
            kind,
            region,
            environment,
            allow_from,
            egress,
            port,
            instances,
            references,
        })
}

fn wilds() -> impl Strategy<Value = (Vec<Wild>, [bool; 3])> {
    (proptest::collection::vec(wild(), 0..8), any::<[bool; 3]>())
}

/// The text of a random blueprint: names `s0`, `s1`, …; references may lead anywhere and nowhere.
fn text((services, isolated): &(Vec<Wild>, [bool; 3])) -> String {
    let (mut lists, mut databases): ([Vec<String>; 4], [Vec<String>; 4]) = Default::default();
    for (i, wild) in services.iter().enumerate() {
        if wild.kind == 5 {
            databases[wild.environment].push(format!("{{name: s{i}, region: {}}}", ["oregon", "ohio"][wild.region]));
            continue;
        }
        if wild.kind == 6 {
            lists[wild.environment].push(format!("{{type: web, name: s{i}, runtime: static, buildCommand: b, staticPublishPath: p}}"));
            continue;
        }
        let kind = ["web", "pserv", "worker", "cron", "keyvalue"][wild.kind];
        let mut line = format!("{{type: {kind}, name: s{i}, region: {}", ["oregon", "ohio"][wild.region]);
        if kind == "keyvalue" {
            line += ", ipAllowList: []";
        } else {
            line += ", runtime: python, buildCommand: b, startCommand: s, envVars: [";
            let port = ["", "8080", "18012", "nonsense", "1"][wild.port];
            if !port.is_empty() {
                write!(line, "{{key: PORT, value: {port}}}, ").unwrap();
            }
            for (n, (target, property)) in wild.references.iter().enumerate() {
                let what = [
                    "property: host",
                    "property: port",
                    "property: hostport",
                    "property: connectionString",
                    "envVarKey: K0",
                    "envVarKey: PORT",
                    "envVarKey: RENDER_EXTERNAL_URL",
                    "property: slug",
                ][*property];
                write!(line, "{{key: K{n}, fromService: {{type: web, name: s{target}, {what}}}}}, ").unwrap();
                write!(line, "{{key: D{n}, fromDatabase: {{name: s{target}, property: connectionString}}}}, ").unwrap();
            }
            line += "]";
            match kind {
                "cron" => line += ", schedule: '* * * * *'",
                _ => write!(line, ", numInstances: {}", wild.instances).unwrap(),
            }
        }
        line += ", x-moat: {egress: ";
        line += ["none", "internet", "[203.0.113.0/24]"][wild.egress];
        if let Some(names) = &wild.allow_from {
            write!(line, ", allowFrom: [{}]", names.iter().map(|n| format!("s{n}")).collect::<Vec<_>>().join(", ")).unwrap();
        }
        lists[wild.environment].push(format!("{line}}}}}"));
    }
    let list = |items: &[String], indent: &str| {
        items.iter().fold(String::new(), |mut out, item| {
            writeln!(out, "{indent}- {item}").unwrap();
            out
        })
    };
    let named = |word: &str, items: &[String], indent: &str| match items {
        [] => String::new(),
        items => format!("{indent}{word}:\n{}", list(items, &format!("{indent}  "))),
    };
    let mut out = named("services", &lists[0], "") + &named("databases", &databases[0], "");
    out += "projects:\n  - name: p\n    environments:\n";
    for (n, items) in lists[1..].iter().enumerate() {
        let word = if isolated[n] { "enabled" } else { "disabled" };
        write!(out, "      - name: e{n}\n        networking: {{isolation: {word}}}\n").unwrap();
        out += &(named("services", items, "        ") + &named("databases", &databases[n + 1], "        "));
    }
    out
}

/// The state of a random blueprint, whatever is wrong with it.
fn resolve_text(text: &str, memory: &mut Memory) -> DesiredState {
    resolve_files(&[("/b/render.yaml", text)], &Given::default(), memory).state
}

/// A state and an address book of instances of two states, so that one may follow the other.
fn scene(first: &str, second: &str) -> (DesiredState, DesiredState, Memory) {
    let mut memory = Memory::default();
    let first = resolve_text(first, &mut memory);
    let second = resolve_text(second, &mut memory);
    (first, second, memory)
}

fn forbidden(state: &DesiredState, specs: &BTreeMap<InstanceId, InstanceSpec>, from: &InstanceId, to: &InstanceId, port: u16) -> bool {
    let peer = |id: &InstanceId| {
        let spec = &specs[id];
        state.services.get(&spec.slug).filter(|s| s.id == spec.service)?;
        Some(match spec.purpose {
            Purpose::Build | Purpose::PreDeploy => moat_model::Peer::Build(spec.slug.clone()),
            Purpose::Serve | Purpose::Cron | Purpose::Job => moat_model::Peer::Service(spec.slug.clone()),
        })
    };
    match (peer(from), peer(to)) {
        (Some(a), Some(b)) => {
            let endpoint = moat_model::Endpoint { proto: moat_model::Proto::Tcp, port };
            !verdict(state, &a, &b, Some(endpoint)).is_allowed()
        }
        _ => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_cell_is_there_and_the_policy_agrees(wilds in wilds()) {
        let state = resolve_text(&text(&wilds), &mut Memory::default());
        let matrix = reach(&state);
        let peers = matrix.peers();
        prop_assert_eq!(matrix.rows().count(), peers.len() * peers.len());
        for row in matrix.rows() {
            prop_assert_eq!(row.verdict, verdict(&state, &row.from, &row.to, None));
        }
        let live = Addresses::default().all(&state);
        agree(&state, &live);
    }

    #[test]
    fn resolving_again_changes_nothing(wilds in wilds()) {
        let text = text(&wilds);
        let mut memory = Memory::default();
        let first = resolve_text(&text, &mut memory);
        let mut memory: Memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
        let before = memory.clone();
        prop_assert_eq!(resolve_text(&text, &mut memory), first);
        prop_assert_eq!(memory, before);
    }

    /// `check` says the same every time, and in the order of the file.
    #[test]
    fn checking_is_steady(wilds in wilds()) {
        let blueprint = read(&text(&wilds));
        let said = check(&blueprint);
        prop_assert!(said.is_sorted_by_key(|d| d.span.start));
        prop_assert_eq!(check(&blueprint), said);
    }

    /// Whatever prefix of a plan is carried out: what the new state forbids is closed from the first step on, and what the old
    /// one forbids until the step that opens.
    #[test]
    fn every_prefix_keeps_forbidden_flows_forbidden(first in wilds(), second in wilds()) {
        let (first, second, mut memory) = scene(&text(&first), &text(&second));
        let mut random = counter(5);
        let mut observed = ObservedState::default();
        let mut specs: BTreeMap<InstanceId, InstanceSpec> = BTreeMap::new();
        let mut note = |steps: &[Step]| for step in steps {
            if let Step::StartInstance { instance } = step {
                specs.insert(instance.id.clone(), (**instance).clone());
            }
        };
        let plan = diff(&first, &observed, &releases(&first), &BTreeSet::new(), &mut memory, &mut random);
        note(&plan.steps);
        apply(&mut observed, &plan.steps);
        let ready: BTreeSet<InstanceId> = observed.instances.keys().cloned().collect();
        let plan = diff(&second, &observed, &releases(&second), &ready, &mut memory, &mut random);
        note(&plan.steps);
        let ids: Vec<InstanceId> = specs.keys().cloned().collect();
        let last = plan.steps.iter().rposition(|step| matches!(step, Step::SetPolicy { .. }));
        for (index, step) in plan.steps.iter().enumerate() {
            apply(&mut observed, std::slice::from_ref(step));
            if matches!(step, Step::EnsureRouter) {
                continue;
            }
            let opened = last.is_none_or(|last| index >= last);
            prop_assert!(opened || !matches!(step, Step::StartInstance { .. }), "an instance starts before the policy covers it");
            for (from, to, port) in ids.iter().flat_map(|from| ids.iter().flat_map(move |to| PORTS.map(|port| (from, to, port)))) {
                if permits(&observed.policy, from, specs[to].address, port) {
                    prop_assert!(!forbidden(&second, &specs, from, to, port), "{from} → {to}:{port} is open after step {index}");
                    prop_assert!(opened || !forbidden(&first, &specs, from, to, port), "{from} → {to}:{port} opens before what closes has closed");
                }
            }
        }
    }

    /// Two plans lead to the same as one whose steps were cut short anywhere.
    #[test]
    fn a_plan_cut_short_is_taken_up_again(first in wilds(), second in wilds(), cut in any::<proptest::sample::Index>()) {
        let (first, second, mut memory) = scene(&text(&first), &text(&second));
        let mut random = counter(6);
        let mut observed = ObservedState::default();
        settle(&first, &mut observed, &mut memory, &mut random);
        let ready = observed.instances.keys().cloned().collect();
        let plan = diff(&second, &observed, &releases(&second), &ready, &mut memory, &mut random);
        apply(&mut observed, &plan.steps[..cut.index(plan.steps.len() + 1)]);
        settle(&second, &mut observed, &mut memory, &mut random);
        for service in second.services.values() {
            let count = observed.instances.values().filter(|i| i.slug == service.slug && i.fingerprint == service.fingerprint).count();
            prop_assert_eq!(count, usize::try_from(service.instances).unwrap());
        }
        let wanted: usize = second.services.values().map(|s| usize::try_from(s.instances).unwrap()).sum();
        prop_assert_eq!(observed.instances.len(), wanted);
        prop_assert_eq!(observed.router, !second.services.is_empty());
    }
}

/// Goes on until there is nothing to do; all that runs is ready.
fn settle(state: &DesiredState, observed: &mut ObservedState, memory: &mut Memory, random: &mut dyn FnMut() -> [u8; 32]) {
    for _ in 0..50 {
        let ready = observed.instances.keys().cloned().collect();
        let plan = diff(state, observed, &releases(state), &ready, memory, random);
        if plan.steps.is_empty() {
            return;
        }
        apply(observed, &plan.steps);
    }
    panic!("it goes on for ever");
}
