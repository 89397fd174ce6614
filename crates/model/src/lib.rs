//! Pure vocabulary of Moat: names, ids, services, policy, verdicts and states.
//!
//! Every other crate speaks in these types. Nothing here does I/O, reads a clock or draws randomness.
//! Invariant: a value of a newtype is valid; each has one constructor that checks.

pub mod diagnostic;
pub mod names;
pub mod net;
pub mod policy;
pub mod secret;
pub mod service;
pub mod state;

pub use diagnostic::{Diagnostic, Severity, Span, Spanned};
pub use names::{InstanceId, LinkName, NameError, ServiceId, Slug};
pub use net::{AddressPair, Endpoint, Family, NetworkId, Proto, ZoneId};
pub use policy::{DenyReason, Peer, RuleId, Verdict};
pub use secret::Secret;
pub use service::{Egress, Limits, NativeRuntime, ServiceKind};
pub use state::{DesiredState, Generation, ProxyHeader, Purpose, Service, StartOrder};
