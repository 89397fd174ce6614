//! What a certificate says.

use jiff::Timestamp;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

/// What is worth knowing of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Host names that it is for, in lower case: `shop.example.com`, `*.example.com`.
    pub names: Vec<String>,
    /// Since when it holds.
    pub since: Timestamp,
    /// Until when it holds.
    pub until: Timestamp,
    /// Who signed it.
    pub issuer: String,
}

/// Why a certificate says nothing.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// No PEM certificate.
    #[error("there is no PEM certificate in it")]
    NoCertificate,
    /// It can't be read.
    #[error("its certificate can't be read: {0}")]
    Unreadable(String),
}

impl Facts {
    /// Reads the first certificate of a PEM text.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    pub fn of(chain: &str) -> Result<Self, FactsError> {
        let unreadable = |error: &dyn std::fmt::Display| FactsError::Unreadable(error.to_string());
        let mut blocks = Pem::iter_from_buffer(chain.as_bytes()).filter_map(Result::ok);
        let block = blocks.find(|block| block.label == "CERTIFICATE").ok_or(FactsError::NoCertificate)?;
        let certificate = block.parse_x509().map_err(|error| unreadable(&error))?;
        let alternatives = certificate.subject_alternative_name().map_err(|error| unreadable(&error))?;
        let names = alternatives
            .iter()
            .flat_map(|found| &found.value.general_names)
            .filter_map(|name| if let GeneralName::DNSName(name) = name { Some(name.to_ascii_lowercase()) } else { None });
        let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|error| unreadable(&error));
        Ok(Self {
            names: names.collect(),
            since: time(certificate.validity().not_before.timestamp())?,
            until: time(certificate.validity().not_after.timestamp())?,
            issuer: certificate.issuer().to_string(),
        })
    }

    /// Whether it is for this name.
    pub fn covers(&self, name: &str) -> bool {
        self.names.iter().any(|own| covers(own, name))
    }
}

/// Whether a certificate's name stands for a host name: the same one, or a wildcard for exactly one label (RFC 6125 §6.4.3).
fn covers(own: &str, name: &str) -> bool {
    match own.strip_prefix("*.") {
        Some(rest) => {
            name == own || name.split_once('.').is_some_and(|(label, parent)| parent == rest && !label.is_empty() && label != "*")
        }
        None => own == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (own, name, want) in [
            ("a.test", "a.test", true),
            ("a.test", "b.a.test", false),
            ("*.a.test", "b.a.test", true),
            ("*.a.test", "*.a.test", true),
            ("*.a.test", "a.test", false),
            ("*.a.test", "c.b.a.test", false),
            ("*.a.test", ".a.test", false),
            ("b.a.test", "*.a.test", false),
        ] {
            assert_eq!(covers(own, name), want, "{own} for {name}");
        }
    }

    #[test]
    fn what_is_none_is_said() {
        assert!(matches!(Facts::of(""), Err(FactsError::NoCertificate)));
        assert!(matches!(Facts::of("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), Err(FactsError::Unreadable(_))));
    }
}
