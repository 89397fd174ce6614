//! Rows: names, values, defaults, limits and memory.

use super::support::{Given, resolve_files, service, state, value};
use moat_model::state::{Persistence, Workload};
use moat_model::{Secret, ServiceKind};
use moat_planner::memory::Memory;
use moat_planner::resolve::Resolved;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const PATH: &str = "/shop/render.yaml";

fn again(text: &str, given: &Given, memory: &mut Memory) -> Resolved {
    resolve_files(&[(PATH, text)], given, memory)
}

fn codes(resolved: &Resolved) -> Vec<&str> {
    resolved.diagnostics.iter().map(|(_, d)| d.code).collect()
}

fn web(name: &str, rest: &str) -> String {
    format!("  - {{type: web, name: {name}, runtime: python, buildCommand: b, startCommand: s, {rest}}}\n")
}

const EVERYTHING: &str = "
envVarGroups:
  - name: common
    envVars:
      - {key: LEVEL, value: info}
      - {key: SHARED, value: group}
      - {key: SIGNING, generateValue: true}
services:
  - type: web
    name: The Shop
    runtime: python
    plan: standard
    buildCommand: make
    startCommand: serve
    preDeployCommand: migrate
    healthCheckPath: /healthz
    rootDir: ./shop/
    numInstances: 3
    maxShutdownDelaySeconds: 60
    envVars:
      - fromGroup: common
      - {key: SHARED, value: own}
      - {key: CATALOG, fromService: {type: pserv, name: catalog, property: hostport}}
      - {key: CATALOG_HOST, fromService: {type: pserv, name: catalog, property: host}}
      - {key: CATALOG_PORT, fromService: {type: pserv, name: catalog, property: port}}
      - {key: STORE, fromService: {type: keyvalue, name: store, property: connectionString}}
      - {key: STORE_AT, fromService: {type: keyvalue, name: store, property: hostport}}
      - {key: MINE, fromService: {type: web, name: The Shop, envVarKey: RENDER_EXTERNAL_URL}}
      - {key: THEIRS, fromService: {type: worker, name: mailer, envVarKey: RENDER_SERVICE_ID}}
      - {key: CHAIN, fromService: {type: worker, name: mailer, envVarKey: CATALOG}}
      - {key: PEERS, fromService: {type: pserv, name: catalog, envVarKey: RENDER_DISCOVERY_SERVICE}}
      - {key: PYTHON_VERSION, value: 3.10}
  - type: pserv
    name: catalog
    runtime: node
    buildCommand: b
    startCommand: s
    envVars:
      - {key: PORT, value: 8080}
      - {key: SHOP_URL, fromService: {type: web, name: The Shop, envVarKey: RENDER_EXTERNAL_URL}}
      - {key: NODE_VERSION, value: 20}
  - type: worker
    name: mailer
    runtime: ruby
    buildCommand: b
    startCommand: s
    envVars:
      - fromGroup: common
      - {key: CATALOG, fromService: {type: pserv, name: catalog, property: hostport}}
      - {key: KEY, generateValue: true}
  - {type: keyvalue, name: store, plan: 256mb, maxmemoryPolicy: noeviction, persistenceMode: snapshot, ipAllowList: []}
  - {type: cron, name: digest, runtime: rust, schedule: '0 * * * *', buildCommand: b, startCommand: s}
";

#[test]
fn references_have_values_whichever_way_they_point() {
    let state = state(EVERYTHING);
    for (key, expected) in [
        ("LEVEL", "info"),
        ("SHARED", "own"),
        ("CATALOG", "catalog:8080"),
        ("CATALOG_HOST", "catalog"),
        ("CATALOG_PORT", "8080"),
        ("STORE", "redis://store:6379"),
        ("STORE_AT", "store:6379"),
        ("MINE", "http://the-shop.localhost:8080"),
        ("THEIRS", service(&state, "mailer").id.as_str()),
        ("CHAIN", "catalog:8080"),
        ("PEERS", "catalog-discovery"),
        ("PYTHON_VERSION", "3.10"),
    ] {
        assert_eq!(value(&state, "the-shop", key), expected, "{key}");
    }
    assert_eq!(value(&state, "catalog", "SHOP_URL"), "http://the-shop.localhost:8080");
    assert_eq!(value(&state, "mailer", "SHARED"), "group");
    let signing = value(&state, "the-shop", "SIGNING");
    assert_eq!(signing.len(), 44, "256 bits in base64");
    assert_eq!(signing, value(&state, "mailer", "SIGNING"));
    assert_ne!(signing, value(&state, "mailer", "KEY"));
    let written: Vec<&str> = service(&state, "catalog").written_keys.iter().map(String::as_str).collect();
    assert_eq!(written, ["NODE_VERSION", "PORT", "SHOP_URL"]);
}

