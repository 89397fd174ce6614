//! Tests of moat-ingress: real connections on loopback, raw clients and instances of our own.

#[cfg(test)]
mod coding;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod holding;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod http2;
#[cfg(test)]
mod passing;
#[cfg(test)]
mod secure;
#[cfg(test)]
mod support;
#[cfg(test)]
mod upgrades;
