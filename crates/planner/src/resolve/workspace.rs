//! Every service and database of every file: which there are, what each is called and by which id it goes.

use super::databases::Database;
use super::{Input, Sight};
use crate::alloc::{id_prefix, letters, service_id};
use crate::codes::{Code, Report};
use crate::memory::{Memory, ServiceMemory, Space};
use crate::names::quoted;
use moat_blueprint::spec::{DatabaseSpec, EnvGroupSpec, RuntimeSpec, ServiceSpec, Text, TypeSpec};
use moat_model::{Secret, ServiceId, ServiceKind, Slug};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// Labels that stand for something else: peers of the command line, and the loopback name.
const TAKEN_LABELS: [&str; 4] = ["internet", "ingress", "host", "localhost"];

/// A service of a file, with its id and label.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// Index of its file.
    pub(crate) input: usize,
    /// What is written.
    pub(crate) spec: &'a ServiceSpec,
    /// Its label.
    pub(crate) slug: Slug,
    /// Its id.
    pub(crate) id: ServiceId,
}

impl Entry<'_> {
    /// Its kind; none for a type that nothing runs.
    pub(crate) const fn kind(&self) -> Option<ServiceKind> {
        kind_of(self.spec)
    }

    /// Whether this Moat runs it.
    pub(crate) fn runs(&self) -> bool {
        match (self.kind(), self.spec.runtime.as_ref().map(|r| r.value)) {
            (Some(ServiceKind::KeyValue | ServiceKind::Postgres), _) | (Some(_), Some(RuntimeSpec::Native(_) | RuntimeSpec::Docker)) => {
                true
            }
            // Reading said so when it names none.
            (Some(_), Some(RuntimeSpec::Image)) => self.spec.image.is_some(),
            (Some(kind), Some(RuntimeSpec::Static)) => kind == ServiceKind::Static && self.spec.static_publish_path.is_some(),
            (Some(_), None) | (None, _) => false,
        }
    }

    /// The name of the credential of its image's registry, or of the registry of the images that its Dockerfile builds on.
    pub(crate) fn credential(&self) -> Option<&Text> {
        let written = match self.spec.runtime.as_ref()?.value {
            RuntimeSpec::Image => self.spec.image.as_ref()?.credential.as_ref(),
            RuntimeSpec::Docker => self.spec.registry_credential.as_ref(),
            RuntimeSpec::Native(_) | RuntimeSpec::Static => None,
        };
        written.filter(|_| self.runs())
    }

    /// The words for people.
    pub(crate) const fn phrase(&self) -> &'static str {
        match self.spec.kind.value {
            TypeSpec::Kind(kind) => kind.phrase(),
            TypeSpec::StaticSite => "static site",
            TypeSpec::Workflow => "workflow",
        }
    }

    /// The word of `type`.
    pub(crate) const fn word(&self) -> &'static str {
        match self.spec.kind.value {
            TypeSpec::Kind(kind) => kind.word(),
            TypeSpec::StaticSite => "web",
            TypeSpec::Workflow => "workflow",
        }
    }

    /// Whether a reference may call it by this type.
    pub(crate) fn is_called(&self, word: &str) -> bool {
        let other = match self.spec.kind.value {
            TypeSpec::Kind(ServiceKind::KeyValue) => "redis",
            TypeSpec::StaticSite => "static",
            TypeSpec::Kind(_) | TypeSpec::Workflow => self.word(),
        };
        word == self.word() || word == other
    }

    pub(crate) fn pointer(&self, field: &str) -> String {
        format!("{}/{field}", self.spec.pointer)
    }
}

const fn kind_of(spec: &ServiceSpec) -> Option<ServiceKind> {
    match spec.kind.value {
        TypeSpec::Kind(kind) => Some(kind),
        TypeSpec::StaticSite => Some(ServiceKind::Static),
        TypeSpec::Workflow => None,
    }
}

/// All that is in sight.
pub(crate) struct Workspace<'a> {
    pub(crate) inputs: &'a [Input<'a>],
    pub(crate) sight: Sight,
    pub(crate) entries: Vec<Entry<'a>>,
    services: HashMap<&'a str, Vec<usize>>,
    groups: HashMap<&'a str, Vec<(usize, &'a EnvGroupSpec)>>,
    /// Databases, in order.
    pub(crate) databases: Vec<Database<'a>>,
    database_names: BTreeMap<&'a str, Vec<usize>>,
}

