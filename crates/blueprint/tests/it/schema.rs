//! The JSON Schema against what reading says.

use moat_blueprint::{Severity, read, schema};
use serde_json::{Value, json};

/// A validator for the words of JSON Schema that the schema uses; it panics on any other.
fn valid(root: &Value, schema: &Value, value: &Value) -> bool {
    let Value::Object(words) = schema else { return schema.as_bool().unwrap() };
    words.iter().all(|(word, rule)| match word.as_str() {
        "$schema" | "title" | "description" | "deprecated" | "$defs" => true,
        "$ref" => {
            let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
            valid(root, &root["$defs"][name], value)
        }
        "type" => match rule.as_array() {
            Some(types) => types.iter().any(|one| is_type(one.as_str().unwrap(), value)),
            None => is_type(rule.as_str().unwrap(), value),
        },
        "enum" => rule.as_array().unwrap().contains(value),
        "pattern" => {
            assert_eq!(rule, "^[0-9]+(\\.[0-9]+)?c-[1-9][0-9]*(mb|g)$");
            value.as_str().is_some_and(|text| {
                let Some((cpus, memory)) = text.split_once("c-") else { return false };
                cpus.parse::<f64>().is_ok() && memory.trim_end_matches("mb").trim_end_matches('g').parse::<u32>().is_ok()
            })
        }
        "minimum" => value.as_i64().is_none_or(|number| number >= rule.as_i64().unwrap()),
        "maximum" => value.as_i64().is_none_or(|number| number <= rule.as_i64().unwrap()),
        "anyOf" => rule.as_array().unwrap().iter().any(|way| valid(root, way, value)),
        "allOf" => rule.as_array().unwrap().iter().all(|way| valid(root, way, value)),
        "required" => {
            value.as_object().is_none_or(|object| rule.as_array().unwrap().iter().all(|key| object.contains_key(key.as_str().unwrap())))
        }
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| valid(root, rule, item))),
        "properties" => value
            .as_object()
            .is_none_or(|object| object.iter().all(|(key, value)| rule.get(key).is_none_or(|rule| valid(root, rule, value)))),
        "patternProperties" => {
            assert_eq!(rule, &json!({ "^x-": true }));
            true
        }
        "additionalProperties" => value.as_object().is_none_or(|object| {
            let known = |key: &str| {
                words.get("properties").is_some_and(|p| p.get(key).is_some())
                    || words.contains_key("patternProperties") && key.starts_with("x-")
            };
            object.iter().all(|(key, value)| known(key) || valid(root, rule, value))
        }),
        other => panic!("the validator does not know `{other}`"),
    })
}

fn is_type(word: &str, value: &Value) -> bool {
    match word {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        other => panic!("no type `{other}`"),
    }
}

fn web(more: &Value) -> Value {
    let mut service = json!({ "name": "a", "type": "web", "runtime": "python", "startCommand": "run" });
    service.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "services": [service] })
}

