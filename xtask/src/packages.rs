//! System packages by `apt-get`: which tools are missing, and how they come without disturbing the machine.
//!
//! Invariant: nothing that is installed here is started or enabled, and no trace of how that is prevented can stay
//! behind: it lives in a mount namespace that vanishes with the installing process, however that one ends.

use crate::run::{Failure, Outcome, Program, on_path};
use std::io::{BufRead, IsTerminal, Write};

/// Something this project needs of the machine.
pub struct Need {
    /// What it is for, for people.
    pub what: &'static str,
    /// How to tell that it is there.
    pub present: Present,
    /// Packages that bring it, the preferred one first.
    pub packages: &'static [&'static str],
}

/// How to tell that something is there.
pub enum Present {
    /// One of these programs is on the path.
    Program(&'static [&'static str]),
    /// This command line succeeds.
    Check(&'static [&'static str]),
}

/// What building needs besides Rust and a C compiler's linker.
pub const TO_BUILD: &[Need] = &[
    Need { what: "`clang`, for what runs in the kernel", present: Present::Program(&["clang"]), packages: &["clang"] },
    Need {
        what: "the kernel's headers",
        present: Present::Check(&["sh", "-c", "echo '#include <linux/bpf.h>' | cc -fsyntax-only -xc -"]),
        packages: &["linux-libc-dev"],
    },
];

/// What `moat up` needs to run the examples.
pub const TO_RUN: &[Need] = &[
    Need { what: "the OCI runtime", present: Present::Program(&["crun", "runc"]), packages: &["crun", "runc"] },
    Need { what: "the packet filter's tool", present: Present::Program(&["nft"]), packages: &["nftables"] },
    Need { what: "`ip`", present: Present::Program(&["ip"]), packages: &["iproute2"] },
    Need { what: "`conntrack`", present: Present::Program(&["conntrack"]), packages: &["conntrack"] },
    Need {
        what: "a Key Value server",
        present: Present::Program(&["valkey-server", "redis-server"]),
        packages: &["redis-server", "valkey-server"],
    },
    Need { what: "Python 3", present: Present::Program(&["python3"]), packages: &["python3"] },
    Need {
        what: "Python's virtual environments",
        present: Present::Check(&["python3", "-c", "import ensurepip, venv"]),
        packages: &["python3-venv"],
    },
    Need {
        what: "certificates of the public authorities",
        present: Present::Check(&["test", "-s", "/etc/ssl/certs/ca-certificates.crt"]),
        packages: &["ca-certificates"],
    },
];

