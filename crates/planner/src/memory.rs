//! The durable part of planning: ids, names, addresses, generated and answered values. It survives between runs.
//!
//! Invariant: what was handed out stays handed out. A service that leaves its blueprint keeps its entry, so that it
//! has the same id, name and address when it returns, until [`Memory::forget`].

use crate::alloc::Ring;
use moat_model::net::Ula;
use moat_model::{NetworkId, Secret, ServiceId, Slug};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What planning remembers between runs. The caller stores it before it applies a plan that was made with it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The installation's own IPv6 prefix, drawn once.
    pub(crate) ula: Option<Ula>,
    /// Region word → network index.
    pub(crate) regions: BTreeMap<String, u8>,
    /// Address ranges by network index.
    pub(crate) ranges: BTreeMap<u8, Ranges>,
    /// Project → environment → number, for the zones of isolated environments.
    pub(crate) environments: BTreeMap<String, BTreeMap<String, u32>>,
    /// What each blueprint file has.
    pub(crate) files: BTreeMap<PathBuf, FileMemory>,
}

/// The two address ranges of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ranges {
    /// Instance addresses.
    pub(crate) instances: Ring,
    /// Service addresses.
    pub(crate) services: Ring,
}

/// What one blueprint file has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct FileMemory {
    /// By name as written.
    pub(crate) services: BTreeMap<String, ServiceMemory>,
    /// Databases by name as written: a space of its own, apart from services.
    pub(crate) databases: BTreeMap<String, ServiceMemory>,
    /// Values of each environment group, by name as written.
    pub(crate) groups: BTreeMap<String, BTreeMap<String, Secret>>,
    /// Credentials of registries, `user:password`, by name as written.
    pub(crate) credentials: BTreeMap<String, Secret>,
}

impl FileMemory {
    /// What is remembered of the services or of the databases.
    pub(crate) const fn space(&mut self, space: Space) -> &mut BTreeMap<String, ServiceMemory> {
        match space {
            Space::Services => &mut self.services,
            Space::Databases => &mut self.databases,
        }
    }

    /// Everything that has a label.
    pub(crate) fn all(&self) -> impl Iterator<Item = &ServiceMemory> {
        self.services.values().chain(self.databases.values())
    }

    /// Everything that has a label, to be changed.
    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut ServiceMemory> {
        self.services.values_mut().chain(self.databases.values_mut())
    }
}

/// The lists of a file in which a name stands for one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    /// `services`.
    Services,
    /// `databases`.
    Databases,
}

/// What one service or database has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceMemory {
    /// Its id.
    pub(crate) id: Option<ServiceId>,
    /// Its label, unique in the workspace.
    pub(crate) slug: Option<Slug>,
    /// Its service address: network index and offset.
    pub(crate) vip: Option<(u8, u16)>,
    /// The value each of its own variables had last; of a database: its `database`, `user` and `password`.
    pub(crate) values: BTreeMap<String, Secret>,
    /// What clients from outside say to a Key Value; drawn once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) password: Option<Secret>,
}

impl Memory {
    /// Gives up everything about the service or database with this label: id, label, address and values. Its address rests before
    /// it is used again. Says whether there was one.
    pub fn forget(&mut self, slug: &Slug) -> bool {
        for file in self.files.values_mut() {
            let removed = [Space::Services, Space::Databases].into_iter().find_map(|space| {
                let list = file.space(space);
                let name = list.iter().find(|(_, s)| s.slug.as_ref() == Some(slug)).map(|(name, _)| name.clone())?;
                list.remove(&name)
            });
            let Some(service) = removed else { continue };
            if let Some((network, offset)) = service.vip
                && let Some(ranges) = self.ranges.get_mut(&network)
            {
                ranges.services.give_back(offset);
            }
            return true;
        }
        false
    }

    /// Gives a variable of the service with this label a value, or takes it away. It counts where the blueprint writes no other.
    pub fn set_value(&mut self, slug: &Slug, key: &str, value: Option<&Secret>) {
        let services = self.files.values_mut().flat_map(|file| file.services.values_mut());
        for service in services.filter(|service| service.slug.as_ref() == Some(slug)) {
            match value {
                Some(value) => drop(service.values.insert(key.to_owned(), value.clone())),
                None => drop(service.values.remove(key)),
            }
        }
    }

    /// What clients from outside say to the Key Value with this label.
    pub fn outside_password(&self, slug: &Slug) -> Option<&Secret> {
        let mut services = self.files.values().flat_map(|file| file.services.values());
        services.find(|service| service.slug.as_ref() == Some(slug))?.password.as_ref()
    }

