//! TLS on the public side: which certificate is shown for which name, and what is agreed with clients.
//!
//! TLS 1.2 and 1.3 with the defaults of rustls, HTTP/2 and HTTP/1.1 by ALPN, sessions resumed by tickets. A client that asks for
//! a name without a certificate is refused in the handshake; one that asks for no name gets the certificate of `localhost`.
//!
//! Invariant: certificates are swapped as a whole; a handshake sees one table.

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;

/// What a server of certificates says in ALPN when it validates a name (RFC 8737 §4).
pub(crate) const ACME_PROTOCOL: &[u8] = b"acme-tls/1";
/// HTTP/2 in ALPN.
pub(crate) const HTTP2: &[u8] = b"h2";
/// Sessions kept for clients of TLS 1.2 that know no tickets.
const SESSIONS: usize = 4096;
/// Whose certificate a client gets that asks for no name.
const UNNAMED: &str = "localhost";

/// A certificate with its chain and its key.
#[derive(Debug, Clone)]
pub struct Certificate(Arc<CertifiedKey>);

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// No certificate in what should be one.
    #[error("there is no PEM certificate in it")]
    NoCertificate,
    /// The certificates can't be read.
    #[error("its certificates can't be read")]
    Chain(#[source] rustls::pki_types::pem::Error),
    /// The key can't be read.
    #[error("its key is no PEM private key")]
    Key(#[source] rustls::pki_types::pem::Error),
    /// Another key's certificate, or a kind of key that is not known.
    #[error("its certificate and its key do not fit")]
    Unfit(#[source] rustls::Error),
}

impl Certificate {
    /// Reads PEM: the certificate first, then those that signed it; and its key (PKCS #8, PKCS #1 or SEC 1).
    ///
    /// # Errors
    /// When either is not what it should be, or they do not belong together.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, CertificateError> {
        let (chain, key) = read(chain, key)?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(CertificateError::Unfit)?;
        Ok(Self(Arc::new(certified)))
    }

    /// The same for one of [`Certificates::proofs`]. What such a one says is critical and for servers of certificates alone
    /// (RFC 8737 §3): nobody else can judge it.
    ///
    /// # Errors
    /// When either is not what it should be.
    pub fn proof_from_pem(chain: &str, key: &str) -> Result<Self, CertificateError> {
        let (chain, key) = read(chain, key)?;
        let key = ring::default_provider().key_provider.load_private_key(key).map_err(CertificateError::Unfit)?;
        Ok(Self(Arc::new(CertifiedKey::new(chain, key))))
    }
}

fn read(chain: &str, key: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CertificateError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().map_err(CertificateError::Chain)?;
    if chain.is_empty() {
        return Err(CertificateError::NoCertificate);
    }
    Ok((chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(CertificateError::Key)?))
}

/// Every certificate, by name.
#[derive(Debug, Default)]
pub struct Certificates {
    /// By lower-case host name, or `*.` and the rest of one: a wildcard stands for one label.
    pub by_name: HashMap<String, Certificate>,
    /// What proves to a server of certificates that a name is served here (RFC 8737), by name.
    pub proofs: HashMap<String, Certificate>,
}

impl Certificates {
    fn find(&self, name: &str) -> Option<&Certificate> {
        self.by_name.get(name).or_else(|| {
            let (_, rest) = name.split_once('.')?;
            self.by_name.get(&format!("*.{rest}"))
        })
    }
}

/// The TLS side of the ingress.
#[derive(Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    /// For clients of PostgreSQL.
    postgres: Arc<ServerConfig>,
    /// For clients of Key Values, who name no protocol.
    keyvalues: Arc<ServerConfig>,
    resolver: Arc<Resolver>,
}

