//! The images of the recipes: each is made, run and asked something, and a registry gives back what was pushed.

use crate::sandbox::{Sandbox, can_run};
use moat_testkit::images::{self, Registry, recipes};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Runs a recipe's server in namespaces of its own and asks it.
fn run(recipe: &images::Recipe, env: &[(&str, &str)], ask: impl FnOnce(&Sandbox) + Send) {
    if !can_run(recipe.name) {
        return;
    }
    let layout = images::layout(recipe).unwrap();
    // Network namespaces are a thread's: a new one each, whoever runs the tests.
    std::thread::scope(|scope| scope.spawn(|| ask(&Sandbox::start(&layout, env))).join().unwrap());
}

#[test]
fn redis_answers_without_a_password_and_as_its_own_user() {
    run(&recipes::REDIS, &[], |server| {
        server.ask(6379, b"PING\r\n", b"+PONG");
        server.ask(6379, b"SET k v\r\nSAVE\r\nGET k\r\n", b"$1\r\nv");
        assert_eq!(server.owner("data/dump.rdb"), 999);
        server.ends_with_its_sandbox();
    });
}

#[test]
fn memcached_answers() {
    run(&recipes::MEMCACHED, &[], |server| {
        server.ask(11211, b"set k 0 0 1\r\nv\r\nget k\r\n", b"VALUE k 0 1\r\nv");
    });
}

#[test]
fn nats_answers_clients_and_its_monitoring_page_answers() {
    run(&recipes::NATS, &[], |server| {
        server.ask(4222, b"CONNECT {}\r\nPING\r\n", b"PONG");
        server.ask(8222, b"GET /varz HTTP/1.0\r\n\r\n", b"\"server_id\"");
    });
}

#[test]
fn clickhouse_answers_the_user_it_was_given_and_no_other() {
    run(&recipes::CLICKHOUSE, &[("CLICKHOUSE_USER", "app"), ("CLICKHOUSE_PASSWORD", "a b&c")], |server| {
        let query = b"GET /?query=SELECT%20version() HTTP/1.0\r\nX-ClickHouse-User: app\r\nX-ClickHouse-Key: a b&c\r\n\r\n";
        server.ask(8123, query, b"\r\n\r\n18.16");
        let refused = server.answer(8123, b"GET /?query=SELECT%201 HTTP/1.0\r\n\r\n");
        assert!(!refused.starts_with("HTTP/1.0 200"), "{refused}");
        assert!(server.inside(&["clickhouse-client", "--user", "app", "--password", "a b&c", "-q", "SELECT 6*7"]).contains("42"));
        assert_eq!(server.owner("var/lib/clickhouse/data"), 101);
    });
}

#[test]
fn postgres_makes_the_database_it_was_told() {
    let env = [("POSTGRES_USER", "app"), ("POSTGRES_PASSWORD", "it's"), ("POSTGRES_DB", "shop")];
    run(&recipes::POSTGRES, &env, |server| {
        // By TCP: while the database is made, the server has only its socket. From another address than loopback, which is trusted.
        let psql = |url, expected| server.inside_until(&["psql", url, "-Atc", "SELECT 6*7, current_user, current_database()"], expected);
        psql("postgresql://app:it%27s@192.0.2.1/shop", "42|app|shop\n");
        psql("postgresql://app:wrong@192.0.2.1/shop", "password authentication failed");
        assert_eq!(server.owner("var/lib/postgresql/data/PG_VERSION"), 999);
    });
}

#[test]
fn rabbitmq_takes_the_user_it_was_given_and_has_its_page() {
    let env = [("RABBITMQ_DEFAULT_USER", "app"), ("RABBITMQ_DEFAULT_PASS", "p+/="), ("RABBITMQ_NODENAME", "rabbit@localhost")];
    run(&recipes::RABBITMQ, &env, |server| {
        // The start of a connection: method frame 1, channel 0, class 10, method 10.
        server.ask(5672, b"AMQP\x00\x00\x09\x01", b"\x00\x0a\x00\x0a\x00\x09");
        // app:p+/=
        let page = "GET /api/whoami HTTP/1.0\r\nAuthorization: Basic YXBwOnArLz0=\r\n\r\n";
        server.ask(15672, page.as_bytes(), b"\"name\":\"app\"");
        let guest = server.answer(15672, b"GET /api/whoami HTTP/1.0\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\r\n");
        assert!(guest.contains(" 401 "), "{guest}");
        assert!(server.inside(&["rabbitmqctl", "list_users"]).contains("app"));
        assert_eq!(server.owner("var/lib/rabbitmq/mnesia"), 999);
    });
}

#[test]
fn a_registry_gives_back_what_was_pushed_and_images_share_the_base() {
    if !can_run("registry") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(folder.path()).unwrap();
    let mut first_layers = Vec::new();
    for recipe in [&recipes::REDIS, &recipes::RABBITMQ] {
        let layout = images::layout(recipe).unwrap();
        let name = format!("library/{}:1", recipe.name);
        registry.push(&layout, &name).unwrap();
        let inspected = inspect(&registry, &name, None).unwrap();
        assert_eq!(inspected["Digest"], json(&layout.join("index.json"))["manifests"][0]["digest"]);
        first_layers.push(inspected["Layers"][0].clone());
    }
    assert_eq!(first_layers[0], first_layers[1]);
    let address = registry.address.clone();
    drop(registry);
    assert!(std::net::TcpStream::connect(address).is_err(), "the registry is still there");
}

#[test]
fn a_registry_with_a_login_refuses_strangers() {
    if !can_run("registry with a login") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start_with_login(folder.path()).unwrap();
    let layout = images::layout(&images::Recipe::BARE).unwrap();
    registry.push(&layout, "team/bare:1").unwrap();
    assert!(inspect(&registry, "team/bare:1", None).unwrap_err().contains("authentication required"));
    assert!(inspect(&registry, "team/bare:1", Some((Registry::LOGIN.0, "guess"))).is_err());
    let inspected = inspect(&registry, "team/bare:1", Some(Registry::LOGIN)).unwrap();
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), 1);
}

#[test]
fn an_archive_as_docker_saves_it_names_its_image() {
    if !can_run("archive") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("bare.tar");
    images::docker_archive(&images::layout(&images::Recipe::BARE).unwrap(), "team/bare:1", &archive).unwrap();
    let text = Command::new("tar").args(["--extract", "--to-stdout", "--file"]).arg(&archive).arg("manifest.json").output().unwrap();
    let manifest: Value = serde_json::from_slice(&text.stdout).unwrap();
    assert!(manifest[0]["RepoTags"][0].as_str().unwrap().ends_with("team/bare:1"), "{manifest}");
}

fn inspect(registry: &Registry, name: &str, login: Option<(&str, &str)>) -> Result<Value, String> {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--tls-verify=false"]).arg(format!("docker://{}", registry.reference(name)));
    match login {
        Some((user, password)) => skopeo.args(["--creds", &format!("{user}:{password}")]),
        None => skopeo.arg("--no-creds"),
    };
    let out = skopeo.output().unwrap();
    if out.status.success() {
        Ok(serde_json::from_slice(&out.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&out.stderr).into_owned())
    }
}

fn json(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}
