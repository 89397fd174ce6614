//! Languages that this machine does not have: what is said about a blueprint once somebody has looked.

use crate::codes::{Code, Report};
use moat_blueprint::Blueprint;
use moat_blueprint::spec::{EnvSource, EnvVarSpec, RuntimeSpec, ServiceSpec, Text};
use moat_model::{Diagnostic, NativeRuntime};
use std::path::Path;

/// What a service asks for of its language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The language.
    pub runtime: NativeRuntime,
    /// The version that a variable of the file names.
    pub version: Option<&'a str>,
    /// The service's working folder below the blueprint's, whose files may name one; none where its source is another
    /// repository's.
    pub root_dir: Option<&'a Path>,
}

/// A notice for each native service whose language comes from elsewhere. `instead` looks at the machine: it says in words what
/// is used instead of the machine's own toolchain, or nothing where there is no need.
pub fn notices(blueprint: &Blueprint, instead: &mut dyn FnMut(Asked<'_>) -> Option<String>) -> Vec<Diagnostic> {
    let mut report = Report::default();
    for service in &blueprint.services {
        let Some(written) = &service.runtime else { continue };
        let RuntimeSpec::Native(runtime) = written.value else { continue };
        let version = crate::resolve::version_key(runtime).and_then(|key| variable(blueprint, service, key));
        let text = version.map(|text| text.value.trim()).filter(|text| !text.is_empty());
        let root_dir = (!service.elsewhere).then(|| crate::resolve::root_dir(service));
        let Some(message) = instead(Asked { runtime, version: text, root_dir: root_dir.as_deref() }) else { continue };
        let span = version.map_or(written.span, |text| text.span);
        let pointer = format!("{}/runtime", service.pointer);
        report.say(0, Code::N0310, span, pointer, message, "install it on this machine to do without the image".to_owned());
    }
    report.finish().into_iter().map(|(_, diagnostic)| diagnostic).collect()
}

/// A variable's written value: the service's own before those of its groups in this file.
fn variable<'a>(blueprint: &'a Blueprint, service: &'a ServiceSpec, key: &str) -> Option<&'a Text> {
    let value = |vars: &'a [EnvVarSpec]| {
        vars.iter().find_map(|var| match &var.source {
            EnvSource::Value { key: own, value } if own.value == key => Some(value),
            EnvSource::Value { .. }
            | EnvSource::Generate { .. }
            | EnvSource::Ask { .. }
            | EnvSource::Database { .. }
            | EnvSource::Service { .. }
            | EnvSource::Group { .. } => None,
        })
    };
    let groups = service.env_vars.iter().filter_map(|var| if let EnvSource::Group { name } = &var.source { Some(name) } else { None });
    let of_group = |name: &Text| blueprint.env_groups.iter().find(|group| group.name.value == name.value);
    value(&service.env_vars).or_else(|| groups.filter_map(of_group).find_map(|group| value(&group.env_vars)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r"
services:
  - {type: web, name: a, runtime: python, rootDir: api, buildCommand: x, startCommand: x, envVars: [{key: PYTHON_VERSION, value: 3.10}]}
  - {type: worker, name: b, runtime: node, buildCommand: x, startCommand: x, envVars: [{fromGroup: g}]}
  - {type: worker, name: c, runtime: go, buildCommand: x, startCommand: x}
  - {type: pserv, name: d, runtime: image, image: {url: redis}}
envVarGroups:
  - {name: g, envVars: [{key: NODE_VERSION, value: 18}]}
";

    #[test]
    fn what_comes_from_elsewhere_is_said_where_its_version_is_written() {
        let blueprint = moat_blueprint::read(TEXT).blueprint;
        let mut asked = Vec::new();
        let said = notices(&blueprint, &mut |Asked { runtime, version, root_dir }| {
            asked.push((runtime, version.map(str::to_owned), root_dir.map(|folder| folder.display().to_string())));
            (runtime != NativeRuntime::Go).then(|| format!("{} is an image", runtime.word()))
        });
        assert_eq!(
            asked,
            [
                (NativeRuntime::Python, Some("3.10".to_owned()), Some("api".to_owned())),
                (NativeRuntime::Node, Some("18".to_owned()), Some(String::new())),
                (NativeRuntime::Go, None, Some(String::new())),
            ]
        );
        let said: Vec<_> = said.iter().map(|d| (d.code, d.span.line, d.message.as_str())).collect();
        assert_eq!(said, [("N0310", 3, "python is an image"), ("N0310", 8, "node is an image")]);
    }
}
