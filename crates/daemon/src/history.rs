//! The deploys of each service, as they are remembered.
//!
//! Invariant: at most one record of a service is live, and only what ran well can be gone back to.

use crate::deploy::Deployed;
use jiff::Timestamp;
use moat_model::Slug;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Records kept of one service.
const RECORDS: usize = 50;
/// Different releases of one service that can be gone back to, the one that runs among them.
const KEPT: usize = 5;

/// Why something is deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "cause")]
pub enum DeployCause {
    /// `moat up`.
    Up,
    /// A commit that was pushed, or asked for.
    Push,
    /// Going back to an earlier one.
    Rollback {
        /// The deploy whose release it is.
        to: String,
    },
    /// `moat restart`.
    Restart,
    /// `moat env`.
    Variables,
    /// `moat resume`.
    Resume,
}

impl DeployCause {
    /// For people.
    pub fn words(&self) -> String {
        match self {
            Self::Up => "up".to_owned(),
            Self::Push => "push".to_owned(),
            Self::Rollback { to } => format!("rollback to {to}"),
            Self::Restart => "restart".to_owned(),
            Self::Variables => "env".to_owned(),
            Self::Resume => "resume".to_owned(),
        }
    }
}

/// What became of a deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeployState {
    /// Another one has to be over first.
    Waiting,
    /// It runs.
    UnderWay,
    /// What it brought runs.
    Live,
    /// What it brought ran, until a later one.
    Replaced,
    /// It failed.
    Failed,
    /// Somebody ended it.
    Canceled,
    /// A later one took its place before its turn.
    Skipped,
}

impl DeployState {
    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::UnderWay => "under way",
            Self::Live => "live",
            Self::Replaced => "replaced",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Skipped => "skipped",
        }
    }

    /// Whether nothing comes of it any more but what came of it already.
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Waiting | Self::UnderWay)
    }
}

/// One deploy of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployRecord {
    /// `dep-` and twenty characters.
    pub id: String,
    /// Why.
    pub cause: DeployCause,
    /// What became of it.
    pub state: DeployState,
    /// Why it is so, where that needs words.
    pub why: Option<String>,
    /// When it was asked for.
    pub asked: Timestamp,
    /// When it began.
    pub begun: Option<Timestamp>,
    /// When it was over.
    pub ended: Option<Timestamp>,
    /// The commit it is made of, where there is one.
    pub commit: Option<String>,
    /// What it brought, as long as that can be gone back to.
    pub deployed: Option<Deployed>,
}

/// The deploys of every service, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(BTreeMap<Slug, Vec<DeployRecord>>);

impl History {
    /// Notes a deploy that was asked for.
    pub fn ask(&mut self, slug: &Slug, id: &str, cause: DeployCause, now: Timestamp) {
        self.0.entry(slug.clone()).or_default().push(DeployRecord {
            id: id.to_owned(),
            cause,
            state: DeployState::Waiting,
            why: None,
            asked: now,
            begun: None,
            ended: None,
            commit: None,
            deployed: None,
        });
    }

    /// Its turn has come.
    pub fn begin(&mut self, slug: &Slug, id: &str, now: Timestamp) {
        if let Some(record) = self.record(slug, id) {
            record.state = DeployState::UnderWay;
            record.begun = Some(now);
        }
    }

    /// What it brought runs. The one before is replaced, and the oldest are forgotten.
    pub fn live(&mut self, slug: &Slug, id: &str, deployed: &Deployed, now: Timestamp) {
        let Some(records) = self.0.get_mut(slug) else { return };
        for record in records.iter_mut() {
            if record.id == id {
                record.state = DeployState::Live;
                record.ended = Some(now);
                record.commit.clone_from(&deployed.commit);
                record.deployed = Some(deployed.clone());
            } else if record.state == DeployState::Live {
                record.state = DeployState::Replaced;
            }
        }
        let mut kept = BTreeSet::new();
        for record in records.iter_mut().rev() {
            let Some(deployed) = &record.deployed else { continue };
            let made_of = (deployed.service.fingerprint.clone(), deployed.release.clone());
            if !kept.contains(&made_of) && kept.len() == KEPT {
                record.deployed = None;
            } else {
                kept.insert(made_of);
            }
        }
        records.drain(..records.len().saturating_sub(RECORDS));
    }

    /// It came to nothing.
    pub fn end(&mut self, slug: &Slug, id: &str, state: DeployState, why: Option<&str>, now: Timestamp) {
        if let Some(record) = self.record(slug, id) {
            record.state = state;
            record.why = why.map(str::to_owned);
            record.ended = Some(now);
        }
    }

