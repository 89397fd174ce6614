//! Programs that do what their commands say.

use super::rng::Rng;
use moat_model::Purpose;
use moat_model::state::{NativeWorkload, Workload};
use moat_planner::plan::InstanceSpec;
use std::time::Duration;

/// A program that runs.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) purpose: Purpose,
    /// When it was started.
    pub(super) began: Duration,
    /// Where it listens, and from when on; nowhere is 0.
    pub(super) port: u16,
    pub(super) listens: Option<Duration>,
    /// When it ends by itself, and with which code.
    pub(super) ends: Option<(Duration, i32)>,
    /// It does not answer its health check as it should, until then.
    pub(super) sick: Option<Duration>,
    /// Connections that are open, until then.
    pub(super) connected: Duration,
}

/// The last word of what an instance runs, where that is no server.
fn said<'a>(spec: &'a InstanceSpec, native: &'a NativeWorkload) -> Option<&'a str> {
    let command = match spec.purpose {
        Purpose::Build => native.build_command.as_deref(),
        Purpose::PreDeploy => native.pre_deploy_command.as_deref(),
        Purpose::Cron => Some(native.start_command.as_str()),
        Purpose::Job => spec.command.as_deref(),
        Purpose::Serve => None,
    };
    command.and_then(|command| command.rsplit(' ').next())
}

impl Program {
    /// What an instance that is started at `time` does.
    pub(super) fn of(spec: &InstanceSpec, time: Duration, rng: &mut Rng) -> Self {
        let after = |rng: &mut Rng, most: u64| time + Duration::from_millis(1 + rng.below(most));
        let port = spec.env.get("PORT").and_then(|port| port.expose().parse().ok()).unwrap_or(4000);
        let mut program =
            Self { purpose: spec.purpose, began: time, port, listens: None, ends: None, sick: None, connected: Duration::ZERO };
        let ends = |fails: bool| i32::from(fails);
        let says = |command: Option<&str>, word: &str| command.is_some_and(|command| command.ends_with(word));
        match (spec.purpose, &spec.workload) {
            (_, Workload::Native(native)) if said(spec, native) == Some("hangs") => {}
            (_, Workload::Native(native)) if said(spec, native).is_some_and(|word| word.starts_with("lasts-")) => {
                let seconds = said(spec, native).and_then(|word| word.strip_prefix("lasts-")?.parse().ok());
                program.ends = seconds.map(|seconds| (time + Duration::from_secs(seconds), 0));
            }
            (Purpose::Build, Workload::Native(native)) => {
                program.ends = Some((after(rng, 3000), ends(says(native.build_command.as_deref(), "fails"))));
            }
            (Purpose::PreDeploy, Workload::Native(native)) => {
                program.ends = Some((after(rng, 2000), ends(says(native.pre_deploy_command.as_deref(), "fails"))));
            }
            (Purpose::Cron | Purpose::Job, _) => {
                let most = if rng.once_in(8) { 200_000 } else { 3000 };
                program.ends = Some((after(rng, most), ends(rng.once_in(5))));
            }
            (Purpose::Serve, Workload::Native(native)) => {
                let does = native.start_command.rsplit(' ').next().unwrap_or_default();
                match does {
                    "crashes" => program.ends = Some((after(rng, 900), 1)),
                    // It need not listen: that it runs is all.
                    _ if spec.slug.as_str() == "mill" => program.listens = Some(time),
                    "mute" => {}
                    "sick" => {
                        program.listens = Some(after(rng, 2000));
                        program.sick = Some(Duration::MAX);
                    }
                    _ => program.listens = Some(after(rng, 2000)),
                }
            }
            _ => {
                program.port = 6379;
                program.listens = Some(after(rng, 1000));
            }
        }
        program
    }

    pub(super) fn is_listening(&self, time: Duration) -> bool {
        self.listens.is_some_and(|since| since <= time)
    }

    pub(super) fn is_sick(&self, time: Duration) -> bool {
        self.sick.is_some_and(|until| time < until)
    }

    /// Whether clients are served.
    pub(super) fn serves(&self, time: Duration) -> bool {
        self.purpose == Purpose::Serve && self.is_listening(time)
    }
}
