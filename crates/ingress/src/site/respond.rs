//! An open file to a response: type, validators, conditions, parts, coding.

use super::content::Content;
use super::exchange::{self, Condition, Ranges};
use super::files::{Published, Variants};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Kept by nobody without asking: a deploy is seen at once, and an unchanged file costs a 304.
const CACHE_CONTROL: HeaderValue = HeaderValue::from_static("public, max-age=0, must-revalidate");

/// Answers with a file. Conditions and ranges are those of a page that is there (200), not of one that says what is not.
pub(super) fn with_file(request: &Parts, found: Variants, status: StatusCode) -> io::Result<Response<Content>> {
    let Variants { plain, name, mut coded } = found;
    let kind = content_type(&name);
    let varies = !coded.is_empty();
    let coding = exchange::choose_coding(&request.headers, |coding| coded.iter().any(|(there, _)| *there == coding));
    let chosen = coding.and_then(|coding| coded.iter().position(|(there, _)| *there == coding));
    let file = chosen.map_or(plain, |index| coded.swap_remove(index).1);

    let mut response = Response::new(Content::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, CACHE_CONTROL);
    if varies {
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    let found = status == StatusCode::OK;
    if found {
        set(headers, header::ETAG, &file.etag);
        set(headers, header::LAST_MODIFIED, &httpdate::fmt_http_date(file.modified));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        match exchange::condition(&request.method, &request.headers, &file.etag, file.modified) {
            Condition::Holds => {}
            Condition::NotModified => {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return Ok(response);
            }
            Condition::Failed => {
                *response.status_mut() = StatusCode::PRECONDITION_FAILED;
                return Ok(response);
            }
        }
    }
    if let Some(coding) = coding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.word()));
    }
    let wanted = request
        .headers
        .get(header::RANGE)
        .filter(|_| found && request.method == Method::GET && exchange::if_range(&request.headers, &file.etag, file.modified))
        .map_or(Ranges::Whole, |value| exchange::ranges(value, file.length));
    match wanted {
        Ranges::None => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            let headers = response.headers_mut();
            headers.remove(header::CONTENT_ENCODING);
            set(headers, header::CONTENT_RANGE, &format!("bytes */{}", file.length));
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Ranges::Parts(parts) if parts.len() > 1 => several(&mut response, file, &kind, parts),
        Ranges::Parts(parts) => {
            let part = parts.into_iter().next().unwrap_or(0..file.length);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(response.headers_mut(), header::CONTENT_RANGE, &content_range(&part, file.length));
            one(&mut response, &request.method, file, &kind, part)?;
        }
        Ranges::Whole => {
            let all = 0..file.length;
            one(&mut response, &request.method, file, &kind, all)?;
        }
    }
    Ok(response)
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // All that is set here is ASCII without control characters.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn content_range(part: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", part.start, part.end.saturating_sub(1))
}

fn one(response: &mut Response<Content>, method: &Method, file: Published, kind: &str, part: Range<u64>) -> io::Result<()> {
    set(response.headers_mut(), header::CONTENT_TYPE, kind);
    set(response.headers_mut(), header::CONTENT_LENGTH, &(part.end - part.start).to_string());
    if *method != Method::HEAD {
        *response.body_mut() = Content::part(file.file, part)?;
    }
    Ok(())
}

/// `multipart/byteranges` (RFC 9110 §14.6).
fn several(response: &mut Response<Content>, file: Published, kind: &str, parts: Vec<Range<u64>>) {
    let boundary = format!("{:016x}{:016x}", crate::proxy::random(), crate::proxy::random());
    let length = file.length;
    let texts: Vec<_> = parts
        .into_iter()
        .map(|part| {
            let range = content_range(&part, length);
            (format!("\r\n--{boundary}\r\ncontent-type: {kind}\r\ncontent-range: {range}\r\n\r\n"), part)
        })
        .collect();
    let content = Content::parts(file.file, texts, format!("\r\n--{boundary}--\r\n"));
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    set(response.headers_mut(), header::CONTENT_TYPE, &format!("multipart/byteranges; boundary={boundary}"));
    set(response.headers_mut(), header::CONTENT_LENGTH, &content.length().to_string());
    *response.body_mut() = content;
}

/// The type by a file's name; text is UTF-8.
fn content_type(name: &[u8]) -> String {
    let guess = mime_guess::from_path(Path::new(std::ffi::OsStr::from_bytes(name))).first_raw().unwrap_or("application/octet-stream");
    // RFC 9239: the one name of the language.
    let guess = if guess == "application/javascript" { "text/javascript" } else { guess };
    let text = guess.starts_with("text/")
        || guess.ends_with("+xml")
        || guess.ends_with("+json")
        || ["application/json", "application/xml"].contains(&guess);
    if text { format!("{guess}; charset=utf-8") } else { guess.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::content_type;

    #[test]
    fn types() {
        for (name, want) in [
            ("index.html", "text/html; charset=utf-8"),
            ("A.HTML", "text/html; charset=utf-8"),
            ("a/b.css", "text/css; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("a.json", "application/json; charset=utf-8"),
            ("a.js.map", "text/plain; charset=utf-8"),
            ("a.webmanifest", "application/manifest+json; charset=utf-8"),
            ("a.svg", "image/svg+xml; charset=utf-8"),
            ("feed.xml", "text/xml; charset=utf-8"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.md", "text/markdown; charset=utf-8"),
            ("a.wasm", "application/wasm"),
            ("a.woff2", "font/woff2"),
            ("a.png", "image/png"),
            ("a.webp", "image/webp"),
            ("a.avif", "image/avif"),
            ("a.ico", "image/x-icon"),
            ("a.mp4", "video/mp4"),
            ("a.pdf", "application/pdf"),
            ("a.js.br", "application/octet-stream"),
            ("a.tar.gz", "application/gzip"),
            ("LICENSE", "application/octet-stream"),
            ("a.unknown-to-all", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name.as_bytes()), want, "{name}");
        }
    }
}