impl Tls {
    /// Without any certificate yet.
    ///
    /// # Errors
    /// When the system gives no randomness for the tickets' key.
    pub fn new() -> Result<Self, rustls::Error> {
        let resolver = Arc::new(Resolver::default());
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&resolver) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = [HTTP2, b"http/1.1", ACME_PROTOCOL].map(<[u8]>::to_vec).to_vec();
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        config.ticketer = ring::Ticketer::new()?;
        let speaking = |protocols: Vec<Vec<u8>>| {
            let mut config = config.clone();
            config.alpn_protocols = protocols;
            Arc::new(config)
        };
        let (postgres, keyvalues) = (speaking(vec![crate::database::PROTOCOL.to_vec()]), speaking(Vec::new()));
        Ok(Self { config: Arc::new(config), postgres, keyvalues, resolver })
    }

    /// Shows these certificates from now on.
    pub fn set(&self, certificates: Certificates) {
        self.resolver.0.store(Arc::new(certificates));
    }

    /// Whether there is a certificate for a name.
    pub fn knows(&self, name: &str) -> bool {
        self.resolver.0.load().find(name).is_some()
    }

    /// Whether both names have the same certificate, so that a client may ask for either on a connection for the other
    /// (RFC 9113 §9.1.1).
    pub(crate) fn is_same(&self, one: &str, other: &str) -> bool {
        let certificates = self.resolver.0.load();
        match (certificates.find(one), certificates.find(other)) {
            (Some(one), Some(other)) => Arc::ptr_eq(&one.0, &other.0),
            (None, _) | (_, None) => false,
        }
    }

    /// The same certificates for clients of PostgreSQL.
    pub(crate) fn postgres(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.postgres)
    }

    /// The same certificates for clients of Key Values.
    pub(crate) fn keyvalues(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.keyvalues)
    }

    pub(crate) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        Arc::clone(&self.config).into()
    }
}

#[derive(Debug, Default)]
struct Resolver(ArcSwap<Certificates>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certificates = self.0.load();
        let name = hello.server_name().unwrap_or(UNNAMED).to_ascii_lowercase();
        let proof = hello.alpn().is_some_and(|mut offered| offered.next() == Some(ACME_PROTOCOL) && offered.next().is_none());
        let found = if proof { certificates.proofs.get(&name) } else { certificates.find(&name) };
        found.map(|found| Arc::clone(&found.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_wildcard_stands_for_one_label_and_an_own_certificate_is_preferred() {
        let certificate = |name| {
            let (chain, key) = made(&[name]);
            Certificate::from_pem(&chain, &key).unwrap()
        };
        let (wild, own) = (certificate("*.example.com"), certificate("shop.example.com"));
        let all = Certificates {
            by_name: HashMap::from([("*.example.com".to_owned(), wild.clone()), ("shop.example.com".to_owned(), own.clone())]),
            proofs: HashMap::new(),
        };
        for (name, want) in [
            ("shop.example.com", Some(&own)),
            ("other.example.com", Some(&wild)),
            ("a.b.example.com", None),
            ("example.com", None),
            ("com", None),
            ("", None),
        ] {
            assert_eq!(all.find(name).map(|found| Arc::as_ptr(&found.0)), want.map(|want| Arc::as_ptr(&want.0)), "{name}");
        }
        let tls = Tls::new().unwrap();
        tls.set(all);
        assert!(tls.is_same("a.example.com", "b.example.com") && !tls.is_same("a.example.com", "shop.example.com"));
        assert!(!tls.is_same("a.b.c", "a.b.c"), "two names without a certificate share none");
        assert!(tls.knows("a.example.com") && !tls.knows("catalog"));
    }

    #[test]
    fn a_proof_says_what_only_its_server_knows() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["shop.test".to_owned()]).unwrap();
        params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&[7; 32])];
        let (chain, key) = (params.self_signed(&key).unwrap().pem(), key.serialize_pem());
        assert!(matches!(Certificate::from_pem(&chain, &key), Err(CertificateError::Unfit(_))));
        assert!(Certificate::proof_from_pem(&chain, &key).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let (chain, key) = made(&["a.test"]);
        let (_, other) = made(&["b.test"]);
        let why = |chain: &str, key: &str| Certificate::from_pem(chain, key).unwrap_err().to_string();
        assert_eq!(why("", &key), "there is no PEM certificate in it");
        assert_eq!(why(&key, &key), "there is no PEM certificate in it");
        assert_eq!(why(&chain, ""), "its key is no PEM private key");
        assert_eq!(why(&chain, &chain), "its key is no PEM private key");
        assert_eq!(why(&chain, &other), "its certificate and its key do not fit");
    }
}
