//! The systems that private services are for, from images used as their makers' are: each is written and read by a real
//! client library in a worker, by its private name; killed, it comes back with what it had acknowledged; nobody else gets in.

use crate::host::{Host, host, service, wait_for};
use crate::images::registry;
use moat_testkit::images::{layout, recipes};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Client libraries, from PyPI.
const CLIENTS: &str =
    "pika==1.3.2\npymemcache==4.0.0\nredis==5.2.1\nclickhouse-driver==0.2.9\npg8000==1.31.2\nnats-py==2.10.0\nopensearch-py==3.2.0\n";

const APP: &str = r#"
import asyncio, os, sys

def where(name):
    host, port = os.environ[name].rsplit(":", 1)
    return host, int(port)

def queue(value):
    import pika
    host, port = where("QUEUE")
    login = pika.PlainCredentials("app", os.environ["SECRET"])
    with pika.BlockingConnection(pika.ConnectionParameters(host, port, credentials=login)) as connection:
        channel = connection.channel()
        channel.queue_declare("jobs", durable=True)
        if value:
            channel.queue_purge("jobs")
            channel.confirm_delivery()
            channel.basic_publish("", "jobs", value.encode(), pika.BasicProperties(delivery_mode=2))
        method, _, body = channel.basic_get("jobs")
        channel.basic_nack(method.delivery_tag, requeue=True)
        return body.decode()

def memory(value):
    from pymemcache.client.base import Client
    client = Client(where("MEMORY"), timeout=5)
    if value:
        client.set("v", value, noreply=False)
    return (client.get("v") or b"").decode()

def cache(value):
    import redis
    host, port = where("CACHE")
    client = redis.Redis(host, port)
    if value:
        client.set("v", value)
    return client.get("v").decode()

def columns(value):
    from clickhouse_driver import Client
    host, port = where("COLUMNS")
    client = Client(host, port=port)
    if value:
        client.execute("create table if not exists t (n UInt64, v String) engine=MergeTree order by n")
        client.execute("insert into t values", [(client.execute("select count() from t")[0][0], value)])
    return client.execute("select v from t order by n desc limit 1")[0][0]

def rows(value):
    import pg8000.dbapi
    host, port = where("ROWS")
    connection = pg8000.dbapi.connect("app", host, "app", port, os.environ["SECRET"])
    cursor = connection.cursor()
    if value:
        cursor.execute("create table if not exists t (id serial, v text)")
        cursor.execute("insert into t (v) values (%s)", (value,))
        connection.commit()
    cursor.execute("select v from t order by id desc limit 1")
    return cursor.fetchone()[0]

def bus(value):
    import nats
    async def talk():
        client = await nats.connect("nats://%s:%d" % where("BUS"), connect_timeout=5, max_reconnect_attempts=0)
        stream = client.jetstream(timeout=5)
        if value:
            await stream.add_stream(name="v", subjects=["v"])
            await stream.publish("v", value.encode())
        message = await stream.get_last_msg("v", "v")
        await client.close()
        return message.data.decode()
    return asyncio.run(talk())

def search(value):
    from opensearchpy import OpenSearch
    host, port = where("SEARCH")
    client = OpenSearch([{"host": host, "port": port}], use_ssl=False, timeout=5)
    if value:
        client.index(index="notes", id="1", body={"text": value, "kind": "note"}, refresh=True)
    found = client.search(index="notes", body={"query": {"match": {"kind": "note"}}})
    return found["hits"]["hits"][0]["_source"]["text"]

name, value = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
print(globals()[name](value))
"#;

/// Name, image, recipe, port, lines of the blueprint, whether it keeps what it has acknowledged.
const SYSTEMS: [(&str, &str, moat_testkit::images::Recipe, u16, &str, bool); 7] = [
    (
        "queue",
        "library/rabbitmq:3-management",
        recipes::RABBITMQ,
        5672,
        "disk: {name: queue, mountPath: /var/lib/rabbitmq, sizeGB: 1}",
        true,
    ),
    ("memory", "library/memcached:1.6", recipes::MEMCACHED, 11211, "dockerCommand: memcached -m 64", false),
    (
        "cache",
        "library/redis:7",
        recipes::REDIS,
        6379,
        "disk: {name: cache, mountPath: /data, sizeGB: 1}\n    dockerCommand: redis-server --appendonly yes --appendfsync always",
        true,
    ),
    (
        "columns",
        "clickhouse/clickhouse-server:18",
        recipes::CLICKHOUSE,
        9000,
        "disk: {name: columns, mountPath: /var/lib/clickhouse, sizeGB: 1}",
        true,
    ),
    ("rows", "library/postgres:15", recipes::POSTGRES, 5432, "disk: {name: rows, mountPath: /var/lib/postgresql/data, sizeGB: 1}", true),
    (
        "bus",
        "library/nats:2",
        recipes::NATS,
        4222,
        "disk: {name: bus, mountPath: /data, sizeGB: 1}\n    dockerCommand: nats-server --jetstream --store_dir /data --http_port 8222",
        true,
    ),
    ("search", "opensearchproject/opensearch:2", recipes::OPENSEARCH, 9200, "", false),
];

