//! What people have set about the public side, and its certificates: what outlives the daemon of them.

use ipnet::IpNet;
use moat_certs::{Authority, Directory, Pair, Way};
use moat_dataplane::{Doors, Public};
use moat_ingress::{LogFormat, Rate, TraceTarget, WHOLE};
use moat_model::{Secret, Slug};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Settings of the ingress (`moat ingress`). The default leaves everything off but compression and the limits of clients.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PublicSettings {
    /// Where HTTPS is listened for (`--listen-tls`).
    pub listen_tls: Option<String>,
    /// Clients without TLS are sent to HTTPS, where there is a certificate.
    pub https_redirect: bool,
    /// `max-age` of `Strict-Transport-Security`, seconds.
    pub hsts: Option<u64>,
    /// Proxies whose connections begin with a PROXY header.
    pub proxies: Vec<IpNet>,
    /// The directory of the server that gives certificates for custom domains.
    pub acme: Option<String>,
    /// How names are proved to it; none takes turns.
    pub acme_proof: Option<Way>,
    /// Whom that server may write to.
    pub acme_contact: Option<String>,
    /// The authority that the server's own certificate is trusted by, a PEM file.
    pub acme_root: Option<PathBuf>,
    /// How a line for each request is written; none is not at all.
    pub access_log: Option<LogFormat>,
    /// Answers are left as they are.
    pub no_compression: bool,
    /// How many requests each client may send to each service; none is any number.
    pub rate_limit: Option<Rate>,
    /// The same of services that have a limit of their own, or none.
    pub rate_limits: BTreeMap<Slug, Option<Rate>>,
    /// The longest body of a request.
    pub max_body: Limit,
    /// Seconds for which a client may send nothing more of a body, and take nothing of its answer.
    pub client_idle: Limit,
    /// Connections of one client at once.
    pub client_connections: Limit,
    /// After so many seconds without a request a web service with `plan: free` sleeps; none is never.
    pub free_plans_sleep: Option<u64>,
    /// Where clients from outside come to databases; none is nowhere.
    pub postgres: Option<SocketAddr>,
    /// The collector's address that traces of requests are sent to, with its path; none records none.
    pub traces: Option<String>,
    /// How many of a million of them; none is all.
    pub traces_share: Option<u32>,
    /// Where they come to Key Values.
    pub keyvalue: Option<SocketAddr>,
}

/// Let's Encrypt's directory.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// What is allowed: as much as is usual here, at most so much, or anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// As much as is usual.
    #[default]
    Usual,
    /// At most so much.
    Most(u64),
    /// Anything.
    Off,
}

impl Limit {
    /// At most so much; none is anything.
    pub const fn most(self, usual: u64) -> Option<u64> {
        match self {
            Self::Usual => Some(usual),
            Self::Most(most) => Some(most),
            Self::Off => None,
        }
    }

    /// Takes what people write. False for what is no limit, which changes nothing.
    fn set(&mut self, text: &str, read: impl FnOnce(&str) -> Option<u64>) -> bool {
        let limit = match text {
            "off" => Some(Self::Off),
            "default" => Some(Self::Usual),
            _ => read(text).map(Self::Most),
        };
        *self = limit.unwrap_or(*self);
        limit.is_some()
    }

    fn text(self, usual: u64, write: impl FnOnce(u64) -> String) -> String {
        self.most(usual).map_or_else(|| "off".to_owned(), write)
    }
}

/// The longest body of a request where nobody says another, bytes.
const MAX_BODY: u64 = 10 << 30;

/// How long a client may send and take nothing where nobody says another time, seconds.
const CLIENT_IDLE: u64 = 5 * 60;

/// Connections of one client where nobody says another number: a quarter of all that the ingress holds.
const CLIENT_CONNECTIONS: u64 = 2048;

/// Where collectors take OTLP over HTTP.
const OTLP_PORT: u16 = 4318;

/// What `on` means for free plans: the platform's own time, seconds.
const SLEEP_AFTER: u64 = 15 * 60;

