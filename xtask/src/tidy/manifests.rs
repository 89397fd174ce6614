//! What every manifest says.

use super::{name, packages};
use serde_json::Value;

const LICENSE: &str = "Apache-2.0 OR MIT";

/// Manifests without the license, without a description, or that could be published by mistake.
pub fn problems(metadata: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for package in packages(metadata) {
        let mut wrong = |what: &str| problems.push(format!("`{}`: {what}", name(package)));
        if package["license"] != LICENSE {
            wrong("`license` must be `Apache-2.0 OR MIT` (`license.workspace = true`)");
        }
        if package["description"].as_str().is_none_or(str::is_empty) {
            wrong("`description` is missing");
        }
        // `publish = false` is an empty list of registries.
        if package["publish"].as_array().is_none_or(|registries| !registries.is_empty()) {
            wrong("`publish.workspace = true` is missing");
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_omission_is_named() {
        let right = json!({"name": "a", "license": LICENSE, "description": "A.", "publish": []});
        assert!(problems(&json!({"packages": [right]})).is_empty());
        let wrong = json!({"name": "b", "license": null, "description": null, "publish": null});
        assert_eq!(problems(&json!({"packages": [wrong]})).len(), 3);
    }
}
