//! The certificates that are shown: read once, and kept while they are wanted.

use crate::{CertificateSet, NamedCertificate, chain};
use moat_ingress::{Certificate, CertificateError, Certificates};
use moat_model::Secret;
use std::collections::HashMap;

/// What was read before, by chain and key. A certificate that stays is the same one for [`Certificates`], so that
/// connections for several of its names go on being one.
#[derive(Debug, Default)]
pub struct Shown(HashMap<(String, Secret), Certificate>);

impl Shown {
    /// The table of these certificates. One that can't be read is left out.
    pub fn update(&mut self, wanted: &CertificateSet) -> Certificates {
        let before = std::mem::take(&mut self.0);
        let mut table = |certificates: &[NamedCertificate], read: fn(&str, &str) -> Result<Certificate, CertificateError>| {
            let mut by_name = HashMap::new();
            for NamedCertificate { names, chain: pem, key } in certificates {
                let place = (pem.clone(), key.clone());
                let outcome = match before.get(&place).or_else(|| self.0.get(&place)) {
                    Some(known) => Ok(known.clone()),
                    None => read(pem, key.expose()),
                };
                match outcome {
                    Ok(certificate) => {
                        by_name.extend(names.iter().map(|name| (name.clone(), certificate.clone())));
                        self.0.insert(place, certificate);
                    }
                    Err(error) => tracing::error!(?names, "a certificate can't be shown: {}", chain(&error)),
                }
            }
            by_name
        };
        let by_name = table(&wanted.shown, Certificate::from_pem);
        let proofs = table(&wanted.proofs, Certificate::proof_from_pem);
        Certificates { by_name, proofs }
    }
}
