//! The files of `/etc` that are made for one sandbox.

use super::sandbox::{HOME, Input, MountOp, UID};
use moat_model::state::Workload;
use moat_model::{Purpose, Secret};
use std::fmt::Write as _;

/// The files of `/etc` that say where the sandbox is on the network.
pub(super) fn network(input: &Input<'_>) -> Vec<MountOp> {
    let instance = input.instance;
    let mut hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    // What has no name on the private network still resolves its own host name, as many programs expect; what has one asks the DNS.
    // An image's program may be a server that must reach itself by its host name before it is ready (Erlang, Java): that name is its
    // own address, as it is with container engines.
    let image = matches!(instance.workload, Workload::Image(_));
    let receives = matches!(instance.workload, Workload::KeyValue(_) | Workload::Postgres(_))
        || instance.purpose == Purpose::Serve
            && instance.env.get("RENDER_SERVICE_TYPE").is_none_or(|kind| matches!(kind.expose(), "web" | "pserv"));
    let host = instance.host_name();
    let mut names = if host == instance.slug.as_str() { String::new() } else { format!(" {host}") };
    if image || !receives {
        names = format!("{names} {}", instance.slug);
    }
    if !names.is_empty() {
        for address in [instance.address.v4.to_string(), instance.address.v6.to_string()] {
            // Writing to a text does not fail.
            let _ = writeln!(hosts, "{address}{names}");
        }
    }
    vec![
        file("/etc/hostname", format!("{host}\n")),
        file("/etc/hosts", hosts),
        file("/etc/resolv.conf", format!("nameserver {}\noptions ndots:1 timeout:2 attempts:2\n", moat_model::net::GATEWAY_V4)),
    ]
}

fn file(path: &str, content: String) -> MountOp {
    MountOp::File { path: path.into(), mode: 0o644, owner: 0, content: Secret::new(content) }
}

/// All files of `/etc` of a sandbox that has no image's.
pub(super) fn own(input: &Input<'_>) -> Vec<MountOp> {
    let mut files = network(input);
    files.extend([
        file("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n".to_owned()),
        file(
            "/etc/passwd",
            format!(
                "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nrender:x:{UID}:{UID}:render:{HOME}:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        file("/etc/group", format!("root:x:0:\nrender:x:{UID}:\nnogroup:x:65534:\n")),
    ]);
    files
}
