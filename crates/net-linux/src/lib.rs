//! net-linux.
