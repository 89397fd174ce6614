//! Aggregates as documents: each entry of a map, each element of a set, each field of a structure is a row of its own.
//!
//! [`Changes`] compares what was written last with what is now and holds the rows that differ; [`Documents`] is what was read.
//! An aggregate is written and read back by the pair of the same name: [`Changes::map`] and [`Documents::map`], and so on.

use crate::StoreError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Rows to write: the JSON of a document, or `None` where it goes.
#[derive(Debug, Default)]
pub struct Changes {
    pub(crate) rows: Vec<(&'static str, String, Option<Vec<u8>>)>,
}

impl Changes {
    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A map: a document for each entry. Keys are texts in JSON.
    pub fn map<K, V>(&mut self, aggregate: &'static str, before: &BTreeMap<K, V>, now: &BTreeMap<K, V>) -> Result<(), StoreError>
    where
        K: Ord + Serialize,
        V: PartialEq + Serialize,
    {
        for key in before.keys().filter(|key| !now.contains_key(key)) {
            self.rows.push((aggregate, text(aggregate, key)?, None));
        }
        for (key, value) in now.iter().filter(|(key, value)| before.get(key) != Some(value)) {
            let key = text(aggregate, key)?;
            let body = serde_json::to_vec(value).map_err(StoreError::document(aggregate, &key))?;
            self.rows.push((aggregate, key, Some(body)));
        }
        Ok(())
    }

    /// A set: an empty document for each element.
    pub fn set<K: Ord + Serialize>(&mut self, aggregate: &'static str, before: &BTreeSet<K>, now: &BTreeSet<K>) -> Result<(), StoreError> {
        for gone in before.difference(now) {
            self.rows.push((aggregate, text(aggregate, gone)?, None));
        }
        for new in now.difference(before) {
            self.rows.push((aggregate, text(aggregate, new)?, Some(b"null".to_vec())));
        }
        Ok(())
    }

    /// A structure: a document for each of its fields.
    pub fn fields<T: PartialEq + Serialize>(&mut self, aggregate: &'static str, before: &T, now: &T) -> Result<(), StoreError> {
        if before == now {
            return Ok(());
        }
        self.map(aggregate, &object(aggregate, before)?, &object(aggregate, now)?)
    }
}

/// What is stored: JSON by aggregate and key.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    pub(crate) rows: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

impl Documents {
    /// All of them as one JSON object, by aggregate and key.
    pub fn to_json(&self) -> Result<Value, StoreError> {
        let mut all = Map::new();
        for (aggregate, rows) in &self.rows {
            let mut list = Map::new();
            for (key, body) in rows {
                list.insert(key.clone(), serde_json::from_slice(body).map_err(StoreError::document(aggregate, key))?);
            }
            all.insert(aggregate.clone(), Value::Object(list));
        }
        Ok(Value::Object(all))
    }

    /// What [`Self::to_json`] gave.
    pub fn from_json(all: BTreeMap<String, BTreeMap<String, Value>>) -> Self {
        let row = |(key, body): (String, Value)| (key, body.to_string().into_bytes());
        Self { rows: all.into_iter().map(|(aggregate, rows)| (aggregate, rows.into_iter().map(row).collect())).collect() }
    }

    /// Changes them, as a store does.
    pub fn apply(&mut self, changes: &Changes) {
        for (aggregate, key, body) in &changes.rows {
            let rows = self.rows.entry((*aggregate).to_owned()).or_default();
            match body {
                Some(body) => drop(rows.insert(key.clone(), body.clone())),
                None => drop(rows.remove(key)),
            }
        }
    }

    /// Takes a map.
    pub fn map<K, V>(&mut self, aggregate: &str) -> Result<BTreeMap<K, V>, StoreError>
    where
        K: Ord + DeserializeOwned,
        V: DeserializeOwned,
    {
        let rows = self.rows.remove(aggregate).unwrap_or_default();
        rows.into_iter()
            .map(|(key, body)| {
                let value = serde_json::from_slice(&body).map_err(StoreError::document(aggregate, &key))?;
                Ok((self::key(aggregate, key)?, value))
            })
            .collect()
    }

