//! What texts must look like. Each check returns what is wrong, and what to write.

use super::Malformed;
use crate::report::quoted;
use moat_model::Slug;
use std::net::IpAddr;

type Checked = Result<(), Malformed>;

fn wrong(message: impl Into<String>, help: impl Into<String>) -> Checked {
    Err((message.into(), Some(help.into())))
}

/// The name of a service: a DNS label can be made of it.
pub(super) fn service_name(text: &str) -> Checked {
    if Slug::slugify(text).is_none() {
        return wrong(format!("{} gives no host name", quoted(text)), "write at least one of a-z, A-Z and 0-9");
    }
    Ok(())
}

/// The key of a variable.
pub(super) fn env_key(text: &str) -> Checked {
    let bad = text.chars().find(|c| *c == '=' || c.is_whitespace() || c.is_control());
    match bad {
        Some(c) => wrong(
            format!("{} is no name for a variable: it holds `{}`", quoted(text), c.escape_default()),
            "use letters, digits, `_` and `.`",
        ),
        None if text.is_empty() => wrong("a variable needs a name", "use letters, digits, `_` and `.`"),
        None if text.starts_with(|c: char| c.is_ascii_digit()) => {
            wrong(format!("{} is no name for a variable: it begins with a digit", quoted(text)), "begin with a letter or `_`")
        }
        None => Ok(()),
    }
}

/// An HTTP path.
pub(super) fn path(text: &str) -> Checked {
    if text.is_empty() {
        return Ok(());
    }
    if !text.starts_with('/') {
        return wrong(format!("{} is no path", quoted(text)), format!("begin with `/`: {}", quoted(&format!("/{}", text.trim()))));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong(format!("{} holds a blank", quoted(text)), "write blanks as `%20`");
    }
    Ok(())
}

/// A pattern of request paths.
pub(super) fn pattern(text: &str) -> Checked {
    if text.trim().is_empty() {
        return wrong("a path pattern can't be empty", "write `/*` for every path");
    }
    path(text.trim())
}

/// Where a redirect or rewrite leads: a path of the site, or a web address.
pub(super) fn destination(text: &str) -> Checked {
    let text = text.trim();
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    if host.is_some_and(|host| host.is_empty() || host.starts_with(['/', '?', '#', ':', '*'])) || text.starts_with("//") {
        return wrong(format!("{} names no host", quoted(text)), "write a path such as `/index.html`, or `https://HOST/PATH`");
    }
    let authority = host.map_or("", |host| &host[..host.find(['/', '?', '#']).unwrap_or(host.len())]);
    let port = authority.rsplit_once(':').map_or("0", |(_, port)| port);
    if authority.contains('*') || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return wrong(format!("the host of {} can't depend on the path", quoted(text)), "write `*` and `:name` behind the host");
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong(format!("{} holds a blank", quoted(text)), "write blanks as `%20`");
    }
    if host.is_none() && !text.starts_with('/') {
        let help = format!("begin with `/`: {}, or with `https://`", quoted(&format!("/{text}")));
        return wrong(format!("{} is neither a path nor a web address", quoted(text)), help);
    }
    Ok(())
}

/// Headers that speak of the connection or of the very bytes that are sent.
const OWN_HEADERS: [&str; 15] = [
    "accept-ranges",
    "connection",
    "content-length",
    "content-range",
    "date",
    "etag",
    "keep-alive",
    "last-modified",
    "proxy-connection",
    "rndr-id",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
];

/// The name of a response header (RFC 9110 §5.1).
pub(crate) fn header_name(text: &str) -> Checked {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || !text.bytes().all(token) {
        return wrong(format!("{} is no header name", quoted(text)), "use letters, digits and `-`, such as `Cache-Control`");
    }
    if OWN_HEADERS.contains(&text.to_ascii_lowercase().as_str()) {
        return wrong(format!("{} is set by the server alone", quoted(text)), "remove it");
    }
    Ok(())
}

/// The value of a response header (RFC 9110 §5.5).
pub(crate) fn header_value(text: &str) -> Checked {
    if text.chars().any(|c| c.is_control() && c != '\t') {
        return wrong(format!("{} can't be a header's value: it holds a line break", quoted(text)), "write it on one line");
    }
    Ok(())
}

/// A folder of the repository: `.`, `./backend`, `/backend` and `backend` are fine, `..` is not.
pub(super) fn inside(text: &str) -> Checked {
    if text.split('/').any(|part| part == "..") {
        return wrong(format!("{} leaves the repository", quoted(text)), "name a folder below the repository's root");
    }
    Ok(())
}

/// Where a disk can't be mounted.
const TAKEN: [&str; 9] =
    ["/", "/opt", "/opt/render", "/opt/render/project", "/opt/render/project/src", "/home", "/home/render", "/etc", "/etc/secrets"];

/// Where a disk is mounted.
pub(super) fn mount_path(text: &str) -> Checked {
    let clean = if text.len() > 1 { text.trim_end_matches('/') } else { text };
    if !text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return wrong(format!("{} is no absolute path", quoted(text)), "write a path such as `/var/data`, without `..`");
    }
    if clean.is_empty() || TAKEN.contains(&clean) {
        return wrong(format!("a disk can't take the place of {}", quoted(text)), "use a folder of its own, such as `/var/data`");
    }
    Ok(())
}

