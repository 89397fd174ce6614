//! Real packets through a real filter, on a machine that each test makes for itself.

mod reach;
mod world;
