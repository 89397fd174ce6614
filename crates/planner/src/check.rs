//! The linter: what can be said about one blueprint file without anything else.

use crate::memory::Memory;
use crate::resolve::{GitFacts, Input, Settings, Sight, judge};
use moat_blueprint::Blueprint;
use moat_model::Diagnostic;
use std::collections::BTreeMap;
use std::path::Path;

/// Everything there is to say about one file beyond its reading, by place.
///
/// It resolves the file as `up` would, with a memory that is thrown away. What the file does not have is a notice here, since
/// another file or the person at the terminal may give it, and an error in [`resolve`](crate::resolve::resolve).
pub fn check(blueprint: &Blueprint) -> Vec<Diagnostic> {
    let (given, files) = (BTreeMap::new(), BTreeMap::new());
    let input = Input { path: Path::new(""), source: Path::new(""), blueprint, given: &given, files: &files, git: GitFacts::default() };
    // Ids and secrets of a state that nobody runs: any will do, as long as they differ.
    let mut count = 0_u64;
    let mut random = || {
        count += 1;
        let mut bytes = [0; 32];
        bytes[8..16].copy_from_slice(&count.to_be_bytes());
        bytes
    };
    let outcome = judge(&[input], &mut Memory::default(), &mut random, &Settings::default(), Sight::File);
    outcome.diagnostics.into_iter().map(|(_, diagnostic)| diagnostic).collect()
}
