//! What the fields of a service say together, and what of it is not done.

use super::Context;
use super::object::Obj;
use crate::codes::{Code, E0203, E0205, E0209, E0210, E0211, E0216, E0220, E0227};
use crate::judge::head;
use crate::report::{Path, quoted};
use crate::spec::{RuntimeSpec, ServiceSpec, TypeSpec};
use crate::tables::{RUNTIME, formats};
use moat_model::{NativeRuntime, ServiceKind, Spanned};

/// `runtime`, by its word.
pub(super) fn runtime(obj: Obj<'_, '_>) -> Option<Spanned<RuntimeSpec>> {
    let node = &obj.renamed("runtime")?.value;
    let word = Spanned::new(RUNTIME.canonical(node.text()?)?, node.span);
    let runtime = match word.as_str() {
        "python" => RuntimeSpec::Native(NativeRuntime::Python),
        "node" => RuntimeSpec::Native(NativeRuntime::Node),
        "ruby" => RuntimeSpec::Native(NativeRuntime::Ruby),
        "go" => RuntimeSpec::Native(NativeRuntime::Go),
        "rust" => RuntimeSpec::Native(NativeRuntime::Rust),
        "elixir" => RuntimeSpec::Native(NativeRuntime::Elixir),
        "docker" => RuntimeSpec::Docker,
        "image" => RuntimeSpec::Image,
        "static" => RuntimeSpec::Static,
        _ => return None,
    };
    Some(Spanned::new(runtime, word.span))
}

/// One service under the rules.
struct Rules<'a, 'n, 't, 'c, 'r> {
    obj: Obj<'n, 't>,
    path: &'a Path<'a>,
    cx: &'c mut Context<'r>,
    unhonoured: Vec<Spanned<String>>,
}

/// Says what is contradictory or not done, and notes the fields that are honoured nowhere.
pub(super) fn service(mut spec: ServiceSpec, obj: Obj<'_, '_>, path: &Path<'_>, cx: &mut Context<'_>) -> ServiceSpec {
    let remotes = &cx.remotes;
    spec.elsewhere = spec.repo.as_ref().is_some_and(|repo| !remotes.iter().any(|remote| same_repository(remote, repo)));
    let mut rules = Rules { obj, path, cx, unhonoured: Vec::new() };
    let whole = rules.refused(&spec);
    rules.contradictions(&spec);
    if !whole {
        rules.public(&spec);
        rules.source(&spec);
    }
    rules.headers(&spec);
    rules.previews(&spec);
    rules.region(&spec);
    rules.tabled();
    spec.unhonoured = rules.unhonoured;
    spec
}

