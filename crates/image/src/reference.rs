//! Image references: what people write (`redis:7`, `ghcr.io/a/b@sha256:…`) and what it means.
//!
//! Grammar: the OCI distribution specification's names and tags, with Docker's defaults (`docker.io`, `library/`, `latest`).

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

const DOCKER_HUB: &str = "docker.io";

/// An image in a registry: host, repository, and a tag or a digest (or both; then the digest decides).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: String,
}

impl Reference {
    /// The registry's host and port as written, `docker.io` where nothing was.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry, such as `library/redis`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag: `latest` where neither tag nor digest was written, none where only a digest was.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index, when the reference is pinned.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository, pinned to a digest and without a tag.
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// What is asked of the registry's manifest endpoint.
    pub(crate) fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The host that serves the registry's API.
    pub(crate) fn api_host(&self) -> &str {
        api_host(&self.registry)
    }
}

/// `docker.io` is served by another host than its name says.
pub(crate) fn api_host(registry: &str) -> &str {
    if registry == DOCKER_HUB { "registry-1.docker.io" } else { registry }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |reason: String| ReferenceError { text: text.to_owned(), reason };
        if text.is_empty() {
            return Err(fail("it is empty".into()));
        }
        if text.len() > 512 {
            return Err(ReferenceError {
                text: text.chars().take(40).collect::<String>() + "…",
                reason: "it is longer than 512 bytes".into(),
            });
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(fail(format!("it has the scheme `{scheme}://`; did you mean `{rest}`?")));
        }
        if let Some(odd) = text.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(fail(format!("it contains {odd:?}")));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|error: DigestError| fail(error.to_string()))?)),
            None => (text, None),
        };
        let (registry, rest) = split_registry(rest);
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(check_tag(tag).map_err(fail)?)),
            None => (rest, None),
        };
        let registry = registry.map(check_registry).transpose().map_err(fail)?.unwrap_or_else(|| DOCKER_HUB.to_owned());
        let repository = check_repository(path).map_err(|reason| {
            let lower = text.replacen(path, &path.to_lowercase(), 1);
            let hint = if lower != text && check_repository(&path.to_lowercase()).is_ok() {
                format!("; did you mean `{lower}`?")
            } else {
                String::new()
            };
            fail(reason + &hint)
        })?;
        let repository =
            if registry == DOCKER_HUB && !repository.contains('/') { format!("library/{repository}") } else { repository.to_owned() };
        let tag = if tag.is_none() && digest.is_none() { Some("latest".to_owned()) } else { tag };
        Ok(Self { registry, repository, tag, digest })
    }
}

/// The first component is a host when it has a dot or a port or is `localhost`. Upper case, which Docker takes for a host too, is more often a
/// mistake in a repository's name.
fn split_registry(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" || first.starts_with('[') => (Some(first), rest),
        _ => (None, text),
    }
}

fn check_registry(host: &str) -> Result<String, String> {
    let lower = host.to_ascii_lowercase();
    let (name, port) = match lower.strip_prefix('[') {
        Some(v6) => {
            let (address, after) = v6.split_once(']').ok_or("the registry's IPv6 address has no `]`")?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| format!("`{address}` is not an IPv6 address"))?;
            (None, after.strip_prefix(':').or((!after.is_empty()).then_some(after)))
        }
        None => match lower.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(lower.as_str()), None),
        },
    };
    if let Some(port) = port
        && !port.parse::<u16>().is_ok_and(|port| port > 0)
    {
        return Err(format!("`{port}` is not a port"));
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if name.is_some_and(|name| !name.split('.').all(label)) {
        return Err(format!("`{host}` is not a registry's host name"));
    }
    Ok(if matches!(lower.as_str(), "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com") {
        DOCKER_HUB.to_owned()
    } else {
        lower
    })
}

