//! The direction of dependencies: an arrow between crates only points down, and each kind of I/O has one home.
//!
//! [`CRATES`] is the whole truth: a crate, or an arrow, that is not in it is refused.

use super::{name, packages};
use serde_json::Value;

/// A crate of the workspace and what it may see of the others.
struct Crate {
    name: &'static str,
    /// Pure: no I/O, no clock, no threads.
    pure: bool,
    may: &'static [&'static str],
    /// Besides, in its tests.
    may_in_tests: &'static [&'static str],
}

const CRATES: &[Crate] = &[
    Crate { name: "moat-model", pure: true, may: &[], may_in_tests: &[] },
    Crate { name: "moat-blueprint", pure: true, may: &["moat-model"], may_in_tests: &[] },
    Crate { name: "moat-planner", pure: true, may: &["moat-model", "moat-blueprint"], may_in_tests: &[] },
    Crate { name: "moat-engine", pure: false, may: &["moat-model", "moat-planner"], may_in_tests: &["moat-testkit"] },
    Crate { name: "moat-store", pure: false, may: &["moat-model"], may_in_tests: &[] },
    Crate { name: "moat-certs", pure: false, may: &["moat-model"], may_in_tests: &[] },
    Crate { name: "moat-archive", pure: false, may: &["moat-store"], may_in_tests: &[] },
    Crate { name: "moat-image", pure: false, may: &[], may_in_tests: &[] },
    Crate { name: "moat-net-linux", pure: false, may: &["moat-model"], may_in_tests: &["moat-blueprint", "moat-planner", "moat-testkit"] },
    Crate {
        name: "moat-engine-linux",
        pure: false,
        may: &["moat-model", "moat-planner", "moat-engine", "moat-image", "moat-net-linux"],
        may_in_tests: &["moat-blueprint", "moat-testkit"],
    },
    Crate {
        name: "moat-probe",
        pure: false,
        may: &["moat-model", "moat-planner", "moat-net-linux"],
        may_in_tests: &["moat-blueprint", "moat-dns", "moat-testkit"],
    },
    Crate { name: "moat-dns", pure: false, may: &["moat-model"], may_in_tests: &["moat-testkit"] },
    Crate { name: "moat-ingress", pure: false, may: &["moat-model"], may_in_tests: &["moat-testkit"] },
    Crate {
        name: "moat-dataplane",
        pure: false,
        may: &["moat-model", "moat-net-linux", "moat-dns", "moat-ingress"],
        may_in_tests: &["moat-testkit"],
    },
    Crate {
        name: "moat-daemon",
        pure: false,
        may: &[
            "moat-model",
            "moat-blueprint",
            "moat-planner",
            "moat-engine",
            "moat-engine-linux",
            "moat-net-linux",
            "moat-probe",
            "moat-dns",
            "moat-ingress",
            "moat-dataplane",
            "moat-certs",
            "moat-store",
            "moat-archive",
        ],
        may_in_tests: &["moat-testkit"],
    },
    Crate {
        name: "moat-cli",
        pure: false,
        may: &[
            "moat-model",
            "moat-blueprint",
            "moat-planner",
            "moat-engine",
            "moat-probe",
            "moat-daemon",
            "moat-dataplane",
            "moat-engine-linux",
        ],
        may_in_tests: &["moat-net-linux", "moat-testkit"],
    },
    Crate { name: "moat-testkit", pure: false, may: &["moat-model", "moat-planner", "moat-engine"], may_in_tests: &["moat-blueprint"] },
    Crate {
        name: "moat-bench",
        pure: false,
        may: &[
            "moat-model",
            "moat-blueprint",
            "moat-planner",
            "moat-engine",
            "moat-image",
            "moat-ingress",
            "moat-net-linux",
            "moat-engine-linux",
            "moat-testkit",
        ],
        may_in_tests: &[],
    },
    Crate { name: "xtask", pure: false, may: &[], may_in_tests: &[] },
];

/// What only some crates may use; a name that ends in `*` stands for every name that starts so.
const HOMES: &[(&str, &[&str])] = &[
    ("netlink-*", &["moat-net-linux", "moat-engine-linux", "moat-probe"]),
    ("rtnetlink", &["moat-net-linux", "moat-engine-linux", "moat-probe"]),
    ("oci-spec", &["moat-engine-linux"]),
    ("hickory-*", &["moat-dns", "moat-probe"]),
    ("ureq", &["moat-image", "moat-daemon", "moat-ingress"]),
    ("opentelemetry*", &["moat-ingress"]),
    ("hyper*", &["moat-ingress", "moat-daemon", "moat-cli", "moat-certs"]),
    ("rusqlite", &["moat-store"]),
    ("chacha20poly1305", &["moat-store"]),
    ("instant-acme", &["moat-certs"]),
    ("x509-parser", &["moat-certs"]),
    ("sqlx", &["moat-store"]),
    ("kube*", &["moat-engine-kube"]),
    ("k8s-openapi", &["moat-engine-kube"]),
    ("clap*", &["moat-cli"]),
    ("indicatif", &["moat-cli"]),
    ("anstyle", &["moat-cli"]),
];