impl<'a> Workspace<'a> {
    pub(crate) fn gather(
        inputs: &'a [Input<'a>],
        sight: Sight,
        memory: &mut Memory,
        random: &mut dyn FnMut() -> [u8; 32],
        report: &mut Report,
    ) -> Self {
        let mut workspace = Self {
            inputs,
            sight,
            entries: Vec::new(),
            services: HashMap::new(),
            groups: HashMap::new(),
            databases: Vec::new(),
            database_names: BTreeMap::new(),
        };
        let specs = workspace.index();
        workspace.name(specs, memory, random, report);
        workspace
    }

    fn index(&mut self) -> Vec<(usize, &'a ServiceSpec)> {
        let mut specs = Vec::new();
        for (index, input) in self.inputs.iter().enumerate() {
            // The second of a name is left out, as a name stands for one thing; reading said so.
            let mut seen: HashSet<&str> = HashSet::new();
            specs.extend(input.blueprint.services.iter().filter(|spec| seen.insert(&spec.name.value)).map(|spec| (index, spec)));
            for group in &input.blueprint.env_groups {
                self.groups.entry(&group.name.value).or_default().push((index, group));
            }
        }
        specs
    }

    fn name(
        &mut self,
        specs: Vec<(usize, &'a ServiceSpec)>,
        memory: &mut Memory,
        random: &mut dyn FnMut() -> [u8; 32],
        report: &mut Report,
    ) {
        let mut labels = Labels::remembered(self.inputs, memory);
        for (input, spec) in specs {
            let path = self.inputs[input].path;
            let kind = kind_of(spec);
            let remembered = memory.service(path, &spec.name);
            let owner = Owner { input, path, name: &spec.name, pointer: &spec.pointer, kind };
            let Some((slug, id)) = named(&owner, &mut labels, remembered, random, report) else { continue };
            if kind == Some(ServiceKind::KeyValue) {
                remembered.password.get_or_insert_with(|| Secret::new(letters(random(), 24)));
            }
            self.services.entry(&spec.name.value).or_default().push(self.entries.len());
            self.entries.push(Entry { input, spec, slug, id });
        }
        // After the services, which are called by their names more often: a database's host name comes by a reference.
        for (input, spec) in self.database_specs() {
            let path = self.inputs[input].path;
            let remembered = memory.entry(path, Space::Databases, &spec.name);
            let owner = Owner { input, path, name: &spec.name, pointer: &spec.pointer, kind: Some(ServiceKind::Postgres) };
            let Some((slug, id)) = named(&owner, &mut labels, remembered, random, report) else { continue };
            for name in std::iter::once(&spec.name).chain(&spec.read_replicas) {
                self.database_names.entry(&name.value).or_default().push(self.databases.len());
            }
            self.databases.push(Database::new(input, spec, slug, id, &mut remembered.values, random, report));
        }
        labels.take_from_absent(self.inputs, memory);
    }

    /// The databases of every file; the second of a name is left out.
    fn database_specs(&self) -> Vec<(usize, &'a DatabaseSpec)> {
        let mut specs = Vec::new();
        for (index, input) in self.inputs.iter().enumerate() {
            let mut seen: HashSet<&str> = HashSet::new();
            specs.extend(input.blueprint.databases.iter().filter(|spec| seen.insert(&spec.name.value)).map(|spec| (index, spec)));
        }
        specs
    }

    /// The service of this name, in the same file first.
    pub(crate) fn service(&self, input: usize, name: &str) -> Option<usize> {
        let all = self.services.get(name)?;
        all.iter().copied().find(|i| self.entries[*i].input == input).or_else(|| all.first().copied())
    }

    /// The group of this name, in the same file first.
    pub(crate) fn group(&self, input: usize, name: &str) -> Option<(usize, &'a EnvGroupSpec)> {
        let all = self.groups.get(name)?;
        all.iter().copied().find(|(i, _)| *i == input).or_else(|| all.first().copied())
    }

    /// The database of this name or with a replica of this name, in the same file first.
    pub(crate) fn database(&self, input: usize, name: &str) -> Option<&Database<'a>> {
        let all = self.database_names.get(name)?;
        let index = all.iter().copied().find(|i| self.databases[*i].input == input).or_else(|| all.first().copied())?;
        self.databases.get(index)
    }

    pub(crate) fn service_names(&self) -> impl Iterator<Item = &'a str> {
        self.entries.iter().map(|e| e.spec.name.value.as_str())
    }

    pub(crate) fn database_names(&self) -> impl Iterator<Item = &'a str> {
        self.database_names.keys().copied()
    }

    pub(crate) fn group_names(&self) -> impl Iterator<Item = &'a str> {
        self.groups.keys().copied()
    }
}