impl PublicSettings {
    /// Every setting with its value, as [`Self::set`] takes them.
    pub fn rows(&self) -> Vec<(String, String)> {
        let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
        let nets: Vec<String> = self.proxies.iter().map(ToString::to_string).collect();
        let rows = [
            ("https-redirect", switch(self.https_redirect)),
            ("hsts", self.hsts.map_or_else(|| "off".to_owned(), |seconds| seconds.to_string())),
            ("proxy-protocol", if nets.is_empty() { "off".to_owned() } else { nets.join(",") }),
            ("access-log", self.access_log.map_or("off", log_word).to_owned()),
            ("compression", switch(!self.no_compression)),
            ("rate-limit", rate_text(self.rate_limit)),
            ("max-body", self.max_body.text(MAX_BODY, size_text)),
            ("client-idle", self.client_idle.text(CLIENT_IDLE, span_text)),
            ("client-connections", self.client_connections.text(CLIENT_CONNECTIONS, |most| most.to_string())),
            ("free-plans-sleep", self.free_plans_sleep.map_or_else(|| "off".to_owned(), span_text)),
            ("postgres", door_text(self.postgres)),
            ("keyvalue", door_text(self.keyvalue)),
            ("traces", self.traces.clone().unwrap_or_else(|| "off".to_owned())),
            ("traces-share", percent_text(self.traces_share.unwrap_or(WHOLE))),
            ("acme", self.acme.clone().unwrap_or_else(|| "off".to_owned())),
            ("acme-proof", self.acme_proof.map_or("any", Way::word).to_owned()),
            ("acme-contact", self.acme_contact.clone().unwrap_or_else(|| "off".to_owned())),
            ("acme-root", self.acme_root.as_ref().map_or_else(|| "off".to_owned(), |path| path.display().to_string())),
        ];
        let own = self.rate_limits.iter().map(|(slug, rate)| (format!("{OWN_LIMIT}{slug}"), rate_text(*rate)));
        rows.map(|(key, value)| (key.to_owned(), value)).into_iter().chain(own).collect()
    }