/// The client libraries as files, downloaded once for this machine.
fn wheels() -> PathBuf {
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("wheels");
    let done = cache.join("done.txt");
    if fs::read_to_string(&done).is_ok_and(|text| text == CLIENTS) {
        return cache;
    }
    let _ = fs::remove_dir_all(&cache);
    fs::create_dir_all(&cache).unwrap();
    let list = cache.join("requirements.txt");
    fs::write(&list, CLIENTS).unwrap();
    let pip = Command::new("python3").args(["-m", "pip", "wheel", "--quiet", "-w"]).arg(&cache).arg("-r").arg(&list).output().unwrap();
    assert!(pip.status.success(), "{}", String::from_utf8_lossy(&pip.stderr));
    fs::write(&done, CLIENTS).unwrap();
    cache
}

fn blueprint(reference: impl Fn(&str) -> String) -> String {
    let mut text = String::from("services:\n");
    let mut variables = String::new();
    for (name, image, _, port, lines, _) in SYSTEMS {
        let (image, lines) = (reference(image), if lines.is_empty() { "{}" } else { lines });
        let lines = if lines == "{}" { String::new() } else { format!("    {lines}\n") };
        write!(
            text,
            "  - type: pserv\n    name: {name}\n    runtime: image\n    plan: standard\n    image: {{url: '{image}'}}\n{lines}    envVars:\n      - {{key: PORT, value: '{port}'}}\n      - {{fromGroup: logins}}\n"
        )
        .unwrap();
        let key = name.to_uppercase();
        writeln!(variables, "      - {{key: {key}, fromService: {{type: pserv, name: {name}, property: hostport}}}}").unwrap();
    }
    write!(
        text,
        "  - type: worker\n    name: client\n    runtime: python\n    buildCommand: pip install --quiet --no-index --find-links wheels -r requirements.txt\n    startCommand: sleep 100000\n    envVars:\n{variables}      - {{key: SECRET, fromService: {{type: pserv, name: rows, envVarKey: POSTGRES_PASSWORD}}}}\n"
    )
    .unwrap();
    text += "envVarGroups:\n  - name: logins\n    envVars:\n      - {key: RABBITMQ_DEFAULT_USER, value: app}\n      - {key: RABBITMQ_DEFAULT_PASS, value: s3cret-of-tests}\n      - {key: POSTGRES_USER, value: app}\n      - {key: POSTGRES_PASSWORD, value: s3cret-of-tests}\n      - {key: POSTGRES_DB, value: app}\n";
    text += "projects:\n  - name: elsewhere\n    environments:\n      - name: closed\n        networking: {isolation: enabled}\n        services:\n          - {type: worker, name: stranger, runtime: python, buildCommand: 'true', startCommand: sleep 100000}\n";
    text
}

fn client(host: &Host, name: &str, value: Option<&str>) -> Result<String, String> {
    let mut args = vec!["exec", "client", "--", "python", "client.py", name];
    args.extend(value);
    let said = host.moat(&args);
    if said.code == 0 { Ok(said.out.trim().to_owned()) } else { Err(said.err) }
}

