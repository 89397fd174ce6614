//! The store on a real disk: other processes, kills, damage, lost keys.
#![expect(clippy::unwrap_used, reason = "these are tests")]

mod damage;
mod kill;
mod secrets;

use moat_model::Generation;
use moat_store::{Changes, Documents, Store};
use std::collections::BTreeMap;

/// The one aggregate of these tests.
pub type Texts = BTreeMap<String, String>;

/// Writes what differs.
pub fn write(store: &mut Store, generation: u64, before: &Texts, now: &Texts) -> Result<(), moat_store::StoreError> {
    let mut changes = Changes::default();
    changes.map("texts", before, now)?;
    store.write(Generation(generation), &changes)
}

/// What is stored of it.
pub fn read(mut documents: Documents) -> Texts {
    documents.map("texts").unwrap()
}

/// Made of pairs.
pub fn texts(pairs: &[(&str, &str)]) -> Texts {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