/// What the tests need besides.
pub const TO_TEST: &[Need] = &[
    Need { what: "`git`", present: Present::Program(&["git"]), packages: &["git"] },
    Need { what: "a container registry", present: Present::Program(&["docker-registry"]), packages: &["docker-registry"] },
    Need { what: "a way out for pretended machines", present: Present::Program(&["slirp4netns"]), packages: &["slirp4netns"] },
    Need { what: "ids for users who are not root", present: Present::Program(&["newuidmap"]), packages: &["uidmap"] },
    Need { what: "`skopeo`", present: Present::Program(&["skopeo"]), packages: &["skopeo"] },
    Need { what: "`umoci`", present: Present::Program(&["umoci"]), packages: &["umoci"] },
    Need { what: "`getfattr`", present: Present::Program(&["getfattr"]), packages: &["attr"] },
    Need { what: "`curl`", present: Present::Program(&["curl"]), packages: &["curl"] },
    Need { what: "`strace`", present: Present::Program(&["strace"]), packages: &["strace"] },
    Need { what: "`openssl`", present: Present::Program(&["openssl"]), packages: &["openssl"] },
    Need { what: "clients of HTTP/2", present: Present::Program(&["h2load"]), packages: &["nghttp2-client"] },
    Need { what: "Node.js", present: Present::Program(&["node"]), packages: &["nodejs"] },
    Need { what: "nginx", present: Present::Program(&["nginx"]), packages: &["nginx-light", "nginx"] },
    Need { what: "a browser", present: Present::Program(&["chromium"]), packages: &["chromium"] },
    Need { what: "a service manager's sockets", present: Present::Program(&["systemd-socket-activate"]), packages: &["systemd"] },
    Need { what: "certificates for a browser", present: Present::Program(&["certutil"]), packages: &["libnss3-tools"] },
    Need { what: "a server of certificates", present: Present::Program(&["pebble"]), packages: &["pebble"] },
    Need { what: "`zstd`", present: Present::Program(&["zstd"]), packages: &["zstd"] },
    Need {
        what: "a PostgreSQL server",
        present: Present::Check(&["sh", "-c", "ls /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb 2>&1 | grep -q ^/"]),
        packages: &["postgresql"],
    },
    Need { what: "Buildah", present: Present::Program(&["buildah"]), packages: &["buildah"] },
    Need {
        what: "a busybox for images",
        present: Present::Check(&["sh", "-c", "! ldd \"$(command -v busybox)\" >/dev/null 2>&1 && busybox true"]),
        packages: &["busybox-static"],
    },
    Need {
        what: "QEMU, for a machine with a system of its own",
        present: Present::Program(&["qemu-system-x86_64"]),
        packages: &["qemu-system-x86"],
    },
    Need { what: "`debootstrap`", present: Present::Program(&["debootstrap"]), packages: &["debootstrap"] },
    Need {
        what: "the keys of Debian's archive",
        present: Present::Check(&["test", "-s", "/usr/share/keyrings/debian-archive-keyring.gpg"]),
        packages: &["debian-archive-keyring"],
    },
    Need { what: "`mke2fs`", present: Present::Program(&["mke2fs"]), packages: &["e2fsprogs"] },
];

/// `apt-get install` in which no maintainer script starts a service, and after which no unit and no init script is enabled
/// that was not before, whichever package brought it.
///
/// A machine with a `policy-rc.d` has its own rule, which holds. Runs in a mount namespace of its own, as root.
const INSTALL: &str = r#"
set -eu
trap : INT TERM
if [ ! -x /usr/sbin/policy-rc.d ]; then
    mount -t tmpfs -o mode=755 tmpfs /mnt
    printf '#!/bin/sh\nexit 0\n' >/mnt/start-nothing
    chmod 755 /mnt/start-nothing
    for starter in /usr/sbin/invoke-rc.d /usr/bin/deb-systemd-invoke; do
        if [ -e "$starter" ]; then mount --bind /mnt/start-nothing "$starter"; fi
    done
fi
# Names of the units and of the init scripts that a start of the machine would start.
enabled() {
    for link in /etc/systemd/system/*.wants/* /etc/systemd/system/*.requires/*; do
        if [ -L "$link" ]; then printf '%s\n' "${link##*/}"; fi
    done
    for link in /etc/rc[2-5].d/S[0-9][0-9]*; do
        if [ -L "$link" ]; then printf '%s\n' "${link##*/S[0-9][0-9]}"; fi
    done
}
before=$(enabled)
code=0
apt-get install --yes --no-install-recommends "$@" || code=$?
for name in $(enabled | sort -u); do
    if printf '%s\n' "$before" | grep -qxF -e "$name"; then continue; fi
    case $name in
        *.*)
            if [ -x /usr/bin/systemctl ]; then systemctl --quiet disable "$name" || code=$?
            else deb-systemd-helper disable "$name" || code=$?
            fi ;;
        *) update-rc.d "$name" disable || code=$? ;;
    esac
done
exit "$code"
"#;

