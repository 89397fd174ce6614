//! The releases of static sites that the ingress serves.
//!
//! Invariant: a release is removed only when no request is answered from it any more.

use super::Core;
use super::deploys::engine_words;
use crate::deploy::Deployed;
use crate::protocol::ServicePhase;
use moat_engine_linux::Published;
use moat_ingress::{RouteState, Rules, Site};
use moat_model::state::{StaticWorkload, Workload};
use moat_model::{ServiceKind, Slug};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What is open, and what a request may still be reading.
#[derive(Default)]
pub(crate) struct Sites {
    open: BTreeMap<Slug, Open>,
    /// Releases that were served before.
    leaving: Vec<(String, Weak<Site>)>,
}

struct Open {
    /// The release and the rules it is served by.
    fingerprint: String,
    release: String,
    /// None where it can't be opened, which was said.
    site: Option<Arc<Site>>,
}

impl Sites {
    /// What the ingress does with requests for a site; none while it has no release that can be served.
    pub(crate) fn route(&self, slug: &Slug) -> Option<RouteState> {
        self.open.get(slug)?.site.clone().map(RouteState::Site)
    }

    fn close(&mut self, slug: &Slug) {
        if let Some(Open { release, site: Some(site), .. }) = self.open.remove(slug) {
            self.leaving.push((release, Arc::downgrade(&site)));
        }
    }

    /// The releases that requests are still answered from.
    pub(super) fn leaving(&mut self) -> impl Iterator<Item = String> + '_ {
        self.leaving.retain(|(_, site)| site.strong_count() > 0);
        self.leaving.iter().map(|(release, _)| release.clone())
    }
}

impl Core {
    /// Opens what was deployed since, and lets go of what is served no longer.
    pub(super) async fn open_sites(&mut self) {
        let wanted: BTreeMap<Slug, (String, Deployed)> = self
            .durable
            .deployed
            .iter()
            .filter(|(slug, deployed)| deployed.service.kind == ServiceKind::Static && self.desired.services.contains_key(*slug))
            .map(|(slug, deployed)| (slug.clone(), (deployed.fingerprint(), deployed.clone())))
            .collect();
        let gone: Vec<Slug> = self.sites.open.keys().filter(|slug| !wanted.contains_key(*slug)).cloned().collect();
        for slug in gone {
            self.sites.close(&slug);
            self.sweep = true;
        }
        for (slug, (fingerprint, deployed)) in wanted {
            if self.sites.open.get(&slug).is_some_and(|open| open.fingerprint == fingerprint) {
                continue;
            }
            let (Workload::Static(workload), Some(release)) = (&deployed.service.workload, deployed.release) else { continue };
            let site = match self.open_site(workload, &release).await {
                Ok(site) => Some(site),
                Err(why) => {
                    self.set_phase(&slug, ServicePhase::Failed, Some(format!("its files can't be served: {why}")));
                    None
                }
            };
            // Before the old one is let go, so that there is no moment without.
            let before = self.sites.open.insert(slug, Open { fingerprint, release, site });
            if let Some(Open { release, site: Some(site), .. }) = before {
                self.sites.leaving.push((release, Arc::downgrade(&site)));
            }
        }
    }

    async fn open_site(&self, workload: &StaticWorkload, release: &str) -> Result<Arc<Site>, String> {
        let rules = Rules::of(workload, |slug| format!("{slug}.{}", crate::blueprints::DOMAIN)).map_err(|error| error.to_string())?;
        let folder = self.engine.site_folder(release).await.map_err(|error| engine_words(&error))?;
        Site::open(&folder, rules).map(Arc::new).map_err(|error| format!("`{}`: {error}", folder.display()))
    }

    /// The releases of sites that must stay for now; asks for another look while there are some.
    pub(super) fn releases_in_use(&mut self) -> Vec<String> {
        let leaving: Vec<String> = self.sites.leaving().collect();
        if !leaving.is_empty() {
            self.sweep = true;
            self.wake_in(Duration::from_secs(1));
        }
        leaving
    }
}

/// What is worth telling about a folder that was published.
pub(super) fn notices(site: &StaticWorkload, published: &Published) -> Vec<String> {
    const NAMED: usize = 3;
    let count = published.files;
    let mut said = vec![if count == 1 { "published 1 file".to_owned() } else { format!("published {count} files") }];
    let left_out: Vec<String> = published.left_out.iter().take(NAMED).map(|path| format!("`{}`", path.display())).collect();
    if !left_out.is_empty() {
        let more = published.left_out.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        said.push(format!("not published, since they lead out of the folder: {}{more}", left_out.join(", ")));
    }
    if !published.index && !site.routes.iter().any(|route| ["/", "/*"].contains(&route.source.as_str())) {
        said.push(format!("`{}` has no `index.html`: nothing answers at `/`", site.publish_path.display()));
    }
    said
}
