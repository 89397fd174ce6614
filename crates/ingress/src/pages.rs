//! What a person or a program reads when nobody behind answers: a small page, or JSON.

use crate::decide::Refusal;
use crate::failure::Failure;
use crate::site::Lack;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use moat_model::Slug;
use std::fmt::Write as _;

/// Says in one word who answered and why; a program can tell these answers from an instance's own by it.
const REASON: HeaderName = HeaderName::from_static("x-moat-reason");

const STYLE: &str = ":root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6470;--line:#d9dee4;--paper:#fbfcfd;--mark:#b3412e}\
@media(prefers-color-scheme:dark){:root{--ink:#e8ebef;--soft:#98a2ae;--line:#2c333b;--paper:#14181c;--mark:#f0907c}}\
*{box-sizing:border-box}body{margin:0;min-height:100vh;display:grid;place-items:center;padding:2rem;background:var(--paper);color:var(--ink);\
font:16px/1.55 system-ui,sans-serif}main{max-width:36rem;width:100%}p{margin:.6rem 0}.code{color:var(--mark);font:600 .85rem/1 ui-monospace,monospace;letter-spacing:.08em}\
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0 1rem;overflow-wrap:anywhere}.hint{color:var(--soft)}\
footer{margin-top:2rem;padding-top:.8rem;border-top:1px solid var(--line);color:var(--soft);font:.8rem/1.4 ui-monospace,monospace}";

/// A page's content. Every text is plain; it is escaped where it is written.
struct Page<'a> {
    status: StatusCode,
    reason: &'static str,
    title: String,
    message: String,
    hint: &'a str,
    service: Option<&'a Slug>,
    close: bool,
}

/// The answer to a refused request. `asked`: the request's headers, for `Accept`.
pub(crate) fn refusal(refusal: &Refusal, asked: &HeaderMap, id: &str) -> Response<Full<Bytes>> {
    let status = refusal.status();
    let page = match refusal {
        Refusal::Bad(fault) => Page {
            status,
            reason: "bad-request",
            title: "This request can't be served".to_owned(),
            message: sentence(&fault.to_string()),
            hint: "",
            service: None,
            close: true,
        },
        Refusal::UnknownHost { host } => Page {
            status,
            reason: "unknown-host",
            title: format!("Nothing is served at {host}"),
            message: "No public web service has this host name.".to_owned(),
            hint: "Check the spelling. Private services and workers have no public address.",
            service: None,
            close: false,
        },
        Refusal::Misdirected => Page {
            status,
            reason: "misdirected",
            title: "This is another connection's request".to_owned(),
            message: "The connection was opened for another host name, which has another certificate.".to_owned(),
            hint: "Open a connection for this name.",
            service: None,
            close: false,
        },
        Refusal::Forbidden { service } => Page {
            status,
            reason: "address-not-allowed",
            title: format!("{service} is not open to you"),
            message: "Its owner allows certain network addresses only, and yours is none of them.".to_owned(),
            hint: "",
            service: Some(service),
            close: false,
        },
        Refusal::TooMany { service, wait } => Page {
            status,
            reason: "too-many-requests",
            title: format!("You ask {service} too often"),
            message: format!("Its owner lets each client send so many requests in a time. Ask again in {wait} s."),
            hint: "",
            service: Some(service),
            close: false,
        },
        Refusal::NoInstance { service, reason } => Page {
            status,
            reason: "no-instance",
            title: format!("{service} is not ready"),
            message: sentence(reason),
            hint: "It is served here as soon as one of its instances is ready.",
            service: Some(service),
            close: false,
        },
        Refusal::Suspended { service } => Page {
            status,
            reason: "suspended",
            title: format!("{service} is suspended"),
            message: "Its owner has suspended this service.".to_owned(),
            hint: "",
            service: Some(service),
            close: false,
        },
        Refusal::Maintenance { service, .. } => Page {
            status,
            reason: "maintenance",
            title: format!("{service} is being worked on"),
            message: "Its owner has put this service into maintenance mode.".to_owned(),
            hint: "Come back in a while.",
            service: Some(service),
            close: false,
        },
    };
    let mut response = page.respond(asked, id);
    if let Refusal::TooMany { wait, .. } = refusal {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*wait));
    }
    if let Refusal::Maintenance { page, .. } = refusal
        && !page.trim().is_empty()
        && !prefers_json(asked)
    {
        // The owner's page brings styles and images of its own.
        response.headers_mut().remove(header::CONTENT_SECURITY_POLICY);
        *response.body_mut() = Full::new(Bytes::copy_from_slice(page.as_bytes()));
    }
    response
}

