//! How many instances run, whether any does, and whether the service or the ingress answers.

use super::requests::{Reply, end};
use super::{Core, Until, Waiting};
use crate::history::DeployCause;
use crate::protocol::{Failure, ServicePhase};
use crate::settings::{Maintenance, Scale, Settings};
use moat_model::{DesiredState, InstanceId, Purpose, Service, ServiceKind, Slug};
use moat_store::EventKind;
use serde_json::json;
use std::collections::BTreeMap;

/// The most instances of one service.
const MOST_INSTANCES: u32 = 100;

impl Core {
    /// A service by its slug or its name as written.
    pub(super) fn find(&self, name: &str) -> Result<Slug, Failure> {
        let by_slug = self.desired.services.values().find(|service| service.slug.as_str() == name);
        let named: Vec<&Service> = self.desired.services.values().filter(|service| service.name == name).collect();
        match (by_slug, named.as_slice()) {
            (Some(service), _) | (None, &[service]) => Ok(service.slug.clone()),
            (None, []) => {
                let known: Vec<&str> = self.desired.services.keys().map(Slug::as_str).collect();
                Err(Failure::refused(format!("no service `{name}` runs here"), Some(format!("services: {}", known.join(", ")))))
            }
            (None, several) => {
                let slugs: Vec<&str> = several.iter().map(|service| service.slug.as_str()).collect();
                Err(Failure::refused(format!("several services are called `{name}`"), Some(format!("say one of {}", slugs.join(", ")))))
            }
        }
    }

    fn settings(&self, slug: &Slug) -> Option<&Settings> {
        self.durable.settings.get(slug)
    }

    pub(crate) fn is_suspended(&self, slug: &Slug) -> bool {
        self.settings(slug).is_some_and(|settings| settings.suspended)
    }

    /// The page that the ingress answers with instead of the service; a blank one is Moat's own.
    pub(crate) fn maintenance(&self, service: &Service) -> Option<String> {
        let asked = self.settings(&service.slug).and_then(|settings| settings.maintenance.as_ref());
        let on = asked.map_or(service.maintenance, |asked| asked.on);
        on.then(|| asked.and_then(|asked| asked.page.clone()).unwrap_or_default())
    }

    /// How many instances of what is deployed should serve.
    pub(crate) fn wanted(&self, slug: &Slug) -> u32 {
        let Some(service) = self.deployed(slug).map(|deployed| &deployed.service) else { return 0 };
        if self.is_suspended(slug) || self.is_asleep(slug) || self.copies.holds(slug) || service.instances == 0 {
            return 0;
        }
        match (&service.scaling, self.settings(slug).and_then(|settings| settings.scale.as_ref())) {
            (Some(scaling), _) => self.scalers.get(slug).map_or(service.instances, |scaler| scaler.count(scaling)),
            (None, Some(scale)) => scale.instances,
            (None, None) => service.instances,
        }
    }

    /// Gives services of a state the numbers of instances that they would have, by what people have set and by their load.
    pub(super) fn count_as_set(&self, state: &mut DesiredState) {
        for service in state.services.values_mut() {
            let scale = self.settings(&service.slug).and_then(|settings| settings.scale.as_ref());
            let scaler = self.scalers.get(&service.slug);
            service.instances = match (&service.scaling, scaler, scale) {
                _ if self.is_suspended(&service.slug) || self.is_asleep(&service.slug) => 0,
                (Some(scaling), Some(scaler), _) => scaler.count(scaling),
                (None, _, Some(scale)) if scale.over == service.instances => scale.instances,
                _ => service.instances,
            };
        }
    }

    /// Instances that serve what is deployed and are ready, and others that serve and are not about to go.
    pub(super) fn count(&self, slug: &Slug) -> (usize, usize) {
        let fingerprint = self.deployed(slug).map(crate::deploy::Deployed::fingerprint);
        let mine = self.live.values().filter(|live| live.slug == *slug && live.purpose == Purpose::Serve && !live.stopping);
        let (ready, others): (Vec<_>, Vec<_>) = mine.partition(|live| live.ready && Some(&live.fingerprint) == fingerprint.as_ref());
        (ready.len(), others.len())
    }

    /// Gives up settings that blueprints have decided otherwise since, or whose service is gone.
    pub(super) fn follow_blueprints(&mut self) {
        let mut said = Vec::new();
        let services: BTreeMap<_, _> = self.desired.services.iter().collect();
        let deployed = &mut self.durable.deployed;
        self.durable.settings.retain(|slug, settings| {
            let Some(service) = services.get(slug) else { return false };
            let before = settings.scale.clone();
            said.extend(settings.follow(service).into_iter().map(|text| (slug.clone(), text)));
            if let (Some(before), None, Some(deployed)) = (before, &settings.scale, deployed.get_mut(slug)) {
                // Until the deploy that follows: so many run now.
                deployed.service.instances = before.instances;
            }
            !settings.is_empty()
        });
        for (slug, text) in said {
            self.notice(Some(&slug), text);
        }
    }

    fn set(&mut self, slug: &Slug, change: impl FnOnce(&mut Settings)) {
        let settings = self.durable.settings.entry(slug.clone()).or_default();
        change(settings);
        if settings.is_empty() {
            self.durable.settings.remove(slug);
        }
        self.save();
    }