    /// It was found to change nothing: there was no deploy.
    pub fn strike(&mut self, slug: &Slug, id: &str) {
        if let Some(records) = self.0.get_mut(slug) {
            records.retain(|record| record.id != id);
        }
    }

    /// Forgets a service that is gone.
    pub fn forget(&mut self, slug: &Slug) {
        self.0.remove(slug);
    }

    /// The deploys of one service, oldest first.
    pub fn of(&self, slug: &Slug) -> &[DeployRecord] {
        self.0.get(slug).map(Vec::as_slice).unwrap_or_default()
    }

    /// All deploys.
    pub fn all(&self) -> impl Iterator<Item = (&Slug, &DeployRecord)> {
        self.0.iter().flat_map(|(slug, records)| records.iter().map(move |record| (slug, record)))
    }

    /// What ran well last.
    pub fn last_good(&self, slug: &Slug) -> Option<&Deployed> {
        self.of(slug).iter().rev().filter(|record| record.state == DeployState::Live).find_map(|record| record.deployed.as_ref())
    }

    /// What can be gone back to from `now`: the deploy named, or the one before.
    pub fn rollback(&self, slug: &Slug, now: Option<&Deployed>, id: Option<&str>) -> Option<&DeployRecord> {
        let ready = |record: &&DeployRecord| record.deployed.is_some();
        let mut newest = self.of(slug).iter().rev().filter(ready);
        match id {
            Some(id) => newest.find(|record| record.id == id),
            None => newest.find(|record| !record.deployed.as_ref().is_some_and(|deployed| now.is_some_and(|now| same(deployed, now)))),
        }
    }

    /// Releases that can be gone back to.
    pub fn releases(&self) -> impl Iterator<Item = String> + '_ {
        self.all().filter_map(|(_, record)| record.deployed.as_ref()?.release.clone())
    }

    fn record(&mut self, slug: &Slug, id: &str) -> Option<&mut DeployRecord> {
        self.0.get_mut(slug)?.iter_mut().find(|record| record.id == id)
    }
}

/// Whether two are made of the same, however often each was started again.
pub fn same(one: &Deployed, other: &Deployed) -> bool {
    one.release == other.release && one.service.fingerprint == other.service.fingerprint
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::UpRequest;

    fn deployed(release: &str) -> Deployed {
        let up =
            UpRequest::new("/app/render.yaml", "services: [{type: worker, name: w, runtime: python, buildCommand: b, startCommand: s}]");
        let all = BTreeMap::from([(up.file.clone(), up)]);
        let outcome = crate::blueprints::read_and_resolve(
            &all,
            &mut moat_planner::memory::Memory::default(),
            crate::blueprints::Doors { http: "127.0.0.1:8080", https: None },
        );
        let service = outcome.state.services.into_values().next().unwrap();
        Deployed { service, release: Some(release.to_owned()), commit: None, hook_ran: false, good: true, restarts: 0 }
    }

    #[test]
    fn the_last_releases_that_ran_well_can_be_gone_back_to() {
        let (slug, now) = (Slug::new("w").unwrap(), Timestamp::UNIX_EPOCH);
        let mut history = History::default();
        let template = deployed("r");
        let of = |release: &str| Deployed { release: Some(release.to_owned()), ..template.clone() };
        for n in 0..8 {
            history.ask(&slug, &format!("dep-{n}"), DeployCause::Up, now);
            history.begin(&slug, &format!("dep-{n}"), now);
            if n == 6 {
                history.end(&slug, "dep-6", DeployState::Failed, Some("it broke"), now);
            } else {
                history.live(&slug, &format!("dep-{n}"), &of(&format!("r{n}")), now);
            }
        }
        let states: Vec<&str> = history.of(&slug).iter().map(|record| record.state.word()).collect();
        assert_eq!(states, [["replaced"; 6].as_slice(), &["failed", "live"]].concat());
        assert_eq!(history.releases().collect::<Vec<_>>(), ["r2", "r3", "r4", "r5", "r7"]);
        assert_eq!(history.last_good(&slug), Some(&of("r7")));
        let back = |id: Option<&str>| history.rollback(&slug, Some(&of("r7")), id).map(|record| record.id.as_str());
        for (asked, expect) in [(None, Some("dep-5")), (Some("dep-2"), Some("dep-2")), (Some("dep-1"), None), (Some("dep-6"), None)] {
            assert_eq!(back(asked), expect, "{asked:?}");
        }
        // A restart is the same release.
        history.ask(&slug, "dep-8", DeployCause::Restart, now);
        history.live(&slug, "dep-8", &Deployed { restarts: 1, ..of("r7") }, now);
        assert_eq!(history.rollback(&slug, Some(&of("r7")), None).unwrap().id, "dep-5");
    }
}
