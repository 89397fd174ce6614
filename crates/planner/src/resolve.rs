//! Blueprints to the desired state: every reference replaced by its value, every name, id and address chosen.
//!
//! Order: names, ids, labels and addresses of all services first; then variables, whose references may go forward, to each
//! other and to themselves; then the services. Nothing stops at the first problem.

mod assemble;
mod databases;
mod defaults;
mod domains;
mod fingerprint;
mod images;
mod lint;
mod plans;
mod references;
mod sites;
mod values;
pub(crate) mod workspace;

pub(crate) use assemble::root_dir;
pub(crate) use defaults::version_key;

use crate::codes::Report;
use crate::memory::Memory;
use crate::push::PushRule;
use moat_blueprint::Blueprint;
use moat_blueprint::spec::{EnvSource, EnvVarSpec};
use moat_model::{DesiredState, Diagnostic, Secret, Slug, Span};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use workspace::Workspace;

/// One blueprint file and what goes with it.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// The file, absolute.
    pub path: &'a Path,
    /// Its folder: the source of its services.
    pub source: &'a Path,
    /// What it says.
    pub blueprint: &'a Blueprint,
    /// Values given from outside (`--set`, `--env-file`, the terminal): `KEY`, or `OWNER.KEY` for one service or group.
    pub given: &'a BTreeMap<String, Secret>,
    /// Contents of secret files, by path as written in `x-moat.secretFiles`.
    pub files: &'a BTreeMap<String, Secret>,
    /// What is known of the source's history.
    pub git: GitFacts,
}

/// What is known of a source's history; empty where it has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitFacts {
    /// Branch.
    pub branch: String,
    /// Commit, in hexadecimal.
    pub commit: String,
    /// `user/repository`.
    pub repo_slug: String,
    /// The repository of this machine that the blueprint was pushed to, where it was: the source is `commit` of it, not
    /// [`Input::source`].
    pub pushed_to: Option<PathBuf>,
    /// Commits of services that keep an earlier one, by their names as written.
    pub pins: BTreeMap<String, String>,
}

/// What holds for every service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Web services are `SLUG.DOMAIN`.
    pub domain: String,
    /// `http` or `https`.
    pub public_scheme: String,
    /// The ingress' port, where it is not the scheme's own.
    pub public_port: Option<u16>,
    /// CPUs of the machine: no instance is told of more.
    pub cpu_count: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { domain: "localhost".to_owned(), public_scheme: "http".to_owned(), public_port: Some(8080), cpu_count: u32::MAX }
    }
}

/// What became of the blueprints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolved {
    /// All services that this Moat runs. Its generation is the caller's to set. Not to be run where a diagnostic is an error.
    pub state: DesiredState,
    /// Everything there is to say, by file and place. Holds what [`check`](crate::check::check) says of each file, judged with all
    /// files in sight: a reference into another file is resolved.
    pub diagnostics: Vec<(PathBuf, Diagnostic)>,
    /// Values that are asked for (`sync: false`) and that nobody gave.
    pub missing: Vec<Missing>,
    /// What a push means for each service.
    pub push_rules: BTreeMap<Slug, PushRule>,
}

/// A value that is asked for and that nobody gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The blueprint.
    pub file: PathBuf,
    /// The service's name.
    pub owner: String,
    /// The variable.
    pub key: String,
    /// What the blueprint calls it (`displayName`), else what it says about it (`description`).
    pub label: Option<String>,
    /// Where it is written.
    pub span: Span,
}

/// How much is in sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// One file: what it does not have may be elsewhere, and no values were asked for yet.
    File,
    /// Every file there is.
    Workspace,
}

/// Resolves every blueprint of the workspace together.
///
/// The same inputs, memory and settings give the same state. `random` is drawn from for new ids and generated values only.
/// What `memory` learns stays true whether or not the state is used.
pub fn resolve(inputs: &[Input<'_>], memory: &mut Memory, random: &mut dyn FnMut() -> [u8; 32], settings: &Settings) -> Resolved {
    let outcome = judge(inputs, memory, random, settings, Sight::Workspace);
    let file = |input: usize| inputs.get(input).map_or_else(PathBuf::new, |i| i.path.to_owned());
    Resolved {
        state: outcome.state,
        diagnostics: outcome.diagnostics.into_iter().map(|(input, d)| (file(input), d)).collect(),
        missing: outcome.missing,
        push_rules: outcome.push_rules,
    }
}

pub(crate) struct Outcome {
    pub(crate) state: DesiredState,
    pub(crate) diagnostics: Vec<(usize, Diagnostic)>,
    pub(crate) missing: Vec<Missing>,
    pub(crate) push_rules: BTreeMap<Slug, PushRule>,
}

pub(crate) fn judge(
    inputs: &[Input<'_>],
    memory: &mut Memory,
    random: &mut dyn FnMut() -> [u8; 32],
    settings: &Settings,
    sight: Sight,
) -> Outcome {
    let mut report = Report::default();
    let workspace = Workspace::gather(inputs, sight, memory, random, &mut report);
    let mut values = values::Values::gather(&workspace, settings, memory, random, &mut report);
    values.evaluate(&mut report);
    values.remember(memory);
    let state = assemble::assemble(&workspace, &values, memory, random, &mut report);
    lint::lint(&workspace, &values, &state, &mut report);
    let push_rules = workspace.entries.iter().map(|entry| (entry.slug.clone(), PushRule::of(entry))).collect();
    Outcome { state, diagnostics: report.finish(), missing: values.into_missing(), push_rules }
}

/// The keys that a list of variables writes, groups aside.
pub(crate) fn written_keys(vars: &[EnvVarSpec]) -> impl Iterator<Item = &str> {
    vars.iter().filter_map(key_of)
}

/// The key of a variable; none for a group.
pub(crate) fn key_of(var: &EnvVarSpec) -> Option<&str> {
    match &var.source {
        EnvSource::Value { key, .. }
        | EnvSource::Generate { key }
        | EnvSource::Ask { key }
        | EnvSource::Database { key, .. }
        | EnvSource::Service { key, .. } => Some(&key.value),
        EnvSource::Group { .. } => None,
    }
}
