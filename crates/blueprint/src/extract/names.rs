//! Names that must be unique in a file.

use crate::codes::E0218;
use crate::report::{Report, quoted};
use crate::spec::{Blueprint, Text};
use std::collections::HashMap;

/// Says which names are taken twice. Services, databases, groups and builds are spaces of their own.
pub(super) fn unique(blueprint: &Blueprint, report: &mut Report) {
    let services = blueprint.services.iter().map(|s| (&s.name, format!("{}/name", s.pointer)));
    check("service", services, report);
    let databases = blueprint.databases.iter().map(|d| (&d.name, format!("{}/name", d.pointer)));
    check("database", databases, report);
    let groups = blueprint.env_groups.iter().map(|g| (&g.name, format!("{}/name", g.pointer)));
    check("group", groups, report);
    let builds = blueprint.build_sources.iter().map(|b| (&b.name, format!("{}/name", b.pointer)));
    check("build source", builds, report);
    let mut seen: HashMap<(&str, &str), u32> = HashMap::new();
    for environment in &blueprint.environments {
        let name = &environment.name;
        if let Some(line) = seen.insert((&environment.project, name), name.span.line) {
            let message =
                format!("the project {} has an environment {} already, at line {line}", quoted(&environment.project), quoted(name));
            report.say_at(E0218, name.span, String::new(), message, "give it another name".to_owned());
        }
    }
}

fn check<'a>(what: &str, names: impl Iterator<Item = (&'a Text, String)>, report: &mut Report) {
    let mut seen: HashMap<&str, u32> = HashMap::new();
    for (name, pointer) in names {
        if let Some(line) = seen.get(name.as_str()) {
            let message = format!("there is a {what} {} already, at line {line}", quoted(name));
            report.say_at(E0218, name.span, pointer, message, "give it another name".to_owned());
        } else {
            seen.insert(name, name.span.line);
        }
    }
}
