//! A database's server: its settings, and how it is made and started.
//!
//! The server is made once, in a folder beside the one that counts, with its user and database, and then given its name: a
//! kill at any moment leaves a whole server or none.

use moat_model::Secret;
use moat_model::state::PostgresWorkload;
use nix::sys::signal::Signal;
use std::path::Path;

/// Where the data is, inside.
pub const DATA: &str = "/var/lib/postgresql";
/// The folder below [`DATA`] that a whole server is in.
pub const CLUSTER: &str = "data";
/// Where the server's own socket is: the default of Debian's builds.
pub const SOCKETS: &str = "/run/postgresql";
/// What is run, inside, by a shell.
pub const START: &str = "/etc/postgresql/start";
/// The port every database listens on.
pub const PORT: u16 = 5432;
/// Ends sessions and writes a checkpoint ("fast shutdown"); SIGTERM would wait for every client to leave
/// (PostgreSQL documentation, "Shutting Down the Server").
pub const STOP_SIGNAL: Signal = Signal::SIGINT;
/// The superuser, who has no password and comes by the socket inside only.
pub const SUPERUSER: &str = "moat";

/// A file of the sandbox: its path, its content, and whether only the server may read it.
pub type File = (&'static str, Secret, bool);

/// Every file that the server is made and started by.
pub fn files(server: &PostgresWorkload, memory_bytes: u64, program: &Path, identity: Option<&Secret>) -> Vec<File> {
    let mut files = vec![
        (START, Secret::new(start(program)), false),
        ("/etc/postgresql/postgresql.conf", Secret::new(config(memory_bytes, identity.is_some())), false),
        ("/etc/postgresql/pg_hba.conf", Secret::new(ACCESS), false),
        ("/etc/postgresql/pg_ident.conf", Secret::new(identities(server)), false),
        ("/etc/postgresql/setup.sql", Secret::new(setup(server)), true),
    ];
    files.extend(identity.map(|pem| ("/etc/postgresql/server.pem", pem.clone(), true)));
    files
}

/// Variables by which `psql` and its like reach the server when they are run in the sandbox, as the database's owner.
pub fn environment(server: &PostgresWorkload) -> [(&'static str, &str); 3] {
    [("PGHOST", SOCKETS), ("PGUSER", &server.user), ("PGDATABASE", &server.database)]
}

/// Who comes in: by the socket inside, this sandbox's one user as either role, and for copies of the whole server as its
/// superuser; by the network, everyone but the superuser with a password. The private network decides who gets as far as that.
const ACCESS: &str =
    "local all all peer map=moat\nlocal replication moat peer map=moat\nhost all moat all reject\nhost all all all scram-sha-256\n";

fn identities(server: &PostgresWorkload) -> String {
    format!("moat render {SUPERUSER}\nmoat render {}\n", quoted(&server.user))
}

/// One statement a line, as a server without a postmaster reads them.
///
/// The owner is no superuser: it may make databases, and the extensions that are marked as trusted.
fn setup(server: &PostgresWorkload) -> String {
    let (user, database) = (quoted(&server.user), quoted(&server.database));
    let password = server.password.expose().replace('\'', "''");
    let make = match server.database.as_str() {
        // The one that every new server has.
        "postgres" => format!("ALTER DATABASE postgres OWNER TO {user}"),
        _ => format!("CREATE DATABASE {database} OWNER {user} TEMPLATE template0"),
    };
    format!("CREATE ROLE {user} LOGIN CREATEDB PASSWORD '{password}'\n{make}\n")
}

/// A name in SQL, and in the server's own files.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The shell script that makes the server where there is none and becomes it.
fn start(program: &Path) -> String {
    let bin = program.parent().unwrap_or(program).display().to_string().replace('\'', "'\\''");
    // A statement that fails ends the run without being written to the log, since it may hold the password.
    format!(
        "set -eu
bin='{bin}'
cd {DATA}
if ! [ -e {CLUSTER} ]; then
  echo 'making the database'
  rm -rf new
  \"$bin/initdb\" --pgdata=new --username={SUPERUSER} --encoding=UTF8 --locale=C.UTF-8 --auth-local=peer --auth-host=reject > /dev/null
  \"$bin/postgres\" --single -D new -c config_file=/etc/postgresql/postgresql.conf -c exit_on_error=on -c log_min_error_statement=panic postgres < /etc/postgresql/setup.sql > /dev/null
  sync new
  mv -T new {CLUSTER}
  sync .
fi
exec \"$bin/postgres\" -D {DATA}/{CLUSTER} -c config_file=/etc/postgresql/postgresql.conf
"
    )
}

/// `postgresql.conf` for a memory limit in bytes.
///
/// A quarter of the memory is the server's own cache and three quarters are what the planner reckons with (PostgreSQL
/// documentation, "Resource Consumption" and "Query Planning"); connections are as many as the platform's plans have.
/// Anonymous huge pages would be counted against the machine, not the plan.
fn config(memory_bytes: u64, tls: bool) -> String {
    const MIB: u64 = 1 << 20;
    let connections = match memory_bytes >> 30 {
        ..8 => 100,
        8..16 => 200,
        16..32 => 400,
        _ => 500,
    };
    let (shared, cache) = (memory_bytes / 4 / MIB, memory_bytes / 4 * 3 / MIB);
    let maintenance = (memory_bytes / 16 / MIB).clamp(16, 2047);
    let tls = if tls {
        "ssl = on\nssl_cert_file = '/etc/postgresql/server.pem'\nssl_key_file = '/etc/postgresql/server.pem'\n"
    } else {
        "ssl = off\n"
    };
    format!(
        "listen_addresses = '*'
port = {PORT}
unix_socket_directories = '{SOCKETS}'
hba_file = '/etc/postgresql/pg_hba.conf'
ident_file = '/etc/postgresql/pg_ident.conf'
{tls}password_encryption = 'scram-sha-256'
max_connections = {connections}
shared_buffers = '{shared}MB'
effective_cache_size = '{cache}MB'
maintenance_work_mem = '{maintenance}MB'
huge_pages = off
dynamic_shared_memory_type = posix
logging_collector = off
log_destination = 'stderr'
log_line_prefix = '%q%u@%d '
log_timezone = 'UTC'
timezone = 'UTC'
datestyle = 'iso, mdy'
lc_messages = 'C.UTF-8'
lc_monetary = 'C.UTF-8'
lc_numeric = 'C.UTF-8'
lc_time = 'C.UTF-8'
default_text_search_config = 'pg_catalog.english'
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(user: &str, database: &str) -> PostgresWorkload {
        PostgresWorkload { major: None, database: database.to_owned(), user: user.to_owned(), password: Secret::new("se'cret") }
    }

    #[test]
    fn memory_becomes_settings() {
        for (mib, connections, shared, maintenance) in
            [(256, 100, 64, 16), (1024, 100, 256, 64), (8 << 10, 200, 2048, 512), (16 << 10, 400, 4096, 1024), (64 << 10, 500, 16384, 2047)]
        {
            let text = config(mib << 20, true);
            for line in [
                format!("max_connections = {connections}"),
                format!("shared_buffers = '{shared}MB'"),
                format!("maintenance_work_mem = '{maintenance}MB'"),
                "ssl = on".to_owned(),
            ] {
                assert!(text.lines().any(|l| l == line), "{line}: {text}");
            }
        }
    }

    #[test]
    fn names_and_passwords_are_quoted() {
        let sql = setup(&server("the \"owner\"", "shop"));
        assert_eq!(
            sql,
            "CREATE ROLE \"the \"\"owner\"\"\" LOGIN CREATEDB PASSWORD 'se''cret'\nCREATE DATABASE \"shop\" OWNER \"the \"\"owner\"\"\" TEMPLATE template0\n"
        );
        assert!(setup(&server("u", "postgres")).contains("ALTER DATABASE postgres OWNER TO \"u\""));
    }

    #[test]
    fn only_the_server_reads_what_is_secret() {
        let files = files(&server("u", "d"), 1 << 30, Path::new("/usr/lib/postgresql/15/bin/postgres"), Some(&Secret::new("KEY")));
        for (path, content, secret) in files {
            let holds = content.expose().contains("se''cret") || content.expose() == "KEY";
            assert_eq!(holds, secret, "{path}");
        }
    }
}
