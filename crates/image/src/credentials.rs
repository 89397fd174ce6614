//! Who asks a registry: given credentials, the Docker config file, and credential helper programs.
//!
//! Source of the file's format: docker/cli `config.json`, docker/docker-credential-helpers (protocol of `docker-credential-NAME get`).
//! Invariant: a secret is never in `Debug`, an error or an argument list.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine as _;
use serde::Deserialize;

use crate::error::ImageError;

/// What is shown to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user name and a password or access token.
    Basic {
        /// The user's name.
        user: String,
        /// The secret.
        password: String,
    },
    /// A refresh token of the registry's token service (`identitytoken` of the Docker config file).
    Refresh(String),
    /// A bearer token that is sent as it is (`registrytoken` of the Docker config file).
    Bearer(String),
}

impl Credentials {
    /// A user name and a password.
    pub fn basic(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Basic { user: user.into(), password: password.into() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { user, .. } => f.debug_struct("Basic").field("user", user).finish_non_exhaustive(),
            Self::Refresh(_) => f.write_str("Refresh(…)"),
            Self::Bearer(_) => f.write_str("Bearer(…)"),
        }
    }
}

/// Where the Docker config file is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum DockerConfig {
    /// `$REGISTRY_AUTH_FILE`, else `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`; a missing file has no credentials.
    #[default]
    Environment,
    /// This file, which must exist.
    File(PathBuf),
    /// No file is read.
    None,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl DockerConfig {
    /// The credentials for a registry's repository, if the file has some.
    ///
    /// As in containers-auth.json(5), an entry for `host/path` is preferred to one for `host`.
    pub fn credentials(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, ImageError> {
        let fail = |reason: String| ImageError::Credentials { registry: registry.to_owned(), reason };
        let Some((path, must_exist)) = self.path() else { return Ok(None) };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => return Ok(None),
            Err(error) => return Err(fail(format!("can't read `{}`: {error}", path.display()))),
        };
        // The parser's message may quote the file, so only the place is told.
        let file: File = serde_json::from_str(&text)
            .map_err(|error| fail(format!("`{}` is not valid at line {}, column {}", path.display(), error.line(), error.column())))?;
        file.credentials(registry, repository).map_err(fail)
    }

    fn path(&self) -> Option<(PathBuf, bool)> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        match self {
            Self::None => None,
            Self::File(path) => Some((path.clone(), true)),
            Self::Environment => set("REGISTRY_AUTH_FILE")
                .or_else(|| set("DOCKER_CONFIG").map(|folder| folder.join("config.json")))
                .or_else(|| set("HOME").map(|home| home.join(".docker/config.json")))
                .map(|path| (path, false)),
        }
    }
}

impl File {
    fn credentials(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, String> {
        for name in names(registry, repository) {
            if let Some((key, helper)) = self.cred_helpers.iter().find(|(key, _)| bare(key) == name) {
                return ask_helper(helper, key);
            }
            if let Some((_, entry)) = self.auths.iter().find(|(key, _)| bare(key) == name)
                && let Some(credentials) = entry.credentials()?
            {
                return Ok(Some(credentials));
            }
        }
        if self.creds_store.is_empty() {
            return Ok(None);
        }
        // Docker itself stores its hub under this address.
        ask_helper(&self.creds_store, if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry })
    }
}

/// `host/a/b`, `host/a`, `host`: the most exact first.
fn names(registry: &str, repository: &str) -> Vec<String> {
    let mut name = format!("{registry}/{repository}");
    let mut names = vec![name.clone()];
    while let Some(cut) = name.rfind('/') {
        name.truncate(cut);
        names.push(name.clone());
    }
    names
}

/// A key without scheme and API version, with Docker Hub's old addresses as `docker.io`.
fn bare(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key).trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => key.to_owned(),
    }
}

