//! Certificates from a server that gives them by itself (ACME, RFC 8555): Let's Encrypt and others.
//!
//! What proves that a name is served here ([`Proof`]) is shown by whoever serves it; a proof holds for HTTP-01 (RFC 8555 §8.3)
//! and, where it comes with a certificate, for TLS-ALPN-01 (RFC 8737).

use crate::Pair;
use crate::asker::{Again, Asker, Refusal};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use moat_model::Secret;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use serde::{Deserialize, Serialize};
use std::error::Error as _;
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
    /// It was asked too often (RFC 8555 §6.6), or has too much to do.
    #[error("the server of certificates was asked too often: {why}")]
    TooOften {
        /// What it says.
        why: String,
        /// When it may be asked again, where it says that.
        again: Option<Again>,
    },
    /// It was not done in time.
    #[error("the server of certificates was not done within {} minutes", .0.as_secs() / 60)]
    Late(Duration),
    /// The file with the authority that it is trusted by can't be used.
    #[error("`{path}`, the authority of the server of certificates, can't be read: {why}")]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
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
            return Self::TooOften { why: problem.to_string(), again: None };
        }
        let mut why = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            // Some errors say what caused them themselves.
            let text = error.to_string();
            if !why.ends_with(&text) {
                why = format!("{why}: {text}");
            }
            cause = error.source();
        }
        Self::Server(why)
    }
}

/// An account with a server.
#[derive(Clone)]
pub struct Acme {
    account: Account,
    refusal: Refusal,
}

impl Acme {
    /// The account that `kept` holds, or a new one, which is given too, to be kept. Each answer of the server may take `patience`.
    ///
    /// # Errors
    /// When the server can't be asked, or refuses.
    pub async fn open(directory: &Directory, kept: Option<&Secret>, patience: Duration) -> Result<(Self, Option<Secret>), AcmeError> {
        let asker = Asker::new(directory.root.as_deref(), patience)?;
        let refusal = asker.refusal();
        match account(directory, kept, asker).await {
            Ok((account, new)) => Ok((Self { account, refusal }, new)),
            Err(error) => Err(refusal.explain(error)),
        }
    }

    /// Whom the server may write to from now on; none is nobody.
    ///
    /// # Errors
    /// When the server can't be asked, or refuses.
    pub async fn set_contact(&self, contact: Option<&str>) -> Result<(), AcmeError> {
        let contact = addresses(contact);
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        self.account.update_contacts(&contact).await.map_err(|error| self.refusal.explain(error.into()))
    }

    /// Gets a certificate for a name. Each proof is sent to `show`, and the server asked to look once that answers.
    ///
    /// # Errors
    /// When the server can't be asked, refuses, or does not find the name here.
    pub async fn order(&self, name: &str, way: Way, show: &mpsc::UnboundedSender<Shown>) -> Result<Pair, AcmeError> {
        self.try_order(name, way, show).await.map_err(|error| self.refusal.explain(error))
    }

    async fn try_order(&self, name: &str, way: Way, show: &mpsc::UnboundedSender<Shown>) -> Result<Pair, AcmeError> {
        let identifiers = [Identifier::Dns(name.to_owned())];
        let mut order = self.account.new_order(&NewOrder::new(&identifiers)).await?;
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

/// A kept account, or a new one, with what is to be kept of it.
async fn account(directory: &Directory, kept: Option<&Secret>, client: Asker) -> Result<(Account, Option<Secret>), AcmeError> {
    let builder = Account::builder_with_http(Box::new(client));
    let broken = |error: serde_json::Error| AcmeError::Server(error.to_string());
    if let Some(kept) = kept {
        let credentials: AccountCredentials = serde_json::from_str(kept.expose()).map_err(broken)?;
        return Ok((builder.from_credentials(credentials).await?, None));
    }
    let contact = addresses(directory.contact.as_deref());
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let asked = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder.create(&asked, directory.url.clone(), None).await?;
    Ok((account, Some(Secret::new(serde_json::to_string(&credentials).map_err(broken)?))))
}

/// A contact as servers take it (RFC 8555 §7.3).
fn addresses(contact: Option<&str>) -> Vec<String> {
    contact.map(|contact| format!("mailto:{contact}")).into_iter().collect()
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
