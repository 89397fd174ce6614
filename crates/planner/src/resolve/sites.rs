//! Static sites: what is built, what of it is published, and the rules by which it is served.

use super::defaults::version_key;
use super::workspace::{Entry, Workspace};
use crate::codes::{Code, Report};
use crate::names::quoted;
use moat_blueprint::spec::{RouteSpec, ServiceSpec, TypeSpec};
use moat_model::state::{SiteAction, SiteHeader, SiteRoute, Source, StaticWorkload};
use moat_model::{NativeRuntime, Secret, ServiceKind};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The domain that blueprints written for the platform name public services by.
const PLATFORM_DOMAIN: &str = "onrender.com";

/// What a static site's definition comes to. `None` when it names no folder to publish; reading said so.
pub(crate) fn workload(
    workspace: &Workspace<'_>,
    entry: &Entry<'_>,
    source: Source,
    root_dir: PathBuf,
    env: &BTreeMap<String, Secret>,
    report: &mut Report,
) -> Option<StaticWorkload> {
    let spec: &ServiceSpec = entry.spec;
    let publish_path = PathBuf::from(spec.static_publish_path.as_ref()?.value.trim());
    let text = |field: &Option<moat_blueprint::spec::Text>| field.as_ref().map(|text| text.value.clone());
    let versions = NativeRuntime::ALL.into_iter().filter_map(|runtime| {
        let version = env.get(version_key(runtime)?)?.expose().trim();
        (!version.is_empty()).then(|| (runtime, version.to_owned()))
    });
    let headers = spec.headers.iter().map(|header| SiteHeader {
        path: header.path.value.clone(),
        name: header.name.value.clone(),
        value: header.value.value.clone(),
    });
    Some(StaticWorkload {
        source,
        root_dir,
        build_command: text(&spec.build_command),
        pre_deploy_command: text(&spec.pre_deploy_command),
        publish_path,
        versions: versions.collect(),
        headers: headers.collect(),
        routes: spec.routes.iter().enumerate().filter_map(|(index, route)| rule(workspace, entry, index, route, report)).collect(),
    })
}

fn rule(workspace: &Workspace<'_>, entry: &Entry<'_>, index: usize, route: &RouteSpec, report: &mut Report) -> Option<SiteRoute> {
    let destination = route.destination.value.trim();
    let action = if route.redirect {
        SiteAction::Redirect(destination.to_owned())
    } else if let Some((host, path)) = split_url(destination) {
        let Some(target) = public_service(workspace, entry, host) else {
            let message = format!("requests can't be passed on to {}: {host} is no public service of this workspace", quoted(destination));
            let help = format!(
                "name a web service as `https://NAME.{PLATFORM_DOMAIN}/…`, write a redirect, or call that address from the page itself"
            );
            report.say(
                entry.input,
                Code::U0303,
                route.destination.span,
                entry.pointer(&format!("routes/{index}/destination")),
                message,
                help,
            );
            return None;
        };
        SiteAction::Pass { service: target.slug.clone(), path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") } }
    } else {
        SiteAction::Rewrite(destination.to_owned())
    };
    Some(SiteRoute { source: route.source.value.trim().to_owned(), action })
}

/// Host, with its port, and the rest of an absolute URL.
fn split_url(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    Some(rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())))
}

/// The other service that a public host name stands for: `NAME.onrender.com`, or `NAME.localhost` with any port. Never a
/// private one: what is passed on goes the way of every request from outside.
fn public_service<'w, 'a>(workspace: &'w Workspace<'a>, from: &Entry<'_>, host: &str) -> Option<&'w Entry<'a>> {
    let name = host.split_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase();
    let label = [PLATFORM_DOMAIN, "localhost"].iter().find_map(|domain| name.strip_suffix(domain)?.strip_suffix('.'))?;
    workspace.entries.iter().find(|entry| {
        let public = matches!(entry.spec.kind.value, TypeSpec::Kind(ServiceKind::Web) | TypeSpec::StaticSite);
        public && entry.slug.as_str() == label && entry.id != from.id
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split() {
        for (text, want) in [
            ("https://a.onrender.com/x/:splat", Some(("a.onrender.com", "/x/:splat"))),
            ("http://a.localhost:8080", Some(("a.localhost:8080", ""))),
            ("https://a.b?c", Some(("a.b", "?c"))),
            ("/index.html", None),
            ("//a.b/c", None),
        ] {
            assert_eq!(split_url(text), want, "{text}");
        }
    }
}