#[test]
fn the_systems_serve_their_clients_survive_and_are_closed_to_others() {
    let Some(host) = host() else { return };
    let layouts: Vec<_> = SYSTEMS.iter().map(|system| (system.1, layout(&system.2).unwrap())).collect();
    let registry = registry(&host, &layouts.iter().map(|(name, layout)| (*name, layout.as_path())).collect::<Vec<_>>());
    let file = host.write("systems/render.yaml", &blueprint(|name| registry.reference(name)));
    host.write("systems/client.py", APP);
    host.write("systems/requirements.txt", CLIENTS);
    assert!(Command::new("cp").arg("-r").arg(wheels()).arg(host.path("systems/wheels")).status().unwrap().success());
    let up = host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    drop(registry);
    for (name, _, _, port, ..) in SYSTEMS {
        assert!(up.out.contains(&format!("{name}:{port}")), "{name}: {}", up.out);
    }

    // A port is open before a server answers.
    for (name, ..) in SYSTEMS {
        let value = format!("to {name}");
        let mut said = String::new();
        wait_for(name, || match client(&host, name, Some(&value)) {
            Ok(found) => found == value,
            Err(error) => {
                said = error;
                false
            }
        });
    }
    // All listening ports are found, more than one of a service too.
    let ps = host.ps();
    let ports: [(&str, &[u16]); 4] = [("queue", &[5672, 15672]), ("columns", &[8123, 9000]), ("bus", &[4222, 8222]), ("search", &[9200])];
    for (name, wanted) in ports {
        let open: Vec<u16> = service(&ps, name)["openPorts"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|port| port["protocol"] == "TCP")
            .filter_map(|port| u16::try_from(port["port"].as_u64()?).ok())
            .collect();
        assert!(wanted.iter().all(|port| open.contains(port)), "{name}: {open:?}");
    }

    // Only their own network reaches them, and only by what the matrix says.
    for (name, ..) in SYSTEMS {
        assert_eq!(host.http(8080, &format!("{name}.localhost"), "/").0, 404, "{name}");
        assert!(host.moat(&["explain", "stranger", name]).out.starts_with("deny"), "{name}");
        assert!(host.moat(&["explain", name, "client"]).out.starts_with("deny"), "{name}");
    }
    host.moat(&["verify"]).ok();

    // Killed, each comes back; what it had acknowledged is there.
    let ps = host.ps();
    for (name, .., keeps) in SYSTEMS {
        host.kill(u32::try_from(service(&ps, name)["instances"][0]["pid"].as_u64().unwrap()).unwrap(), "KILL");
        let value = (!keeps).then(|| format!("{name} again"));
        let wanted = value.clone().unwrap_or_else(|| format!("to {name}"));
        wait_for(&format!("{name} to come back"), || client(&host, name, value.as_deref()).is_ok_and(|found| found == wanted));
    }
    host.moat(&["down"]).ok();
    wait_for("the daemon to end", || host.daemon().is_none());
}

/// Three nodes of one service that find each other by its discovery name, and by the names that their addresses have.
#[test]
fn instances_of_rabbitmq_find_each_other_by_dns() {
    let Some(host) = host() else { return };
    let layout = layout(&recipes::RABBITMQ).unwrap();
    let registry = registry(&host, &[("library/rabbitmq:3-management", layout.as_path())]);
    let file = host.write(
        "cluster/render.yaml",
        &format!(
            "services:\n  - type: pserv\n    name: queue\n    runtime: image\n    plan: standard\n    numInstances: 3\n    image: {{url: '{}'}}\n    x-moat:\n      start: one-by-one\n      secretFiles: {{rabbitmq.conf: rabbitmq.conf}}\n    envVars:\n      - {{key: PORT, value: 5672}}\n      - {{key: RABBITMQ_CONFIG_FILE, value: /etc/secrets/rabbitmq.conf}}\n      - {{key: RABBITMQ_ERLANG_COOKIE, generateValue: true}}\n",
            registry.reference("library/rabbitmq:3-management")
        ),
    );
    host.write(
        "cluster/rabbitmq.conf",
        "cluster_formation.peer_discovery_backend = dns\ncluster_formation.dns.hostname = queue-discovery\n",
    );
    let planned = host.moat(&["plan", file.to_str().unwrap()]).ok();
    assert!(planned.out.contains("2 more, one after another"), "{}", planned.out);
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let ps = host.ps();
    let instances = service(&ps, "queue")["instances"].as_array().unwrap();
    let mut ids: Vec<String> = instances.iter().map(|instance| format!("rabbit@{}", instance["id"].as_str().unwrap())).collect();
    ids.sort();
    assert_eq!(ids.len(), 3);
    let running = || {
        let said = host.moat(&["exec", "queue", "--", "rabbitmqctl", "--quiet", "--formatter", "json", "cluster_status"]);
        let status: serde_json::Value = serde_json::from_str(&said.out).unwrap_or_default();
        let mut nodes: Vec<String> =
            status["running_nodes"].as_array().into_iter().flatten().filter_map(|node| Some(node.as_str()?.to_owned())).collect();
        nodes.sort();
        nodes
    };
    wait_for("the three to be one cluster", || running() == ids);
    host.moat(&["verify"]).ok();
    host.moat(&["down"]).ok();
    wait_for("the daemon to end", || host.daemon().is_none());
}

