//! Databases: what a server is told to make, what references to it are, and what of it lasts.

use super::support::{Given, counter, read, resolve_files, service, state, value};
use moat_model::state::{PostgresWorkload, Workload};
use moat_model::{DesiredState, ServiceKind};
use moat_planner::memory::Memory;
use moat_planner::resolve::{GitFacts, Input, Settings, resolve};
use std::collections::BTreeMap;
use std::path::Path;

fn server<'a>(state: &'a DesiredState, slug: &str) -> &'a PostgresWorkload {
    match &service(state, slug).workload {
        Workload::Postgres(server) => server,
        Workload::Native(_) | Workload::Image(_) | Workload::KeyValue(_) | Workload::Static(_) => panic!("{slug} is no database"),
    }
}

/// A worker with a variable for each property of a database, and the database.
fn with(database: &str) -> String {
    let properties = ["connectionString", "connectionPoolString", "host", "port", "user", "password", "database"];
    let variables: Vec<String> =
        properties.iter().map(|p| format!("{{key: DB_{}, fromDatabase: {{name: orders, property: {p}}}}}", p.to_uppercase())).collect();
    format!(
        "services:\n  - {{type: worker, name: me, runtime: python, buildCommand: b, startCommand: s, envVars: [{}]}}\ndatabases:\n  - {database}\n",
        variables.join(", ")
    )
}

#[test]
fn a_database_is_a_service_that_receives_only() {
    let state = state("databases: [{name: Main Orders, plan: pro-8gb, postgresMajorVersion: '15'}]\n");
    let orders = service(&state, "main-orders");
    assert_eq!((orders.kind, orders.port, orders.instances, orders.max_shutdown_delay_seconds), (ServiceKind::Postgres, Some(5432), 1, 60));
    assert!(orders.id.as_str().starts_with("dpg-") && orders.vip.is_some());
    assert_eq!((orders.limits.memory_bytes, orders.limits.cpu_millis), (8 << 30, 2000));
    assert!(orders.env.is_empty() && !orders.fingerprint.is_empty());
    let server = server(&state, "main-orders");
    assert_eq!(server.major, Some(15));
    assert_eq!(server.password.expose().len(), 24);
    let (name, suffix) = server.database.split_at("main_orders_".len());
    assert_eq!((name, suffix.len()), ("main_orders_", 4));
    assert_eq!(server.user, format!("{}_user", server.database));
}

#[test]
fn every_property_is_what_the_server_has() {
    for (database, names) in [
        ("{name: orders, databaseName: shop, user: Owner-1}", Some(("shop", "Owner-1"))),
        ("{name: orders, databaseName: postgres, user: postgres}", Some(("postgres", "postgres"))),
        ("{name: orders}", None),
    ] {
        let state = state(&with(database));
        let server = server(&state, "orders");
        if let Some((database, user)) = names {
            assert_eq!((server.database.as_str(), server.user.as_str()), (database, user), "names that are written are kept as they are");
        }
        let url = format!("postgresql://{}:{}@orders/{}", server.user, server.password.expose(), server.database);
        for (key, expect) in [
            ("CONNECTIONSTRING", url.as_str()),
            ("CONNECTIONPOOLSTRING", &url),
            ("HOST", "orders"),
            ("PORT", "5432"),
            ("USER", &server.user),
            ("PASSWORD", server.password.expose()),
            ("DATABASE", &server.database),
        ] {
            assert_eq!(value(&state, "me", &format!("DB_{key}")), expect, "{key}");
        }
    }
}

#[test]
fn a_replica_is_the_database_itself() {
    let state = state(&with("{name: primary, readReplicas: [{name: orders}]}"));
    assert_eq!(value(&state, "me", "DB_HOST"), "primary");
    assert_eq!(state.services.len(), 2);
}

#[test]
fn a_service_keeps_its_name_where_a_database_has_the_same() {
    let text = "databases: [{name: shop}]\nservices: [{type: web, name: shop, runtime: node, buildCommand: b, startCommand: s, envVars: [{key: HOST, fromDatabase: {name: shop, property: host}}]}]\n";
    let state = state(text);
    assert_eq!(service(&state, "shop").kind, ServiceKind::Web);
    let host = value(&state, "shop", "HOST");
    assert!(host.starts_with("shop-") && service(&state, &host).kind == ServiceKind::Postgres, "{host}");
}