impl Rules<'_, '_, '_, '_, '_> {
    /// Says something at a field's key.
    fn at(&mut self, field: &str, code: Code, message: impl Into<String>, help: Option<&str>) {
        let Some((span, path)) = self.obj.place(field, self.path) else { return };
        self.cx.report.say(code, span, &path, message, help.map(str::to_owned));
        if code == E0209 || code == E0210 {
            self.unhonoured.push(Spanned::new(field.to_owned(), span));
        }
    }

    /// Notes the fields whose table entry says that they are not honoured; the judge said so.
    fn tabled(&mut self) {
        use crate::tables::Fate;
        for field in self.obj.table.fields() {
            if !matches!(field.fate, Fate::Honoured | Fate::Deprecated(_, ""))
                && let Some(entry) = self.obj.entry(field.name)
            {
                self.unhonoured.push(Spanned::new(field.name.to_owned(), entry.key_span));
            }
        }
    }

    /// What can't run at all. Its other fields need no words of their own then.
    fn refused(&mut self, spec: &ServiceSpec) -> bool {
        let name = quoted(&spec.name);
        let runtime = spec.runtime.as_ref().map(|runtime| runtime.value);
        match (spec.kind.value, runtime) {
            (TypeSpec::StaticSite, _) => {
                if spec.static_publish_path.is_none() {
                    let help = "write `staticPublishPath: …`, the folder of the built files".to_owned();
                    let message = format!("{name} names no `staticPublishPath`: there are no files to serve");
                    self.cx.report.say(E0227, head(self.obj.node), self.path, message, help);
                }
                false
            }
            (TypeSpec::Workflow, _) => {
                self.at("type", E0209, format!("the workflow {name} is not run yet"), None);
                true
            }
            (TypeSpec::Kind(_), Some(RuntimeSpec::Docker)) => {
                self.dockerfile();
                false
            }
            (TypeSpec::Kind(_), Some(RuntimeSpec::Image)) => {
                self.image(spec);
                false
            }
            (TypeSpec::Kind(kind), Some(RuntimeSpec::Static)) => {
                let message = format!("a static site is a web service, this is a {}", kind.phrase());
                self.at("runtime", E0205, message, Some("write `type: web`, or another runtime"));
                true
            }
            (TypeSpec::Kind(_), Some(RuntimeSpec::Native(_))) => {
                self.native(spec);
                false
            }
            (TypeSpec::Kind(_), None) => false,
        }
    }

    /// A native service: it needs a command, and what is for images does nothing.
    fn native(&mut self, spec: &ServiceSpec) {
        if spec.start_command.is_none() && spec.build_source.is_none() {
            let message = format!("{} needs `startCommand`: there is nothing to run", quoted(&spec.name));
            let help = "write `startCommand: …`".to_owned();
            self.cx.report.say(E0203, head(self.obj.node), self.path, message, help);
        }
        for field in ["dockerfilePath", "dockerContext", "dockerCommand", "image", "registryCredential"] {
            let message = format!("`{field}` has no effect here: the runtime is not `docker` or `image`");
            self.at(field, E0211, message, Some("remove it, or write `runtime: docker`"));
        }
    }

    /// A published image: what is for sources does nothing.
    fn image(&mut self, spec: &ServiceSpec) {
        if self.obj.get("image").is_none() {
            let message = format!("{} names no `image`", quoted(&spec.name));
            self.cx.report.say(E0227, head(self.obj.node), self.path, message, "write `image: {url: …}`".to_owned());
        }
        for field in ["buildCommand", "rootDir", "repo", "branch", "buildFilter", "dockerfilePath", "dockerContext", "registryCredential"] {
            let message = format!("`{field}` has no effect here: a published image is not built");
            self.at(field, E0211, message, Some("remove it"));
        }
        let help = "the command is `dockerCommand`";
        self.at("startCommand", E0211, "`startCommand` has no effect here: the runtime is `image`", Some(help));
    }

    /// An image that a Dockerfile makes: the Dockerfile says how it is built, and what it runs.
    fn dockerfile(&mut self) {
        let help = "write `RUN …` in the Dockerfile";
        self.at("buildCommand", E0211, "`buildCommand` has no effect here: the Dockerfile says how it is built", Some(help));
        let help = "the command is `dockerCommand`";
        self.at("startCommand", E0211, "`startCommand` has no effect here: the runtime is `docker`", Some(help));
        let help = "remove it, or write `runtime: image`";
        self.at("image", E0211, "`image` has no effect here: the Dockerfile says what it builds on", Some(help));
    }

    fn contradictions(&mut self, spec: &ServiceSpec) {
        if let Some(scaling) = &spec.scaling {
            if scaling.cpu_percent.is_none() && scaling.memory_percent.is_none() {
                let message = "`scaling` has no target to follow".to_owned();
                self.at("scaling", E0220, message, Some("add `targetCPUPercent` or `targetMemoryPercent`, from 1 to 90"));
            }
            if scaling.min > scaling.max {
                let message = format!("`minInstances` ({}) is more than `maxInstances` ({})", scaling.min, scaling.max);
                self.at("scaling", E0220, message, Some("swap them"));
            }
            if spec.disk.is_some() {
                let message = "a service with a `disk` has one instance: it can't scale";
                self.at("scaling", E0220, message, Some("remove `scaling` or `disk`"));
            }
        }
        if spec.disk.is_some() && spec.num_instances.as_ref().is_some_and(|n| n.value > 1) {
            let message = "a service with a `disk` has one instance";
            self.at("numInstances", E0220, message, Some("remove `numInstances` or `disk`"));
        }
        let disabled = spec.subdomain_disabled.as_ref().is_some_and(|disabled| disabled.value);
        let public = self.obj.table.field("renderSubdomainPolicy").is_some_and(|f| f.fate == crate::tables::Fate::Honoured);
        if disabled && public && spec.domains.is_empty() {
            let message = "without a custom domain, nothing could reach the service";
            self.at("renderSubdomainPolicy", E0220, message, Some("add `domains`, or remove it"));
        }
    }

    /// Public addresses.
    fn public(&mut self, spec: &ServiceSpec) {
        match spec.kind.value {
            TypeSpec::Kind(ServiceKind::Web) | TypeSpec::StaticSite => {}
            TypeSpec::Kind(ServiceKind::KeyValue) => {
                if spec.ip_allow_list.as_ref().is_some_and(|list| !list.is_empty()) {
                    let message =
                        "`ipAllowList` holds once this machine lets clients come from outside: `moat ingress keyvalue=ADDRESS:PORT`";
                    self.at("ipAllowList", E0210, message, None);
                }
                return;
            }
            TypeSpec::Kind(_) | TypeSpec::Workflow => return,
        }
        if spec.domains.iter().any(|domain| !domain.value.is_ascii()) {
            let message = "a domain outside ASCII is not supported yet";
            for field in ["domains", "domain"] {
                self.at(field, E0209, message, Some("write it as DNS does, beginning with `xn--`"));
            }
        }
        let page = spec.maintenance_mode.as_ref().and_then(|mode| mode.uri.as_ref());
        if page.is_some_and(|uri| spec.domains.iter().any(|domain| host_of(&uri.value).eq_ignore_ascii_case(&domain.value))) {
            let message = "`maintenanceMode.uri` is at the service itself, which answers nothing then";
            self.at(
                "maintenanceMode",
                E0220,
                message,
                Some("name a page of another service, or remove `uri`: the ingress has a page of its own"),
            );
        }
    }

    /// Where the source comes from and what causes a deploy.
    fn source(&mut self, spec: &ServiceSpec) {
        if spec.runtime.as_ref().is_some_and(|r| r.value != RuntimeSpec::Image) && !spec.elsewhere {
            let message = "`branch` has no effect here: Moat runs the source as it lies in the blueprint's folder, or as it is pushed";
            self.at("branch", E0210, message, None);
        }
        if spec.runtime.as_ref().is_some_and(|r| r.value == RuntimeSpec::Image) {
            let message = "`autoDeployTrigger` has no effect here: a published image comes by no commit";
            self.at("autoDeployTrigger", E0211, message, Some("remove it"));
        } else if spec.elsewhere {
            let why = "nothing tells Moat of commits in another repository; `moat up` fetches it";
            if spec.auto_deploy_trigger.as_ref().is_some_and(|word| word.value != "off") {
                self.at("autoDeployTrigger", E0210, format!("`autoDeployTrigger` has no effect here: {why}"), None);
            }
            self.at("buildFilter", E0210, format!("`buildFilter` has no effect here: {why}"), None);
        } else if spec.auto_deploy_trigger.as_ref().is_some_and(|word| word.value == "checksPass") {
            let message = "no checks run here, so that none can pass: a push never deploys this service";
            let help = "`moat git deploy NAME SERVICE` deploys it; write `commit` for a deploy by each push";
            self.at("autoDeployTrigger", E0210, message, Some(help));
        }
    }

    /// Response headers of a static site.
    fn headers(&mut self, spec: &ServiceSpec) {
        let list = self.path.key("headers");
        for (index, header) in spec.headers.iter().enumerate() {
            let entry = list.item(index);
            for (field, text, checked) in
                [("name", &header.name, formats::header_name(&header.name)), ("value", &header.value, formats::header_value(&header.value))]
            {
                if let Err((message, help)) = checked {
                    self.cx.report.say(E0216, text.span, &entry.key(field), message, help);
                }
            }
        }
    }

    fn previews(&mut self, spec: &ServiceSpec) {
        let Some(previews) = &spec.previews else { return };
        let off = previews.generation.as_ref().is_some_and(|word| word.value == "off");
        if !off {
            self.at("previews", E0210, "`previews` has no effect here: Moat makes no previews", None);
        }
    }

    /// Said once per file: regions are networks of one machine.
    fn region(&mut self, spec: &ServiceSpec) {
        if spec.region.is_some() {
            region(self.obj, self.path, self.cx);
        }
    }
}

