//! Tests of moat-ingress: real connections on loopback, raw clients and instances of our own.

#[cfg(test)]
mod calls;
#[cfg(test)]
mod coding;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod endless;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod floods;
#[cfg(test)]
mod frames;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod handshakes;
#[cfg(test)]
mod holding;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod http2;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod outside;
#[cfg(test)]
mod passing;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod proxies;
#[cfg(test)]
mod repeats;
#[cfg(test)]
mod routing;
#[cfg(test)]
mod secure;
#[cfg(test)]
mod smuggling;
#[cfg(test)]
mod support;
#[cfg(test)]
mod upgrades;
#[cfg(test)]
mod websockets;