    /// Takes a set.
    pub fn set<K: Ord + DeserializeOwned>(&mut self, aggregate: &str) -> Result<BTreeSet<K>, StoreError> {
        let rows = self.rows.remove(aggregate).unwrap_or_default();
        rows.into_keys().map(|key| self::key(aggregate, key)).collect()
    }

    /// Takes a structure; one that was never written is made of no fields.
    pub fn fields<T: DeserializeOwned>(&mut self, aggregate: &str) -> Result<T, StoreError> {
        let fields: Map<String, Value> = self.map(aggregate)?.into_iter().collect();
        serde_json::from_value(Value::Object(fields)).map_err(StoreError::document(aggregate, ""))
    }
}

fn text<K: Serialize>(aggregate: &str, key: &K) -> Result<String, StoreError> {
    let text = serde_json::to_value(key).and_then(serde_json::from_value);
    text.map_err(StoreError::document(aggregate, ""))
}

fn key<K: DeserializeOwned>(aggregate: &str, text: String) -> Result<K, StoreError> {
    let shown = text.clone();
    serde_json::from_value(Value::String(text)).map_err(StoreError::document(aggregate, &shown))
}

fn object<T: Serialize>(aggregate: &'static str, value: &T) -> Result<BTreeMap<String, Value>, StoreError> {
    let fields = serde_json::to_value(value).and_then(serde_json::from_value);
    fields.map_err(StoreError::document(aggregate, ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::path::PathBuf;

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Thing {
        a: u32,
        b: Option<String>,
    }

    fn apply(documents: &mut Documents, changes: &Changes) -> usize {
        documents.apply(changes);
        changes.rows.len()
    }

    #[test]
    fn what_differs_is_written_and_read_back() {
        let mut documents = Documents::default();
        let none: BTreeMap<PathBuf, Thing> = BTreeMap::new();
        let mut map = BTreeMap::from([(PathBuf::from("/a b/ü"), Thing { a: 1, b: None }), (PathBuf::from("/c"), Thing::default())]);
        let mut changes = Changes::default();
        changes.map("m", &none, &map).unwrap();
        changes.set("s", &BTreeSet::new(), &BTreeSet::from(["x".to_owned(), "y".to_owned()])).unwrap();
        changes.fields("f", &Thing::default(), &Thing { a: 2, b: Some("z".to_owned()) }).unwrap();
        assert_eq!(apply(&mut documents, &changes), 6);

        let before = map.clone();
        map.get_mut(&PathBuf::from("/c")).unwrap().a = 5;
        map.remove(&PathBuf::from("/a b/ü"));
        let mut changes = Changes::default();
        changes.map("m", &before, &map).unwrap();
        changes.set("s", &BTreeSet::from(["x".to_owned(), "y".to_owned()]), &BTreeSet::from(["y".to_owned()])).unwrap();
        changes.fields("f", &Thing { a: 2, b: Some("z".to_owned()) }, &Thing { a: 3, b: Some("z".to_owned()) }).unwrap();
        assert_eq!(apply(&mut documents, &changes), 4);

        assert_eq!(documents.map::<PathBuf, Thing>("m").unwrap(), map);
        assert_eq!(documents.set::<String>("s").unwrap(), BTreeSet::from(["y".to_owned()]));
        assert_eq!(documents.fields::<Thing>("f").unwrap(), Thing { a: 3, b: Some("z".to_owned()) });
        assert_eq!(documents.fields::<Thing>("never").unwrap(), Thing::default());
    }

    #[test]
    fn a_document_that_is_not_understood_is_named() {
        let mut documents = Documents::default();
        documents.rows.entry("m".to_owned()).or_default().insert("k".to_owned(), b"[]".to_vec());
        let error = documents.map::<String, u32>("m").unwrap_err();
        assert_eq!(error.to_string(), "`m` `k` of the state is not understood");
    }
}
