//! A Key Value's server settings (`redis.conf`, the same in Valkey).

use moat_model::state::{KeyValueWorkload, Persistence};

/// Where the data is, inside.
pub const DATA: &str = "/var/lib/keyvalue";
/// Where the settings are, inside.
pub const CONFIG: &str = "/etc/keyvalue.conf";
/// Snapshots below [`DATA`], and the journal of servers before 7.0, which may begin with one.
pub const SNAPSHOTS: [&str; 2] = ["dump.rdb", "appendonly.aof"];
/// The folder below [`DATA`] that journals are in, each beside the snapshot that it goes on from.
pub const JOURNAL: &str = "appendonlydir";
/// The port every Key Value listens on.
pub const PORT: u16 = 6379;

/// The settings for a memory limit in bytes: three quarters hold data, the rest is for buffers, fragmentation and the copy
/// that a snapshot makes of pages written meanwhile.
pub fn config(server: &KeyValueWorkload, memory_bytes: u64) -> String {
    let snapshots = "save 3600 1 300 100 60 10000\nstop-writes-on-bgsave-error yes\n";
    let keeping = match server.persistence {
        Persistence::JournalSnapshot => format!("appendonly yes\nappendfsync everysec\n{snapshots}"),
        Persistence::Snapshot => format!("appendonly no\n{snapshots}"),
        Persistence::Off => "appendonly no\nsave \"\"\n".to_owned(),
    };
    let maxmemory = memory_bytes / 4 * 3;
    let policy = &server.maxmemory_policy;
    // The private network decides who gets here, so the server's own address check is off.
    format!(
        "bind * -::*\nport {PORT}\nprotected-mode no\ndaemonize no\nlogfile \"\"\ndir {DATA}\nmaxmemory {maxmemory}\nmaxmemory-policy {policy}\n{keeping}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persistence_and_memory_become_settings() {
        let check = |persistence, has: &[&str], lacks: &[&str]| {
            let text = config(&KeyValueWorkload { maxmemory_policy: "noeviction".to_owned(), persistence }, 400);
            for line in has.iter().chain(&["maxmemory 300", "maxmemory-policy noeviction", "protected-mode no", "bind * -::*", "port 6379"])
            {
                assert!(text.lines().any(|l| l == *line), "{line}: {text}");
            }
            for line in lacks {
                assert!(!text.contains(line), "{line}: {text}");
            }
        };
        check(Persistence::JournalSnapshot, &["appendonly yes", "appendfsync everysec", "save 3600 1 300 100 60 10000"], &["save \"\""]);
        check(Persistence::Snapshot, &["appendonly no", "save 3600 1 300 100 60 10000"], &["appendfsync"]);
        check(Persistence::Off, &["appendonly no", "save \"\""], &["save 3600"]);
    }
}