#[test]
fn a_service_is_what_is_written() {
    let state = state(EVERYTHING);
    let shop = service(&state, "the-shop");
    assert_eq!((shop.name.as_str(), shop.kind, shop.instances, shop.port), ("The Shop", ServiceKind::Web, 3, Some(10000)));
    assert_eq!((shop.limits.memory_bytes, shop.limits.cpu_millis), (2 << 30, 1000));
    assert_eq!((shop.health_check_path.as_deref(), shop.max_shutdown_delay_seconds), (Some("/healthz"), 60));
    let Workload::Native(native) = &shop.workload else { panic!() };
    assert_eq!((&native.source, native.root_dir.as_path()), (&"/shop".into(), Path::new("shop")));
    assert_eq!((native.version.as_deref(), native.pre_deploy_command.as_deref()), (Some("3.10"), Some("migrate")));
    assert_eq!((shop.blueprint.as_path(), shop.region.as_str(), shop.network.index()), (Path::new(PATH), "oregon", 0));
    assert!(shop.id.as_str().starts_with("srv-") && shop.id.as_str().len() == 24);

    let store = service(&state, "store");
    assert!(store.id.as_str().starts_with("red-"));
    assert_eq!((store.port, store.instances, store.limits.memory_bytes), (Some(6379), 1, 256 << 20));
    let Workload::KeyValue(key_value) = &store.workload else { panic!() };
    assert_eq!((key_value.maxmemory_policy.as_str(), key_value.persistence), ("noeviction", Persistence::Snapshot));
    assert!(store.env.is_empty());

    let digest = service(&state, "digest");
    assert!(digest.id.as_str().starts_with("crn-"));
    assert_eq!((digest.instances, digest.port, digest.vip), (0, None, None));
    assert_eq!((service(&state, "mailer").port, service(&state, "mailer").vip), (None, None));
    let vips: BTreeSet<_> = state.services.values().filter_map(|s| s.vip).collect();
    assert_eq!(vips.len(), 3);
}

#[test]
fn defaults_are_those_published() {
    let state = state(EVERYTHING);
    let shop = service(&state, "the-shop");
    let lines = |env: &BTreeMap<String, Secret>| env.iter().map(|(k, v)| format!("{k}={}", v.expose())).collect::<Vec<_>>();
    let mut run: Vec<String> = [
        "FORWARDED_ALLOW_IPS=*",
        "GUNICORN_CMD_ARGS=--preload --access-logfile - --bind=0.0.0.0:10000",
        "IS_PULL_REQUEST=false",
        "PIPENV_YES=true",
        "PORT=10000",
        "RENDER=true",
        "RENDER_CPU_COUNT=1",
        "RENDER_DISCOVERY_SERVICE=the-shop-discovery",
        "RENDER_EXTERNAL_HOSTNAME=the-shop.localhost",
        "RENDER_EXTERNAL_URL=http://the-shop.localhost:8080",
        "RENDER_GIT_BRANCH=main",
        "RENDER_GIT_COMMIT=c0ffee",
        "RENDER_GIT_REPO_SLUG=me/shop",
        &format!("RENDER_SERVICE_ID={}", shop.id),
        "RENDER_SERVICE_NAME=the-shop",
        "RENDER_SERVICE_TYPE=web",
        "RENDER_WEB_CONCURRENCY=1",
        "VENV_ROOT=/opt/render/project/src/.venv",
        "WEB_CONCURRENCY=1",
    ]
    .map(str::to_owned)
    .to_vec();
    let defaults = |env: &BTreeMap<String, Secret>| {
        lines(&env.iter().filter(|(k, _)| !shop.written_keys.contains(*k)).map(|(k, v)| (k.clone(), v.clone())).collect())
    };
    assert_eq!(defaults(&shop.env), run);
    // The build: the same but for two, and `CI`.
    run.retain(|v| !v.contains("WEB_CONCURRENCY"));
    run.insert(0, "CI=true".to_owned());
    assert_eq!(defaults(&shop.build_env), run);

    let catalog = service(&state, "catalog");
    assert_eq!(catalog.env["NODE_ENV"].expose(), "production");
    assert!(!catalog.build_env.contains_key("NODE_ENV"));
    assert_eq!((catalog.env["RENDER_EXTERNAL_URL"].expose(), catalog.env["RENDER_SERVICE_TYPE"].expose()), ("", "pserv"));
    let mailer = service(&state, "mailer");
    assert!(!mailer.env.contains_key("PORT") && !mailer.env.contains_key("RENDER_DISCOVERY_SERVICE"));
    assert_eq!((mailer.env["PASSENGER_PORT"].expose(), mailer.env["RENDER_CPU_COUNT"].expose()), ("10000", "0.5"));
    let digest = service(&state, "digest");
    assert_eq!((digest.env["ROCKET_PORT"].expose(), digest.env["RENDER_SERVICE_TYPE"].expose()), ("10000", "cron"));
    assert!(!digest.build_env.contains_key("ROCKET_ENV"));
}

