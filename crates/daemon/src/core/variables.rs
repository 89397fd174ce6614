//! The values of a service's variables, set beside its blueprint.
//!
//! Invariant: what a blueprint writes counts; anything else that was set stays until it is taken away.

use super::requests::{Reply, end};
use super::{Core, Until, Waiting};
use crate::history::DeployCause;
use crate::protocol::{Event, Failure, Variable};
use moat_model::{Secret, Service, Slug};
use std::collections::BTreeMap;

impl Core {
    pub(super) fn variables(&self, slug: &Slug, show: bool, reply: &Reply) {
        let Some(service) = self.desired.services.get(slug) else { return end(reply, None) };
        let variables = service.env.iter().map(|(key, value)| Variable {
            key: key.clone(),
            value: show.then(|| value.clone()),
            default: !service.written_keys.contains(key),
        });
        let _ = reply.send(Event::Variables { variables: variables.collect() });
        end(reply, None);
    }

    /// Sets values and deploys the services that they change: those that refer to them as well.
    pub(super) fn set_variables(&mut self, slug: &Slug, values: &BTreeMap<String, Option<Secret>>, reply: Reply) {
        let refuse = |message: String, hint: &str| end(&reply, Some(Failure::refused(message, Some(hint.to_owned()))));
        let Some(service) = self.desired.services.get(slug).cloned() else { return end(&reply, None) };
        if service.kind.is_datastore() {
            return refuse(format!("`{slug}` is a {}: it has no variables", service.kind.phrase()), "set them on the services that use it");
        }
        if let Some(bad) = values.keys().find(|key| !is_key(key)) {
            return refuse(format!("`{bad}` can't be the name of a variable"), "write letters, digits and `_`, no digit first");
        }
        let Some(mut up) = self.durable.blueprints.get(&service.blueprint).cloned() else { return end(&reply, None) };
        let before = self.durable.memory.clone();
        for (key, value) in values {
            self.durable.memory.set_value(slug, key, value.as_ref());
            // What was given by the last `up` would count more.
            let own = format!("{}.{key}", service.name);
            let given = up.given.remove(&own).is_some() || up.given.contains_key(key);
            if let Some(value) = value.as_ref().filter(|_| given) {
                up.given.insert(own, value.clone());
            }
        }
        let Some(outcome) = self.resolve_with(&up, &reply) else {
            self.durable.memory = before;
            return;
        };
        let now = outcome.state.services.get(slug);
        let is_as_asked = |key: &str, value: Option<&Secret>| match (now, value) {
            (Some(now), Some(value)) => now.env.get(key) == Some(value),
            (Some(now), None) => !now.written_keys.contains(key),
            (None, _) => false,
        };
        if let Some((key, _)) = values.iter().find(|(key, value)| !is_as_asked(key, value.as_ref())) {
            self.durable.memory = before;
            return refuse(format!("`{key}` of `{slug}` is what its blueprint writes"), "change it there, and say `moat up`");
        }
        let changed: Vec<Service> = outcome.state.services.values().filter(|service| self.differs(service)).cloned().collect();
        self.durable.blueprints.insert(up.file.clone(), up.clone());
        self.take_state(outcome.state, &up.file);
        self.followers.push(reply.clone());
        for service in changed {
            let timeout = self.start_timeout(&service.slug);
            self.begin_deploy(&service, DeployCause::Variables, timeout);
        }
        self.save();
        self.waiting.push(Waiting { reply, until: Until::Settled { file: up.file } });
    }

    /// Whether a service's instances or its build are to be made of something else than until now.
    fn differs(&self, service: &Service) -> bool {
        let print = |service: &Service| (service.fingerprint.clone(), service.build_fingerprint.clone());
        !self.durable.kept.contains_key(&service.slug)
            && self.desired.services.get(&service.slug).is_none_or(|before| print(before) != print(service))
    }
}

/// POSIX's names (IEEE 1003.1, 3.216), with the dots that some servers want.
fn is_key(text: &str) -> bool {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}
