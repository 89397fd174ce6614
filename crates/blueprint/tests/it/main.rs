//! Tests of reading whole files.

#![expect(clippy::disallowed_methods, reason = "tests read cases and the corpus, and bound the time")]

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod rows;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod typed;
