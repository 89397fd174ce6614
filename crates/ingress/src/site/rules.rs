//! The rules of a static site, ready to be applied.

use super::path::SitePath;
use super::pattern::{Pattern, TooLong, fill, header_pattern};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use moat_model::Slug;
use moat_model::state::{SiteAction, SiteHeader, SiteRoute};
use regex_lite::Regex;

/// Why a site's rules can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A pattern is too long.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// Not a name of a header, or not a value of one.
    #[error("`{0}` is no response header")]
    Header(String),
}

/// Headers, redirects and rewrites.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    headers: Vec<HeaderRule>,
    routes: Vec<(Pattern, Action)>,
}

#[derive(Debug, Clone)]
struct HeaderRule {
    path: String,
    expression: Regex,
    name: HeaderName,
    value: HeaderValue,
}

#[derive(Debug, Clone)]
enum Action {
    Redirect(String),
    Rewrite(String),
    Pass { host: String, path: String },
}

/// What a rule makes of a path. Templates are filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// 301 to a path or URL.
    Redirect(String),
    /// Go on with this path of the site.
    Rewrite(String),
    /// Hand the request to another host of the ingress, with this path.
    Pass {
        /// A host name of [`Routes`](crate::Routes).
        host: String,
        /// The path there, possibly with a query.
        path: String,
    },
}

impl Rules {
    /// Makes the rules of a site's definition. `host` names the public host of a service.
    ///
    /// # Errors
    /// When a pattern is too long, or a header is none.
    pub fn new(headers: &[SiteHeader], routes: &[SiteRoute], host: impl Fn(&Slug) -> String) -> Result<Self, RuleError> {
        let headers = headers.iter().map(|header| {
            let wrong = || RuleError::Header(format!("{}: {}", header.name, header.value));
            Ok(HeaderRule {
                path: header.path.clone(),
                expression: header_pattern(header.path.trim())?,
                name: header.name.parse().map_err(|_| wrong())?,
                value: HeaderValue::from_bytes(header.value.as_bytes()).map_err(|_| wrong())?,
            })
        });
        let routes = routes.iter().map(|route| {
            let action = match &route.action {
                SiteAction::Redirect(to) => Action::Redirect(to.clone()),
                SiteAction::Rewrite(to) => Action::Rewrite(to.clone()),
                SiteAction::Pass { service, path } => Action::Pass { host: host(service), path: path.clone() },
            };
            Ok((Pattern::new(&route.source)?, action))
        });
        Ok(Self { headers: headers.collect::<Result<_, RuleError>>()?, routes: routes.collect::<Result<_, RuleError>>()? })
    }

    /// What the first rule that matches makes of a path.
    pub fn turn(&self, path: &SitePath) -> Option<Turn> {
        self.routes.iter().find_map(|(pattern, action)| {
            let matched = pattern.matches(path.text())?;
            Some(match action {
                Action::Redirect(to) => Turn::Redirect(fill(to, &matched)),
                Action::Rewrite(to) => Turn::Rewrite(fill(to, &matched)),
                Action::Pass { host, path } => Turn::Pass { host: host.clone(), path: fill(path, &matched) },
            })
        })
    }

    /// Writes the headers for a request's path. Of several rules for one name the last that matches counts; rules of the very
    /// same path add to each other.
    pub fn write_headers(&self, path: &SitePath, headers: &mut HeaderMap) {
        let mut written: Vec<(&HeaderName, &str)> = Vec::new();
        for rule in self.headers.iter().filter(|rule| rule.expression.is_match(path.text())) {
            if written.iter().any(|(name, of)| **name == rule.name && *of == rule.path) {
                headers.append(rule.name.clone(), rule.value.clone());
            } else {
                headers.insert(rule.name.clone(), rule.value.clone());
            }
            written.retain(|(name, _)| **name != rule.name);
            written.push((&rule.name, &rule.path));
        }
    }
}