    pub(super) fn scale(&mut self, slug: Slug, instances: Option<u32>, reply: Reply) {
        let refuse = |message: String, hint: Option<String>| end(&reply, Some(Failure::refused(message, hint)));
        let Some(service) = self.desired.services.get(&slug) else { return end(&reply, None) };
        let written = service.instances;
        match service.kind {
            ServiceKind::Web | ServiceKind::Pserv | ServiceKind::Worker => {}
            ServiceKind::Cron | ServiceKind::Static | ServiceKind::KeyValue | ServiceKind::Postgres => {
                return refuse(format!("`{slug}` is a {}: it is not scaled", service.kind.phrase()), None);
            }
        }
        if service.workload.disk().is_some() {
            return refuse(format!("`{slug}` has a disk: it has one instance"), Some("a disk belongs to one instance".to_owned()));
        }
        if service.scaling.is_some() {
            let hint = "change or remove `scaling` in its blueprint".to_owned();
            return refuse(format!("the number of instances of `{slug}` follows its load"), Some(hint));
        }
        if instances.is_some_and(|count| count == 0 || count > MOST_INSTANCES) {
            let hint = format!("from 1 to {MOST_INSTANCES}; `moat suspend {slug}` stops it");
            return refuse("that many instances can't be".to_owned(), Some(hint));
        }
        let text = match instances {
            Some(count) => format!("it was scaled to {count}"),
            None => format!("it was scaled to what its blueprint says: {written}"),
        };
        self.record(EventKind::Scaled, Some(&slug), text, json!({ "instances": instances.unwrap_or(written), "asked": true }));
        self.set(&slug, |settings| {
            settings.scale = instances.filter(|count| *count != written).map(|instances| Scale { instances, over: written });
        });
        if self.is_suspended(&slug) || self.is_asleep(&slug) || self.deployed(&slug).is_none() {
            return end(&reply, None);
        }
        self.followers.push(reply.clone());
        // That a deploy failed before says nothing of what runs.
        self.set_phase(&slug, ServicePhase::Starting, None);
        self.waiting.push(Waiting { reply, until: Until::Service { slug } });
    }

    pub(super) fn suspend(&mut self, slug: Slug, reply: Reply) {
        self.cancel_deploys(&slug, "the service was suspended");
        if !self.is_suspended(&slug) {
            self.record(EventKind::Suspended, Some(&slug), "it was suspended", json!({}));
        }
        self.set(&slug, |settings| settings.suspended = true);
        self.backoff.remove(&slug);
        self.durable.cron.remove(&slug);
        self.hooks_due.remove(&slug);
        self.set_phase(&slug, ServicePhase::Suspended, None);
        let grace = self.desired.services.get(&slug).map_or(30, |service| service.max_shutdown_delay_seconds);
        let mine: Vec<InstanceId> = self.live.iter().filter(|(_, live)| live.slug == slug).map(|(id, _)| id.clone()).collect();
        for id in mine {
            self.stop_instance(&id, grace);
        }
        self.followers.push(reply.clone());
        self.waiting.push(Waiting { reply, until: Until::Service { slug } });
    }

    pub(super) fn resume_service(&mut self, slug: Slug, reply: Reply) {
        if !self.is_suspended(&slug) {
            return end(&reply, Some(Failure::refused(format!("`{slug}` is not suspended"), None)));
        }
        self.record(EventKind::Resumed, Some(&slug), "it was resumed", json!({}));
        self.set(&slug, |settings| settings.suspended = false);
        self.followers.push(reply.clone());
        if let Some(service) = self.desired.services.get(&slug).cloned() {
            self.begin_deploy(&service, DeployCause::Resume, self.start_timeout(&slug));
        }
        self.save();
        self.waiting.push(Waiting { reply, until: Until::Service { slug } });
    }

    pub(super) fn set_maintenance(&mut self, slug: &Slug, on: bool, page: Option<String>, reply: &Reply) {
        let Some(service) = self.desired.services.get(slug) else { return end(reply, None) };
        if service.kind != ServiceKind::Web {
            let message = format!("`{slug}` is a {}: maintenance mode is of web services", service.kind.phrase());
            return end(reply, Some(Failure::refused(message, None)));
        }
        let (over, before) = (service.maintenance, self.maintenance(service));
        self.set(slug, |settings| {
            settings.maintenance = (on != over || page.is_some()).then_some(Maintenance { on, page, over });
        });
        self.record_maintenance(slug, before.as_deref());
        end(reply, None);
    }

    /// The page that the ingress answers with instead of each service.
    pub(super) fn maintained(&self) -> BTreeMap<Slug, String> {
        self.desired.services.values().filter_map(|service| Some((service.slug.clone(), self.maintenance(service)?))).collect()
    }

    /// Records that the ingress answers instead of a service from now on, or no longer, or with another page than before.
    pub(super) fn record_maintenance(&mut self, slug: &Slug, before: Option<&str>) {
        let now = self.desired.services.get(slug).and_then(|service| self.maintenance(service));
        let text = match (before, now.as_deref()) {
            (before, now) if before == now => return,
            (None, Some(_)) => "maintenance mode is on: the ingress answers instead of it",
            (Some(_), Some(_)) => "maintenance mode has another page",
            (_, None) => "maintenance mode is off",
        };
        self.record(EventKind::Maintenance, Some(slug), text, json!({ "on": now.is_some() }));
    }
}
