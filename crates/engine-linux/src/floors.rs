//! The oldest versions of what runs services that are known to keep them in, and what of distributions counts as newer.

use crate::toolchain::version;
use std::path::Path;
use std::process::{Command, Stdio};

/// An OCI runtime's oldest version.
struct Floor {
    /// How its answer to `--version` begins.
    name: &'static str,
    version: &'static str,
    /// What older ones do.
    because: &'static str,
    /// Older versions that a distribution has mended: what its own version begins with, and the number from which on it is mended.
    mended: &'static [(&'static str, u32)],
}

/// By name; a runtime that is none of these is taken as it is.
const RUNTIMES: [Floor; 2] = [
    Floor { name: "crun", version: "1.8", because: "the oldest that is known to work here", mended: &[] },
    Floor {
        name: "runc",
        version: "1.1.12",
        because: "older ones let an image's working folder lead out of its sandbox (CVE-2024-21626)",
        // Debian's DSA-5615-1 and Ubuntu's USN-6619-1.
        mended: &[
            ("1.1.5+ds1-1+deb12u", 1),
            ("1.0.0~rc93+ds1-5+deb11u", 3),
            ("1.1.7-0ubuntu2.", 2),
            ("1.1.7-0ubuntu1~22.04.", 2),
            ("1.1.7-0ubuntu1~20.04.", 2),
        ],
    },
];

/// What a program says of itself. `Err`: it can't be run.
pub fn said(program: &Path, args: &[&str]) -> Result<String, String> {
    // Without root, a runtime makes a folder of its own there whatever it is asked.
    let output =
        Command::new(program).args(args).env_remove("XDG_RUNTIME_DIR").stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// The first thing in a program's answer that reads as a version.
pub fn version_in(text: &str) -> Option<&str> {
    let words = text.split(|c: char| c.is_whitespace() || matches!(c, '(' | ',' | '='));
    let bare = words.map(|word| word.strip_prefix("iproute2-").unwrap_or(word).trim_start_matches('v'));
    bare.into_iter().find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
}

/// A version that is no older than a floor; in words, else.
pub fn at_least(found: &str, floor: &str) -> Result<String, String> {
    if version::key(found) >= version::key(floor) { Ok(found.to_owned()) } else { Err(format!("{found}, older than {floor}")) }
}

/// Whether an OCI runtime is new enough: what it is, or what is wrong with it.
pub fn runtime(program: &Path) -> Result<String, String> {
    judge(&said(program, &["--version"])?)
}

fn judge(text: &str) -> Result<String, String> {
    let line = text.lines().next().unwrap_or_default();
    let found = version_in(line).unwrap_or(line);
    let Some(floor) = RUNTIMES.iter().find(|floor| line.split_whitespace().next() == Some(floor.name)) else { return Ok(found.to_owned()) };
    // Debian's own version is in a line of its own (`commit:`), Ubuntu's in the first.
    let is_mended = |word: &str| {
        let number = |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok();
        floor.mended.iter().any(|(start, from)| word.strip_prefix(start).and_then(number).is_some_and(|revision| revision >= *from))
    };
    if let Some(own) = text.split_whitespace().find(|word| is_mended(word)) {
        return Ok(own.to_owned());
    }
    at_least(found, floor.version).map_err(|older| format!("{older}: {}", floor.because))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_runtime_is_refused_unless_its_distribution_mended_it() {
        for (says, fine) in [
            ("crun version 1.8.1\ncommit: f8a096be060b22ccd3d5f3ebe44108517fbf6c30\n", true),
            ("crun version 1.7.2", false),
            ("crun version 0.17", false),
            ("runc version 1.1.12\nspec: 1.0.2-dev\n", true),
            ("runc version 1.3.3", true),
            ("runc version 1.1.12-0ubuntu3.1", true),
            ("runc version 1.1.5\ncommit: v1.1.5-0-gf19387a6\n", false),
            ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n", true),
            ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+b2\n", false),
            ("runc version 1.0.0~rc93+ds1\ncommit: 1.0.0~rc93+ds1-5+deb11u2\n", false),
            ("runc version 1.0.0~rc93+ds1\ncommit: 1.0.0~rc93+ds1-5+deb11u10\n", true),
            ("runc version 1.1.7-0ubuntu1~22.04.1", false),
            ("runc version 1.1.7-0ubuntu1~22.04.2", true),
            // Nothing is known of others.
            ("youki version 0.3.0", true),
            ("runsc version release-20240101.0", true),
        ] {
            assert_eq!(judge(says).is_ok(), fine, "{says}: {:?}", judge(says));
        }
        assert!(judge("runc version 1.1.5").unwrap_err().contains("CVE-2024-21626"));
        assert!(runtime(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn versions_are_found_in_what_tools_print() {
        for (text, version) in [
            ("crun version 1.8.1", Some("1.8.1")),
            ("nftables v1.0.6 (Lester Gooch #5)", Some("1.0.6")),
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", Some("7.0.15")),
            ("GNU bash, version 5.2.15(1)-release (x86_64-pc-linux-gnu)", Some("5.2.15")),
            ("ip utility, iproute2-6.1.0, libbpf 1.1.0", Some("6.1.0")),
            ("no version", None),
        ] {
            assert_eq!(version_in(text), version, "{text}");
        }
        assert!(at_least("1.8.1", "1.8").is_ok() && at_least("1.10", "1.8").is_ok() && at_least("1.7.2", "1.8").is_err());
        assert!(at_least("6.18.44-fc-v445", "5.12").is_ok());
    }
}
