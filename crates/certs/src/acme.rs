//! Certificates from a server that gives them by itself (ACME, RFC 8555): Let's Encrypt and others.
//!
//! What proves that a name is served here ([`Proof`]) is shown by whoever serves it; a proof holds for HTTP-01 (RFC 8555 §8.3)
//! and, where it comes with a certificate, for TLS-ALPN-01 (RFC 8737).

use crate::Pair;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use moat_model::Secret;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long a server may take to look at a proof, and to sign.
const PATIENCE: Duration = Duration::from_secs(90);

/// Which server, and who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Its directory.
    pub url: String,
    /// Whom it may write to.
    pub contact: Option<String>,
    /// The authority that its own certificate is trusted by, a PEM file; the machine's unless said.
    pub root: Option<PathBuf>,
}

/// How a name is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// By an answer at port 80.
    Http,
    /// By a certificate at port 443.
    Tls,
}

impl Way {
    /// `http` or `tls`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
        }
    }
}

/// What proves that a name is served here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The name.
    pub name: String,
    /// What the server asks for.
    pub token: String,
    /// What it is to be answered.
    pub answer: String,
    /// The certificate that is to be shown to it.
    pub certificate: Option<Pair>,
}

/// A proof that is to be shown, and who waits until it is.
pub type Shown = (Proof, oneshot::Sender<()>);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The server does not answer, or refused.
    #[error("the server of certificates: {0}")]
    Server(String),
    /// It was asked too often (RFC 8555 §6.6).
    #[error("the server of certificates was asked too often: {0}")]
    TooOften(String),
    /// It does not offer the way that was wanted.
    #[error("the server of certificates offers no proof by {}", match .0 { Way::Http => "HTTP", Way::Tls => "TLS" })]
    NoWay(Way),
    /// It found the name to lead elsewhere.
    #[error("`{name}` was not found to lead here: {why}")]
    NotProved {
        /// The name.
        name: String,
        /// What it says.
        why: String,
    },
    /// The certificate for a proof can't be made.
    #[error("the proof can't be made")]
    Proof(#[from] rcgen::Error),
}

impl From<Error> for AcmeError {
    fn from(error: Error) -> Self {
        if let Error::Api(problem) = &error
            && problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:rateLimited")
        {
            return Self::TooOften(problem.to_string());
        }
        Self::Server(error.to_string())
    }
}

/// An account with a server.
#[derive(Clone)]
pub struct Acme(Account);

impl Acme {
    /// The account that `kept` holds, or a new one, which is given too, to be kept.
    ///
    /// # Errors
    /// When the server can't be asked, or refuses.
    pub async fn open(directory: &Directory, kept: Option<&Secret>) -> Result<(Self, Option<Secret>), AcmeError> {
        let builder = match &directory.root {
            Some(root) => Account::builder_with_root(root)?,
            None => Account::builder()?,
        };
        let broken = |error: serde_json::Error| AcmeError::Server(error.to_string());
        if let Some(kept) = kept {
            let credentials: AccountCredentials = serde_json::from_str(kept.expose()).map_err(broken)?;
            return Ok((Self(builder.from_credentials(credentials).await?), None));
        }
        let contact = directory.contact.as_ref().map(|contact| format!("mailto:{contact}"));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let asked = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder.create(&asked, directory.url.clone(), None).await?;
        let kept = Secret::new(serde_json::to_string(&credentials).map_err(broken)?);
        Ok((Self(account), Some(kept)))
    }

    /// Gets a certificate for a name. Each proof is sent to `show`, and the server asked to look once that answers.
    ///
    /// # Errors
    /// When the server can't be asked, refuses, or does not find the name here.
    pub async fn order(&self, name: &str, way: Way, show: &mpsc::UnboundedSender<Shown>) -> Result<Pair, AcmeError> {
        let identifiers = [Identifier::Dns(name.to_owned())];
        let mut order = self.0.new_order(&NewOrder::new(&identifiers)).await?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let kind = match way {
                Way::Http => ChallengeType::Http01,
                Way::Tls => ChallengeType::TlsAlpn01,
            };
            let mut challenge = authorization.challenge(kind).ok_or(AcmeError::NoWay(way))?;
            let answer = challenge.key_authorization();
            let certificate = (way == Way::Tls).then(|| proof_certificate(name, answer.digest().as_ref())).transpose()?;
            let token = challenge.token.clone();
            let proof = Proof { name: name.to_owned(), token, answer: answer.as_str().to_owned(), certificate };
            let (done, shown) = oneshot::channel();
            // Who shows nothing any more will see the server find nothing.
            if show.send((proof, done)).is_ok() {
                let _ = shown.await;
            }
            challenge.set_ready().await?;
        }
        let retries = RetryPolicy::new().timeout(PATIENCE);
        let status = order.poll_ready(&retries).await?;
        if status != OrderStatus::Ready {
            let why = self.why(&mut order).await.unwrap_or_else(|| format!("the order is {status:?}").to_lowercase());
            return Err(AcmeError::NotProved { name: name.to_owned(), why });
        }
        let key = Secret::new(order.finalize().await?);
        let chain = order.poll_certificate(&retries).await?;
        Ok(Pair { chain, key })
    }

    /// What the server found wrong with a proof.
    async fn why(&self, order: &mut instant_acme::Order) -> Option<String> {
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            let state = authorization.refresh().await.ok()?;
            if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
                return Some(problem.detail.clone().unwrap_or_else(|| problem.to_string()));
            }
        }
        None
    }
}

/// The certificate of RFC 8737 §3.
fn proof_certificate(name: &str, digest: &[u8]) -> Result<Pair, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let chain = params.self_signed(&key)?.pem();
    Ok(Pair { chain, key: Secret::new(key.serialize_pem()) })
}
