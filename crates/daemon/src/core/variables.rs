//! The values of variables of services and environment groups, set beside its blueprint.
//!
//! Invariant: what a blueprint writes counts; anything else that was set stays until it is taken away.

use super::requests::{Reply, end};
use super::{Core, Until, Waiting};
use crate::history::DeployCause;
use crate::protocol::{Event, Failure, Variable};
use moat_model::{Secret, Service, Slug};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Whose variables.
enum Owner {
    Service(Slug),
    /// An environment group.
    Group,
}

impl Core {
    pub(super) fn variables(&self, slug: &Slug, show: bool, reply: &Reply) {
        let Some(service) = self.desired.services.get(slug) else { return end(reply, None) };
        let variables = service.env.iter().map(|(key, value)| Variable {
            key: key.clone(),
            value: show.then(|| value.clone()),
            default: !service.written_keys.contains(key),
        });
        let urls = self.database_urls(service).into_iter();
        let urls = urls.map(|(key, url)| Variable { key: key.to_owned(), value: show.then_some(url), default: true });
        let _ = reply.send(Event::Variables { variables: variables.chain(urls).collect() });
        end(reply, None);
    }

    /// Answers with the variables of an environment group.
    pub(super) fn group_variables(&self, group: &str, show: bool, reply: &Reply) {
        let file = match self.file_of_group(group) {
            Ok(file) => file,
            Err(failure) => return end(reply, Some(failure)),
        };
        let values = self.durable.memory.group(&file, group).into_iter().flatten();
        let variables = values.map(|(key, value)| Variable { key: key.clone(), value: show.then(|| value.clone()), default: false });
        let _ = reply.send(Event::Variables { variables: variables.collect() });
        end(reply, None);
    }

    /// Sets values of a service, and deploys the services that they change: those that refer to them as well.
    pub(super) fn set_variables(&mut self, slug: &Slug, values: &BTreeMap<String, Option<Secret>>, reply: Reply) {
        let Some(service) = self.desired.services.get(slug) else { return end(&reply, None) };
        if service.kind.is_datastore() {
            let message = format!("`{slug}` is a {}: it has no variables", service.kind.phrase());
            return end(&reply, Some(Failure::refused(message, Some("set them on the services that use it".to_owned()))));
        }
        let (file, name) = (service.blueprint.clone(), service.name.clone());
        self.set_values(&Owner::Service(slug.clone()), &file, &name, values, reply);
    }

    /// Sets values of an environment group, and deploys the services that use it.
    pub(super) fn set_group_variables(&mut self, group: &str, values: &BTreeMap<String, Option<Secret>>, reply: Reply) {
        match self.file_of_group(group) {
            Ok(file) => self.set_values(&Owner::Group, &file, group, values, reply),
            Err(failure) => end(&reply, Some(failure)),
        }
    }

    /// The blueprint whose environment group has this name.
    fn file_of_group(&self, group: &str) -> Result<PathBuf, Failure> {
        let files: Vec<&Path> =
            self.durable.memory.files_with_group(group).filter(|file| self.durable.blueprints.contains_key(*file)).collect();
        match files.as_slice() {
            [file] => Ok((*file).to_owned()),
            [] => Err(Failure::refused(format!("no environment group `{group}` is used here"), None)),
            several => {
                let files: Vec<String> = several.iter().map(|file| format!("`{}`", file.display())).collect();
                let message = format!("several blueprints have an environment group `{group}`: {}", files.join(", "));
                Err(Failure::refused(message, Some("change it in its blueprint, and say `moat up`".to_owned())))
            }
        }
    }

    /// Sets values of what a blueprint calls `name`, and deploys the services that they change.
    fn set_values(&mut self, owner: &Owner, file: &Path, name: &str, values: &BTreeMap<String, Option<Secret>>, reply: Reply) {
        let refuse = |message: String, hint: &str| end(&reply, Some(Failure::refused(message, Some(hint.to_owned()))));
        if let Some(bad) = values.keys().find(|key| !is_key(key)) {
            return refuse(format!("`{bad}` can't be the name of a variable"), "write letters, digits and `_`, no digit first");
        }
        let Some(mut up) = self.durable.blueprints.get(file).cloned() else { return end(&reply, None) };
        let before = self.durable.memory.clone();
        for (key, value) in values {
            match owner {
                Owner::Service(slug) => self.durable.memory.set_value(slug, key, value.as_ref()),
                Owner::Group => self.durable.memory.set_group_value(file, name, key, value.as_ref()),
            }
            // What was given by the last `up` would count more.
            let own = format!("{name}.{key}");
            let given = up.given.remove(&own).is_some() || (matches!(owner, Owner::Service(_)) && up.given.contains_key(key));
            if let Some(value) = value.as_ref().filter(|_| given) {
                up.given.insert(own, value.clone());
            }
        }
        let Some(outcome) = self.resolve_with(&up, &reply) else {
            self.durable.memory = before;
            return;
        };
        let is_as_asked = |key: &str, value: Option<&Secret>| match owner {
            Owner::Service(slug) => outcome.state.services.get(slug).is_some_and(|now| match value {
                Some(value) => now.env.get(key) == Some(value),
                None => !now.written_keys.contains(key),
            }),
            Owner::Group => self.durable.memory.group(file, name).and_then(|group| group.get(key)) == value,
        };
        if let Some((key, _)) = values.iter().find(|(key, value)| !is_as_asked(key, value.as_ref())) {
            self.durable.memory = before;
            return refuse(format!("`{key}` of `{name}` is what its blueprint writes"), "change it there, and say `moat up`");
        }
        let changed: Vec<Service> = outcome.state.services.values().filter(|service| self.differs(service)).cloned().collect();
        let mut next = self.next_state(&outcome.state, &up.file);
        next.blueprints.insert(up.file.clone(), up.clone());
        if let Err(error) = self.commit(next) {
            self.durable.memory = before;
            let hint = Some("nothing was changed; what ran goes on".to_owned());
            return end(&reply, Some(Failure { message: crate::chain(&error), hint, exit_code: 3 }));
        }
        self.take_state(outcome.state);
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
