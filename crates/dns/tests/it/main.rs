//! Tests of moat-dns: rows, hostile bytes, and `serve` on real sockets.

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod libc;
#[cfg(test)]
mod live;
#[cfg(test)]
mod rows;
#[cfg(test)]
mod support;
#[cfg(test)]
mod upstream;
