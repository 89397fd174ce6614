//! A blueprint as large as wanted, of the kind that teams write.

use std::fmt::{self, Write};

/// Services that share a group of variables and refer to each other.
const TEAM: usize = 20;

/// A blueprint of `count` services: of each twenty, five web services, seven private services, four workers, two cron jobs and
/// two Key Values, with a group of variables for each twenty, literals, generated values and references of every kind.
pub fn blueprint(count: usize) -> String {
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = write_blueprint(&mut out, count);
    out
}

fn write_blueprint(out: &mut String, count: usize) -> fmt::Result {
    out.write_str("envVarGroups:\n")?;
    for team in 0..count.div_ceil(TEAM) {
        write!(
            out,
            "  - name: team-{team}\n    envVars:\n      - key: TEAM\n        value: \"{team}\"\n      - key: LOG_FORMAT\n        value: json\n      - key: SIGNING_KEY\n        generateValue: true\n"
        )?;
    }
    out.write_str("\nservices:\n")?;
    (0..count).try_for_each(|index| write_service(out, index, count))
}

const fn kind(index: usize) -> &'static str {
    match index % TEAM {
        0..5 => "web",
        5..12 => "pserv",
        12..16 => "worker",
        16 | 17 => "cron",
        _ => "keyvalue",
    }
}

/// The service of this place in the team of `index`, or in the first team when that has none.
fn mate(index: usize, place: usize, count: usize) -> usize {
    let there = index / TEAM * TEAM + place;
    if there < count { there } else { place }
}

fn write_service(out: &mut String, index: usize, count: usize) -> fmt::Result {
    let (kind, team) = (kind(index), index / TEAM);
    write!(out, "  - type: {kind}\n    name: {kind}-{index}\n")?;
    if kind == "keyvalue" {
        return out.write_str("    plan: starter\n    maxmemoryPolicy: allkeys-lru\n    ipAllowList: []\n\n");
    }
    let runtime = ["node", "python", "go"][index % 3];
    let (build, start) = match runtime {
        "node" => ("npm ci && npm run build", "node dist/server.js"),
        "python" => ("pip install -r requirements.txt", "gunicorn app:app --bind 0.0.0.0:$PORT"),
        _ => ("go build -o app ./cmd/app", "./app"),
    };
    write!(out, "    runtime: {runtime}\n    rootDir: services/{kind}-{index}\n    buildCommand: {build}\n    startCommand: {start}\n")?;
    match kind {
        "web" => write!(out, "    plan: starter\n    numInstances: 2\n    healthCheckPath: /healthz\n")?,
        "cron" => out.write_str("    schedule: \"*/15 * * * *\"\n")?,
        _ => out.write_str("    plan: standard\n")?,
    }
    let (private, cache) = (mate(index, 5 + index % 7, count), mate(index, 18, count));
    write!(
        out,
        "    envVars:\n      - fromGroup: team-{team}\n      - key: REQUEST_TIMEOUT\n        value: 2.50\n      - key: FEATURES\n        value: \"search,billing,{index}\"\n"
    )?;
    if kind != "worker" && kind != "cron" {
        write!(out, "      - key: PORT\n        value: {}\n", 8000 + index % 1000)?;
    }
    if private < count {
        write!(
            out,
            "      - key: BACKEND\n        fromService:\n          name: pserv-{private}\n          type: pserv\n          property: hostport\n      \
             - key: BACKEND_PORT\n        fromService:\n          name: pserv-{private}\n          type: pserv\n          envVarKey: PORT\n"
        )?;
    }
    if cache < count {
        write!(
            out,
            "      - key: CACHE_URL\n        fromService:\n          name: keyvalue-{cache}\n          type: keyvalue\n          property: connectionString\n"
        )?;
    }
    out.write_str("      - key: SESSION_SECRET\n        generateValue: true\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use moat_model::Severity;

    #[test]
    fn every_size_reads_and_resolves_without_a_complaint() {
        for count in [20, 33, 200] {
            let read = moat_blueprint::read(&blueprint(count));
            assert_eq!(read.blueprint.services.len(), count);
            let diagnostics = [read.diagnostics.clone(), moat_planner::check::check(&read.blueprint)].concat();
            let bad: Vec<_> = diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
            assert!(bad.is_empty(), "{count}: {bad:?}");
        }
    }
}
