//! Real attempts on a machine that each test makes for itself: a host namespace, a router, instances with servers.

mod sabotage;
mod verify;
mod world;
