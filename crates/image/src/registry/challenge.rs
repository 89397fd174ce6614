//! What a registry asks for when it answers 401 (RFC 9110 §11.6.1, distribution *token authentication*).

use std::fmt::Write as _;

/// A way to authenticate that Moat knows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token of a token service.
    Bearer {
        /// The token service's address.
        realm: String,
        /// The registry's name there.
        service: Option<String>,
        /// What is to be allowed, where the registry says it.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best challenge of a `WWW-Authenticate` header; `Bearer` before `Basic`.
    pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut basic = false;
        for header in headers {
            let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
            if scheme.eq_ignore_ascii_case("basic") {
                basic = true;
            } else if scheme.eq_ignore_ascii_case("bearer") {
                let parameters = parameters(rest);
                let get = |name: &str| parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone());
                if let Some(realm) = get("realm") {
                    return Some(Self::Bearer { realm, service: get("service"), scope: get("scope") });
                }
            }
        }
        basic.then_some(Self::Basic)
    }
}

/// `key="value, with \" in it", key=token`
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',', '\t']).to_owned();
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = if after.starts_with('"') {
            chars.next();
            let mut end = after.len();
            while let Some((at, char)) = chars.next() {
                match char {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                    other => value.push(other),
                }
            }
            end
        } else {
            let end = after.find(',').unwrap_or(after.len());
            after.get(..end).unwrap_or_default().trim().clone_into(&mut value);
            end
        };
        found.push((key, value));
        rest = after.get(end..).unwrap_or_default().trim_start_matches([',', ' ', '\t']);
    }
    found
}

/// Percent-encodes everything but the unreserved characters of RFC 3986.
pub(super) fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_of_real_registries() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) })
        };
        for (header, want) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/redis:pull""#,
                bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/redis:pull")),
            ),
            (
                r#"bearer realm="https://a/t", scope="repository:a:pull,push" , error="x""#,
                bearer("https://a/t", None, Some("repository:a:pull,push")),
            ),
            (r"Bearer realm=https://a/t,service=s", bearer("https://a/t", Some("s"), None)),
            (r#"Bearer realm="a\"b"#, bearer("a\"b", None, None)),
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            ("BASIC", Some(Challenge::Basic)),
            ("Negotiate", None),
            ("Bearer service=x", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse([header].into_iter()), want, "{header}");
        }
        assert!(matches!(Challenge::parse(["Basic realm=x", "Bearer realm=y"].into_iter()), Some(Challenge::Bearer { .. })));
    }

    #[test]
    fn encoding_leaves_only_the_unreserved() {
        assert_eq!(encode("repository:a/b:pull é&="), "repository%3Aa%2Fb%3Apull%20%C3%A9%26%3D");
    }
}
