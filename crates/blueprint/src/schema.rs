//! The JSON Schema (draft 2020-12) of the tables.

use crate::tables::{Choice, Fate, Field, Item, Object, ROOT, Shape, Words};
use serde_json::{Map, Value, json};

/// The JSON Schema of a blueprint, made from the definitions that reading uses.
///
/// It describes what is to be written: deprecated names are in it and marked, spellings that are read leniently are not.
pub fn schema() -> Value {
    let mut maker = Maker { definitions: Map::new() };
    let root = maker.object(&ROOT);
    let mut schema = Map::new();
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".to_owned(), json!("Moat blueprint"));
    if let Value::Object(root) = root {
        schema.extend(root);
    }
    schema.insert("$defs".to_owned(), Value::Object(maker.definitions));
    Value::Object(schema)
}

struct Maker {
    definitions: Map<String, Value>,
}

impl Maker {
    fn reference(&mut self, table: &'static Object) -> Value {
        if !self.definitions.contains_key(table.name) {
            // Taken first, so that a table inside itself would end.
            self.definitions.insert(table.name.to_owned(), Value::Null);
            let object = self.object(table);
            self.definitions.insert(table.name.to_owned(), object);
        }
        json!({ "$ref": format!("#/$defs/{}", table.name) })
    }

    fn object(&mut self, table: &'static Object) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        let mut either = Vec::new();
        for field in table.fields() {
            if properties.contains_key(field.name) {
                continue;
            }
            properties.insert(field.name.to_owned(), self.field(field, None));
            for alias in field.aliases {
                properties.insert((*alias).to_owned(), self.field(field, Some(field.name)));
            }
            if !field.required {
                continue;
            }
            let also = if field.name == "runtime" && table.field("buildSource").is_some() { &["buildSource"][..] } else { &[] };
            let names: Vec<&str> = std::iter::once(field.name).chain(field.aliases.iter().copied()).chain(also.iter().copied()).collect();
            if names.len() == 1 {
                required.push(json!(field.name));
            } else {
                let ways: Vec<Value> = names.iter().map(|name| json!({ "required": [name] })).collect();
                either.push(json!({ "anyOf": ways }));
            }
        }
        let mut object = Map::new();
        object.insert("description".to_owned(), json!(table.doc));
        object.insert("type".to_owned(), json!("object"));
        object.insert("properties".to_owned(), Value::Object(properties));
        if !required.is_empty() {
            object.insert("required".to_owned(), Value::Array(required));
        }
        if !either.is_empty() {
            object.insert("allOf".to_owned(), Value::Array(either));
        }
        object.insert("patternProperties".to_owned(), json!({ "^x-": true }));
        object.insert("additionalProperties".to_owned(), json!(false));
        Value::Object(object)
    }

    fn field(&mut self, field: &'static Field, alias_of: Option<&str>) -> Value {
        let mut schema = Map::new();
        let doc = match (alias_of, field.fate) {
            (Some(name), _) => format!("Deprecated: write `{name}`."),
            (None, Fate::Deprecated(instead, _)) => format!("{} Deprecated: write `{instead}`.", field.doc),
            (None, Fate::OneMachine(_) | Fate::NoEffect(_) | Fate::Refused(_) | Fate::Honoured) => field.doc.to_owned(),
        };
        schema.insert("description".to_owned(), json!(doc));
        if alias_of.is_some() || matches!(field.fate, Fate::Deprecated(..)) {
            schema.insert("deprecated".to_owned(), json!(true));
        }
        if let Value::Object(shape) = self.shape(field.shape) {
            schema.extend(shape);
        }
        Value::Object(schema)
    }

    fn shape(&mut self, shape: Shape) -> Value {
        match shape {
            Shape::Text | Shape::Command => json!({ "type": "string" }),
            Shape::Value => json!({ "type": ["string", "number", "boolean"] }),
            Shape::Word(words) | Shape::Type(words) => word(words),
            Shape::Bool => json!({ "type": "boolean" }),
            Shape::Int(low, high) => json!({ "type": "integer", "minimum": low, "maximum": high }),
            Shape::List(item) => json!({ "type": "array", "items": self.item(item) }),
            Shape::Object(table) => self.reference(table),
            Shape::TextMap => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
            Shape::WordOrTexts(words) => {
                json!({ "anyOf": [word(words), { "type": "array", "items": { "type": "string" } }] })
            }
        }
    }

    fn item(&mut self, item: Item) -> Value {
        match item {
            Item::Text => json!({ "type": "string" }),
            Item::Object(table) => self.reference(table),
            Item::Choice(choice) => self.choice(choice),
        }
    }

    fn choice(&mut self, choice: &'static Choice) -> Value {
        if !self.definitions.contains_key(choice.name) {
            let objects: Vec<Value> = choice.objects.iter().map(|table| self.reference(table)).collect();
            self.definitions.insert(choice.name.to_owned(), json!({ "anyOf": objects }));
        }
        json!({ "$ref": format!("#/$defs/{}", choice.name) })
    }
}

/// An enumeration, with its deprecated words and its pattern.
fn word(words: &Words) -> Value {
    let all: Vec<&str> = words.all.iter().copied().chain(words.aliases.iter().map(|(alias, _)| *alias)).collect();
    match words.pattern {
        None => json!({ "type": "string", "enum": all }),
        Some((_, pattern)) => json!({ "type": "string", "anyOf": [{ "enum": all }, { "pattern": pattern }] }),
    }
}
