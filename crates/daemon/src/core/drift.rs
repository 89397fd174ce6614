//! What a blueprint differs in from what runs here.

use super::Core;
use crate::drift::{Drift, DriftKind, changes};
use moat_model::{DesiredState, ServiceKind, Slug};
use std::path::Path;

impl Core {
    /// Differences between what runs and the state that the blueprints ask for; those of `file` alone, by service.
    pub(super) fn drift(&self, state: &DesiredState, file: &Path) -> Vec<Drift> {
        let mut found = Vec::new();
        for service in state.services.values().filter(|service| service.blueprint == file) {
            let slug = &service.slug;
            let mut tell = |kind, text: String| found.push(Drift { service: slug.clone(), kind, text });
            match self.deployed(slug) {
                None if self.desired.services.contains_key(slug) => tell(DriftKind::Missing, "was never deployed with success".to_owned()),
                None => tell(DriftKind::New, "does not run yet".to_owned()),
                Some(deployed) => {
                    let mut runs = deployed.service.clone();
                    // How many run is no part of what is deployed.
                    runs.instances = self.desired.services.get(slug).map_or(runs.instances, |desired| desired.instances);
                    for text in changes(&runs, service) {
                        tell(DriftKind::Changed, text);
                    }
                    if service.kind != ServiceKind::Cron {
                        let (ready, wanted) = (self.count(slug).0, self.wanted(slug) as usize);
                        if ready < wanted {
                            tell(DriftKind::Missing, format!("{ready} of {wanted} instances are ready"));
                        }
                    }
                }
            }
            for text in self.set_beside(slug) {
                tell(DriftKind::Set, text);
            }
        }
        let gone =
            self.desired.services.values().filter(|service| service.blueprint == file && !state.services.contains_key(&service.slug));
        found.extend(gone.map(|service| Drift {
            service: service.slug.clone(),
            kind: DriftKind::Unnamed,
            text: "is no longer named: it keeps running (`moat up --prune` stops it)".to_owned(),
        }));
        found.sort();
        found
    }

    /// What people have set of a service, in words.
    fn set_beside(&self, slug: &Slug) -> Vec<String> {
        let Some(settings) = self.durable.settings.get(slug) else { return Vec::new() };
        let mut said = Vec::new();
        if let Some(scale) = &settings.scale {
            said.push(format!("is scaled to {} (`moat scale`), where its blueprint says {}", scale.instances, scale.over));
        }
        if settings.suspended {
            said.push("is suspended (`moat suspend`)".to_owned());
        }
        if let Some(maintenance) = &settings.maintenance {
            let word = if maintenance.on { "on" } else { "off" };
            said.push(format!("has maintenance mode {word} (`moat maintenance`)"));
        }
        said
    }
}
