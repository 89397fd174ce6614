//! The engine on the real kernel. Every test has folders and a "host" network namespace of its own; without root they say
//! so and pass.

mod bed;
mod build;
mod data;
mod golden;
mod inside;
mod life;
mod network;
