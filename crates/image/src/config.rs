//! What an image says about how it wants to be run, typed and checked.
//!
//! Source: OCI image specification 1.1, *image configuration*. Fields that only Docker has (`Healthcheck`, `OnBuild`, `Shell`) are not read.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::platform::Platform;

/// How an image wants to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// What it is made for.
    pub platform: Platform,
    /// `user`, `uid`, `user:group`, `uid:gid` …, empty for root. [`crate::Image::user`] looks it up.
    pub user: String,
    /// Environment, in the image's order; a name is there once.
    pub env: Vec<(String, String)>,
    /// The start of the command line that arguments are added to.
    pub entrypoint: Vec<String>,
    /// The default arguments, or the whole command line where there is no entry point.
    pub cmd: Vec<String>,
    /// An absolute path without `..`, `/` where the image says none.
    pub working_dir: String,
    /// Ports the image says it listens on.
    pub exposed_ports: Vec<ExposedPort>,
    /// The signal that asks it to end (a Linux signal number), where it is not the usual one.
    pub stop_signal: Option<i32>,
    /// Absolute paths that hold data, without `..`.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A port an image says it listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExposedPort {
    /// 1 to 65535.
    pub port: u16,
    /// Over what.
    pub protocol: PortProtocol,
}

/// The protocols of [`ExposedPort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortProtocol {
    /// TCP, also where none is written.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, which Moat's network does not carry.
    Sctp,
}

/// A config with the layers it is for.
pub(crate) struct ParsedConfig {
    pub(crate) config: ImageConfig,
    /// Of the unpacked layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    config: Option<Inner>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Inner {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
}

impl ParsedConfig {
    /// Reads a config. The error is a reason.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| format!("its config can't be read: {error}"))?;
        let inner = raw.config.unwrap_or_default();
        let entrypoint = inner.entrypoint.unwrap_or_default();
        let cmd = inner.cmd.unwrap_or_default();
        let env = env(inner.env.unwrap_or_default());
        let user = inner.user.unwrap_or_default();
        let texts = entrypoint.iter().chain(&cmd).chain([&user]).chain(env.iter().flat_map(|(name, value)| [name, value]));
        if let Some(odd) = texts.into_iter().find(|text| text.contains('\0')) {
            return Err(format!("its config has a NUL byte in {odd:?}"));
        }
        let exposed_ports = inner.exposed_ports.unwrap_or_default();
        let mut exposed_ports = exposed_ports.keys().map(|text| ports(text)).collect::<Result<Vec<_>, _>>()?.concat();
        exposed_ports.sort_unstable();
        exposed_ports.dedup();
        let volumes = inner.volumes.unwrap_or_default();
        let config = ImageConfig {
            platform: raw.platform,
            user,
            env,
            entrypoint,
            cmd,
            working_dir: place("working folder", &inner.working_dir.unwrap_or_default())?,
            exposed_ports,
            stop_signal: inner.stop_signal.filter(|text| !text.is_empty()).map(|text| signal(&text)).transpose()?,
            volumes: volumes.keys().map(|path| place("volume", path)).collect::<Result<_, _>>()?,
            labels: inner.labels.unwrap_or_default(),
        };
        Ok(Self { config, diff_ids: raw.rootfs.diff_ids.unwrap_or_default() })
    }
}

/// `NAME=value`, where the last of a name wins at the place of the first.
fn env(lines: Vec<String>) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    for line in lines {
        let (name, value) = line.split_once('=').unwrap_or((&line, ""));
        match env.iter_mut().find(|(there, _)| there == name) {
            Some((_, old)) => value.clone_into(old),
            None if name.is_empty() => {}
            None => env.push((name.to_owned(), value.to_owned())),
        }
    }
    env
}

/// A path as an absolute one. Places of the kernel are refused: a working folder such as `/proc/self/fd/7` once led out of the sandbox
/// (CVE-2024-21626).
fn place(what: &str, path: &str) -> Result<String, String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") || path.contains('\0') {
        return Err(format!("its {what} {path:?} has a `..` or a NUL byte"));
    }
    if matches!(parts.first(), Some(&("proc" | "sys"))) {
        return Err(format!("its {what} `{path}` is a place of the kernel"));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// `80`, `80/tcp`, `8000-8010/udp`.
fn ports(text: &str) -> Result<Vec<ExposedPort>, String> {
    let wrong = || format!("its exposed port `{text}` is not a port");
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => PortProtocol::Tcp,
        "udp" => PortProtocol::Udp,
        "sctp" => PortProtocol::Sctp,
        _ => return Err(wrong()),
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| ExposedPort { port, protocol }).collect())
}