#[test]
fn what_listens_by_default_follows_the_port() {
    let state = state(&format!("services:\n{}", web("a", "envVars: [{key: PORT, value: 3000}]")));
    assert_eq!(service(&state, "a").port, Some(3000));
    assert_eq!(value(&state, "a", "GUNICORN_CMD_ARGS"), "--preload --access-logfile - --bind=0.0.0.0:3000");
}

#[test]
fn it_is_known_whose_port_was_given_to_whom() {
    let image = |name: &str, more: &str| format!("  - {{type: pserv, name: {name}, runtime: image, image: {{url: x}}{more}}}\n");
    let by = |name: &str, what: &str| format!("[{{key: X, fromService: {{type: pserv, name: {name}, {what}}}}}]");
    let state = state(&format!(
        "services:\n{}{}{}{}{}{}{}",
        image("bare", ""),
        image("written", ", envVars: [{key: PORT, value: 53}]"),
        image("own", ", envVars: [{key: X, fromService: {type: pserv, name: own, property: port}}]"),
        web("a", &format!("envVars: {}", by("bare", "property: hostport"))),
        web("b", &format!("envVars: {}", by("bare", "envVarKey: PORT"))),
        web("c", &format!("envVars: {}", by("bare", "property: host"))),
        web("d", &format!("envVars: {}", by("written", "property: port"))),
    ));
    let given = |slug: &str| service(&state, slug).port_given_to.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!((given("bare").as_str(), given("written").as_str(), given("own").as_str(), given("a").as_str()), ("a b", "d", "", ""));
}

#[test]
fn nothing_changes_from_run_to_run() {
    let mut memory = Memory::default();
    let first = again(EVERYTHING, &Given::default(), &mut memory);
    let text = serde_json::to_string(&memory).unwrap();
    let mut memory: Memory = serde_json::from_str(&text).unwrap();
    let second = again(EVERYTHING, &Given::default(), &mut memory);
    assert_eq!(first, second);
}

#[test]
fn what_leaves_and_returns_is_the_same_until_it_is_forgotten() {
    let (a, both) = (
        format!("services:\n{}", web("a", "")),
        format!("services:\n{}{}", web("a", ""), web("b", "envVars: [{key: K, generateValue: true}]")),
    );
    let mut memory = Memory::default();
    let first = again(&both, &Given::default(), &mut memory).state;
    let alone = again(&a, &Given::default(), &mut memory).state;
    assert_eq!(alone.services.len(), 1);
    assert_eq!(again(&both, &Given::default(), &mut memory).state, first);
    let b = service(&first, "b").slug.clone();
    assert!(memory.forget(&b));
    assert!(!memory.forget(&b));
    let anew = again(&both, &Given::default(), &mut memory).state;
    assert_ne!(service(&anew, "b").vip, service(&first, "b").vip, "its address rests");
    assert_eq!(service(&anew, "a"), service(&first, "a"));
}