    /// Changes one.
    ///
    /// # Errors
    /// For a setting that there is not, or a value that it can't have; in words, with what to write.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), (String, String)> {
        let wrong = |help: &str| Err((format!("`{value}` is no value of `{key}`"), help.to_owned()));
        let switch = match value {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        };
        if let Some(service) = key.strip_prefix(OWN_LIMIT) {
            let Ok(slug) = Slug::new(service) else { return Err((format!("`{service}` is no service"), "write its name".to_owned())) };
            match (value, value.parse()) {
                ("default", _) => drop(self.rate_limits.remove(&slug)),
                ("off", _) => drop(self.rate_limits.insert(slug, None)),
                (_, Ok(rate)) => drop(self.rate_limits.insert(slug, Some(rate))),
                (_, Err(_)) => {
                    return wrong("write how many requests each client may send, such as `100/s`, `off`, or `default` for that of all");
                }
            }
            return Ok(());
        }
        match key {
            "https-redirect" => match switch {
                Some(on) => self.https_redirect = on,
                None => return wrong("write `on` or `off`"),
            },
            "hsts" => match (value, value.parse()) {
                ("off", _) => self.hsts = None,
                (_, Ok(seconds)) => self.hsts = Some(seconds),
                (_, Err(_)) => return wrong("write how many seconds a browser should remember it, such as `31536000`, or `off`"),
            },
            "proxy-protocol" => match value {
                "off" => self.proxies.clear(),
                _ => match value.split(',').map(|net| net.parse().or_else(|_| net.parse::<IpAddr>().map(IpNet::from))).collect() {
                    Ok(nets) => self.proxies = nets,
                    Err(_) => {
                        return wrong("write the proxies' addresses or ranges with commas between, such as `203.0.113.0/24`, or `off`");
                    }
                },
            },
            "compression" => match switch {
                Some(on) => self.no_compression = !on,
                None => return wrong("write `on` or `off`"),
            },
            "rate-limit" => match (value, value.parse()) {
                ("off", _) => self.rate_limit = None,
                (_, Ok(rate)) => self.rate_limit = Some(rate),
                (_, Err(_)) => return wrong("write how many requests each client may send, such as `100/s` or `600/m`, or `off`"),
            },
            "max-body" if !self.max_body.set(value, size) => {
                return wrong("write how many bytes the longest body of a request has, such as `500m` or `20g`, `off`, or `default` (10g)");
            }
            "client-idle" if !self.client_idle.set(value, span) => {
                return wrong("write how long a client may send and take nothing, such as `90s` or `10m`, `off`, or `default` (5m)");
            }
            "client-connections" if !self.client_connections.set(value, count) => {
                return wrong("write how many connections each client may have, such as `500`, `off`, or `default` (2048)");
            }
            "free-plans-sleep" => match (value, span(value)) {
                ("off", _) => self.free_plans_sleep = None,
                ("on", _) => self.free_plans_sleep = Some(SLEEP_AFTER),
                (_, Some(seconds)) => self.free_plans_sleep = Some(seconds),
                (_, None) => return wrong("write `on` (15 minutes without a request), a time such as `90s`, `5m` or `2h`, or `off`"),
            },
            "postgres" if !set_door(&mut self.postgres, value) => {
                return wrong("write the address and port where clients come to databases, such as `0.0.0.0:5432`, or `off`");
            }
            "keyvalue" if !set_door(&mut self.keyvalue, value) => {
                return wrong("write the address and port where clients come to Key Values, such as `0.0.0.0:6379`, or `off`");
            }
            "max-body" | "client-idle" | "client-connections" | "postgres" | "keyvalue" => {}
            "traces" => match (value, collector(value)) {
                ("off", _) => self.traces = None,
                (_, Some(url)) => self.traces = Some(url),
                (_, None) => {
                    return wrong(
                        "write where a collector takes OTLP over HTTP, an address without TLS such as `http://127.0.0.1:4318`, or `off`; a collector on this machine can send them on",
                    );
                }
            },
            "traces-share" => match (value, percent(value)) {
                (_, Some(WHOLE)) => self.traces_share = None,
                (_, Some(share)) => self.traces_share = Some(share),
                (_, None) => return wrong("write which part of all traces is recorded, such as `10%` or `0.5%`"),
            },
            "access-log" => match value {
                "off" => self.access_log = None,
                "json" => self.access_log = Some(LogFormat::Json),
                "common" => self.access_log = Some(LogFormat::Common),
                _ => return wrong("write `json`, `common` or `off`"),
            },
            "acme" => match value {
                "off" => self.acme = None,
                "letsencrypt" => self.acme = Some(LETS_ENCRYPT.to_owned()),
                url if url.starts_with("https://") => self.acme = Some(url.to_owned()),
                _ => return wrong("write `letsencrypt`, the https URL of another server's directory, or `off`"),
            },
            "acme-proof" => match value {
                "any" | "off" => self.acme_proof = None,
                "http" => self.acme_proof = Some(Way::Http),
                "tls" => self.acme_proof = Some(Way::Tls),
                _ => return wrong("write `http` (port 80), `tls` (port 443) or `any`"),
            },
            "acme-contact" => match value {
                "off" => self.acme_contact = None,
                address if address.contains('@') => self.acme_contact = Some(address.to_owned()),
                _ => return wrong("write a mail address, or `off`"),
            },
            "acme-root" => match value {
                "off" => self.acme_root = None,
                path if path.starts_with('/') => self.acme_root = Some(path.into()),
                _ => return wrong("write the absolute path of a PEM file, or `off`"),
            },
            _ => {
                let known: Vec<String> = self.rows().into_iter().map(|(key, _)| format!("`{key}`")).collect();
                return Err((format!("the ingress has no setting `{key}`"), format!("settings: {}", known.join(", "))));
            }
        }
        Ok(())
    }

    /// The server of certificates, where one is to be asked.
    pub fn directory(&self) -> Option<Directory> {
        let url = self.acme.clone()?;
        Some(Directory { url, contact: self.acme_contact.clone(), root: self.acme_root.clone() })
    }

    /// Where clients from outside come to each kind of database.
    pub const fn doors(&self) -> Doors<SocketAddr> {
        Doors { postgres: self.postgres, keyvalue: self.keyvalue }
    }

    /// As the data plane gets them.
    pub fn public(&self) -> Public {
        Public {
            proxies: self.proxies.clone(),
            hsts: self.hsts,
            compress: !self.no_compression,
            max_body: self.max_body.most(MAX_BODY),
            client_idle: self.client_idle.most(CLIENT_IDLE),
            client_connections: self.client_connections.most(CLIENT_CONNECTIONS).map(|most| u32::try_from(most).unwrap_or(u32::MAX)),
            limit: self.rate_limit,
            limits: self.rate_limits.clone(),
            traces: self.traces.clone().map(|url| TraceTarget { url, share: self.traces_share.unwrap_or(WHOLE) }),
        }
    }
}