/// RabbitMQ as the example has it: its page is public, AMQP is for one service of the private network.
#[test]
fn one_service_has_a_public_page_and_a_private_protocol() {
    let Some(host) = host() else { return };
    let layout = layout(&recipes::RABBITMQ).unwrap();
    let registry = registry(&host, &[("library/rabbitmq:3-management", layout.as_path())]);
    let image = registry.reference("library/rabbitmq:3-management");
    let python = |name: &str| {
        format!(
            "  - type: worker\n    name: {name}\n    runtime: python\n    buildCommand: pip install --quiet --no-index --find-links wheels -r requirements.txt\n    startCommand: sleep 100000\n    envVars:\n      - {{key: AT, fromService: {{type: web, name: queue, property: host}}}}\n      - {{key: SECRET, fromService: {{type: web, name: queue, envVarKey: RABBITMQ_DEFAULT_PASS}}}}\n"
        )
    };
    let file = host.write(
        "page/render.yaml",
        &format!(
            "services:\n  - type: web\n    name: queue\n    runtime: image\n    plan: standard\n    image: {{url: '{image}'}}\n    healthCheckPath: /\n    envVars:\n      - {{key: PORT, value: 15672}}\n      - {{key: RABBITMQ_NODENAME, value: rabbit@localhost}}\n      - {{key: RABBITMQ_DEFAULT_USER, value: app}}\n      - {{key: RABBITMQ_DEFAULT_PASS, generateValue: true}}\n    disk: {{name: queue, mountPath: /var/lib/rabbitmq, sizeGB: 1}}\n    x-moat: {{allowFrom: [client], egress: none}}\n{}{}",
            python("client"),
            python("other")
        ),
    );
    host.write("page/client.py", APP);
    host.write("page/requirements.txt", CLIENTS);
    assert!(Command::new("cp").arg("-r").arg(wheels()).arg(host.path("page/wheels")).status().unwrap().success());
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let (status, page) = host.http(8080, "queue.localhost", "/");
    assert!(status == 200 && page.contains("RabbitMQ Management"), "{status} {page}");
    let talk = |who: &str, value: &str| {
        let command = format!("QUEUE=$AT:5672 timeout 20 python client.py queue '{value}'");
        host.moat(&["exec", who, "--", "sh", "-c", &command])
    };
    assert_eq!(talk("client", "a job").ok().out.trim(), "a job");
    assert_ne!(talk("other", "another").code, 0, "AMQP is for `client`");
    for (from, to, answer) in [("internet", "queue:5672", "deny"), ("ingress", "queue:5672", "deny"), ("ingress", "queue:15672", "allow")] {
        let said = host.moat(&["explain", from, to]).out;
        assert!(said.starts_with(answer), "{from} {to}: {said}");
    }
    host.moat(&["verify"]).ok();
    host.moat(&["down"]).ok();
    wait_for("the daemon to end", || host.daemon().is_none());
}

const HASHED: &str = r#"
import os, socket
from pymemcache.client.base import Client
from pymemcache.client.hash import HashClient

found = socket.getaddrinfo(os.environ["MEMCACHED"], 11211, socket.AF_INET, socket.SOCK_STREAM)
servers = sorted({entry[4] for entry in found})
client = HashClient(servers)
for n in range(60):
    client.set("k%d" % n, str(n), noreply=False)
assert all(client.get("k%d" % n) == str(n).encode() for n in range(60))
print(*(int(Client(server).stats()[b"curr_items"]) for server in servers))
"#;

/// The clients' own spread of keys over the instances that the discovery name has.
#[test]
fn keys_are_spread_over_the_instances_of_memcached() {
    let Some(host) = host() else { return };
    let layout = layout(&recipes::MEMCACHED).unwrap();
    let registry = registry(&host, &[("library/memcached:1.6", layout.as_path())]);
    let image = registry.reference("library/memcached:1.6");
    let file = host.write(
        "hashed/render.yaml",
        &format!(
            "services:\n  - type: pserv\n    name: memory\n    runtime: image\n    numInstances: 3\n    image: {{url: '{image}'}}\n    envVars: [{{key: PORT, value: 11211}}]\n  - type: worker\n    name: client\n    runtime: python\n    buildCommand: pip install --quiet --no-index --find-links wheels -r requirements.txt\n    startCommand: sleep 100000\n    envVars:\n      - {{key: MEMCACHED, fromService: {{type: pserv, name: memory, envVarKey: RENDER_DISCOVERY_SERVICE}}}}\n"
        ),
    );
    host.write("hashed/client.py", HASHED);
    host.write("hashed/requirements.txt", CLIENTS);
    assert!(Command::new("cp").arg("-r").arg(wheels()).arg(host.path("hashed/wheels")).status().unwrap().success());
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let said = host.moat(&["exec", "client", "--", "python", "client.py"]).ok().out;
    let counts: Vec<u32> = said.split_whitespace().map(|count| count.parse().unwrap()).collect();
    assert!(counts.len() == 3 && counts.iter().all(|count| *count > 0) && counts.iter().sum::<u32>() == 60, "{said}");
    host.moat(&["verify"]).ok();
    host.moat(&["down"]).ok();
    wait_for("the daemon to end", || host.daemon().is_none());
}