#[test]
fn labels_that_are_taken_get_a_suffix_and_keep_it() {
    let text =
        format!("services:\n{}{}{}{}{}", web("My App", ""), web("my-app", ""), web("api-discovery", ""), web("api", ""), web("host", ""));
    let mut memory = Memory::default();
    let first = again(&text, &Given::default(), &mut memory);
    let slug_of = |resolved: &Resolved, name: &str| resolved.state.services.values().find(|s| s.name == name).unwrap().slug.to_string();
    assert_eq!(slug_of(&first, "My App"), "my-app");
    assert_eq!(slug_of(&first, "api-discovery"), "api-discovery");
    for (name, base) in [("my-app", "my-app-"), ("api", "api-"), ("host", "host-")] {
        let slug = slug_of(&first, name);
        assert!(slug.starts_with(base) && slug.len() == base.len() + 4, "{name}: {slug}");
    }
    assert_eq!(codes(&first), ["N0306"; 3]);
    // The order of the file is no matter once they are named.
    let reversed =
        format!("services:\n{}{}{}{}{}", web("host", ""), web("api", ""), web("api-discovery", ""), web("my-app", ""), web("My App", ""));
    assert_eq!(again(&reversed, &Given::default(), &mut memory).state, first.state);
    // Nor is the random source.
    let mut other = Memory::default();
    assert_eq!(slug_of(&again(&text, &Given::default(), &mut other), "my-app"), slug_of(&first, "my-app"));
}

#[test]
fn files_share_names_and_refer_to_each_other() {
    let a = format!(
        "services:\n{}{}",
        web("api", ""),
        web(
            "shop",
            "envVars: [{key: X, fromService: {type: web, name: only-b, property: hostport}}, {key: Y, fromService: {type: web, name: api, property: host}}]"
        )
    );
    let b = format!(
        "services:\n{}{}",
        web("api", "envVars: [{key: Z, fromService: {type: web, name: api, property: host}}]"),
        web("only-b", "")
    );
    let mut memory = Memory::default();
    let both = resolve_files(&[("/a/render.yaml", &a), ("/b/render.yaml", &b)], &Given::default(), &mut memory);
    assert_eq!(codes(&both), ["N0306"]);
    assert_eq!(value(&both.state, "shop", "X"), "only-b:10000");
    assert_eq!(value(&both.state, "shop", "Y"), "api");
    let second = both.state.services.values().find(|s| s.name == "api" && s.blueprint == Path::new("/b/render.yaml")).unwrap();
    assert_ne!(second.slug.as_str(), "api");
    assert_eq!(second.env["Z"].expose(), second.slug.as_str(), "its own file's comes first");
    // Alone, the reference leads nowhere, and that is an error.
    let alone = resolve_files(&[("/a/render.yaml", &a)], &Given::default(), &mut memory);
    assert_eq!(codes(&alone), ["E0301"]);
    // A file that is not there any more does not keep its labels from others.
    let moved = resolve_files(&[("/c/render.yaml", &format!("services:\n{}", web("shop", "")))], &Given::default(), &mut memory);
    assert_eq!((moved.state.services.keys().next().unwrap().as_str(), codes(&moved).len()), ("shop", 0));
    // And gets another when it returns.
    let back = resolve_files(
        &[("/c/render.yaml", &format!("services:\n{}", web("shop", ""))), ("/a/render.yaml", &a), ("/b/render.yaml", &b)],
        &Given::default(),
        &mut memory,
    );
    assert_eq!(back.state.services.len(), 5);
}