/// Where a collector takes traces by OTLP over HTTP; what names no path gets the usual one. The data plane looks up no names and
/// has no certificates, so it is an address, without TLS.
fn collector(text: &str) -> Option<String> {
    let url: http::Uri = text.parse().ok()?;
    let host = url.host()?.trim_start_matches('[').trim_end_matches(']');
    let address: IpAddr = if host == "localhost" { Ipv4Addr::LOCALHOST.into() } else { host.parse().ok()? };
    let at = SocketAddr::new(address, url.port_u16().filter(|port| *port != 0).unwrap_or(OTLP_PORT));
    let path = if matches!(url.path(), "" | "/") { "/v1/traces" } else { url.path() };
    let plain = url.scheme_str() == Some("http") && url.query().is_none() && !url.authority()?.as_str().contains('@');
    plain.then(|| format!("http://{at}{path}"))
}

/// `2.5%` as parts of [`WHOLE`]; more than none, at most all, to four places.
fn percent(text: &str) -> Option<u32> {
    let (whole, part) = text.strip_suffix('%')?.split_once('.').unwrap_or((text.strip_suffix('%')?, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 4 || whole.len() > 3 {
        return None;
    }
    let share = format!("{whole}{part:0<4}").parse::<u32>().ok()?;
    (1..=WHOLE).contains(&share).then_some(share)
}

fn percent_text(share: u32) -> String {
    let text = format!("{}.{:04}", share / 10_000, share % 10_000);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// What the name of a service's own limit begins with.
pub(crate) const OWN_LIMIT: &str = "rate-limit.";

fn rate_text(rate: Option<Rate>) -> String {
    rate.map_or_else(|| "off".to_owned(), |rate| rate.to_string())
}

fn door_text(door: Option<SocketAddr>) -> String {
    door.map_or_else(|| "off".to_owned(), |address| address.to_string())
}

/// Takes an address with a port, or `off`. False for anything else, which changes nothing.
fn set_door(door: &mut Option<SocketAddr>, text: &str) -> bool {
    let address = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    let is_good = address.is_some() || text == "off";
    if is_good {
        *door = address;
    }
    is_good
}

/// As many bytes as a text such as `2000`, `64k`, `500m` or `20g` says, not none.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().next_back()? {
        (at, 'k') => (text.get(..at)?, 10),
        (at, 'm') => (text.get(..at)?, 20),
        (at, 'g') => (text.get(..at)?, 30),
        _ => (text, 0),
    };
    count(digits)?.checked_mul(1 << unit)
}

/// Bytes as [`size`] reads them.
fn size_text(bytes: u64) -> String {
    let units = [(30, "g"), (20, "m"), (10, "k")];
    let unit = units.into_iter().find(|(power, _)| bytes.is_multiple_of(1 << power));
    unit.map_or_else(|| bytes.to_string(), |(power, unit)| format!("{}{unit}", bytes >> power))
}

/// A number above none, of digits alone.
fn count(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|count| *count > 0)
}

/// As many seconds as a text such as `90s`, `5m` or `2h` says, up to a day and not none.
fn span(text: &str) -> Option<u64> {
    let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    count.parse::<u64>().ok()?.checked_mul(unit).filter(|seconds| (1..=86_400).contains(seconds))
}

/// Seconds as [`span`] reads them.
pub(crate) fn span_text(seconds: u64) -> String {
    if seconds.is_multiple_of(60) { format!("{}m", seconds / 60) } else { format!("{seconds}s") }
}

const fn log_word(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Json => "json",
        LogFormat::Common => "common",
    }
}

/// A certificate that somebody gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCertificate {
    /// The names that it is shown for.
    pub names: Vec<String>,
    /// It and its key.
    pub pair: Pair,
    /// When the server that gave it is asked for the next, in seconds since 1970; none of one that people gave.
    #[serde(default)]
    pub renew: Option<i64>,
}

impl StoredCertificate {
    /// Where it comes from, in a word.
    pub const fn source(&self) -> &'static str {
        if self.renew.is_some() { "acme" } else { "file" }
    }
}

/// What came of asking a server for a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// How often it failed since it worked last.
    pub failures: u32,
    /// Not before this time, in seconds since 1970.
    pub next: i64,
    /// Why it failed last.
    pub why: Option<String>,
}

