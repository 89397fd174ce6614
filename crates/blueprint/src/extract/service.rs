//! Services.

use super::object::{Obj, text};
use super::{Context, env, moat, rules, small};
use crate::judge::choose;
use crate::report::Path;
use crate::spec::{EnvironmentIndex, PreviewsSpec, ServiceSpec, Text, TypeSpec};
use crate::tables::{
    CRON, GENERATION, KEYVALUE, MAXMEMORY, Object, PERSISTENCE, PREVIEWS, PSERV, REGION, SERVER_PLAN, STATIC, SWITCH, TRIGGER, WEB, WORKER,
    WORKFLOW,
};
use crate::yaml::Node;
use moat_model::{ServiceKind, Spanned};

/// Reads a service; none when its type or name can't be told.
pub(super) fn service(node: &Node<'_>, path: &Path<'_>, environment: EnvironmentIndex, cx: &mut Context<'_>) -> Option<ServiceSpec> {
    let table = choose::service(node).table;
    let obj = Obj::new(node, table)?;
    let type_spec = type_of(table)?;
    let kind = Spanned::new(type_spec, obj.get("type").map_or(node.span, |value| value.span));
    let mut domains = obj.texts("domains");
    domains.extend(obj.filled("domain"));
    let spec = ServiceSpec {
        pointer: path.pointer(),
        span: node.span,
        environment,
        name: obj.filled("name")?,
        kind,
        runtime: rules::runtime(obj),
        plan: plan(obj),
        region: obj.word("region", &REGION),
        build_source: obj.filled("buildSource"),
        repo: obj.filled("repo"),
        elsewhere: false,
        branch: obj.filled("branch"),
        root_dir: obj.filled("rootDir"),
        build_command: obj.filled("buildCommand"),
        start_command: obj.filled("startCommand"),
        pre_deploy_command: obj.filled("preDeployCommand").filter(|_| table.name != CRON.name),
        initial_deploy_hook: obj.renamed("initialDeployHook").and_then(|entry| text(&entry.value)).filter(|hook| !hook.trim().is_empty()),
        schedule: obj.filled("schedule"),
        auto_deploy_trigger: trigger(obj),
        domains,
        subdomain_disabled: obj.word("renderSubdomainPolicy", &SWITCH).map(|word| Spanned::new(word.value == "disabled", word.span)),
        health_check_path: obj.filled("healthCheckPath"),
        max_shutdown_delay_seconds: obj.int("maxShutdownDelaySeconds", 1, 300),
        maintenance_mode: small::maintenance(obj),
        ip_allow_list: small::allow_list(obj),
        docker_command: obj.filled("dockerCommand"),
        dockerfile_path: obj.filled("dockerfilePath"),
        docker_context: obj.filled("dockerContext"),
        image: obj.table.field("image").and_then(|_| small::image_of(obj)),
        registry_credential: small::credential(obj, "registryCredential"),
        num_instances: obj.int("numInstances", 1, 100),
        scaling: small::scaling(obj),
        build_filter: small::build_filter(obj),
        disk: small::disk(obj),
        static_publish_path: obj.filled("staticPublishPath"),
        headers: small::headers(obj),
        routes: small::routes(obj),
        previews: previews(obj),
        maxmemory_policy: obj.word("maxmemoryPolicy", &MAXMEMORY),
        persistence_mode: obj.word("persistenceMode", &PERSISTENCE),
        env_vars: env::env_vars(obj, path, cx),
        moat: match type_spec {
            TypeSpec::Kind(kind) => moat::moat(obj, kind, path, cx),
            TypeSpec::StaticSite | TypeSpec::Workflow => None,
        },
        unhonoured: Vec::new(),
    };
    Some(rules::service(spec, obj, path, cx))
}

fn type_of(table: &'static Object) -> Option<TypeSpec> {
    let kinds = [
        (WEB.name, TypeSpec::Kind(ServiceKind::Web)),
        (PSERV.name, TypeSpec::Kind(ServiceKind::Pserv)),
        (WORKER.name, TypeSpec::Kind(ServiceKind::Worker)),
        (CRON.name, TypeSpec::Kind(ServiceKind::Cron)),
        (KEYVALUE.name, TypeSpec::Kind(ServiceKind::KeyValue)),
        (STATIC.name, TypeSpec::StaticSite),
        (WORKFLOW.name, TypeSpec::Workflow),
    ];
    kinds.into_iter().find(|(name, _)| *name == table.name).map(|(_, kind)| kind)
}

/// `plan`, by the words of the service's own table.
fn plan(obj: Obj<'_, '_>) -> Option<Text> {
    obj.word("plan", obj.table.field("plan")?.shape.words()?)
}

fn trigger(obj: Obj<'_, '_>) -> Option<Text> {
    obj.word("autoDeployTrigger", &TRIGGER).or_else(|| {
        let auto = obj.boolean("autoDeploy")?;
        let word = if auto.value { "commit" } else { "off" };
        Some(Spanned::new(word.to_owned(), auto.span))
    })
}

fn previews(obj: Obj<'_, '_>) -> Option<Spanned<PreviewsSpec>> {
    if let Some(below) = obj.below("previews", &PREVIEWS) {
        let spec = PreviewsSpec {
            generation: below.word("generation", &GENERATION),
            expire_after_days: None,
            plan: below.word("plan", &SERVER_PLAN),
            num_instances: below.int("numInstances", 1, 100),
        };
        return Some(Spanned::new(spec, below.span()));
    }
    let enabled = obj.boolean("pullRequestPreviewsEnabled");
    let words = obj.table.field("previewPlan").and_then(|field| field.shape.words());
    let plan = words.and_then(|words| obj.word("previewPlan", words));
    let span = enabled.as_ref().map(|e| e.span).or_else(|| plan.as_ref().map(|p| p.span))?;
    let generation = enabled.map(|enabled| {
        let word = if enabled.value { "automatic" } else { "off" };
        Spanned::new(word.to_owned(), enabled.span)
    });
    Some(Spanned::new(PreviewsSpec { generation, plan, ..PreviewsSpec::default() }, span))
}
