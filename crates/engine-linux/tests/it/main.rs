//! The engine on the real kernel. Every test has folders and a "host" network namespace of its own; without root they say
//! so and pass.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a failed test panics, a skipped one says so")]

mod bed;
mod build;
mod data;
mod doctor;
mod faults;
mod golden;
mod images;
mod inside;
mod life;
mod network;
mod postgres;
mod recipe;
mod sources;