/// The answer that sends a client elsewhere.
pub(crate) fn moved(to: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(to) = HeaderValue::try_from(to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

/// What proves to a server of certificates that a name is served here.
pub(crate) fn proof(text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

/// What crawlers read of a service that sleeps.
pub(crate) fn no_robots() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"User-agent: *\nDisallow: /\n")));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The answer where a static site has none.
pub(crate) fn lack(service: &Slug, lack: Lack, asked: &HeaderMap, id: &str) -> Response<Full<Bytes>> {
    let (reason, title, message, hint) = match lack {
        Lack::BadPath => ("bad-path", "This path can't be served", "The path holds what no file's path can hold.", ""),
        Lack::LongPath => ("long-path", "This path can't be served", "The path is too long.", ""),
        Lack::NotFound => {
            ("not-found", "There is nothing here", "The site has no file at this path.", "Check the spelling of the address.")
        }
        Lack::Method => ("method", "This can't be done here", "The files of a static site can only be read.", ""),
        Lack::Circle => ("circle", "This site goes in a circle", "Its rules pass a request on that is passed on again.", ""),
        Lack::Unreadable => {
            ("unreadable", "This file can't be read", "The machine could not read the file.", "Its owner finds the cause in the log.")
        }
    };
    let page = Page {
        status: lack.status(),
        reason,
        title: title.to_owned(),
        message: message.to_owned(),
        hint,
        service: Some(service),
        close: false,
    };
    let mut response = page.respond(asked, id);
    if lack == Lack::Method {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// The answer when a service's instance gave none.
pub(crate) fn failure(service: &Slug, failure: &Failure, asked: &HeaderMap, id: &str) -> Response<Full<Bytes>> {
    let page = Page {
        status: failure.status(),
        reason: failure.reason(),
        title: if failure.is_clients() { "This request can't be served".to_owned() } else { format!("{service} did not answer") },
        message: sentence(&failure.to_string()),
        hint: failure.hint(),
        service: Some(service),
        close: failure.is_clients(),
    };
    page.respond(asked, id)
}

impl Page<'_> {
    fn respond(&self, asked: &HeaderMap, id: &str) -> Response<Full<Bytes>> {
        let (kind, body) =
            if prefers_json(asked) { ("application/json", self.json(id)) } else { ("text/html; charset=utf-8", self.html(id)) };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"));
        headers.insert(header::VARY, HeaderValue::from_static("accept"));
        headers.insert(REASON, HeaderValue::from_static(self.reason));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn json(&self, id: &str) -> String {
        let mut object = serde_json::json!({
            "id": id,
            "status": self.status.as_u16(),
            "reason": self.reason,
            "message": self.message,
        });
        if let Some(service) = self.service {
            object["service"] = service.as_str().into();
        }
        if !self.hint.is_empty() {
            object["hint"] = self.hint.into();
        }
        format!("{object}\n")
    }

    fn html(&self, id: &str) -> String {
        let title = escape(&self.title);
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <meta name=\"robots\" content=\"noindex\"><title>{title}</title><style>{STYLE}</style></head>\n<body><main><div class=\"code\">{} {}</div><h1>{title}</h1><p>{}</p>",
            self.status.as_u16(),
            escape(&self.status.canonical_reason().unwrap_or_default().to_uppercase()),
            escape(&self.message),
        );
        if !self.hint.is_empty() {
            // Writing to a String can't fail.
            let _ = write!(out, "<p class=\"hint\">{}</p>", escape(self.hint));
        }
        let _ = writeln!(out, "<footer>request {}</footer></main></body></html>", escape(id));
        out
    }
}

/// A fragment as a sentence: a capital and a full stop, without the back-ticks that terminals get.
fn sentence(fragment: &str) -> String {
    let plain = fragment.replace('`', "");
    let mut letters = plain.chars();
    let first: String = letters.next().map(|letter| letter.to_uppercase().collect()).unwrap_or_default();
    let stop = if plain.is_empty() || plain.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{}{stop}", letters.as_str())
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(letter),
        }
    }
    out
}

/// Of a request's headers those that pages are chosen by.
pub(crate) fn wishes(asked: &HeaderMap) -> HeaderMap {
    asked.get_all(header::ACCEPT).iter().map(|value| (header::ACCEPT, value.clone())).collect()
}

/// Whether `Accept` (RFC 9110 §12.5.1) wants JSON more than HTML. No preference means HTML.
fn prefers_json(asked: &HeaderMap) -> bool {
    let (mut json, mut html) = (0.0, 0.0);
    for range in asked.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let weight: f32 = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
        if kind == "application/json" || kind.ends_with("+json") {
            json = weight.max(json);
        } else if kind == "text/html" || kind == "application/xhtml+xml" {
            html = weight.max(html);
        }
    }
    json > html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept() {
        for (accept, want) in [
            ("", false),
            ("*/*", false),
            ("application/json", true),
            ("application/json, text/plain, */*", true),
            ("application/vnd.api+json", true),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false),
            ("text/html, application/json", false),
            ("text/html;q=0.5, application/json;q=0.9", true),
            ("application/json;q=0", false),
            ("application/json;q=nonsense", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(prefers_json(&headers), want, "{accept}");
        }
        assert!(!prefers_json(&HeaderMap::new()));
    }

    #[test]
    fn nothing_is_echoed_raw() {
        let service = Slug::new("shop").unwrap();
        let hostile = Refusal::NoInstance { service, reason: "<script>alert('x')</script> & \"y\"".to_owned() };
        let page = refusal(&hostile, &HeaderMap::new(), "<id>");
        let html = format!("{:?}", page.into_body());
        assert!(!html.contains("<script") && !html.contains("<id>"), "{html}");
        assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;y&quot;."), "{html}");
    }

    #[test]
    fn sentences() {
        assert_eq!(sentence("the request has no `Host` header"), "The request has no Host header.");
        assert_eq!(sentence("Done."), "Done.");
        assert_eq!(sentence(""), "");
    }
}
