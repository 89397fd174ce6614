//! Plans to limits.

use moat_model::{Limits, ServiceKind};

const MIB: u64 = 1 << 20;

/// Plans by name: memory in MiB and thousandths of a CPU.
const PLANS: [(&str, u64, u32); 7] = [
    ("free", 512, 100),
    ("starter", 512, 500),
    ("standard", 2048, 1000),
    ("pro", 4096, 2000),
    ("pro plus", 8192, 4000),
    ("pro max", 16384, 4000),
    ("pro ultra", 32768, 8000),
];

/// Plans of databases by name: memory in MiB and thousandths of a CPU. The last four are the old ones.
const POSTGRES_PLANS: [(&str, u64, u32); 8] = [
    ("free", 256, 100),
    ("basic-256mb", 256, 100),
    ("basic-1gb", 1024, 500),
    ("basic-4gb", 4096, 2000),
    ("starter", 256, 100),
    ("standard", 1024, 1000),
    ("pro", 4096, 2000),
    ("pro plus", 8192, 4000),
];

/// The plan of a database that names none.
pub(crate) const DEFAULT_POSTGRES_PLAN: &str = "basic-256mb";

/// The plan of a service that names none.
pub(crate) const DEFAULT_PLAN: &str = "starter";

/// Why a plan gives no limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlanProblem {
    /// There is no such plan.
    Unknown,
    /// Services of this kind can't have it.
    NotForKind,
}

/// The plan that costs nothing.
pub(crate) const FREE: &str = "free";

/// Whether the platform has no free plan for a kind. Here nothing costs anything: it gets the default plan's limits, and is told.
pub(crate) const fn has_no_free_plan(kind: ServiceKind) -> bool {
    match kind {
        ServiceKind::Pserv | ServiceKind::Worker | ServiceKind::Cron => true,
        ServiceKind::Web | ServiceKind::KeyValue | ServiceKind::Postgres | ServiceKind::Static => false,
    }
}

/// The limits of a plan: by name, or by what its id says (`0.5c-1g`).
pub(crate) fn limits(plan: &str, kind: ServiceKind) -> Result<Limits, PlanProblem> {
    let plan = if plan == FREE && has_no_free_plan(kind) { DEFAULT_PLAN } else { plan };
    if kind == ServiceKind::Postgres {
        let (memory_bytes, cpu_millis) = postgres(plan).ok_or(PlanProblem::Unknown)?;
        return Ok(Limits { memory_bytes, cpu_millis, pids: pids(memory_bytes) });
    }
    let named = PLANS.iter().find(|(name, ..)| *name == plan).map(|(_, memory, cpu)| (memory * MIB, *cpu));
    let (memory_bytes, cpu_millis) = named.or_else(|| sized(plan)).or_else(|| memory_only(plan, kind)).ok_or(PlanProblem::Unknown)?;
    let allowed = match kind {
        ServiceKind::Web
        | ServiceKind::KeyValue
        | ServiceKind::Postgres
        | ServiceKind::Pserv
        | ServiceKind::Worker
        | ServiceKind::Static => true,
        ServiceKind::Cron => !matches!(plan, "pro max" | "pro ultra"),
    };
    if !allowed {
        return Err(PlanProblem::NotForKind);
    }
    Ok(Limits { memory_bytes, cpu_millis, pids: pids(memory_bytes) })
}

/// A thread per MiB is more than programs of that size start, and few enough to keep a runaway one from the others.
fn pids(memory_bytes: u64) -> u32 {
    u32::try_from(memory_bytes / MIB).unwrap_or(u32::MAX).clamp(512, 8192)
}

/// A database's plan: by name, by what its id says (`0.5c-1g`), or by memory (`pro-8gb`, `accelerated-64gb`) with a CPU for each 4 GiB, or 8 GiB of the latter.
fn postgres(plan: &str) -> Option<(u64, u32)> {
    if let Some((_, memory, cpu)) = POSTGRES_PLANS.iter().find(|(name, ..)| *name == plan) {
        return Some((memory * MIB, *cpu));
    }
    if let Some(sized) = sized(plan) {
        return Some(sized);
    }
    let (memory, per_cpu) = plan.strip_prefix("pro-").map(|m| (m, 4)).or_else(|| Some((plan.strip_prefix("accelerated-")?, 8)))?;
    let gib: u32 = memory.strip_suffix("gb")?.parse().ok().filter(|gib| (1..=65_536).contains(gib))?;
    Some((u64::from(gib) << 30, gib * 1000 / per_cpu))
}

