//! What this machine has of what Moat needs.