/// Who gets a label and an id.
struct Owner<'s> {
    input: usize,
    path: &'s Path,
    name: &'s Text,
    pointer: &'s str,
    kind: Option<ServiceKind>,
}

/// The label and the id that are remembered, or new ones. None for a name without a letter or digit; reading said so.
fn named(
    owner: &Owner<'_>,
    labels: &mut Labels,
    remembered: &mut ServiceMemory,
    random: &mut dyn FnMut() -> [u8; 32],
    report: &mut Report,
) -> Option<(Slug, ServiceId)> {
    let wanted = Slug::slugify(owner.name)?;
    let slug = remembered.slug.take().filter(|slug| labels.claim_own(slug));
    let slug = slug.unwrap_or_else(|| labels.claim(&wanted, owner.path, owner.name));
    let id = remembered.id.take().filter(|id| id.as_str().starts_with(id_prefix(owner.kind))).or_else(|| service_id(owner.kind, random))?;
    if slug != wanted {
        let help = format!("`{wanted}` stands for something else already; this name is kept");
        report.say(
            owner.input,
            Code::N0306,
            owner.name.span,
            format!("{}/name", owner.pointer),
            format!("the host name of {} is `{slug}`", quoted(owner.name)),
            help,
        );
    }
    remembered.slug = Some(slug.clone());
    remembered.id = Some(id.clone());
    Some((slug, id))
}

/// Which labels are taken.
struct Labels {
    /// By services of files that are in sight, also those that their file no longer names.
    present: BTreeSet<Slug>,
    /// Of those, what was found to be whose it says.
    confirmed: BTreeSet<Slug>,
    /// By files that are not in sight: the first who wants one takes it.
    absent: BTreeSet<Slug>,
    taken_over: BTreeSet<Slug>,
}

impl Labels {
    fn remembered(inputs: &[Input<'_>], memory: &Memory) -> Self {
        let mut labels =
            Self { present: BTreeSet::new(), confirmed: BTreeSet::new(), absent: BTreeSet::new(), taken_over: BTreeSet::new() };
        for (path, file) in &memory.files {
            let list = if is_in_sight(inputs, path) { &mut labels.present } else { &mut labels.absent };
            list.extend(file.all().filter_map(|s| s.slug.clone()));
        }
        labels
    }

    /// Takes the label that is remembered for a service, unless another has it by the same memory.
    fn claim_own(&mut self, slug: &Slug) -> bool {
        self.present.contains(slug) && self.confirmed.insert(slug.clone())
    }

    /// Whether a new service may have this label. `X-discovery` is a name of the service `X` too.
    fn is_free(&self, label: &str) -> bool {
        let discovered = label.strip_suffix("-discovery");
        !TAKEN_LABELS.contains(&label)
            && !self.present.contains(label)
            && discovered.is_none_or(|base| !self.present.contains(base))
            && !self.present.contains(format!("{label}-discovery").as_str())
    }

    /// The label wanted, or that with a suffix that depends on nothing but the service's place and name.
    fn claim(&mut self, wanted: &Slug, path: &Path, name: &str) -> Slug {
        let mut slug = wanted.clone();
        let mut attempt = 0_u32;
        while !self.is_free(slug.as_str()) {
            let mut hash = Sha256::new();
            hash.update(path.as_os_str().as_encoded_bytes());
            hash.update([0]);
            hash.update(name.as_bytes());
            hash.update(attempt.to_be_bytes());
            // A label of `slugify` leaves room for the suffix, so that this is a label as well.
            slug = Slug::new(format!("{wanted:.48}-{}", letters(hash.finalize().into(), 4))).unwrap_or(slug);
            attempt += 1;
        }
        self.present.insert(slug.clone());
        self.confirmed.insert(slug.clone());
        if self.absent.remove(&slug) {
            self.taken_over.insert(slug.clone());
        }
        slug
    }

    /// Files that are not in sight lose the labels that others took.
    fn take_from_absent(self, inputs: &[Input<'_>], memory: &mut Memory) {
        if self.taken_over.is_empty() {
            return;
        }
        for (_, file) in memory.files.iter_mut().filter(|(path, _)| !is_in_sight(inputs, path)) {
            for service in file.all_mut() {
                service.slug.take_if(|slug| self.taken_over.contains(slug));
            }
        }
    }
}

fn is_in_sight(inputs: &[Input<'_>], path: &Path) -> bool {
    inputs.iter().any(|input| input.path == path)
}
