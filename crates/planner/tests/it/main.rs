//! The planner seen from outside: blueprints as text go in, states, verdicts and plans come out.

mod check;
mod corpus;
mod diff;
mod explain;
mod policy;
mod random;
mod reach;
mod resolve;
mod support;
