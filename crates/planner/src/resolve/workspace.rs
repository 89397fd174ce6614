//! Every service of every file: which there are, what each is called and by which id it goes.

use super::{Input, Sight};
use crate::alloc::{id_prefix, letters, service_id};
use crate::codes::{Code, Report};
use crate::memory::Memory;
use crate::names::quoted;
use moat_blueprint::spec::{EnvGroupSpec, RuntimeSpec, ServiceSpec, TypeSpec};
use moat_model::{ServiceId, ServiceKind, Slug};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeSet, HashMap, HashSet};
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
    /// Its kind; none for a type that is not on the private network.
    pub(crate) const fn kind(&self) -> Option<ServiceKind> {
        kind_of(self.spec)
    }

    /// Whether this Moat runs it.
    pub(crate) fn runs(&self) -> bool {
        match (self.kind(), self.spec.runtime.as_ref().map(|r| r.value)) {
            (Some(ServiceKind::KeyValue), _) | (Some(_), Some(RuntimeSpec::Native(_))) => true,
            (Some(_), Some(RuntimeSpec::Docker | RuntimeSpec::Image | RuntimeSpec::Static) | None) | (None, _) => false,
        }
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
        TypeSpec::StaticSite | TypeSpec::Workflow => None,
    }
}

/// All that is in sight.
pub(crate) struct Workspace<'a> {
    pub(crate) inputs: &'a [Input<'a>],
    pub(crate) sight: Sight,
    pub(crate) entries: Vec<Entry<'a>>,
    services: HashMap<&'a str, Vec<usize>>,
    groups: HashMap<&'a str, Vec<(usize, &'a EnvGroupSpec)>>,
    databases: HashSet<&'a str>,
}

impl<'a> Workspace<'a> {
    pub(crate) fn gather(
        inputs: &'a [Input<'a>],
        sight: Sight,
        memory: &mut Memory,
        random: &mut dyn FnMut() -> [u8; 32],
        report: &mut Report,
    ) -> Self {
        let mut workspace =
            Self { inputs, sight, entries: Vec::new(), services: HashMap::new(), groups: HashMap::new(), databases: HashSet::new() };
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
            self.databases.extend(
                input
                    .blueprint
                    .databases
                    .iter()
                    .flat_map(|d| std::iter::once(&d.name).chain(&d.read_replicas))
                    .map(|name| name.value.as_str()),
            );
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
            // A name without a letter or digit; reading said so.
            let Some(wanted) = Slug::slugify(&spec.name) else { continue };
            let remembered = memory.service(path, &spec.name);
            let slug =
                remembered.slug.take().filter(|slug| labels.claim_own(slug)).unwrap_or_else(|| labels.claim(&wanted, path, &spec.name));
            let id = remembered
                .id
                .take()
                .filter(|id| id.as_str().starts_with(id_prefix(kind_of(spec))))
                .or_else(|| service_id(kind_of(spec), random));
            let Some(id) = id else { continue };
            if slug != wanted {
                let help = format!("`{wanted}` stands for something else already; this name is kept");
                report.say(
                    input,
                    Code::N0306,
                    spec.name.span,
                    format!("{}/name", spec.pointer),
                    format!("the host name of {} is `{slug}`", quoted(&spec.name)),
                    help,
                );
            }
            remembered.slug = Some(slug.clone());
            remembered.id = Some(id.clone());
            self.services.entry(&spec.name.value).or_default().push(self.entries.len());
            self.entries.push(Entry { input, spec, slug, id });
        }
        labels.take_from_absent(self.inputs, memory);
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

    pub(crate) fn is_database(&self, name: &str) -> bool {
        self.databases.contains(name)
    }

    pub(crate) fn service_names(&self) -> impl Iterator<Item = &'a str> {
        self.entries.iter().map(|e| e.spec.name.value.as_str())
    }

    pub(crate) fn database_names(&self) -> impl Iterator<Item = &'a str> {
        self.databases.iter().copied()
    }

    pub(crate) fn group_names(&self) -> impl Iterator<Item = &'a str> {
        self.groups.keys().copied()
    }
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
            list.extend(file.services.values().filter_map(|s| s.slug.clone()));
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
            for service in file.services.values_mut() {
                service.slug.take_if(|slug| self.taken_over.contains(slug));
            }
        }
    }
}

fn is_in_sight(inputs: &[Input<'_>], path: &Path) -> bool {
    inputs.iter().any(|input| input.path == path)
}
