//! What is asked about the public side, and its answers.

use moat_model::{Secret, Slug};
use serde::{Deserialize, Serialize};

/// What people ask of certificates.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb")]
pub enum CertificateVerb {
    /// All of them: answers one [`super::Event::Certificates`].
    List,
    /// Shows one from now on, instead of another one for the same names.
    Add {
        /// For these names; empty is those that it is for.
        names: Vec<String>,
        /// PEM: the certificate, then those that signed it.
        chain: String,
        /// PEM: its private key.
        key: Secret,
    },
    /// Shows one no longer.
    Remove {
        /// One of its names.
        name: String,
    },
}

/// A certificate that is shown, or will be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRow {
    /// The names that it is shown for.
    pub names: Vec<String>,
    /// Where it comes from: `file`, `acme` or `local`.
    pub source: String,
    /// Who signed it.
    pub issuer: String,
    /// Until when it holds, RFC 3339.
    pub until: String,
}

/// Public host names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domains {
    /// Each.
    pub domains: Vec<DomainRow>,
    /// What people can do where one is not known to lead here.
    #[serde(default)]
    pub hint: Option<String>,
}

/// A public host name, what DNS must say of it, and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRow {
    /// The name.
    pub name: String,
    /// Its service.
    pub service: Slug,
    /// The name that it sends clients to.
    pub moved_to: Option<String>,
    /// Where its certificate comes from; none is none.
    pub certificate: Option<String>,
    /// Why a server gave none when it was asked last.
    pub problem: Option<String>,
    /// Addresses that DNS gives it now.
    pub found: Vec<String>,
    /// Addresses of this machine that DNS should give it; any of them. Empty where they are not known.
    pub wanted: Vec<String>,
    /// Why DNS could not be asked.
    pub error: Option<String>,
    /// Whether clients get here.
    pub good: bool,
}