    /// The files whose services use an environment group of this name, or that write one.
    pub fn files_with_group<'m>(&'m self, name: &'m str) -> impl Iterator<Item = &'m Path> {
        self.files.iter().filter(move |(_, file)| file.groups.contains_key(name)).map(|(path, _)| path.as_path())
    }

    /// The variables of an environment group, by key; none where the file has no such group.
    pub fn group(&self, path: &Path, name: &str) -> Option<&BTreeMap<String, Secret>> {
        self.files.get(path)?.groups.get(name)
    }

    /// Gives a variable of an environment group a value, or takes it away. It counts where the blueprint writes no other.
    pub fn set_group_value(&mut self, path: &Path, name: &str, key: &str, value: Option<&Secret>) {
        let Some(group) = self.files.get_mut(path).and_then(|file| file.groups.get_mut(name)) else { return };
        match value {
            Some(value) => drop(group.insert(key.to_owned(), value.clone())),
            None => drop(group.remove(key)),
        }
    }

    /// Gives up the values of variables that the blueprint no longer names (`up --prune`); without this they stay.
    pub fn prune_values(&mut self, path: &Path, blueprint: &moat_blueprint::Blueprint) {
        let Some(file) = self.files.get_mut(path) else { return };
        for (name, service) in &mut file.services {
            let written: BTreeSet<&str> = blueprint
                .services
                .iter()
                .filter(|s| s.name.value == *name)
                .flat_map(|s| crate::resolve::written_keys(&s.env_vars))
                .collect();
            service.values.retain(|key, _| written.contains(key.as_str()));
        }
        for (name, values) in &mut file.groups {
            let Some(group) = blueprint.env_groups.iter().find(|g| g.name.value == *name) else { continue };
            let written: BTreeSet<&str> = crate::resolve::written_keys(&group.env_vars).collect();
            values.retain(|key, _| written.contains(key.as_str()));
        }
    }

    /// The installation's prefix, drawn at the first call.
    pub(crate) fn ula(&mut self, random: &mut dyn FnMut() -> [u8; 32]) -> Ula {
        *self.ula.get_or_insert_with(|| {
            let bits = random();
            Ula::from_random([bits[0], bits[1], bits[2], bits[3], bits[4]])
        })
    }

    /// The network of a region; `None` when all indices are taken.
    pub(crate) fn network(&mut self, region: &str) -> Option<NetworkId> {
        if let Some(index) = self.regions.get(region) {
            return NetworkId::new(*index);
        }
        let used: BTreeSet<u8> = self.regions.values().copied().collect();
        let network = (0..moat_model::net::MAX_NETWORKS).find(|i| !used.contains(i)).and_then(NetworkId::new)?;
        self.regions.insert(region.to_owned(), network.index());
        Some(network)
    }

    /// The number of an environment, the same at every call.
    pub(crate) fn environment(&mut self, project: &str, name: &str) -> u32 {
        if let Some(number) = self.environments.get(project).and_then(|names| names.get(name)) {
            return *number;
        }
        let next = self.environments.values().flat_map(BTreeMap::values).max().map_or(0, |n| n + 1);
        *self.environments.entry(project.to_owned()).or_default().entry(name.to_owned()).or_insert(next)
    }

    /// What is remembered of a service, made empty at the first call.
    pub(crate) fn service(&mut self, path: &Path, name: &str) -> &mut ServiceMemory {
        self.entry(path, Space::Services, name)
    }

    /// What is remembered of a service or database, made empty at the first call.
    pub(crate) fn entry(&mut self, path: &Path, space: Space, name: &str) -> &mut ServiceMemory {
        self.files.entry(path.to_owned()).or_default().space(space).entry(name.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_get_indices_until_they_are_all_taken() {
        let mut memory = Memory::default();
        for i in 0..64 {
            assert_eq!(memory.network(&format!("r{i}")).unwrap().index(), i);
        }
        assert_eq!(memory.network("one-more"), None);
        assert_eq!(memory.network("r7").unwrap().index(), 7);
    }

    #[test]
    fn environments_of_one_name_in_two_projects_differ() {
        let mut memory = Memory::default();
        let a = memory.environment("a", "production");
        let b = memory.environment("b", "production");
        assert_ne!(a, b);
        assert_eq!(memory.environment("a", "production"), a);
    }

    #[test]
    fn memory_survives_its_text() {
        let mut memory = Memory::default();
        memory.ula(&mut || [7; 32]);
        let network = memory.network("oregon").unwrap();
        memory.ranges.entry(network.index()).or_default().instances.take();
        memory.service(Path::new("/a/render.yaml"), "web").slug = Slug::slugify("web");
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Memory>(&text).unwrap(), memory);
        assert_eq!(serde_json::from_str::<Memory>("{}").unwrap(), Memory::default());
    }
}
