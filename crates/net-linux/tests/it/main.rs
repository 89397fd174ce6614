//! Real packets through a real filter, on a machine that each test makes for itself; and the pure halves against each other.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    clippy::items_after_statements,
    clippy::format_push_string,
    clippy::used_underscore_binding,
    clippy::cloned_ref_to_slice_refs,
    reason = "these are tests"
)]

mod agree;
mod attack;
mod egress;
mod frame;
mod golden;
mod life;
mod outside;
mod reach;
mod rootless;
mod shortcut;
mod world;
