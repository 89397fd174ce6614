//! The root, projects and environments.

use super::object::Obj;
use super::{Context, database, env, rules, service, small};
use crate::codes::{E0203, E0209, E0210, E0213};
use crate::judge::head;
use crate::report::{Path, quoted};
use crate::spec::{Blueprint, BuildSourceSpec, EnvironmentIndex, EnvironmentSpec, PreviewsSpec};
use crate::tables::{
    BUILD_SOURCE, BUILD_SOURCE_GIT, DATABASE, ENVIRONMENT, GENERATION, GROUP, IMAGE, NETWORKING, PERMISSIONS, PROJECT, ROOT_PREVIEWS,
    SWITCH, UNGROUPED,
};
use crate::yaml::Node;
use moat_model::Spanned;

/// Reads the root.
pub(super) fn root(obj: Obj<'_, '_>, path: &Path<'_>, blueprint: &mut Blueprint, cx: &mut Context<'_>) {
    resources(obj, path, None, blueprint, cx);
    build_sources(obj, path, blueprint, cx);
    if let Some(ungrouped) = obj.below("ungrouped", &UNGROUPED) {
        let path = path.key("ungrouped");
        resources(ungrouped, &path, None, blueprint, cx);
        build_sources(ungrouped, &path, blueprint, cx);
    }
    let projects = path.key("projects");
    for (index, project) in obj.list("projects", &PROJECT) {
        self::project(project, &projects.item(index), blueprint, cx);
    }
    blueprint.previews = previews(obj);
    if let Some(previews) = obj.below("previews", &ROOT_PREVIEWS)
        && previews.word("generation", &GENERATION).is_some_and(|word| word.value != "off")
        && let Some((span, path)) = obj.place("previews", path)
    {
        let message = "`previews` has no effect here: Moat makes no preview environments";
        cx.report.say(E0210, span, &path, message, None);
    }
}

fn previews(obj: Obj<'_, '_>) -> Option<Spanned<PreviewsSpec>> {
    if let Some(previews) = obj.below("previews", &ROOT_PREVIEWS) {
        let spec = PreviewsSpec {
            generation: previews.word("generation", &GENERATION),
            expire_after_days: previews.int("expireAfterDays", 1, 36_500),
            ..PreviewsSpec::default()
        };
        return Some(Spanned::new(spec, previews.span()));
    }
    let enabled = obj.boolean("previewsEnabled")?;
    let word = if enabled.value { "automatic" } else { "off" };
    let spec = PreviewsSpec {
        generation: Some(Spanned::new(word.to_owned(), enabled.span)),
        expire_after_days: obj.int("previewsExpireAfterDays", 1, 36_500),
        ..PreviewsSpec::default()
    };
    Some(Spanned::new(spec, enabled.span))
}

fn project(obj: Obj<'_, '_>, path: &Path<'_>, blueprint: &mut Blueprint, cx: &mut Context<'_>) {
    build_sources(obj, path, blueprint, cx);
    let Some(project) = obj.filled("name") else { return };
    let environments = path.key("environments");
    for (index, environment) in obj.list("environments", &ENVIRONMENT) {
        let path = environments.item(index);
        let Some(name) = environment.filled("name") else { continue };
        let enabled = |below: &str, table, field: &str| {
            environment.below(below, table).and_then(|obj| obj.word(field, &SWITCH)).filter(|word| word.value == "enabled")
        };
        let protected = enabled("permissions", &PERMISSIONS, "protection");
        if let Some(word) = &protected {
            let path = path.key("permissions");
            let message = "`protection` has no effect here: whoever may run `moat` may change everything";
            cx.report.say(E0210, word.span, &path.key("protection"), message, None);
        }
        blueprint.environments.push(EnvironmentSpec {
            project: project.clone(),
            name,
            isolated: enabled("networking", &NETWORKING, "isolation").is_some(),
            protected: protected.is_some(),
        });
        let at = Some(blueprint.environments.len() - 1);
        resources(environment, &path, at, blueprint, cx);
    }
}

/// Services, databases and groups of one list.
fn resources(obj: Obj<'_, '_>, path: &Path<'_>, environment: EnvironmentIndex, blueprint: &mut Blueprint, cx: &mut Context<'_>) {
    let services = path.key("services");
    blueprint.services.reserve(obj.get("services").and_then(Node::items).map_or(0, <[_]>::len));
    for (index, node) in obj.items("services") {
        if let Some(spec) = service::service(node, &services.item(index), environment, cx) {
            blueprint.services.push(spec);
        }
    }
    let databases = path.key("databases");
    for (index, node) in obj.list("databases", &DATABASE) {
        if let Some(spec) = database::database(node, &databases.item(index), environment, cx) {
            blueprint.databases.push(spec);
        }
    }
    let groups = path.key("envVarGroups");
    for (index, node) in obj.list("envVarGroups", &GROUP) {
        if let Some(spec) = env::group(node, &groups.item(index), environment, cx) {
            blueprint.env_groups.push(spec);
        }
    }
}

fn build_sources(obj: Obj<'_, '_>, path: &Path<'_>, blueprint: &mut Blueprint, cx: &mut Context<'_>) {
    let list = path.key("buildSources");
    for (index, source) in obj.list("buildSources", &BUILD_SOURCE) {
        let path = list.item(index);
        let git = source.below("git", &BUILD_SOURCE_GIT);
        let image = source.below("image", &IMAGE);
        let at = head(source.node);
        match (source.entry("git"), source.entry("image")) {
            (Some(_), Some(second)) => {
                let help = "keep one of them".to_owned();
                let message = "a build source has `git` or `image`, this has both";
                cx.report.say(E0213, second.key_span, &path, message, help);
            }
            (None, None) => {
                let help = "write `git: {repo: …, runtime: …}` or `image: {url: …}`".to_owned();
                cx.report.say(E0203, at, &path, "a build source needs `git` or `image`", help);
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        let Some(name) = source.filled("name") else { continue };
        cx.report.say(
            E0209,
            at,
            &path,
            format!("the build source {} is not made yet: services that share a build are not supported", quoted(&name)),
            "give each service its own `runtime`, `buildCommand` and so on".to_owned(),
        );
        blueprint.build_sources.push(BuildSourceSpec {
            pointer: path.pointer(),
            name,
            repo: git.and_then(|git| git.text("repo")),
            runtime: git.and_then(rules::runtime),
            image: image.and_then(small::image),
        });
    }
}
