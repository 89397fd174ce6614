//! What can go wrong with an image, in words for the person who named it.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::{Digest, DigestError};
use crate::platform::Platform;
use crate::reference::{Reference, ReferenceError};
use crate::unpack::LayerProblem;

/// A failed operation on an image or on the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The text is no image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The text is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The registry has no such repository, tag or digest.
    #[error("the registry `{registry}` has no image `{reference}`")]
    NotFound {
        /// What was asked for.
        reference: Box<Reference>,
        /// Who was asked.
        registry: String,
    },
    /// The registry wants other credentials.
    #[error("the registry `{registry}` refuses `{reference}`: {reason}")]
    Denied {
        /// What was asked for.
        reference: Box<Reference>,
        /// Who refused.
        registry: String,
        /// The registry's words, or whether credentials were sent.
        reason: String,
    },
    /// The registry can't be reached, or does not speak its protocol.
    #[error("the registry `{registry}` fails: {reason}")]
    Registry {
        /// Who failed.
        registry: String,
        /// How, after all attempts.
        reason: String,
    },
    /// The credentials can't be read.
    #[error("the credentials for `{registry}` can't be used: {reason}")]
    Credentials {
        /// For which registry they are.
        registry: String,
        /// What is wrong; never the secret.
        reason: String,
    },
    /// The manifest, index or config is not one of a Linux image.
    #[error("`{what}` is not an image that Moat can run: {reason}")]
    Unsupported {
        /// A reference, digest or path.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No image of the index runs here.
    #[error("`{what}` is not made for `{wanted}`, only for {}", offered_text(offered))]
    Platform {
        /// A reference or path.
        what: String,
        /// The platform asked for.
        wanted: Platform,
        /// What there is.
        offered: Vec<Platform>,
    },
    /// The content is not what its digest says.
    #[error("{what} has the digest `{actual}`, not `{expected}`: it was damaged or exchanged on its way")]
    Mismatch {
        /// Which content.
        what: String,
        /// What the manifest or reference says.
        expected: Digest,
        /// What was received.
        actual: Digest,
    },
    /// A layer can't be unpacked safely.
    #[error("the layer `{layer}` can't be unpacked")]
    Layer {
        /// The diff id of the layer.
        layer: Digest,
        /// What is wrong with it.
        #[source]
        source: LayerProblem,
    },
    /// Something is greater than allowed.
    #[error("{what} has {actual}, more than the {limit} allowed")]
    Limit {
        /// Which content.
        what: String,
        /// With its unit.
        actual: String,
        /// With its unit.
        limit: String,
    },
    /// The disk has no room for it.
    #[error(
        "there is no room for {what}: it needs at least {}, and of {} free on the disk of `{}` {} have to stay free",
        megabytes(*needs), format!("{} MB", free / 1_000_000), path.display(), megabytes(*left)
    )]
    NoRoom {
        /// Which image.
        what: String,
        /// Bytes that it takes, as far as its layers say.
        needs: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes of these that are kept free.
        left: u64,
        /// A folder of the disk.
        path: PathBuf,
    },
    /// The archive or layout that was to be loaded is damaged or of another kind.
    #[error("`{}` can't be loaded: {reason}", path.display())]
    Archive {
        /// What was to be loaded.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The image does not say such a user or group, or says it wrongly.
    #[error("the user `{user}` can't be used: {reason}")]
    User {
        /// As written in the image or blueprint.
        user: String,
        /// Why.
        reason: String,
    },
    /// The store has no such image.
    #[error("the store has no image `{0}`")]
    Unknown(Digest),
    /// The operation was cancelled by its caller.
    #[error("cancelled")]
    Cancelled,
    /// The operating system refused something.
    #[error("can't {doing} `{}`", path.display())]
    Io {
        /// A verb, such as `write`.
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { reference, .. } if reference.registry() == "docker.io" => Some(
                "check the name and tag; an image of another registry is written with its host, such as `ghcr.io/owner/name:tag`".into(),
            ),
            Self::NotFound { .. } => Some("check the name and tag; a private repository looks missing without credentials".into()),
            Self::Denied { registry, .. } => {
                Some(format!("log in with `docker login {registry}`, or name a registry credential for this service"))
            }
            Self::Credentials { .. } => {
                Some("look at the Docker config file (`$DOCKER_CONFIG/config.json`, `~/.docker/config.json`)".into())
            }
            Self::Platform { wanted, .. } => Some(format!("use a tag whose image is built for `{wanted}`")),
            Self::Mismatch { .. } => Some("try again; if it stays, the registry or a proxy on the way serves wrong content".into()),
            Self::Registry { .. } => {
                Some("check the registry's host name, the network and the proxy settings; what was downloaded is kept and continued".into())
            }
            Self::NoRoom { .. } => {
                Some("make room on the disk of the state folder: `moat image prune` removes images and downloads that nothing uses".into())
            }
            Self::Limit { .. } => Some("an image that is really that large needs a higher limit in the settings".into()),
            Self::Reference(_)
            | Self::Digest(_)
            | Self::Unsupported { .. }
            | Self::Layer { .. }
            | Self::Archive { .. }
            | Self::User { .. }
            | Self::Unknown(_)
            | Self::Cancelled
            | Self::Io { .. } => None,
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

fn offered_text(offered: &[Platform]) -> String {
    match offered {
        [] => "no platform at all".into(),
        some => some.iter().map(|platform| format!("`{platform}`")).collect::<Vec<_>>().join(", "),
    }
}

/// Adds what was done to what, to an error of the operating system.
pub(crate) trait Doing<T> {
    fn doing(self, verb: &'static str, path: &Path) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|error| ImageError::Io { doing, path: path.to_owned(), source: error.into() })
    }
}
