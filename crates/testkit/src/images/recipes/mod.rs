//! Images that are used as the official ones of the same systems are: ports, users, data folders, variables, a server that drops its rights.
//!
//! The servers are Debian's, so their versions are Debian's: ask a server, not the tag it was pushed under.

use super::{Compression, File, Folder, Program, Recipe, User};

/// Every recipe here.
pub const ALL: &[Recipe] = &[RABBITMQ, MEMCACHED, REDIS, CLICKHOUSE, POSTGRES, NATS, OPENSEARCH];

const ENTRYPOINT: &str = "/usr/local/bin/docker-entrypoint.sh";

const fn entrypoint(text: &'static str) -> File {
    File { path: ENTRYPOINT, mode: 0o755, owner: "root", text }
}

/// RabbitMQ with the management page, as `rabbitmq:3-management`: AMQP 5672, HTTP 15672, data in `/var/lib/rabbitmq`.
///
/// Honours `RABBITMQ_DEFAULT_USER`, `RABBITMQ_DEFAULT_PASS`, `RABBITMQ_DEFAULT_VHOST`, `RABBITMQ_ERLANG_COOKIE`, `RABBITMQ_NODENAME` and
/// files in `/etc/rabbitmq/conf.d`.
pub const RABBITMQ: Recipe = Recipe {
    name: "rabbitmq",
    packages: &["rabbitmq-server"],
    users: &[User { name: "rabbitmq", id: 999, home: "/var/lib/rabbitmq" }],
    folders: &[
        Folder { path: "/var/lib/rabbitmq", mode: 0o755, owner: "rabbitmq" },
        Folder { path: "/var/lib/rabbitmq/mnesia", mode: 0o755, owner: "rabbitmq" },
        Folder { path: "/var/log/rabbitmq", mode: 0o755, owner: "rabbitmq" },
        Folder { path: "/etc/rabbitmq", mode: 0o755, owner: "rabbitmq" },
        Folder { path: "/etc/rabbitmq/conf.d", mode: 0o755, owner: "rabbitmq" },
    ],
    files: &[
        entrypoint(include_str!("rabbitmq.sh")),
        File {
            path: "/etc/rabbitmq/enabled_plugins",
            mode: 0o644,
            owner: "rabbitmq",
            text: "[rabbitmq_management,rabbitmq_peer_discovery_common].\n",
        },
        File {
            path: "/etc/rabbitmq/conf.d/10-defaults.conf",
            mode: 0o644,
            owner: "rabbitmq",
            text: "loopback_users.guest = false\nlog.console = true\nlog.file = false\n",
        },
    ],
    entrypoint: &[ENTRYPOINT],
    cmd: &["rabbitmq-server"],
    ports: &["4369/tcp", "5672/tcp", "15672/tcp", "25672/tcp"],
    env: &[
        ("PATH", "/usr/lib/rabbitmq/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/var/lib/rabbitmq"),
        ("RABBITMQ_DATA_DIR", "/var/lib/rabbitmq"),
    ],
    volumes: &["/var/lib/rabbitmq"],
    compression: Compression::Zstd,
    ..Recipe::BARE
};

/// Memcached, as `memcached:1.6`: 11211, run as the image's user `memcache`.
pub const MEMCACHED: Recipe = Recipe {
    name: "memcached",
    packages: &["memcached"],
    users: &[User { name: "memcache", id: 11211, home: "/nonexistent" }],
    files: &[entrypoint(include_str!("memcached.sh"))],
    entrypoint: &["docker-entrypoint.sh"],
    cmd: &["memcached"],
    user: "memcache",
    ports: &["11211/tcp"],
    ..Recipe::BARE
};

/// Redis, as `redis:7`: 6379, data in `/data`, reachable from other machines without a password, arguments that begin with `-` go to the server.
pub const REDIS: Recipe = Recipe {
    name: "redis",
    packages: &["redis-server", "redis-tools"],
    users: &[User { name: "redis", id: 999, home: "/data" }],
    folders: &[Folder { path: "/data", mode: 0o755, owner: "redis" }],
    files: &[entrypoint(include_str!("redis.sh"))],
    entrypoint: &["docker-entrypoint.sh"],
    cmd: &["redis-server"],
    ports: &["6379/tcp"],
    workdir: "/data",
    volumes: &["/data"],
    ..Recipe::BARE
};