fn check_repository(path: &str) -> Result<&str, String> {
    if path.is_empty() {
        return Err("the repository's name is missing".into());
    }
    if path.len() > 255 {
        return Err("the repository's name is longer than 255 bytes".into());
    }
    for part in path.split('/') {
        if part.is_empty() {
            return Err("a part of the repository's name is empty (`//`, or a `/` at an end)".into());
        }
        if let Some(odd) = part.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-')) {
            let what = if odd.is_uppercase() {
                "upper case is not allowed in a repository's name".into()
            } else {
                format!("`{odd}` is not allowed in a repository's name")
            };
            return Err(what);
        }
        let separators = part.split(|c: char| c.is_ascii_alphanumeric()).filter(|run| !run.is_empty());
        let sound = |run: &str| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-');
        let ends = part.starts_with(['.', '_', '-']) || part.ends_with(['.', '_', '-']);
        if ends || !separators.clone().all(sound) {
            return Err(format!(
                "`{part}` starts, ends or is divided in a way that a repository's name must not be (one `.`, `_`, `__` or any number of `-` between letters and digits)"
            ));
        }
    }
    Ok(path)
}

fn check_tag(tag: &str) -> Result<String, String> {
    let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let rest = tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if tag.is_empty() {
        return Err("the tag after `:` is empty".into());
    }
    if !first || !rest || tag.len() > 128 {
        return Err(format!(
            "`{tag}` is not a tag (letters, digits, `_`, `.` and `-`, 128 at most, starting with a letter, a digit or `_`)"
        ));
    }
    Ok(tag.to_owned())
}

impl fmt::Display for Reference {
    /// The normal form: with the registry, `library/` and the tag, so that equal references are equal texts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn what_is_written_has_one_normal_form() {
        for (text, normal) in [
            ("redis", "docker.io/library/redis:latest"),
            ("redis:7", "docker.io/library/redis:7"),
            ("docker.io/redis", "docker.io/library/redis:latest"),
            ("index.docker.io/library/redis:7", "docker.io/library/redis:7"),
            ("bitnami/redis:7.2-debian", "docker.io/bitnami/redis:7.2-debian"),
            ("ghcr.io/a/b__c/d-e--f.g:V1", "ghcr.io/a/b__c/d-e--f.g:V1"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("127.0.0.1:5000/x/y", "127.0.0.1:5000/x/y:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("Example.COM/x", "example.com/x:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), normal, "{text}");
            assert_eq!(normal.parse::<Reference>().unwrap(), reference);
        }
        let pinned: Reference = format!("redis:7@{D}").parse().unwrap();
        assert_eq!(pinned.to_string(), format!("docker.io/library/redis:7@{D}"));
        assert_eq!(pinned.selector(), D);
        assert_eq!(format!("redis@{D}").parse::<Reference>().unwrap().tag(), None);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_write() {
        for (text, says) in [
            ("", "empty"),
            ("Redis", "upper case is not allowed in a repository's name; did you mean `redis`?"),
            ("Org/App", "did you mean `org/app`?"),
            ("ghcr.io/Org/App:V1", "did you mean `ghcr.io/org/app:V1`?"),
            ("https://ghcr.io/a/b", "did you mean `ghcr.io/a/b`?"),
            ("docker://redis", "did you mean `redis`?"),
            ("redis:", "the tag after `:` is empty"),
            ("redis:-x", "is not a tag"),
            ("redis :7", "contains ' '"),
            ("redis@sha512:00", "`sha512` is not supported"),
            ("redis@sha256:00", "64 digits"),
            ("ghcr.io/", "name is missing"),
            ("a//b", "is empty"),
            ("a/../b", "starts, ends"),
            ("a..b", "starts, ends"),
            ("a_-b", "starts, ends"),
            ("ex_ample.com/a", "host name"),
            ("localhost:0/a", "not a port"),
            ("localhost:99999/a", "not a port"),
            ("[::1/a", "no `]`"),
            ("a/b?c", "`?` is not allowed"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
