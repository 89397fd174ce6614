//! The planner seen from outside: blueprints as text go in, states, verdicts and plans come out.

#![expect(clippy::disallowed_methods, reason = "tests read the corpus and the examples")]

#[cfg(test)]
mod check;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod databases;
#[cfg(test)]
mod diff;
#[cfg(test)]
mod explain;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod push;
#[cfg(test)]
mod random;
#[cfg(test)]
mod reach;
#[cfg(test)]
mod resolve;
#[cfg(test)]
mod sites;
#[cfg(test)]
mod support;