/// What certificates are made with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Signing {
    /// The authority of this machine, once one was needed.
    pub authority: Option<Authority>,
    /// Accounts with servers, by their directories.
    pub accounts: BTreeMap<String, Secret>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_is_taken() {
        let mut settings = PublicSettings::default();
        for (key, value) in [
            ("https-redirect", "on"),
            ("hsts", "31536000"),
            ("proxy-protocol", "192.0.2.0/24,2001:db8::/32"),
            ("access-log", "common"),
            ("compression", "off"),
            ("rate-limit", "600/m"),
            ("rate-limit.shop", "5/s"),
            ("rate-limit.desk", "off"),
            ("max-body", "500m"),
            ("client-idle", "off"),
            ("client-connections", "50"),
            ("free-plans-sleep", "90s"),
            ("postgres", "[::]:5432"),
            ("traces", "http://[::1]:4318/v1/traces"),
            ("traces-share", "0.25%"),
            ("keyvalue", "0.0.0.0:6379"),
            ("acme", "letsencrypt"),
            ("acme-proof", "tls"),
            ("acme-contact", "a@b.test"),
            ("acme-root", "/ca.pem"),
        ] {
            settings.set(key, value).unwrap();
        }
        let mut again = PublicSettings::default();
        for (key, value) in settings.rows() {
            again.set(&key, &value).unwrap();
        }
        assert_eq!(again, settings);
        for (given, shown) in [("on", "15m"), ("2h", "120m"), ("60s", "1m"), ("61s", "61s")] {
            settings.set("free-plans-sleep", given).unwrap();
            assert!(settings.rows().contains(&("free-plans-sleep".to_owned(), shown.to_owned())));
        }
        for (given, shown) in
            [("http://localhost:4318", "http://127.0.0.1:4318/v1/traces"), ("http://192.0.2.1/in", "http://192.0.2.1:4318/in")]
        {
            settings.set("traces", given).unwrap();
            assert!(settings.rows().contains(&("traces".to_owned(), shown.to_owned())), "{given}");
        }
        assert_eq!(
            (settings.public().max_body, settings.public().client_idle, settings.public().client_connections),
            (Some(500 << 20), None, Some(50))
        );
        for (given, shown) in [("2048k", "2m"), ("1500", "1500"), ("default", "10g"), ("off", "off")] {
            settings.set("max-body", given).unwrap();
            assert!(settings.rows().contains(&("max-body".to_owned(), shown.to_owned())), "{given}");
        }
        for (given, shown) in [("100%", "100%"), ("07.50%", "7.5%"), ("0.0001%", "0.0001%")] {
            settings.set("traces-share", given).unwrap();
            assert!(settings.rows().contains(&("traces-share".to_owned(), shown.to_owned())), "{given}");
        }
        settings.set("proxy-protocol", "192.0.2.1").unwrap();
        assert_eq!(settings.rows()[2].1, "192.0.2.1/32");
        for (key, value) in [
            ("https-redirect", "yes"),
            ("hsts", "-1"),
            ("hsts", "long"),
            ("access-log", "xml"),
            ("compression", "br"),
            ("rate-limit", "0/s"),
            ("rate-limit.shop", "fast"),
            ("rate-limit.a shop", "5/s"),
            ("max-body", "0"),
            ("max-body", "5t"),
            ("max-body", "-1"),
            ("max-body", "99999999999g"),
            ("client-idle", "0s"),
            ("client-idle", "5"),
            ("client-connections", "0"),
            ("client-connections", "1k"),
            ("free-plans-sleep", "0s"),
            ("free-plans-sleep", "25h"),
            ("free-plans-sleep", "15"),
            ("postgres", "5432"),
            ("postgres", "0.0.0.0:0"),
            ("keyvalue", "on"),
            ("proxy-protocol", "192.0.2.0/33"),
            ("traces", "127.0.0.1:4318"),
            ("traces", "http:///v1/traces"),
            ("traces", "http://collector.test:4318"),
            ("traces", "https://127.0.0.1:4318"),
            ("traces-share", "0%"),
            ("traces-share", "101%"),
            ("traces-share", "0.1"),
            ("traces-share", "0.00001%"),
            ("port", "1"),
            ("acme", "http://a.test"),
            ("acme-contact", "me"),
            ("acme-root", "ca.pem"),
        ] {
            assert!(settings.set(key, value).is_err(), "{key}={value}");
        }
        for (key, _) in again.rows() {
            let without = match key.as_str() {
                "compression" => "on",
                "traces-share" => "100%",
                "max-body" | "client-idle" | "client-connections" => "default",
                own if own.starts_with(OWN_LIMIT) => "default",
                _ => "off",
            };
            again.set(&key, without).unwrap();
        }
        assert_eq!(again, PublicSettings::default());
    }
}
