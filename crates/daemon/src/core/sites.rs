//! The releases of static sites that the ingress serves.
//!
//! Invariant: a release is removed only when no request is answered from it any more.

use super::Core;
use super::deploys::engine_words;
use crate::deploy::Deployed;
use crate::protocol::ServicePhase;
use moat_dataplane::{HostState, SiteFiles};
use moat_engine_linux::Published;
use moat_ingress::{Rules, Site};
use moat_model::state::{StaticWorkload, Workload};
use moat_model::{ServiceKind, Slug};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is served of each site. What requests may still be reading, the data plane tells.
#[derive(Default)]
pub(crate) struct Sites {
    open: BTreeMap<Slug, Open>,
}

struct Open {
    /// The release and the rules it is served by.
    fingerprint: String,
    /// None where it can't be opened, which was said.
    files: Option<SiteFiles>,
}

impl Sites {
    /// What the ingress does with requests for a site; none while it has no release that can be served.
    pub(crate) fn route(&self, slug: &Slug) -> Option<HostState> {
        self.open.get(slug)?.files.clone().map(HostState::Site)
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
            self.sites.open.remove(&slug);
            self.sweep = true;
        }
        for (slug, (fingerprint, deployed)) in wanted {
            if self.sites.open.get(&slug).is_some_and(|open| open.fingerprint == fingerprint) {
                continue;
            }
            let (Workload::Static(workload), Some(release)) = (&deployed.service.workload, deployed.release) else { continue };
            let files = match self.files_of(workload, &release).await {
                Ok(files) => Some(files),
                Err(why) => {
                    self.set_phase(&slug, ServicePhase::Failed, Some(format!("its files can't be served: {why}")));
                    None
                }
            };
            self.sites.open.insert(slug, Open { fingerprint, files });
        }
    }

    /// What the data plane is told of a release, tried here first: only this process can say what is wrong with it.
    async fn files_of(&self, workload: &StaticWorkload, release: &str) -> Result<SiteFiles, String> {
        let domain = crate::blueprints::DOMAIN;
        let rules =
            Rules::new(&workload.headers, &workload.routes, |slug| format!("{slug}.{domain}")).map_err(|error| error.to_string())?;
        let folder = self.engine.site_folder(release).await.map_err(|error| engine_words(&error))?;
        let below = folder.strip_prefix(self.dataplane.root()).map_err(|_| format!("`{}` lies elsewhere", folder.display()))?;
        Site::open(&folder, rules).map_err(|error| format!("`{}`: {error}", folder.display()))?;
        let (headers, routes) = (workload.headers.clone(), workload.routes.clone());
        Ok(SiteFiles { folder: below.to_owned(), headers, routes, domain: domain.to_owned() })
    }

    /// The releases of sites that must stay for now; asks for another look while there are some.
    pub(super) fn releases_in_use(&mut self) -> BTreeSet<String> {
        let used = self.dataplane.releases_in_use();
        let served = |release: &String| self.durable.deployed.values().any(|deployed| deployed.release.as_ref() == Some(release));
        if !used.iter().all(served) {
            self.sweep = true;
            self.wake_in(Duration::from_secs(1));
        }
        used
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