#[test]
fn values_that_are_asked_for() {
    let text = format!(
        "services:\n{}{}",
        web("a", "envVars: [{key: K, sync: false}, {key: L, sync: false, displayName: The L}]"),
        web("b", "envVars: [{key: K, sync: false}]")
    );
    let mut memory = Memory::default();
    let asked = again(&text, &Given::default(), &mut memory);
    let missing: Vec<_> = asked.missing.iter().map(|m| (m.owner.as_str(), m.key.as_str(), m.label.as_deref(), m.span.line)).collect();
    assert_eq!(missing, [("a", "K", None, 2), ("a", "L", Some("The L"), 2), ("b", "K", None, 3)]);
    assert!(!service(&asked.state, "a").env.contains_key("K"));
    // One service's own is before what is for all.
    let given = Given::values(&[("K", "all"), ("b.K", "b"), ("L", "l"), ("NOBODY", "x")]);
    let answered = again(&text, &given, &mut memory);
    assert_eq!(
        (answered.missing.len(), value(&answered.state, "a", "K"), value(&answered.state, "b", "K")),
        (0, "all".to_owned(), "b".to_owned())
    );
    assert_eq!(codes(&answered), ["N0304"]);
    assert!(answered.diagnostics[0].1.message.ends_with("`NOBODY`"));
    // Remembered, and replaced when it is given anew.
    let remembered = again(&text, &Given::default(), &mut memory);
    assert_eq!((remembered.missing.len(), &remembered.state), (0, &answered.state));
    let anew = again(&text, &Given::values(&[("b.K", "other")]), &mut memory);
    assert_eq!((value(&anew.state, "a", "K"), value(&anew.state, "b", "K")), ("all".to_owned(), "other".to_owned()));
}

#[test]
fn groups_from_elsewhere_are_asked_for() {
    let text = format!("services:\n{}", web("a", "envVars: [{fromGroup: common}]"));
    let mut memory = Memory::default();
    assert_eq!(codes(&again(&text, &Given::default(), &mut memory)), ["E0311"]);
    let given = again(&text, &Given::values(&[("common.K", "v")]), &mut memory);
    assert_eq!((codes(&given).len(), value(&given.state, "a", "K")), (0, "v".to_owned()));
    assert_eq!(again(&text, &Given::default(), &mut memory).state, given.state);
    // In another file it is found.
    let other = "envVarGroups: [{name: common, envVars: [{key: K, value: theirs}]}]";
    let found = resolve_files(&[(PATH, &text), ("/o/render.yaml", other)], &Given::default(), &mut Memory::default());
    assert_eq!((codes(&found).len(), value(&found.state, "a", "K")), (0, "theirs".to_owned()));
}

#[test]
fn what_is_no_longer_written_stays_until_it_is_pruned() {
    let before = format!("services:\n{}", web("a", "envVars: [{key: K, value: v}, {key: PORT, value: 3000}]"));
    let after = format!("services:\n{}", web("a", ""));
    let mut memory = Memory::default();
    again(&before, &Given::default(), &mut memory);
    let kept = again(&after, &Given::default(), &mut memory);
    assert_eq!(codes(&kept), ["N0303", "N0303"]);
    assert_eq!((value(&kept.state, "a", "K"), service(&kept.state, "a").port), ("v".to_owned(), Some(3000)));
    memory.prune_values(Path::new(PATH), &super::support::read(&after));
    let pruned = again(&after, &Given::default(), &mut memory);
    assert_eq!((codes(&pruned).len(), service(&pruned.state, "a").port), (0, Some(10000)));
    assert!(!service(&pruned.state, "a").env.contains_key("K"));
}

#[test]
fn a_generated_value_is_made_only_where_there_is_none() {
    let mut memory = Memory::default();
    again(&format!("services:\n{}", web("a", "envVars: [{key: K, value: mine}]")), &Given::default(), &mut memory);
    let generated = again(&format!("services:\n{}", web("a", "envVars: [{key: K, generateValue: true}]")), &Given::default(), &mut memory);
    assert_eq!(value(&generated.state, "a", "K"), "mine");
    let written = again(&format!("services:\n{}", web("a", "envVars: [{key: K, value: new}]")), &Given::default(), &mut memory);
    assert_eq!(value(&written.state, "a", "K"), "new");
}

#[test]
fn secret_files_are_handed_on() {
    let text = format!("services:\n{}", web("a", "x-moat: {secretFiles: {tls.key: secrets/tls.key, other: gone}}"));
    let given = Given { files: BTreeMap::from([("secrets/tls.key".to_owned(), Secret::new("content"))]), ..Given::default() };
    let resolved = again(&text, &given, &mut Memory::default());
    assert_eq!(codes(&resolved), ["E0310"]);
    assert_eq!(
        service(&resolved.state, "a").secret_files.iter().map(|(k, v)| (k.as_str(), v.expose())).collect::<Vec<_>>(),
        [("tls.key", "content")]
    );
}

