//! `moat-bench plan`: how long thinking takes. From the text of a blueprint to the plan, in this process stage by stage, and as
//! `moat check` and `moat plan` from the outside.

mod text;

use crate::failure::{Doing, Failure, Outcome};
use crate::figures::{Samples, Table, verdict};
use crate::place::Folder;
use crate::process::{Moat, timed};
use moat_blueprint::Blueprint;
use moat_model::state::ObservedState;
use moat_model::{DesiredState, Diagnostic, Severity, Slug};
use moat_planner::memory::Memory;
use moat_planner::resolve::{GitFacts, Input, Resolved, Settings, resolve};
use moat_planner::{Plan, check, diff, reach};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

const SERVICES: usize = 1000;
const GOAL_MS: f64 = 100.0;

/// Stages in the order they run, as the table names them.
const STAGES: [&str; 5] = [
    "`blueprint::read`",
    "`planner::check`",
    "`planner::resolve`",
    "`planner::diff` from nothing",
    "`planner::reach`, the whole matrix (not part of a plan)",
];

/// Measures and prints.
pub fn run(rounds: usize) -> Outcome {
    // Programs that are started inherit it.
    crate::sys::run_first().doing("come before other work of the machine (this needs root)")?;
    let text = text::blueprint(SERVICES);
    // As `moat check` and `moat plan` do.
    moat_engine_linux::heap::expect_text(text.len());
    let mut stages: [Samples; 5] = Default::default();
    let [mut checks, mut plans] = <[Samples; 2]>::default();
    let moat = Moat::find()?;
    let mut processes = [Samples::default(), Samples::default()];
    let folder = Folder::new()?;
    let file = folder.path().join("render.yaml");
    std::fs::write(&file, &text).doing("write the blueprint")?;
    let mut steps = 0;
    for _ in 0..rounds {
        let (took, planned) = think(&text, &file)?;
        steps = planned;
        checks.push(took[0] + took[1]);
        plans.push(check_and_plan(&text, &file)?);
        stages.iter_mut().zip(took).for_each(|(samples, ms)| samples.push(ms));
        if let Some(moat) = &moat {
            for (samples, verb) in processes.iter_mut().zip(["check", "plan"]) {
                samples.push_ms(timed(moat.command(folder.path()).arg(verb).arg(&file))?);
            }
        }
    }
    let title = format!("Planning {SERVICES} services ({} KiB of blueprint, {steps} steps), ms, {rounds} rounds", text.len() / 1024);
    let mut table = Table::new(title, ["what", "median (least–most)", "goal"]);
    for (name, samples) in STAGES.iter().zip(&stages) {
        table.row([name, &samples.show(1), &""]);
    }
    let goal = |samples: &Samples| format!("≤ {GOAL_MS:.0}: {}", verdict(samples.median() <= GOAL_MS));
    table.row([&"check: read + check", &checks.show(1), &""]);
    table.row([&"check and plan: read + resolve, which judges, + diff", &plans.show(1), &goal(&plans)]);
    if moat.is_some() {
        for (samples, name) in processes.iter().zip(["`moat check FILE`, the whole process", "`moat plan FILE`, the whole process"]) {
            table.row([&name, &samples.show(1), &goal(samples)]);
        }
    }
    println!("{table}");
    if moat.is_none() {
        println!("skipped: `moat check` and `moat plan` as processes, since {}\n", Moat::MISSING);
    }
    Ok(())
}

/// Milliseconds of each stage, and how many steps were planned.
fn think(text: &str, file: &Path) -> Outcome<([f64; 5], usize)> {
    let mut took = [0.0; 5];
    let read = clocked(&mut took[0], || moat_blueprint::read(text));
    let found = clocked(&mut took[1], || check::check(&read.blueprint));
    let (mut memory, mut random) = (Memory::default(), numbers());
    let resolved = clocked(&mut took[2], || resolve_one(&read.blueprint, file, &mut memory, &mut random));
    refuse_errors(read.diagnostics.iter().chain(&found).chain(resolved.diagnostics.iter().map(|(_, d)| d)))?;
    let plan = clocked(&mut took[3], || plan_of(&resolved.state, &mut memory, &mut random));
    let matrix = clocked(&mut took[4], || reach::reach(&resolved.state));
    std::hint::black_box(matrix);
    Ok((took, plan.steps.len()))
}

/// Milliseconds of what `moat plan` thinks: it reads the text once, and what it plans it judges.
fn check_and_plan(text: &str, file: &Path) -> Outcome<f64> {
    let mut took = 0.0;
    let (read, resolved, plan) = clocked(&mut took, || {
        let read = moat_blueprint::read(text);
        let (mut memory, mut random) = (Memory::default(), numbers());
        let resolved = resolve_one(&read.blueprint, file, &mut memory, &mut random);
        let plan = plan_of(&resolved.state, &mut memory, &mut random);
        (read, resolved, plan)
    });
    std::hint::black_box(plan);
    refuse_errors(read.diagnostics.iter().chain(resolved.diagnostics.iter().map(|(_, d)| d)))?;
    Ok(took)
}

fn refuse_errors<'d>(mut diagnostics: impl Iterator<Item = &'d Diagnostic>) -> Outcome {
    match diagnostics.find(|d| d.severity == Severity::Error) {
        Some(bad) => Err(Failure::new(format!("the blueprint is wrong: {}", bad.message))),
        None => Ok(()),
    }
}

/// Numbers that differ, in place of random ones.
fn numbers() -> impl FnMut() -> [u8; 32] {
    let mut count = 0_u64;
    move || {
        count += 1;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&count.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        bytes[8..16].copy_from_slice(&count.to_be_bytes());
        bytes
    }
}

fn resolve_one(blueprint: &Blueprint, file: &Path, memory: &mut Memory, random: &mut dyn FnMut() -> [u8; 32]) -> Resolved {
    let (given, files) = (BTreeMap::new(), BTreeMap::new());
    let source = file.parent().unwrap_or(file);
    let input = Input { path: file, source, blueprint, given: &given, files: &files, git: GitFacts::default() };
    resolve(&[input], memory, random, &Settings::default())
}

/// The plan from nothing, as if everything had been built, so that every instance is planned.
fn plan_of(state: &DesiredState, memory: &mut Memory, random: &mut dyn FnMut() -> [u8; 32]) -> Plan {
    let releases: BTreeMap<Slug, String> = state.services.keys().map(|slug| (slug.clone(), slug.to_string())).collect();
    diff::diff(state, &ObservedState::default(), &releases, &BTreeSet::new(), memory, random)
}

fn clocked<T>(took_ms: &mut f64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *took_ms = start.elapsed().as_secs_f64() * 1e3;
    result
}