/// Installs what is missing. Asks first when a person sits at the terminal; fails with the whole list where it can't.
pub fn ensure(needs: &[&[Need]]) -> Outcome {
    let missing: Vec<&Need> = needs.iter().copied().flatten().filter(|need| !is_present(need)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let what = missing.iter().map(|need| need.what).collect::<Vec<_>>().join(", ");
    if !on_path("apt-get") {
        return Err(Failure::new(format!("missing on this machine: {what}"))
            .hint("install them with this machine's package manager, then run this again"));
    }
    eprintln!("missing: {what}");
    Program::as_root("apt-get", &[]).args(["update", "--quiet=2"]).run()?;
    let packages = missing.iter().map(|need| available(need)).collect::<Result<Vec<_>, _>>()?;
    if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && !confirmed(&packages)? {
        return Err(Failure::new("nothing was installed").hint(format!("the packages are: {}", packages.join(" "))));
    }
    install(&packages)?;
    match missing.iter().find(|need| !is_present(need)) {
        None => Ok(()),
        Some(need) => Err(Failure::new(format!("{} is still missing after `apt-get install {}`", need.what, packages.join(" ")))),
    }
}

fn install(packages: &[&str]) -> Outcome {
    Program::as_root("env", &[])
        .args(["DEBIAN_FRONTEND=noninteractive", "unshare", "--mount", "--propagation=private"])
        .args(["sh", "-c", INSTALL, "install"])
        .args(packages)
        .run()
        .map_err(|failure| failure.hint(format!("by hand: apt-get install {}", packages.join(" "))))
}

fn confirmed(packages: &[&str]) -> Result<bool, Failure> {
    eprint!("install {} with apt-get? [Y/n] ", packages.join(" "));
    let mut answer = String::new();
    let broken = |error: std::io::Error| Failure::new(format!("the terminal does not answer: {error}"));
    std::io::stderr().flush().map_err(broken)?;
    std::io::stdin().lock().read_line(&mut answer).map_err(broken)?;
    Ok(is_yes(&answer))
}

/// Whether an answer means yes: `y`, `yes` or just the enter key. The end of the input (no line at all) means no.
fn is_yes(answer: &str) -> bool {
    answer.ends_with('\n') && matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes")
}

fn is_present(need: &Need) -> bool {
    match need.present {
        Present::Program(any) => any.iter().any(|program| on_path(program)),
        Present::Check(line) => line.split_first().is_some_and(|(program, arguments)| Program::new(program).args(arguments).succeeds()),
    }
}

/// The first package for a need that this machine's sources have.
fn available(need: &Need) -> Result<&'static str, Failure> {
    let known = |package: &&str| {
        let policy = Program::new("apt-cache").args(["policy", *package]).env("LC_ALL", "C").output().unwrap_or_default();
        has_candidate(&policy)
    };
    need.packages.iter().copied().find(|package| known(package)).ok_or_else(|| {
        Failure::new(format!("no package for {} in this machine's sources", need.what))
            .hint(format!("one of these would do: {} (on Ubuntu they may need the `universe` component)", need.packages.join(", ")))
    })
}

fn has_candidate(policy: &str) -> bool {
    policy.lines().filter_map(|line| line.trim().strip_prefix("Candidate: ")).any(|version| version != "(none)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_line_that_says_yes_is_a_yes() {
        for (answer, yes) in [("\n", true), ("y\n", true), ("YES\n", true), ("", false), ("n\n", false), ("no\n", false), ("y", false)] {
            assert_eq!(is_yes(answer), yes, "{answer:?}");
        }
    }

    #[test]
    fn a_package_without_a_candidate_is_not_available() {
        assert!(has_candidate("crun:\n  Installed: (none)\n  Candidate: 1.8.1-1\n"));
        assert!(!has_candidate("crun:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }

    #[test]
    fn presence_is_looked_up_for_real() {
        let need = |present| Need { what: "x", present, packages: &[] };
        assert!(is_present(&need(Present::Program(&["no-such-program-here", "sh"]))));
        assert!(!is_present(&need(Present::Program(&["no-such-program-here"]))));
        assert!(is_present(&need(Present::Check(&["test", "-d", "/"]))));
        assert!(!is_present(&need(Present::Check(&["test", "-d", "/no/such/folder"]))));
    }

    #[test]
    fn the_install_script_is_a_shell_script() {
        assert!(Program::new("sh").args(["-n", "-c", INSTALL]).succeeds());
    }
}
