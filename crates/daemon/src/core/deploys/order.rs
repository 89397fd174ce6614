//! Services that need one another come up in whatever order they get ready.
//!
//! A program may end because another service does not answer yet that comes up at the same time. So a first failure is no
//! failure of the deploy while another service of the network, which nothing answers for so far, is on its way: the next try is
//! made when one of those answers. Each try but the first is owed to a service that came, so tries end; where no other is
//! on its way, or all that are wait like this one, the deploy fails.

use super::super::Core;
use crate::deploy::{Deploy, EarlyEnd};
use crate::protocol::ServicePhase;
use moat_model::{InstanceId, Slug};
use std::fmt::Write as _;
use std::time::Duration;
use tokio::time::Instant;

/// Other services that an instance may have missed.
enum Missed {
    /// One came after the instance had begun.
    Came,
    /// These are on their way.
    Comes(Vec<Slug>),
    Nothing,
}

impl Core {
    /// A program of a deploy that starts ended before it was ready.
    pub(in super::super) fn ended_early(&mut self, slug: &Slug, id: &InstanceId, began: Instant, why: String) {
        if let Some(deploy) = self.deploys.get_mut(slug) {
            deploy.early = Some(EarlyEnd { instance: id.clone(), began, why, told: false });
        }
    }

    /// Whether no instance of its deploy is started for now.
    pub(in super::super) fn waits_for_others(&self, slug: &Slug) -> bool {
        self.deploys.get(slug).is_some_and(|deploy| deploy.early.is_some())
    }

    /// Its deploy is live. If nothing answered for it before, others may have waited for that.
    pub(super) fn others_may_go_on(&mut self, deploy: &Deploy) {
        if is_first(deploy) {
            self.came.insert(deploy.service.network, Instant::now());
        }
    }

    /// A deploy is over, by which it may be clear what becomes of those that wait.
    pub(super) fn look_again_at_early_ends(&self) {
        if self.deploys.values().any(|deploy| deploy.early.is_some()) {
            self.wake_in(Duration::ZERO);
        }
    }

    /// What becomes of deploys of which a program ended before it was ready.
    pub(in super::super) fn settle_early_ends(&mut self) {
        let early: Vec<(Slug, EarlyEnd)> =
            self.deploys.iter().filter_map(|(slug, deploy)| Some((slug.clone(), deploy.early.clone()?))).collect();
        for (slug, end) in early {
            match self.missed(&slug, end.began) {
                Missed::Nothing => self.fail_deploy(&slug, &end.why, Some(&end.instance)),
                Missed::Came => {
                    if let Some(deploy) = self.deploys.get_mut(&slug) {
                        deploy.early = None;
                        deploy.since = Instant::now();
                    }
                    self.set_phase(&slug, ServicePhase::Starting, None);
                }
                Missed::Comes(others) if !end.told => {
                    let lines = crate::logs::last_lines(&self.engine.log_path(&end.instance), 6);
                    let detail = format!("{}; it is started again when {} came", end.why, any_of(&others));
                    self.set_phase_with(&slug, ServicePhase::Waiting, Some(detail), lines);
                    if let Some(early) = self.deploys.get_mut(&slug).and_then(|deploy| deploy.early.as_mut()) {
                        early.told = true;
                    }
                }
                Missed::Comes(_) => {}
            }
        }
    }

    fn missed(&self, slug: &Slug, began: Instant) -> Missed {
        // A datastore asks nobody, and others wait for it.
        let asks = |deploy: &&Deploy| deploy.service.kind.sends();
        let Some(network) = self.deploys.get(slug).filter(asks).map(|deploy| deploy.service.network) else { return Missed::Nothing };
        if self.came.get(&network).is_some_and(|came| *came >= began) {
            return Missed::Came;
        }
        let on_its_way = |other: &(&Slug, &Deploy)| {
            let (other, deploy) = other;
            *other != slug && deploy.early.is_none() && deploy.service.network == network && is_first(deploy)
        };
        let others: Vec<Slug> = self.deploys.iter().filter(on_its_way).map(|(other, _)| other.clone()).collect();
        if others.is_empty() { Missed::Nothing } else { Missed::Comes(others) }
    }
}

/// Whether a deploy brings the first instance that answers others.
fn is_first(deploy: &Deploy) -> bool {
    deploy.service.kind.receives() && !deploy.previous.as_ref().is_some_and(|previous| previous.good)
}

/// "`a`, `b` or one of 7 others", in words.
fn any_of(slugs: &[Slug]) -> String {
    const SHOWN: usize = 3;
    let mut text = String::new();
    let shown = slugs.len().min(SHOWN);
    for (index, slug) in slugs.iter().take(shown).enumerate() {
        let between = match index {
            0 => "",
            _ if index + 1 == slugs.len() => " or ",
            _ => ", ",
        };
        // Writing to a string cannot fail.
        let _ = write!(text, "{between}`{slug}`");
    }
    if slugs.len() > SHOWN {
        let _ = write!(text, " or one of {} more", slugs.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::any_of;
    use moat_model::Slug;

    #[test]
    fn others_are_named_up_to_three() {
        let slugs = |names: &[&str]| names.iter().map(|name| Slug::new(*name).unwrap()).collect::<Vec<_>>();
        assert_eq!(any_of(&slugs(&["a"])), "`a`");
        assert_eq!(any_of(&slugs(&["a", "b", "c"])), "`a`, `b` or `c`");
        assert_eq!(any_of(&slugs(&["a", "b", "c", "d", "e"])), "`a`, `b`, `c` or one of 2 more");
    }
}