/// What a pure crate never links, tests apart: everything that reads a clock, a file, a socket or a random source.
const IMPURE: &[&str] = &[
    "tokio*",
    "async-*",
    "futures*",
    "mio",
    "nix",
    "rustix",
    "libc",
    "socket2",
    "getrandom",
    "rand*",
    "jiff",
    "chrono",
    "time",
    "tempfile",
    "tracing*",
    "reqwest",
    "ureq",
];

/// Every arrow that points the wrong way, and every crate that has no row.
pub fn problems(metadata: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen = Vec::new();
    for package in packages(metadata) {
        let from = name(package);
        let Some(row) = CRATES.iter().find(|row| row.name == from) else {
            problems.push(format!("`{from}` has no row in xtask/src/tidy/direction.rs; give it one there and in ARCHITECTURE.md"));
            continue;
        };
        seen.push(from);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = name(dependency);
            let in_tests = dependency["kind"] == "dev";
            problems.extend(wrong(row, to, in_tests).map(|why| format!("`{from}` must not depend on `{to}`: {why}")));
        }
    }
    let gone = CRATES.iter().filter(|row| !seen.contains(&row.name));
    problems.extend(gone.map(|row| format!("`{}` has a row but is not in the workspace", row.name)));
    problems
}

/// Why a crate must not use another, if it must not.
fn wrong(from: &Crate, to: &str, in_tests: bool) -> Option<&'static str> {
    if CRATES.iter().any(|row| row.name == to) {
        let allowed = from.may.contains(&to) || in_tests && from.may_in_tests.contains(&to);
        return (!allowed).then_some("the arrow does not point down");
    }
    if !in_tests && from.pure && IMPURE.iter().any(|pattern| matches(pattern, to)) {
        return Some("it is pure");
    }
    let home = HOMES.iter().find(|(pattern, _)| matches(pattern, to))?;
    (!in_tests && !home.1.contains(&from.name)).then_some("that is another crate's business")
}

fn matches(pattern: &str, text: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == text, |start| text.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dependencies_of_this_workspace_point_down() {
        let problems = problems(&crate::tidy::metadata().unwrap());
        assert!(problems.is_empty(), "{problems:#?}");
    }

    #[test]
    fn an_arrow_that_points_up_sideways_or_out_is_named() {
        for (from, to, kind, fine) in [
            ("moat-planner", "moat-model", None, true),
            ("moat-planner", "moat-engine", None, false),
            ("moat-planner", "moat-engine", Some("dev"), false),
            ("moat-model", "moat-planner", None, false),
            ("moat-model", "tokio", None, false),
            ("moat-model", "libc", Some("build"), false),
            ("moat-blueprint", "tempfile", Some("dev"), true),
            ("moat-planner", "proptest", Some("dev"), true),
            ("moat-net-linux", "moat-planner", None, false),
            ("moat-net-linux", "moat-planner", Some("dev"), true),
            ("moat-daemon", "moat-testkit", None, false),
            ("moat-daemon", "moat-testkit", Some("dev"), true),
            ("moat-ingress", "netlink-packet-route", None, false),
            ("moat-net-linux", "netlink-packet-route", None, true),
            ("moat-daemon", "rusqlite", None, false),
            ("moat-store", "rusqlite", None, true),
            ("moat-store", "moat-planner", None, false),
            ("moat-dns", "moat-ingress", None, false),
        ] {
            let row = CRATES.iter().find(|row| row.name == from).unwrap();
            assert_eq!(wrong(row, to, kind == Some("dev")).is_none(), fine, "{from} → {to} ({kind:?})");
        }
    }

    #[test]
    fn the_arrows_have_no_cycle() {
        // Each row only sees rows that were settled before it, whatever their order in the table.
        let mut settled: Vec<&str> = Vec::new();
        while settled.len() < CRATES.len() {
            let next = CRATES.iter().find(|row| !settled.contains(&row.name) && row.may.iter().all(|to| settled.contains(to)));
            settled.push(next.expect("a cycle").name);
        }
    }

    #[test]
    fn a_crate_without_a_row_is_refused_and_a_row_without_a_crate_too() {
        let problems = problems(&json!({"packages": [{"name": "moat-new", "dependencies": []}]}));
        assert!(problems[0].starts_with("`moat-new` has no row"), "{problems:?}");
        assert_eq!(problems.len(), CRATES.len() + 1);
    }
}