const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT", "CHLD",
    "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` as a Linux signal number of x86 and ARM.
fn signal(text: &str) -> Result<i32, String> {
    let wrong = || format!("its stop signal `{text}` is not a signal");
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = if let Ok(number) = name.parse::<i32>() {
        number
    } else if let Some(offset) = name.strip_prefix("RTMIN") {
        34 + if offset.is_empty() { 0 } else { offset.strip_prefix('+').and_then(|n| n.parse::<u8>().ok()).ok_or_else(wrong)?.into() }
    } else if let Some(offset) = name.strip_prefix("RTMAX") {
        64 - if offset.is_empty() { 0 } else { i32::from(offset.strip_prefix('-').and_then(|n| n.parse::<u8>().ok()).ok_or_else(wrong)?) }
    } else {
        SIGNALS.iter().zip(1..).find(|(known, _)| **known == name).map(|(_, number)| number).ok_or_else(wrong)?
    };
    if (1..=64).contains(&number) { Ok(number) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(inner: &str) -> Result<ImageConfig, String> {
        let text = format!(r#"{{"os":"linux","architecture":"amd64","config":{inner},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#);
        ParsedConfig::parse(text.as_bytes()).map(|parsed| parsed.config)
    }

    #[test]
    fn a_whole_config() {
        let config = parse(
            r#"{"User":"redis:redis","Env":["PATH=/bin","A=1","A=2=3","B"],"Entrypoint":["/e"],"Cmd":["x"],"WorkingDir":"data//./x",
               "ExposedPorts":{"6379/tcp":{},"53/udp":{},"9000-9002":{}},"StopSignal":"SIGRTMIN+3","Volumes":{"/data":{}},"Labels":{"a":"b"}}"#,
        )
        .unwrap();
        assert_eq!(config.env, [("PATH", "/bin"), ("A", "2=3"), ("B", "")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(config.working_dir, "/data/x");
        assert_eq!(config.exposed_ports.iter().map(|p| p.port).collect::<Vec<_>>(), [53, 6379, 9000, 9001, 9002]);
        assert_eq!((config.stop_signal, config.volumes.as_slice()), (Some(37), ["/data".to_owned()].as_slice()));
        let nulls =
            r#"{"User":"","Env":null,"Entrypoint":null,"Cmd":null,"ExposedPorts":null,"Volumes":null,"Labels":null,"StopSignal":""}"#;
        assert_eq!(parse(nulls).unwrap().working_dir, "/");
        assert_eq!(parse("null").unwrap().cmd, Vec::<String>::new());
    }

    #[test]
    fn signals() {
        for (text, want) in [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGWINCH", 28), ("SIGRTMAX-1", 63), ("RTMIN", 34), ("SIGIO", 29)] {
            assert_eq!(signal(text), Ok(want), "{text}");
        }
        for text in ["", "SIG", "0", "65", "-9", "NOPE", "RTMIN+40", "RTMIN-1"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_leads_out_is_refused() {
        for (inner, says) in [
            (r#"{"WorkingDir":"/proc/self/fd/7"}"#, "place of the kernel"),
            (r#"{"WorkingDir":"//./proc/self"}"#, "place of the kernel"),
            (r#"{"WorkingDir":"/a/../proc"}"#, "`..`"),
            (r#"{"Volumes":{"../x":{}}}"#, "`..`"),
            (r#"{"Cmd":["a\u0000b"]}"#, "NUL"),
            (r#"{"ExposedPorts":{"0/tcp":{}}}"#, "not a port"),
            (r#"{"ExposedPorts":{"9-8":{}}}"#, "not a port"),
            (r#"{"StopSignal":"SIGNOPE"}"#, "not a signal"),
            (r#"{"Cmd":"text"}"#, "can't be read"),
        ] {
            assert!(parse(inner).unwrap_err().contains(says), "{inner}");
        }
    }
}
