//! Variables that every service has without writing them, as the platform's documentation lists them.

use super::plans::{self, DEFAULT_PLAN};
use super::workspace::Entry;
use super::{GitFacts, Settings};
use moat_blueprint::spec::{RuntimeSpec, TypeSpec};
use moat_model::net::DEFAULT_HTTP_PORT;
use moat_model::{NativeRuntime, ServiceKind};
use std::borrow::Cow;

/// When a variable is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    Run,
    Build,
}

/// A default's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DefaultValue {
    Text(Cow<'static, str>),
    /// The service's port after a text.
    PortAfter(&'static str),
}

/// A default: key, value, when it is there.
pub(crate) type Default = (&'static str, DefaultValue, When);

/// Variables whose value differs between instances, so that no other service can be given it.
pub(crate) const PER_INSTANCE: &str = "RENDER_INSTANCE_ID";

/// The port of a service that says none.
pub(crate) fn default_port(kind: Option<ServiceKind>) -> Option<u16> {
    match kind? {
        ServiceKind::Web | ServiceKind::Pserv => Some(DEFAULT_HTTP_PORT),
        ServiceKind::KeyValue => Some(6379),
        ServiceKind::Postgres => Some(5432),
        ServiceKind::Worker | ServiceKind::Cron | ServiceKind::Static => None,
    }
}

/// Branch, commit and `user/repository` of a service's source. Which commit of a repository of elsewhere runs is not known
/// before it is fetched.
fn history(entry: &Entry<'_>, git: &GitFacts) -> [String; 3] {
    let Some(repo) = entry.spec.repo.as_ref().filter(|_| entry.spec.elsewhere) else {
        let commit = git.pins.get(&entry.spec.name.value).unwrap_or(&git.commit).clone();
        return [git.branch.clone(), commit, git.repo_slug.clone()];
    };
    let url = repo.value.trim().trim_end_matches('/').trim_end_matches(".git");
    let mut parts = url.rsplit(['/', ':']);
    let slug = match (parts.next(), parts.next()) {
        (Some(name), Some(owner)) if !owner.is_empty() => format!("{owner}/{name}"),
        _ => String::new(),
    };
    [entry.spec.branch.as_ref().map(|branch| branch.value.trim().to_owned()).unwrap_or_default(), String::new(), slug]
}

/// The defaults of a service. A datastore has none.
pub(crate) fn of(entry: &Entry<'_>, git: &GitFacts, settings: &Settings) -> Vec<Default> {
    let mut list = Vec::with_capacity(32);
    let service_type = match entry.spec.kind.value {
        TypeSpec::Kind(ServiceKind::KeyValue | ServiceKind::Postgres) => return list,
        TypeSpec::Kind(kind) => kind.word(),
        TypeSpec::StaticSite => "static",
        TypeSpec::Workflow => "workflow",
    };
    let mut add = |key, value: Cow<'static, str>, when| list.push((key, DefaultValue::Text(value), when));
    let public = entry.kind().is_some_and(ServiceKind::is_public);
    let serves = matches!(entry.kind(), Some(ServiceKind::Web | ServiceKind::Pserv));

    add("RENDER", "true".into(), When::Always);
    add("IS_PULL_REQUEST", "false".into(), When::Always);
    let plan = entry.spec.plan.as_ref().map_or(DEFAULT_PLAN, |plan| plan.value.as_str());
    let millis = entry.kind().and_then(|kind| plans::limits(plan, kind).ok()).map_or(500, |limits| limits.cpu_millis);
    let millis = millis.min(settings.cpu_count.saturating_mul(1000)).max(1);
    add("RENDER_CPU_COUNT", plans::cpus(millis).into(), When::Always);
    if serves {
        add("RENDER_DISCOVERY_SERVICE", format!("{}-discovery", entry.slug).into(), When::Always);
        let processes = (millis / 1000).max(1).to_string();
        add("RENDER_WEB_CONCURRENCY", processes.clone().into(), When::Run);
        add("WEB_CONCURRENCY", processes.into(), When::Run);
    }
    add("RENDER_EXTERNAL_HOSTNAME", (if public { hostname(entry, settings) } else { String::new() }).into(), When::Always);
    add("RENDER_EXTERNAL_URL", (if public { url(entry, settings) } else { String::new() }).into(), When::Always);
    let [branch, commit, repo_slug] = history(entry, git);
    add("RENDER_GIT_BRANCH", branch.into(), When::Always);
    add("RENDER_GIT_COMMIT", commit.into(), When::Always);
    add("RENDER_GIT_REPO_SLUG", repo_slug.into(), When::Always);
    add("RENDER_SERVICE_ID", entry.id.to_string().into(), When::Always);
    add("RENDER_SERVICE_NAME", entry.slug.to_string().into(), When::Always);
    add("RENDER_SERVICE_TYPE", service_type.into(), When::Always);
    if serves {
        list.push(("PORT", DefaultValue::PortAfter(""), When::Always));
    }
    if let Some(RuntimeSpec::Native(runtime)) = entry.spec.runtime.as_ref().map(|r| r.value) {
        of_runtime(runtime, &mut list);
    }
    list
}

fn hostname(entry: &Entry<'_>, settings: &Settings) -> String {
    format!("{}.{}", entry.slug, settings.domain)
}

fn url(entry: &Entry<'_>, settings: &Settings) -> String {
    let own = match settings.public_scheme.as_str() {
        "https" => 443,
        _ => 80,
    };
    let host = hostname(entry, settings);
    match settings.public_port.filter(|port| *port != own) {
        Some(port) => format!("{}://{host}:{port}", settings.public_scheme),
        None => format!("{}://{host}", settings.public_scheme),
    }
}

fn of_runtime(runtime: NativeRuntime, list: &mut Vec<Default>) {
    use When::{Always, Build, Run};
    let texts: &[(&'static str, &'static str, When)] = match runtime {
        NativeRuntime::Elixir => &[("MIX_ENV", "prod", Always), ("RELEASE_DISTRIBUTION", "name", Always)],
        NativeRuntime::Go => &[("GO111MODULE", "on", Always), ("GOPATH", "/opt/render/project/go", Always)],
        NativeRuntime::Node => &[("NODE_ENV", "production", Run), ("NODE_MODULES_CACHE", "true", Always)],
        NativeRuntime::Python => &[
            ("CI", "true", Build),
            ("FORWARDED_ALLOW_IPS", "*", Always),
            ("PIPENV_YES", "true", Always),
            ("VENV_ROOT", "/opt/render/project/src/.venv", Always),
        ],
        NativeRuntime::Ruby => &[
            ("BUNDLE_APP_CONFIG", "/opt/render/project/.gems", Always),
            ("BUNDLE_BIN", "/opt/render/project/.gems/bin", Always),
            ("BUNDLE_DEPLOYMENT", "true", Always),
            ("BUNDLE_PATH", "/opt/render/project/.gems", Always),
            ("GEM_PATH", "/opt/render/project/.gems", Always),
            ("MALLOC_ARENA_MAX", "2", Always),
            ("PASSENGER_ENGINE", "builtin", Always),
            ("PASSENGER_ENVIRONMENT", "production", Always),
            ("PIDFILE", "/tmp/puma-server.pid", Always),
            ("RAILS_ENV", "production", Always),
            ("RAILS_LOG_TO_STDOUT", "true", Always),
            ("RAILS_SERVE_STATIC_FILES", "true", Always),
        ],
        NativeRuntime::Rust => &[
            ("CARGO_HOME", "/opt/render/project/.cargo", Always),
            ("ROCKET_ENV", "prod", Run),
            ("RUSTUP_HOME", "/opt/render/project/.rustup", Always),
        ],
    };
    list.extend(texts.iter().map(|(key, value, when)| (*key, DefaultValue::Text(Cow::Borrowed(*value)), *when)));
    match runtime {
        NativeRuntime::Python => {
            list.push(("GUNICORN_CMD_ARGS", DefaultValue::PortAfter("--preload --access-logfile - --bind=0.0.0.0:"), Always));
        }
        NativeRuntime::Ruby => list.push(("PASSENGER_PORT", DefaultValue::PortAfter(""), Always)),
        NativeRuntime::Rust => list.push(("ROCKET_PORT", DefaultValue::PortAfter(""), Run)),
        NativeRuntime::Elixir | NativeRuntime::Go | NativeRuntime::Node => {}
    }
}

/// The variable that names the version of a runtime's toolchain.
pub(crate) const fn version_key(runtime: NativeRuntime) -> Option<&'static str> {
    match runtime {
        NativeRuntime::Python => Some("PYTHON_VERSION"),
        NativeRuntime::Node => Some("NODE_VERSION"),
        NativeRuntime::Rust => Some("RUSTUP_TOOLCHAIN"),
        NativeRuntime::Elixir => Some("ELIXIR_VERSION"),
        NativeRuntime::Ruby | NativeRuntime::Go => None,
    }
}