/// Says once in a file that regions share this machine.
pub(super) fn region(obj: Obj<'_, '_>, path: &Path<'_>, cx: &mut Context<'_>) {
    if cx.region_said {
        return;
    }
    cx.region_said = true;
    let message = "every region is this machine: services of one region share a private network, others are apart";
    let Some((span, path)) = obj.place("region", path) else { return };
    cx.report.say(E0210, span, &path, message, None);
}

/// Whether two URLs name one repository: `git@host:owner/name.git` is `https://host/owner/name`.
fn same_repository(a: &str, b: &str) -> bool {
    let clean = |url: &str| {
        let url = url.trim().trim_end_matches('/');
        let url = url.strip_suffix(".git").unwrap_or(url).to_ascii_lowercase();
        let url = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest).to_owned();
        let url = url.split_once('@').map_or(url.as_str(), |(_, rest)| rest).to_owned();
        url.replacen(':', "/", 1)
    };
    clean(a) == clean(b)
}

/// The host of a web address.
fn host_of(uri: &str) -> &str {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.rsplit_once(':').map_or(host, |(name, port)| if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_repository_has_several_urls() {
        for url in [
            "https://github.com/Me/App",
            "https://github.com/me/app.git",
            "git@github.com:me/app.git",
            "ssh://git@github.com/me/app/",
            "https://token@github.com/me/app",
        ] {
            assert!(same_repository(url, "https://github.com/me/app"), "{url}");
        }
        assert!(!same_repository("https://github.com/me/other", "https://github.com/me/app"));
    }
}
