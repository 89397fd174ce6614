//! An authority of this machine's own. Whoever trusts it (`moat trust`) trusts it for names below `localhost` only: its own
//! certificate says so (RFC 5280 §4.2.1.10), so that its key is worth nothing elsewhere.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use moat_model::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints,
};
use serde::{Deserialize, Serialize};

/// How long the authority lasts, in years.
const YEARS: i64 = 10;
/// How long a certificate of it lasts, in days.
const DAYS: i64 = 90;
/// How long before its end a certificate is made anew, in days.
const RENEW: i64 = 30;

/// A certificate and its key, PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The certificate, then those that signed it.
    pub chain: String,
    /// Its private key.
    pub key: Secret,
}

/// Why no certificate can be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The key that was kept is none, a name is none, or the system gives no randomness.
    #[error("a certificate can't be made")]
    Make(#[from] rcgen::Error),
    /// A clock that is centuries off.
    #[error("the machine's clock is wrong")]
    Clock(#[from] jiff::Error),
}

/// The authority: its certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// What it calls itself.
    name: String,
    pair: Pair,
}

impl Authority {
    /// A new one. `machine` is in its name, so that people can tell it in a list of authorities.
    ///
    /// # Errors
    /// When the system gives no randomness, or the clock is wrong.
    pub fn make(machine: &str, now: Timestamp) -> Result<Self, AuthorityError> {
        let name = format!("Moat on {machine}");
        let key = KeyPair::generate()?;
        let mut params = params(&name);
        lasts(&mut params, now, YEARS.years())?;
        let chain = params.self_signed(&key)?.pem();
        Ok(Self { name, pair: Pair { chain, key: Secret::new(key.serialize_pem()) } })
    }

    /// Its certificate, PEM: what people trust.
    pub fn certificate(&self) -> &str {
        &self.pair.chain
    }

    /// Makes a certificate for a name, and says when it is time for the next.
    ///
    /// # Errors
    /// As [`Authority::make`], and for what is no host name.
    pub fn issue(&self, name: &str, now: Timestamp) -> Result<(Pair, Timestamp), AuthorityError> {
        let issuer = Issuer::new(params(&self.name), KeyPair::from_pem(self.pair.key.expose())?);
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new([name.to_owned()])?;
        leaf.distinguished_name = DistinguishedName::new();
        leaf.distinguished_name.push(DnType::CommonName, name);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        lasts(&mut leaf, now, DAYS.days())?;
        let chain = leaf.signed_by(&key, &issuer)?.pem();
        let renew = now.to_zoned(TimeZone::UTC).checked_add((DAYS - RENEW).days())?.timestamp();
        Ok((Pair { chain, key: Secret::new(key.serialize_pem()) }, renew))
    }
}

/// What the authority is. Everything but its validity, which those that it signs do not depend on.
fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Moat");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints =
        Some(NameConstraints { permitted_subtrees: vec![GeneralSubtree::DnsName("localhost".to_owned())], excluded_subtrees: vec![] });
    params
}

/// Lets a certificate hold from a day ago (clocks differ) until then, in whole days.
fn lasts(params: &mut CertificateParams, now: Timestamp, lasts: jiff::Span) -> Result<(), AuthorityError> {
    let now = now.to_zoned(TimeZone::UTC);
    let day = |time: &jiff::Zoned| {
        let part = |number: i8| u8::try_from(number).unwrap_or(1);
        rcgen::date_time_ymd(i32::from(time.year()), part(time.month()), part(time.day()))
    };
    params.not_before = day(&now.checked_sub(1.day())?);
    params.not_after = day(&now.checked_add(lasts)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Facts;

    #[test]
    fn what_it_makes_says_its_name_and_its_end() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let authority = Authority::make("box", now).unwrap();
        let facts = Facts::of(authority.certificate()).unwrap();
        assert_eq!((facts.issuer.as_str(), facts.until.to_string().as_str()), ("O=Moat, CN=Moat on box", "2036-11-21T00:00:00Z"));
        // As after a restart.
        let kept: Authority = serde_json::from_str(&serde_json::to_string(&authority).unwrap()).unwrap();
        let (pair, renew) = kept.issue("shop.localhost", now).unwrap();
        let facts = Facts::of(&pair.chain).unwrap();
        assert_eq!(facts.names, ["shop.localhost"]);
        assert_eq!(facts.issuer, "O=Moat, CN=Moat on box");
        assert_eq!(facts.until.to_string(), "2027-02-19T00:00:00Z");
        assert_eq!(renew.to_string(), "2027-01-20T12:00:00Z");
        assert!(!format!("{authority:?}{pair:?}").contains("PRIVATE"), "a key is never shown");
        assert!(kept.issue("é", now).is_err(), "what is no name is an error");
    }
}
