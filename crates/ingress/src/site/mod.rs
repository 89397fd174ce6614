//! Static sites: a published folder and its rules give the answer to a request, without an instance.
//!
//! [`Site::answer`] blocks (it opens files) and does no more than that; what it sends is read as the client takes it
//! ([`Content`]). Rules are applied only where no file is, top to bottom, and again to what a rewrite made of the path.
//!
//! Own code and not a file server's crate: those at hand (`tower-http`, `hyper-staticfile`) follow symbolic links out of the
//! folder, know no strong entity tags, and would leave rules, several ranges or precompressed neighbours to do here anyway.
//!
//! Invariant: nothing outside the folder is opened, whatever is asked for; an answer is of one release.

mod content;
mod exchange;
mod files;
mod path;
mod pattern;
mod respond;
mod rules;

pub(crate) use content::Content;
pub use pattern::TooLong;
pub use rules::{RuleError, Rules};

use files::{Folder, Found};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Uri};
use path::{SitePath, fit_for_header};
use rules::Turn;
use std::io;
use std::path::Path;

/// Rewrites that lead to rewrites; more are a circle.
const MOST_TURNS: usize = 16;
/// Longer paths are refused: no published file has one.
const LONGEST_PATH: usize = 8 * 1024;
/// The page of what is not there.
const NOT_FOUND: &[u8] = b"404.html";

/// A release of a static site, open for serving.
#[derive(Debug)]
pub struct Site {
    folder: Folder,
    rules: Rules,
}

/// Two sites are equal only when they are one.
impl PartialEq for Site {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}
impl Eq for Site {}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// This.
    Response(Response<Content>),
    /// Another host of the ingress answers, at this path.
    Pass {
        /// Its name.
        host: String,
        /// Path and query there.
        target: Uri,
    },
    /// A page of the ingress says what is wrong.
    Page(Lack),
}

/// Why a site has no answer of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// The target is no path of a site.
    BadPath,
    /// The path is too long.
    LongPath,
    /// Nothing is there, and the site has no page for that.
    NotFound,
    /// Files are only read.
    Method,
    /// What a rule passes on is passed on again.
    Circle,
    /// A file is there and can't be read.
    Unreadable,
}

impl Lack {
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::BadPath => StatusCode::BAD_REQUEST,
            Self::LongPath => StatusCode::URI_TOO_LONG,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Circle => StatusCode::LOOP_DETECTED,
            Self::Unreadable => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Site {
    /// Opens a published folder.
    ///
    /// # Errors
    /// When the folder can't be opened.
    pub fn open(folder: &Path, rules: Rules) -> io::Result<Self> {
        Ok(Self { folder: Folder::open(folder)?, rules })
    }

    /// Answers one request; blocks.
    ///
    /// # Errors
    /// When a file that is there can't be read.
    pub(crate) fn answer(&self, request: &Parts) -> io::Result<Answer> {
        let raw = request.uri.path();
        if raw.len() > LONGEST_PATH {
            return Ok(Answer::Page(Lack::LongPath));
        }
        let Some(asked) = SitePath::read(raw) else {
            let whole_server = request.method == Method::OPTIONS && raw == "*";
            return Ok(Answer::Page(if whole_server { Lack::Method } else { Lack::BadPath }));
        };
        let reads = [Method::GET, Method::HEAD].contains(&request.method);
        let mut now = asked.clone();
        for _ in 0..MOST_TURNS {
            match self.folder.find(&now)? {
                Some(_) if !reads => return Ok(Answer::Page(Lack::Method)),
                Some(Found::File(found)) => {
                    let mut response = respond::with_file(request, found, StatusCode::OK)?;
                    self.rules.write_headers(&asked, response.headers_mut());
                    return Ok(Answer::Response(response));
                }
                // Links of the page are relative to the folder.
                Some(Found::AddSlash) => return Ok(redirect(&format!("{}/", now.text()), &request.uri)),
                None => {}
            }
            match self.rules.turn(&now) {
                Some(Turn::Redirect(to)) => return Ok(redirect(&to, &request.uri)),
                Some(Turn::Rewrite(to)) => match SitePath::read(to.split(['?', '#']).next().unwrap_or_default()) {
                    Some(path) => now = path,
                    None => return Ok(Answer::Page(Lack::BadPath)),
                },
                Some(Turn::Pass { host, path }) => {
                    return Ok(match with_query(&fit_for_header(&path), &request.uri).parse() {
                        Ok(target) => Answer::Pass { host, target },
                        Err(_) => Answer::Page(Lack::BadPath),
                    });
                }
                None => break,
            }
        }
        if !reads {
            return Ok(Answer::Page(Lack::Method));
        }
        let Some(page) = self.folder.variants(NOT_FOUND.to_vec())? else { return Ok(Answer::Page(Lack::NotFound)) };
        let mut response = respond::with_file(request, page, StatusCode::NOT_FOUND)?;
        self.rules.write_headers(&asked, response.headers_mut());
        Ok(Answer::Response(response))
    }
}

/// A URL with the request's query, unless it has one of its own.
fn with_query(to: &str, request: &Uri) -> String {
    let (path, fragment) = to.find('#').map_or((to, ""), |at| to.split_at(at));
    match request.query().filter(|query| !query.is_empty() && !path.contains('?')) {
        Some(query) => format!("{path}?{query}{fragment}"),
        None => to.to_owned(),
    }
}

fn redirect(to: &str, request: &Uri) -> Answer {
    let Ok(location) = HeaderValue::try_from(fit_for_header(&with_query(to, request))) else { return Answer::Page(Lack::BadPath) };
    let mut response = Response::new(Content::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::LOCATION, location);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    Answer::Response(response)
}

#[cfg(test)]
mod tests;
