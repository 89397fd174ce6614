//! Names and ids; each has one constructor that checks.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;

/// Why a text is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind}: {why}")]
pub struct NameError {
    /// The kind of name that was wanted.
    pub kind: &'static str,
    /// What was given.
    pub text: String,
    /// The rule it breaks.
    pub why: &'static str,
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a text.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                let check: fn(&str) -> Result<(), &'static str> = $check;
                match check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(why) => Err(NameError { kind: $kind, text, why }),
                }
            }
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

fn is_label(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 63 {
        return Err("it must have 1 to 63 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Err("only a-z, 0-9 and `-` are allowed");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("it must not start or end with `-`");
    }
    Ok(())
}

checked_text!(
    /// The DNS label (RFC 1123) of a service: its internal host name and its sub-domain.
    Slug, "DNS label", is_label
);
checked_text!(
    /// A stable service id: `srv-`, `crn-`, `red-` or `dpg-` and 20 characters of a-z, 0-9.
    ServiceId, "service id", is_label
);
checked_text!(
    /// An instance id: the service id, `-`, and five characters.
    InstanceId, "instance id", is_label
);

impl InstanceId {
    /// The id of its service; none where nothing stands before the last `-`.
    pub fn service(&self) -> Option<ServiceId> {
        ServiceId::new(self.as_str().rsplit_once('-')?.0).ok()
    }
}

impl Slug {
    /// Makes a label of free text: lower case, runs of other characters become one `-`, cut to 48 characters so that
    /// a suffix of `-` and four characters still fits. `None` when nothing is left.
    pub fn slugify(text: &str) -> Option<Self> {
        let mut out = String::new();
        for c in text.chars() {
            if c.is_ascii_alphanumeric() {
                out.push(c.to_ascii_lowercase());
            } else if !out.ends_with('-') && !out.is_empty() {
                out.push('-');
            }
        }
        out.truncate(48);
        Self::new(out.trim_matches('-')).ok()
    }
}

/// The name of an instance's link in the router namespace: `mt` and the IPv4 address in hexadecimal (10 characters).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkName(String);

impl LinkName {
    /// The link of the instance with this address; unique because addresses are.
    pub fn of(address: Ipv4Addr) -> Self {
        Self(format!("mt{:08x}", u32::from(address)))
    }
    /// The name that this text is; `None` for any other link's name.
    pub fn parse(text: &str) -> Option<Self> {
        let address = u32::from_str_radix(text.strip_prefix("mt")?, 16).ok()?;
        Some(Self::of(address.into())).filter(|name| name.0 == text)
    }
    /// The IPv4 address it is made of.
    pub fn address(&self) -> Ipv4Addr {
        let hex = self.0.strip_prefix("mt").unwrap_or_default();
        u32::from_str_radix(hex, 16).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from)
    }
    /// The text, at most 15 bytes as the kernel wants (IFNAMSIZ).
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_is_made_of_what_people_write() {
        for (text, slug) in [
            ("The-Hub-Api", "the-hub-api"),
            ("syncServer", "syncserver"),
            ("private database", "private-database"),
            ("a..b__c", "a-b-c"),
            ("-x-", "x"),
        ] {
            assert_eq!(Slug::slugify(text).unwrap().as_str(), slug);
        }
        assert_eq!(Slug::slugify("---"), None);
    }

    #[test]
    fn a_dot_does_not_slip_through() {
        assert!(Slug::new("a.b").is_err());
        assert!(Slug::new("").is_err());
        assert!(serde_json_like("a b").is_err());
    }

    fn serde_json_like(text: &str) -> Result<Slug, NameError> {
        Slug::try_from(text.to_owned())
    }
}