/// ClickHouse, as `clickhouse/clickhouse-server`: HTTP 8123, native 9000, data in `/var/lib/clickhouse`.
///
/// Honours `CLICKHOUSE_USER` and `CLICKHOUSE_PASSWORD`, and files in `config.d` and `users.d`.
pub const CLICKHOUSE: Recipe = Recipe {
    name: "clickhouse",
    packages: &["clickhouse-server", "clickhouse-client"],
    users: &[User { name: "clickhouse", id: 101, home: "/var/lib/clickhouse" }],
    folders: &[
        Folder { path: "/var/lib/clickhouse", mode: 0o755, owner: "clickhouse" },
        Folder { path: "/var/log/clickhouse-server", mode: 0o755, owner: "clickhouse" },
        Folder { path: "/etc/clickhouse-server/config.d", mode: 0o755, owner: "clickhouse" },
        Folder { path: "/etc/clickhouse-server/users.d", mode: 0o755, owner: "clickhouse" },
    ],
    files: &[
        File { path: "/entrypoint.sh", mode: 0o755, owner: "root", text: include_str!("clickhouse.sh") },
        File {
            path: "/etc/clickhouse-server/config.d/docker_related_config.xml",
            mode: 0o644,
            owner: "root",
            text: "<yandex>\n  <logger><console>1</console></logger>\n  <listen_host replace=\"replace\">::</listen_host>\n  <listen_host>0.0.0.0</listen_host>\n  <listen_try>1</listen_try>\n</yandex>\n",
        },
    ],
    entrypoint: &["/entrypoint.sh"],
    cmd: &[],
    ports: &["8123/tcp", "9000/tcp", "9009/tcp"],
    env: &[("TZ", "UTC")],
    volumes: &["/var/lib/clickhouse"],
    compression: Compression::Zstd,
    ..Recipe::BARE
};

/// PostgreSQL, as `postgres:15`: 5432, data in `PGDATA`, `/var/lib/postgresql/data` unless set otherwise; stops fast at `SIGINT`.
///
/// Honours `POSTGRES_PASSWORD` (needed), `POSTGRES_USER`, `POSTGRES_DB`, `POSTGRES_INITDB_ARGS`, `POSTGRES_HOST_AUTH_METHOD`, and `*.sql` in
/// `/docker-entrypoint-initdb.d`.
pub const POSTGRES: Recipe = Recipe {
    name: "postgres",
    packages: &["postgresql-15"],
    users: &[User { name: "postgres", id: 999, home: "/var/lib/postgresql" }],
    folders: &[
        Folder { path: "/var/lib/postgresql", mode: 0o755, owner: "postgres" },
        Folder { path: "/var/lib/postgresql/data", mode: 0o1777, owner: "postgres" },
        Folder { path: "/run/postgresql", mode: 0o3777, owner: "postgres" },
        Folder { path: "/docker-entrypoint-initdb.d", mode: 0o755, owner: "root" },
    ],
    files: &[entrypoint(include_str!("postgres.sh"))],
    entrypoint: &["docker-entrypoint.sh"],
    cmd: &["postgres"],
    ports: &["5432/tcp"],
    env: &[
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/15/bin"),
        ("PG_MAJOR", "15"),
        ("PGDATA", "/var/lib/postgresql/data"),
    ],
    volumes: &["/var/lib/postgresql/data"],
    stop_signal: "SIGINT",
    ..Recipe::BARE
};

/// NATS, as `nats:2`: clients 4222, monitoring over HTTP 8222, cluster routes 6222; arguments go to the server.
pub const NATS: Recipe = Recipe {
    name: "nats",
    packages: &["nats-server"],
    files: &[
        entrypoint(include_str!("nats.sh")),
        File {
            path: "/etc/nats/nats-server.conf",
            mode: 0o644,
            owner: "root",
            text: "port: 4222\nmonitor_port: 8222\ncluster {\n  name: \"nats\"\n  port: 6222\n}\n",
        },
    ],
    entrypoint: &["docker-entrypoint.sh"],
    cmd: &["nats-server", "--config", "/etc/nats/nats-server.conf"],
    ports: &["4222/tcp", "6222/tcp", "8222/tcp"],
    ..Recipe::BARE
};

/// OpenSearch's REST API, as `opensearchproject/opensearch`: HTTP 9200. A server that keeps everything in memory; the real one is in no registry of
/// packages.
pub const OPENSEARCH: Recipe = Recipe {
    name: "opensearch",
    users: &[User { name: "opensearch", id: 1000, home: "/usr/share/opensearch" }],
    folders: &[Folder { path: "/usr/share/opensearch", mode: 0o755, owner: "opensearch" }],
    programs: &[Program { path: "/usr/local/bin/osmem-server", wheel: "osmem-server==0.1.6", member: "osmem_server/bin/osmem-server" }],
    cmd: &["osmem-server", "-addr", "0.0.0.0:9200", "-no-stdin-watch"],
    user: "opensearch",
    ports: &["9200/tcp"],
    workdir: "/usr/share/opensearch",
    ..Recipe::BARE
};
