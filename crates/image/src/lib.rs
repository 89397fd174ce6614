//! OCI images: from what a person writes (`redis:7`) to folders that a root file system is mounted from.
//!
//! A [`Reference`] is pulled from a registry, or an archive is loaded, into the [`Store`]; an [`Image`] of the store has its typed
//! [`ImageConfig`] and the unpacked layers, ready to be overlayfs' lower folders.
//!
//! All calls block; a pull downloads on threads of its own. Nothing here trusts what it is given: digests are checked while bytes flow, layers
//! are unpacked beneath their own folder only, and every size has a limit ([`Limits`]).
//!
//! Invariant: whatever moment the process is killed at, the store holds only whole and verified images, and the next call goes on from there.

mod config;
mod credentials;
mod digest;
mod error;
mod limits;
mod load;
mod manifest;
mod platform;
mod progress;
mod pull;
mod reference;
mod registry;
mod room;
mod store;
mod unpack;
mod users;
mod view;

pub use config::{ExposedPort, ImageConfig, PortProtocol};
pub use credentials::{Credentials, DockerConfig};
pub use digest::{Digest, DigestError};
pub use error::ImageError;
pub use limits::Limits;
pub use load::LoadOptions;
pub use platform::Platform;
pub use progress::{LayerStart, Progress};
pub use pull::{Cancel, LayoutImage, Mirror, PullOptions, pull_layout};
pub use reference::{Reference, ReferenceError};
pub use store::{CollectOptions, Collected, Image, ImageId, Listed, Store};
pub use unpack::{LayerProblem, LeftOut, Owners};
pub use users::User;