#[test]
fn what_was_drawn_lasts_and_a_new_name_is_answered() {
    let mut memory = Memory::default();
    let up = |text: &str, memory: &mut Memory, seed: u64| {
        let blueprint = read(text);
        let (given, files) = (BTreeMap::new(), BTreeMap::new());
        let path = Path::new("/b/render.yaml");
        let input = Input { path, source: Path::new("/b"), blueprint: &blueprint, given: &given, files: &files, git: GitFacts::default() };
        resolve(&[input], memory, &mut counter(seed), &Settings::default())
    };
    let first = up(&with("{name: orders, databaseName: shop}"), &mut memory, 1);
    assert_eq!(first.diagnostics, []);
    // Through the state file, with other random bytes.
    memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
    let again = up(&with("{name: orders, databaseName: shop}"), &mut memory, 500);
    assert_eq!(first.state, again.state);
    let renamed = up(&with("{name: orders, databaseName: store, user: me}"), &mut memory, 900);
    let said: Vec<String> = renamed.diagnostics.iter().map(|(_, d)| format!("{} {}: {}", d.code, d.pointer, d.message)).collect();
    let user = &server(&first.state, "orders").user;
    assert_eq!(
        said,
        [
            "W0307 databases/0/databaseName: the database of `orders` stays `shop`: it was made with that name".to_owned(),
            format!("W0307 databases/0/user: the user of `orders` stays `{user}`: it was made with that name"),
        ]
    );
    assert_eq!(renamed.state, first.state, "nothing is made anew");
    // Size is what can change.
    let larger = up(&with("{name: orders, plan: pro-4gb}"), &mut memory, 1200);
    assert_eq!(server(&larger.state, "orders"), server(&first.state, "orders"));
    assert_ne!(service(&larger.state, "orders").fingerprint, service(&first.state, "orders").fingerprint);
    // What is forgotten is drawn anew.
    assert!(memory.forget(&moat_model::Slug::new("orders").unwrap()));
    let new = up(&with("{name: orders}"), &mut memory, 2000);
    assert_ne!(service(&new.state, "orders").id, service(&first.state, "orders").id);
    assert_ne!(server(&new.state, "orders").password, server(&first.state, "orders").password);
}

#[test]
fn the_password_of_a_key_value_is_drawn_once() {
    let up = |text: &str, memory: &mut Memory, seed: u64| {
        let blueprint = read(text);
        let (given, files) = (BTreeMap::new(), BTreeMap::new());
        let path = Path::new("/b/render.yaml");
        let input = Input { path, source: Path::new("/b"), blueprint: &blueprint, given: &given, files: &files, git: GitFacts::default() };
        resolve(&[input], memory, &mut counter(seed), &Settings::default()).state
    };
    let text = "services: [{type: keyvalue, name: cache, ipAllowList: []}, {type: worker, name: me, runtime: go, buildCommand: b, startCommand: s}]\n";
    let mut memory = Memory::default();
    let (cache, me) = (moat_model::Slug::new("cache").unwrap(), moat_model::Slug::new("me").unwrap());
    up(text, &mut memory, 1);
    let drawn = memory.outside_password(&cache).unwrap().clone();
    assert_eq!((drawn.expose().len(), memory.outside_password(&me)), (24, None));
    // Through the state file, with other random bytes, past a pruning of variables and a blueprint without it.
    memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
    memory.prune_values(Path::new("/b/render.yaml"), &read(text));
    up("services: []\n", &mut memory, 300);
    let again = up(&text.replace("ipAllowList: []", "ipAllowList: [{source: 192.0.2.1}]"), &mut memory, 500);
    assert_eq!(memory.outside_password(&cache), Some(&drawn));
    assert!(!serde_json::to_string(&again).unwrap().contains(drawn.expose()), "no engine gets it");
    assert!(memory.forget(&cache));
    up(text, &mut memory, 900);
    assert_ne!(memory.outside_password(&cache), Some(&drawn));
}

#[test]
fn what_a_server_can_not_have_is_an_error() {
    for (database, expect) in [
        (
            "{name: orders, user: moat}",
            Some("E0313 databases/0/user: `moat` can't be the name of a user: the server keeps that name for itself"),
        ),
        (
            "{name: orders, databaseName: a b}",
            Some(
                "E0313 databases/0/databaseName: `a b` can't be the name of a database: it holds other characters than letters, digits, `_` and `-`",
            ),
        ),
        ("{name: orders, databaseName: moat, user: shop}", None),
        ("{name: orders, plan: 0c-1g}", Some("E0308 databases/0/plan: there is no plan `0c-1g`")),
        ("{name: orders, plan: 0.5c-1g}", None),
    ] {
        let resolved = resolve_files(&[("/b/render.yaml", &with(database))], &Given::default(), &mut Memory::default());
        let said: Vec<String> = resolved.diagnostics.iter().map(|(_, d)| format!("{} {}: {}", d.code, d.pointer, d.message)).collect();
        assert_eq!(said, expect.into_iter().collect::<Vec<_>>(), "{database}");
    }
}

#[test]
fn two_databases_share_nothing() {
    let state = state("databases: [{name: a}, {name: b}]\n");
    let (a, b) = (server(&state, "a"), server(&state, "b"));
    assert_ne!(a.password, b.password);
    assert_ne!(service(&state, "a").vip, service(&state, "b").vip);
}
