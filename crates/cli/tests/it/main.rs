//! The `moat` command as a person uses it: the real binary, real namespaces, real servers, each test in a "host" of its own.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "these are tests")]

mod backups;
mod browser;
mod builds;
mod cycles;
mod deploys;
mod docker;
mod edge;
mod faults;
mod groups;
mod guides;
mod host;
mod images;
mod languages;
mod load;
mod logs;
mod machine;
mod numbers;
mod offline;
mod order;
mod outside;
mod outside_keyvalue;
mod plane;
mod postgres;
mod proxied;
mod push;
mod rootless;
mod run;
mod sabotage;
mod serve;
mod sites;
mod sleep;
mod stores;
mod systems;
mod traces;
mod verbs;
