//! The `moat` command as a person uses it: the real binary, real namespaces, real servers, each test in a "host" of its own.

mod faults;
mod host;
mod offline;
mod run;
mod sabotage;