impl Entry {
    fn credentials(&self) -> Result<Option<Credentials>, String> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::Refresh(self.identitytoken.clone())));
        }
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credentials::Bearer(self.registrytoken.clone())));
        }
        if self.auth.is_empty() {
            return Ok((!self.username.is_empty()).then(|| Credentials::basic(&self.username, &self.password)));
        }
        let wrong = || "its `auth` is not base64 of `user:password`".to_owned();
        let decoded = base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).map_err(|_| wrong())?;
        let decoded = String::from_utf8(decoded).map_err(|_| wrong())?;
        let (user, password) = decoded.split_once(':').ok_or_else(wrong)?;
        Ok(Some(Credentials::basic(user, password.trim_end_matches('\0'))))
    }
}

/// Runs `docker-credential-NAME get`; the server's name goes in on stdin, the secret comes back on stdout.
fn ask_helper(name: &str, server: &str) -> Result<Option<Credentials>, String> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(format!("`{name}` is not the name of a credential helper"));
    }
    let program = format!("docker-credential-{name}");
    let failed = |error: std::io::Error| format!("`{program}` can't be run: {error}");
    let mut child =
        Command::new(&program).arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading is judged by its answer.
        let _ = stdin.write_all(server.as_bytes());
    }
    let mut answer = String::new();
    let read = child.stdout.take().map(|stdout| stdout.take(1 << 20).read_to_string(&mut answer));
    let status = child.wait().map_err(failed)?;
    read.transpose().map_err(failed)?;
    if !status.success() {
        // The protocol's way to say that there are none.
        if answer.contains("credentials not found") {
            return Ok(None);
        }
        return Err(format!("`{program} get` fails ({status})"));
    }
    let answer: HelperAnswer =
        serde_json::from_str(&answer).map_err(|_| format!("`{program} get` answers something else than its protocol says"))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::Refresh(answer.secret),
        _ => Credentials::basic(answer.username, answer.secret),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_exact_entry_wins_and_old_keys_are_known() {
        let file: File = serde_json::from_str(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnB3OjE="},
                "ghcr.io": {"username": "u", "password": "p"},
                "ghcr.io/team/app": {"auth": "dGVhbTp4"},
                "https://reg.example.com/v2/": {"identitytoken": "refresh"},
                "old.example.com": {},
                "bad.example.com": {"auth": "%%"}},
              "HttpHeaders": {"X": "y"}}"#,
        )
        .unwrap();
        for (registry, repository, want) in [
            ("docker.io", "library/redis", Some(Credentials::basic("hub", "pw:1"))),
            ("ghcr.io", "other", Some(Credentials::basic("u", "p"))),
            ("ghcr.io", "team/app", Some(Credentials::basic("team", "x"))),
            ("ghcr.io", "team/app/sub", Some(Credentials::basic("team", "x"))),
            ("ghcr.io", "team/app2", Some(Credentials::basic("u", "p"))),
            ("reg.example.com", "a", Some(Credentials::Refresh("refresh".into()))),
            ("old.example.com", "a", None),
            ("unknown.example.com", "a", None),
        ] {
            assert_eq!(file.credentials(registry, repository).unwrap(), want, "{registry}/{repository}");
        }
        assert!(file.credentials("bad.example.com", "a").unwrap_err().contains("base64"));
    }

    #[test]
    fn a_secret_is_never_shown() {
        for credentials in [Credentials::basic("u", "s3cret"), Credentials::Refresh("s3cret".into()), Credentials::Bearer("s3cret".into())]
        {
            assert!(!format!("{credentials:?}").contains("s3cret"));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, r#"{"auths": {"a": {"auth": s3cret}}}"#).unwrap();
        let error = DockerConfig::File(path).credentials("a", "b").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("s3cret"), "{error}");
    }

    #[test]
    fn a_helpers_name_is_no_path() {
        assert!(ask_helper("../evil", "x").unwrap_err().contains("not the name"));
        assert!(ask_helper("surely-not-installed-here", "x").unwrap_err().contains("can't be run"));
    }
}