/// The names of the plans that a kind can have.
pub(crate) fn names(kind: ServiceKind) -> impl Iterator<Item = &'static str> {
    let offered = move |name: &&str| limits(name, kind).is_ok() && !(has_no_free_plan(kind) && *name == FREE);
    let all = if kind == ServiceKind::Postgres { &POSTGRES_PLANS[..] } else { &PLANS[..] };
    all.iter().map(|(name, ..)| *name).filter(offered)
}

/// `0.5c-1g`: half a CPU and one GiB.
fn sized(id: &str) -> Option<(u64, u32)> {
    let (cpu, memory) = id.split_once("c-")?;
    let cpu = thousandths(cpu).filter(|cpu| (1..=1_000_000).contains(cpu))?;
    Some((bytes(memory)?, cpu))
}

/// Plans of a Key Value by memory, `256mb` and `1g`: half a CPU up to a GiB, one above.
fn memory_only(id: &str, kind: ServiceKind) -> Option<(u64, u32)> {
    let memory = bytes(id).filter(|_| kind == ServiceKind::KeyValue)?;
    Some((memory, if memory <= 1 << 30 { 500 } else { 1000 }))
}

/// `512mb` or `1g`, in bytes.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix("mb") {
        Some(number) => (number, MIB),
        None => (text.strip_suffix('g')?, MIB << 10),
    };
    let amount = thousandths(number).filter(|amount| *amount > 0)?;
    Some(u64::from(amount) * unit / 1000)
}

/// A decimal number in thousandths, with at most three places.
fn thousandths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || part.len() > 3 || !digits(whole) || !digits(part) {
        return None;
    }
    whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(format!("{part:0<3}").parse().ok()?)
}

/// Thousandths of a CPU as they are written: `0.5`, `2`.
pub(crate) fn cpus(millis: u32) -> String {
    let (whole, part) = (millis / 1000, millis % 1000);
    if part == 0 { whole.to_string() } else { format!("{whole}.{part:03}").trim_end_matches('0').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_give_what_they_say() {
        for (plan, mib, millis) in [
            ("free", 512, 100),
            ("pro plus", 8192, 4000),
            ("0.5c-1g", 1024, 500),
            ("1c-2g", 2048, 1000),
            ("128c-1024g", 1_048_576, 128_000),
            ("0.5c-512mb", 512, 500),
        ] {
            let limits = limits(plan, ServiceKind::Web).unwrap();
            assert_eq!((limits.memory_bytes / MIB, limits.cpu_millis), (mib, millis), "{plan}");
        }
        for plan in ["huge", "", "c-g", "1c-", "-1c-2g", "1.0000c-1g", "1c-2", "99999999999c-1g", "0c-1g"] {
            assert_eq!(limits(plan, ServiceKind::Web), Err(PlanProblem::Unknown), "{plan}");
        }
    }

    #[test]
    fn plans_of_databases_give_what_they_say() {
        for (plan, mib, millis) in [
            ("free", 256, 100),
            ("basic-256mb", 256, 100),
            ("basic-1gb", 1024, 500),
            ("starter", 256, 100),
            ("pro plus", 8192, 4000),
            ("pro-4gb", 4096, 1000),
            ("pro-512gb", 524_288, 128_000),
            ("accelerated-16gb", 16_384, 2000),
            ("0.5c-1g", 1024, 500),
            ("accelerated-1024gb", 1_048_576, 128_000),
        ] {
            let limits = limits(plan, ServiceKind::Postgres).unwrap();
            assert_eq!((limits.memory_bytes / MIB, limits.cpu_millis), (mib, millis), "{plan}");
        }
        for plan in ["pro ultra", "pro-gb", "pro-0gb", "accelerated--1gb", "0c-1g", "basic-2gb", ""] {
            assert_eq!(limits(plan, ServiceKind::Postgres), Err(PlanProblem::Unknown), "{plan}");
        }
    }

    #[test]
    fn some_kinds_have_no_free_plan() {
        for kind in ServiceKind::ALL {
            let free = matches!(kind, ServiceKind::Web | ServiceKind::KeyValue | ServiceKind::Postgres | ServiceKind::Static);
            assert_eq!(names(kind).any(|name| name == "free"), free, "{kind}");
        }
        for kind in [ServiceKind::Pserv, ServiceKind::Worker, ServiceKind::Cron] {
            assert_eq!(limits("free", kind), limits("starter", kind), "{kind}: they are told");
        }
        assert_eq!(names(ServiceKind::Cron).collect::<Vec<_>>(), ["starter", "standard", "pro", "pro plus"]);
    }

    #[test]
    fn cpus_are_written_short() {
        assert_eq!(
            ["0.1", "0.5", "1", "2", "0.25"],
            [cpus(100), cpus(500), cpus(1000), cpus(2000), cpus(250)].map(|s| s).each_ref().map(String::as_str)
        );
    }
}
