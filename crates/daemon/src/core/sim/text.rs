//! Blueprints whose programs do what their commands say.

use super::rng::Rng;
use std::fmt::Write as _;

/// What a service's commands do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    /// All goes well.
    Well,
    /// The build ends with 1.
    BuildFails,
    /// The pre-deploy command ends with 1.
    MigrationFails,
    /// The program ends soon.
    Crashes,
    /// It never listens.
    Mute,
    /// It listens and is not healthy.
    Sick,
}

/// Every service that a blueprint may have.
pub(super) const SERVICES: [&str; 6] = ["shop", "api", "mill", "store", "vault", "tick"];

/// A blueprint.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub(super) yaml: String,
    /// Instances by service, of those that are in it.
    pub(super) instances: Vec<(&'static str, u64)>,
}

/// One at random; `clean`: in which nothing fails and nothing is missing.
pub(super) fn blueprint(rng: &mut Rng, clean: bool) -> Text {
    let mut text = Text { yaml: "services:\n".to_owned(), instances: Vec::new() };
    let mut restricted = rng.once_in(3);
    for name in SERVICES {
        if !clean && rng.once_in(7) {
            restricted &= name != "shop";
            continue;
        }
        let version = rng.below(4);
        let does = match rng.below(16) {
            _ if clean => Does::Well,
            0 => Does::BuildFails,
            1 => Does::MigrationFails,
            2 => Does::Crashes,
            3 => Does::Mute,
            4 => Does::Sick,
            _ => Does::Well,
        };
        let says = |fails: Does| if does == fails { "fails" } else { "well" };
        let serves = match does {
            Does::Crashes => "crashes",
            Does::Mute => "mute",
            Does::Sick => "sick",
            Does::Well | Does::BuildFails | Does::MigrationFails => "well",
        };
        let build = format!("buildCommand: build v{version} {}", says(Does::BuildFails));
        let migrate = format!("preDeployCommand: migrate v{version} {}", says(Does::MigrationFails));
        let start = format!("startCommand: serve v{version} {serves}");
        let count = 1 + rng.below(3);
        let scaled = ["shop", "api", "mill"].contains(&name);
        let more = match name {
            "shop" => {
                let plan = if rng.once_in(2) { "free" } else { "starter" };
                format!("type: web, plan: {plan}, healthCheckPath: /up, {migrate}, initialDeployHook: hook, numInstances: {count}")
            }
            "api" if restricted => format!("type: pserv, numInstances: {count}, x-moat: {{allowFrom: [shop]}}"),
            "api" => format!("type: pserv, numInstances: {count}"),
            "mill" => format!("type: worker, {migrate}, numInstances: {count}"),
            "vault" => "type: pserv, disk: {name: d, mountPath: /data}".to_owned(),
            "tick" => "type: cron, schedule: '*/2 * * * *'".to_owned(),
            _ => String::new(),
        };
        if name == "store" {
            let policy = if version < 2 { "noeviction" } else { "allkeys-lru" };
            writeln!(text.yaml, "  - {{type: keyvalue, name: store, ipAllowList: [], maxmemoryPolicy: {policy}}}").unwrap();
        } else {
            writeln!(text.yaml, "  - {{name: {name}, runtime: python, {more}, {build}, {start}}}").unwrap();
        }
        text.instances.push((name, if scaled { count } else { 1 }));
    }
    if text.instances.is_empty() {
        return blueprint(rng, clean);
    }
    text
}
