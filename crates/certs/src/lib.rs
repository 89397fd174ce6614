//! Certificates for public host names.
//!
//! * [`Authority`] – an authority of this machine's own, for names below `localhost`.
//! * [`Acme`] – servers that give certificates by themselves.
//! * [`Facts`] – what a certificate says: its names, and until when it holds.
//!
//! Invariant: no clock is read here but the one passed in, and no private key is ever shown.

mod acme;
mod asker;
mod authority;
mod facts;

pub use acme::{Acme, AcmeError, Directory, Proof, Shown, Way};
pub use asker::Again;
pub use authority::{Authority, AuthorityError, Pair};
pub use facts::{Facts, FactsError};
