//! engine-linux.