#[test]
fn the_schema_takes_what_reading_takes() {
    let schema = schema();
    let variable = |entry: Value| web(&json!({ "envVars": [entry] }));
    let from = |reference: Value| variable(json!({ "key": "A", "fromService": reference }));
    let right = [
        json!({}),
        json!({ "version": "1", "services": [], "databases": [], "envVarGroups": [], "projects": [], "ungrouped": {} }),
        web(&json!({})),
        web(&json!({ "plan": "pro plus", "region": "frankfurt", "numInstances": 3, "x-other": 1 })),
        web(&json!({ "plan": "0.5c-512mb" })),
        web(&json!({ "image": { "url": "a", "creds": { "fromRegistryCreds": { "name": "b" } } } })),
        web(&json!({ "autoDeploy": true, "previews": { "generation": "off" }, "buildFilter": { "paths": ["a"] } })),
        web(&json!({ "scaling": { "minInstances": 1, "maxInstances": 2, "targetCPUPercent": 60 } })),
        web(&json!({ "x-moat": { "allowFrom": ["b"], "egress": "none", "secretFiles": { "a": "b" } } })),
        web(&json!({ "x-moat": { "egress": ["203.0.113.0/24"] } })),
        variable(json!({ "key": "A", "value": 3, "previewValue": "b", "description": "c", "sensitive": true })),
        variable(json!({ "key": "A", "sync": false, "displayName": "a" })),
        variable(json!({ "fromGroup": "g" })),
        variable(json!({ "key": "A", "fromDatabase": { "name": "d", "property": "connectionString" } })),
        from(json!({ "name": "b", "type": "pserv", "property": "hostport" })),
        from(json!({ "name": "b", "type": "redis", "envVarKey": "X" })),
        json!({ "services": [{ "name": "a", "type": "web", "env": "static", "staticPublishPath": "dist",
            "headers": [{ "path": "/*", "name": "X", "value": "y" }],
            "routes": [{ "type": "rewrite", "source": "/*", "destination": "/" }] }] }),
        json!({ "services": [{ "name": "a", "type": "cron", "runtime": "node", "schedule": "0 * * * *", "startCommand": "b" }] }),
        json!({ "services": [{ "name": "a", "type": "redis", "ipAllowList": [{ "source": "10.0.0.0/8" }], "maxmemoryPolicy": "noeviction", "persistenceMode": "off" }] }),
        json!({ "services": [{ "name": "a", "type": "workflow", "runtime": "node", "region": "ohio", "startCommand": "b" }] }),
        json!({ "services": [{ "name": "a", "type": "worker", "buildSource": "b", "startCommand": "c" }],
            "buildSources": [{ "name": "b", "git": { "repo": "r", "runtime": "go" } }] }),
        json!({ "databases": [{ "name": "d", "plan": "basic-256mb", "postgresMajorVersion": "17",
            "readReplicas": [{ "name": "r" }], "highAvailability": { "enabled": true },
            "databaseOptions": [{ "key": "a", "value": "b" }] }] }),
        json!({ "envVarGroups": [{ "name": "g", "envVars": [{ "key": "A", "generateValue": true }] }] }),
        json!({ "projects": [{ "name": "p", "environments": [{ "name": "e", "services": [],
            "networking": { "isolation": "enabled" }, "permissions": { "protection": "disabled" } }] }] }),
    ];
    let wrong = [
        json!({ "service": [] }),
        json!({ "services": {} }),
        json!({ "version": "2" }),
        web(&json!({ "port": 3000 })),
        web(&json!({ "plan": "huge" })),
        web(&json!({ "numInstances": 0 })),
        web(&json!({ "numInstances": "many" })),
        web(&json!({ "schedule": "0 * * * *" })),
        web(&json!({ "image": "nginx" })),
        web(&json!({ "envVars": { "A": "b" } })),
        web(&json!({ "disk": { "name": "d" } })),
        web(&json!({ "domains": "example.com" })),
        web(&json!({ "maxShutdownDelaySeconds": 301 })),
        web(&json!({ "x-moat": { "allow": ["b"] } })),
        web(&json!({ "x-moat": { "egress": "some" } })),
        variable(json!({ "value": "a" })),
        variable(json!({ "key": "A", "value": ["a"] })),
        variable(json!({ "key": "A", "value": "a", "fromGroup": "g" })),
        variable(json!({ "key": "A", "fromDatabase": { "name": "d", "property": "url" } })),
        from(json!({ "name": "b", "type": "pserv", "property": "url" })),
        from(json!({ "type": "pserv", "property": "host" })),
        from(json!("b")),
        json!({ "services": [{ "name": "a", "type": "static" }] }),
        json!({ "services": [{ "name": "a", "type": "web" }] }),
        json!({ "services": [{ "type": "worker", "runtime": "go", "startCommand": "b" }] }),
        json!({ "services": [{ "name": "a", "type": "cron", "runtime": "go", "startCommand": "b" }] }),
        json!({ "services": [{ "name": "a", "type": "keyvalue", "ipAllowList": [], "runtime": "node" }] }),
        json!({ "databases": [{ "plan": "free" }] }),
        json!({ "databases": [{ "name": "d", "type": "postgres" }] }),
        json!({ "databases": [{ "name": "d", "postgresMajorVersion": "9" }] }),
        json!({ "envVarGroups": [{ "name": "g", "envVars": [{ "key": "A", "fromGroup": "h" }] }] }),
        json!({ "envVarGroups": [{ "name": "g" }] }),
        json!({ "projects": [{ "environments": [] }] }),
        json!({ "environments": [] }),
    ];
    for (samples, expect) in [(&right[..], true), (&wrong[..], false)] {
        for sample in samples {
            // JSON is YAML.
            let read = read(&sample.to_string());
            let errors: Vec<_> = read.diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
            assert_eq!(errors.is_empty(), expect, "read: {sample}\n{errors:?}");
            assert_eq!(valid(&schema, &schema, sample), expect, "schema: {sample}");
        }
    }
}

#[test]
fn every_reference_of_the_schema_leads_somewhere() {
    fn walk(root: &Value, value: &Value, count: &mut usize) {
        match value {
            Value::Object(object) => {
                for (key, value) in object {
                    if key == "$ref" {
                        let name = value.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                        assert!(root["$defs"][name].is_object(), "{name}");
                        *count += 1;
                    }
                    walk(root, value, count);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| walk(root, item, count)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let schema = schema();
    let mut count = 0;
    walk(&schema, &schema, &mut count);
    assert!(count > 30);
}
