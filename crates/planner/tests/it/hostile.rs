//! Blueprints that no reader makes: whatever stands in the fields, nothing panics and what comes out holds together.

use super::policy::agree;
use super::support::{Addresses, counter, read, releases};
use moat_blueprint::Blueprint;
use moat_blueprint::spec::{EnvSource, EnvVarSpec, MoatSpec, RuntimeSpec, ScalingSpec, ServiceProperty, TypeSpec};
use moat_model::state::ObservedState;
use moat_model::{Secret, ServiceKind, Span, Spanned};
use moat_planner::check::check;
use moat_planner::diff::diff;
use moat_planner::memory::Memory;
use moat_planner::reach::reach;
use moat_planner::resolve::{GitFacts, Input, Settings, resolve};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const BASE: &str = "
envVarGroups: [{name: g, envVars: [{key: A, value: b}, {key: S, generateValue: true}]}]
services:
  - {type: web, name: a, runtime: python, buildCommand: b, startCommand: s, envVars: [{fromGroup: g}, {key: X, value: y}, {key: Z, fromService: {type: web, name: a, property: host}}]}
  - {type: pserv, name: b, runtime: node, buildCommand: b, startCommand: s, disk: {name: d, mountPath: /data}, envVars: [{key: PORT, value: 80}, {key: Q, sync: false}]}
  - {type: keyvalue, name: c, ipAllowList: []}
  - {type: cron, name: d, runtime: go, schedule: '* * * * *', buildCommand: b, startCommand: s}
  - {type: web, name: e, runtime: static, buildCommand: b, staticPublishPath: p}
";

/// Texts that have surprised somebody.
fn odd() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[a-e]",
        2 => prop::sample::select(vec!["", ".", "..", "/", "-", "a-discovery", "internet", "A B", "PORT", "RENDER_INSTANCE_ID", "18012", "65536", "free", "999999999c-1g", "0.5c-1g", "\u{0}", "日本", "../../x", "RENDER_EXTERNAL_URL"]).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => "[a-z]{60,80}",
    ]
}

fn spanned<T>(value: T) -> Spanned<T> {
    Spanned::new(value, Span::default())
}

fn source() -> impl Strategy<Value = EnvSource> {
    let property = prop_oneof![
        Just(ServiceProperty::Host),
        Just(ServiceProperty::Port),
        Just(ServiceProperty::HostPort),
        Just(ServiceProperty::Slug),
        Just(ServiceProperty::ConnectionString),
        odd().prop_map(ServiceProperty::EnvVar),
    ];
    prop_oneof![
        (odd(), odd()).prop_map(|(key, value)| EnvSource::Value { key: spanned(key), value: spanned(value) }),
        odd().prop_map(|key| EnvSource::Generate { key: spanned(key) }),
        odd().prop_map(|key| EnvSource::Ask { key: spanned(key) }),
        odd().prop_map(|name| EnvSource::Group { name: spanned(name) }),
        (odd(), odd(), proptest::option::of(odd()), property).prop_map(|(key, name, kind, what)| EnvSource::Service {
            key: spanned(key),
            name: spanned(name),
            kind: kind.map(spanned),
            what: spanned(what),
        }),
    ]
}

prop_compose! {
    fn service()(base in 0..5_usize, name in odd(), kind in 0..7_usize, plan in proptest::option::of(odd()), region in proptest::option::of(odd()),
        root_dir in proptest::option::of(odd()), count in proptest::option::of(any::<u32>()), scaling in proptest::option::of((any::<u32>(), any::<u32>())),
        runtime in proptest::option::of(0..4_usize), environment in proptest::option::of(0..3_usize), sources in proptest::collection::vec(source(), 0..5),
        allow in proptest::option::of(proptest::collection::vec(odd(), 0..3)), files in proptest::collection::vec((odd(), odd()), 0..2))
    -> moat_blueprint::spec::ServiceSpec {
        let mut spec = read(BASE).services.swap_remove(base);
        spec.name = spanned(name);
        spec.kind = spanned(match kind {
            5 => TypeSpec::StaticSite,
            6 => TypeSpec::Workflow,
            kind => TypeSpec::Kind(ServiceKind::ALL[kind]),
        });
        spec.runtime = runtime.map(|n| spanned([RuntimeSpec::Native(moat_model::NativeRuntime::Ruby), RuntimeSpec::Docker, RuntimeSpec::Image, RuntimeSpec::Static][n]));
        spec.plan = plan.map(spanned);
        spec.region = region.map(spanned);
        spec.root_dir = root_dir.map(spanned);
        spec.num_instances = count.map(spanned);
        spec.scaling = scaling.map(|(min, max)| spanned(ScalingSpec { min, max, memory_percent: None, cpu_percent: None }));
        spec.environment = environment;
        spec.max_shutdown_delay_seconds = count.map(spanned);
        spec.env_vars.extend(sources.into_iter().map(|source| EnvVarSpec { pointer: String::new(), span: Span::default(), source, preview_value: None, display_name: None, description: None, sensitive: false }));
        spec.moat = Some(MoatSpec {
            allow_from: allow.map(|names| names.into_iter().map(spanned).collect()),
            egress: None,
            start: None,
            proxy_header: None,
            secret_files: files.into_iter().map(|(name, path)| (spanned(name), spanned(path))).collect(),
        });
        spec
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn nothing_surprises(services in proptest::collection::vec(service(), 0..7), given in proptest::collection::btree_map(odd(), odd(), 0..3)) {
        let blueprint = Blueprint { services, ..read(BASE) };
        check(&blueprint);
        let given: BTreeMap<String, Secret> = given.into_iter().map(|(k, v)| (k, Secret::new(v))).collect();
        let files = BTreeMap::new();
        let input = Input { path: Path::new("/b/render.yaml"), source: Path::new("/b"), blueprint: &blueprint, given: &given, files: &files, git: GitFacts::default() };
        let mut memory = Memory::default();
        let first = resolve(std::slice::from_ref(&input), &mut memory, &mut counter(1), &Settings::default());
        // The second time nothing is new but what was given and is remembered.
        let second = resolve(std::slice::from_ref(&input), &mut memory, &mut counter(10_000), &Settings::default());
        prop_assert_eq!(&first.state, &second.state);
        let mut state = first.state;
        for (slug, service) in &mut state.services {
            prop_assert_eq!(slug, &service.slug);
            prop_assert!(service.instances <= 100 && (1..=300).contains(&service.max_shutdown_delay_seconds));
            // Fewer of them, so that every pair can be looked at.
            service.instances = service.instances.min(1);
        }
        reach(&state).rows().for_each(drop);
        agree(&state, &Addresses::default().all(&state));
        let plan = diff(&state, &ObservedState::default(), &releases(&state), &BTreeSet::new(), &mut memory, &mut counter(3));
        prop_assert!(serde_json::to_string(&plan).is_ok() && serde_json::to_string(&memory).is_ok());
    }
}