#[test]
fn fingerprints_change_with_what_an_instance_is_made_of() {
    let base = "plan: starter";
    let of = |rest: &str| {
        let state = state(&format!("services:\n{}{}", web("first-in-oregon", ""), web("a", rest)));
        (service(&state, "a").fingerprint.clone(), service(&state, "a").build_fingerprint.clone())
    };
    let (run, build) = of(base);
    for (rest, same_run, same_build) in [
        (base, true, true),
        ("plan: starter, numInstances: 4", true, true),
        ("plan: starter, healthCheckPath: /up", true, true),
        ("plan: starter, x-moat: {egress: none, allowFrom: [a]}", true, true),
        ("plan: starter, preDeployCommand: p", true, true),
        ("plan: standard", false, false),
        ("plan: starter, region: ohio", false, true),
        ("plan: starter, rootDir: x", false, false),
        ("plan: starter, envVars: [{key: A, value: b}]", false, false),
        ("plan: starter, disk: {name: d, mountPath: /data}", false, true),
    ] {
        let (r, b) = of(rest);
        assert_eq!((r == run, b == build), (same_run, same_build), "{rest}");
    }
}

#[test]
fn a_dockerfile_is_where_it_is_written() {
    let of = |rest: &str| {
        let text = format!("services: [{{type: web, name: a, runtime: docker{rest}}}]");
        let given = Given { values: [("registry.mine".to_owned(), Secret::new("me:word"))].into(), ..Given::default() };
        let resolved = again(&text, &given, &mut Memory::default());
        assert!(resolved.missing.is_empty(), "{:?}", resolved.missing);
        service(&resolved.state, "a").clone()
    };
    let base = of("");
    for (rest, file, context, root_dir, same_run, same_build) in [
        ("", "Dockerfile", ".", "", true, true),
        (", dockerfilePath: ./b/Dockerfile", "./b/Dockerfile", ".", "", false, false),
        (", rootDir: b, dockerContext: ..", "Dockerfile", "..", "b", false, false),
        (", dockerCommand: run", "Dockerfile", ".", "", false, true),
        (", registryCredential: {fromRegistryCreds: {name: mine}}", "Dockerfile", ".", "", true, true),
    ] {
        let found = of(rest);
        let Workload::Image(image) = &found.workload else { panic!("{rest}") };
        let dockerfile = image.dockerfile().unwrap();
        assert_eq!((dockerfile.file.as_path(), dockerfile.context.as_path()), (Path::new(file), Path::new(context)), "{rest}");
        assert_eq!((&dockerfile.source, dockerfile.root_dir.as_path()), (&"/shop".into(), Path::new(root_dir)), "{rest}");
        assert_eq!(image.credential.as_ref().map(Secret::expose), rest.contains("mine").then_some("me:word"));
        assert_eq!(
            (found.fingerprint == base.fingerprint, found.build_fingerprint == base.build_fingerprint),
            (same_run, same_build),
            "{rest}"
        );
    }
}

#[test]
fn an_environment_of_two_files_is_closed_if_one_says_so() {
    let file = |isolation: &str, service: &str| {
        format!(
            "projects:\n  - name: p\n    environments:\n      - name: e\n        networking: {{isolation: {isolation}}}\n        services:\n          - {{type: pserv, name: {service}, runtime: python, buildCommand: b, startCommand: s}}\n"
        )
    };
    let resolved = resolve_files(
        &[("/a/render.yaml", &file("disabled", "a")), ("/b/render.yaml", &file("enabled", "b"))],
        &Given::default(),
        &mut Memory::default(),
    );
    assert_eq!(codes(&resolved), ["W0306"]);
    let (a, b) = (service(&resolved.state, "a"), service(&resolved.state, "b"));
    assert_eq!(a.zone, b.zone);
    assert!(a.environment.as_ref().unwrap().isolated && b.environment.as_ref().unwrap().isolated);
}

#[test]
fn a_long_line_of_references_is_followed() {
    use std::fmt::Write as _;
    let mut text = "services:\n".to_owned();
    for i in 0..2_000 {
        let next = if i == 1_999 { "value: end".to_owned() } else { format!("fromService: {{type: web, name: w{}, envVarKey: X}}", i + 1) };
        write!(text, "{}", web(&format!("w{i}"), &format!("envVars: [{{key: X, {next}}}]"))).unwrap();
    }
    let state = state(&text);
    assert_eq!(value(&state, "w0", "X"), "end");
}