/// An address or range.
pub(super) fn cidr(text: &str) -> Checked {
    if text.parse::<ipnet::IpNet>().is_ok() || text.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    wrong(format!("{} is no address or range", quoted(text)), "write CIDR notation, such as `203.0.113.0/24`; everyone is `0.0.0.0/0`")
}

/// A web address.
pub(super) fn uri(text: &str) -> Checked {
    if text.is_empty() || text.starts_with("https://") || text.starts_with("http://") {
        return Ok(());
    }
    wrong(format!("{} is no web address", quoted(text)), "begin with `https://`")
}

/// A host name, possibly with `*.` before it.
pub(super) fn domain(text: &str) -> Checked {
    let host = text.strip_prefix("*.").unwrap_or(text);
    let label = |part: &str| {
        !part.is_empty()
            && part.len() <= 63
            && part.chars().all(|c| c.is_alphanumeric() || c == '-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if host.len() <= 253 && host.contains('.') && host.split('.').all(label) {
        return Ok(());
    }
    wrong(format!("{} is no domain name", quoted(text)), "write a host name such as `www.example.com`, without `https://` or a path")
}

const MONTHS: [&str; 12] = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// A cron expression of five fields.
pub(super) fn schedule(text: &str) -> Checked {
    const HELP: &str = "write five fields: minute hour day month weekday, such as `*/15 * * * *` or `0 6 * * MON-FRI`";
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let ranges: [(&str, u32, u32, &[&str], u32); 5] = [
        ("minute", 0, 59, &[], 0),
        ("hour", 0, 23, &[], 0),
        ("day", 1, 31, &[], 0),
        ("month", 1, 12, &MONTHS, 1),
        ("weekday", 0, 7, &DAYS, 0),
    ];
    if fields.len() != ranges.len() {
        return wrong(format!("a schedule has five fields, this has {}", fields.len()), HELP);
    }
    for (field, (name, low, high, names, first)) in fields.iter().zip(ranges) {
        let value = |text: &str| -> Option<u32> {
            let number = match names.iter().position(|n| n.eq_ignore_ascii_case(text)) {
                Some(index) => u32::try_from(index).ok()? + first,
                None => text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())??,
            };
            (low..=high).contains(&number).then_some(number)
        };
        for part in field.split(',') {
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, Some(step)),
                None => (part, None),
            };
            let step_fits = step.is_none_or(|step| step.bytes().all(|b| b.is_ascii_digit()) && step.parse::<u32>().is_ok_and(|s| s > 0));
            let range_fits = match range.split_once('-') {
                _ if range == "*" => true,
                Some((from, to)) => matches!((value(from), value(to)), (Some(from), Some(to)) if from <= to),
                None => value(range).is_some(),
            };
            if !step_fits || !range_fits {
                return wrong(format!("{} is no {name} of a schedule ({low} to {high})", quoted(part)), HELP);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_take_what_is_right_and_nothing_else() {
        type Row = (fn(&str) -> Checked, &'static [&'static str], &'static [&'static str]);
        let table: &[Row] = &[
            (service_name, &["The-Hub-Api", "private database", "a"], &["", "---", "é"]),
            (env_key, &["A", "cluster.name", "_x", "a-b"], &["", "A B", "A=B", "1A"]),
            (path, &["/", "/health", ""], &["health", "/a b"]),
            (inside, &[".", "./backend", "/backend", "a/b"], &["..", "a/../b", "../x"]),
            (mount_path, &["/data", "/var/data/", "/opt/render/project/src/media"], &["data", "/", "/etc", "/home/", "/a/../b", "//"]),
            (cidr, &["10.0.0.0/8", "1.2.3.4", "::/0"], &["everyone", "10.0.0.0/33", ""]),
            (pattern, &["/", "/*", "/blog/:slug", "/**/*.css", " /* "], &["", " ", "blog", "/a b"]),
            (
                destination,
                &["/", "/index.html", "/a/*?b=:c", "https://example.com", "http://a.localhost:8080/:splat"],
                &[
                    "",
                    "index.html",
                    "https://",
                    "https:///x",
                    "https://*.example.com",
                    "https://a*",
                    "https://:sub.b",
                    "https://a:port/",
                    "//example.com",
                    "/a b",
                    "ftp://a.b",
                ],
            ),
            (header_name, &["Cache-Control", "x-a", "X_1"], &["", "a b", "a:", "é", "Content-Length", "etag", "Transfer-Encoding"]),
            (header_value, &["", "max-age=0", "a\tb", "é"], &["a\r\nSet-Cookie: b", "a\0"]),
            (uri, &["https://example.com", ""], &["example.com"]),
            (domain, &["example.com", "*.example.com", "bücher.example"], &["https://example.com", "localhost", "a..b", "-a.com"]),
            (
                schedule,
                &["*/15 * * * *", "0 6 * * MON-FRI", "0 0 1,15 jan-jun 0", "*/60 * * * *", "5/10 * * * 7"],
                &["", "* * * *", "60 * * * *", "* * * * MON-", "a * * * *", "*/0 * * * *", "30-10 * * * *", "@daily", "* * * * * *"],
            ),
        ];
        for (check, right, wrong) in table {
            for text in *right {
                assert!(check(text).is_ok(), "{text}");
            }
            for text in *wrong {
                assert!(check(text).is_err(), "{text}");
            }
        }
    }
}
