//! Making what is missing of the router, and mending what somebody else changed of it.
//!
//! Invariant: a look costs a few questions to the kernel while nobody changed anything.
#![expect(clippy::single_match_else, reason = "the two ways of making the router read side by side")]

use super::{Inner, Repairs, within};
use crate::link::Links;
use crate::listing::{self, Difference, Listing};
use crate::lower::{self, Facts, TABLE};
use crate::record::HostRecord;
use crate::sysctl::Kept;
use crate::{NetError, nft, router, rules, ways};
use moat_model::policy::NetPolicy;
use moat_model::{InstanceId, LinkName};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Looks after which links and routes are looked at even if nothing told of a change.
const LOOK_ANYWAY: u32 = 60;

impl Inner {
    pub(super) fn ensure(&self) -> Result<Repairs, NetError> {
        let _lock = self.records.lock()?;
        let mut record = self.record()?;
        let mut done = Vec::new();
        let found = self.pin.open().map_err(NetError::io("open the router namespace"))?;
        let moved = match &found {
            Some(router) => self.something_moved(router)?,
            None => true,
        };
        if moved {
            self.router_settings.forget();
            self.host_settings.forget();
        }
        let router = match found {
            Some(router) => {
                done.extend(self.ensure_inside(&router, &record, moved)?);
                router
            }
            None => {
                self.records.begin()?;
                record.facts.host_addresses = self.host_addresses()?;
                self.records.write_host(&record)?;
                let closed = lower::base(&record.facts);
                self.rules.forget();
                let router = self.pin.create(|| prepare(&closed, &self.router_settings))?;
                self.records.finish(&NetPolicy::default())?;
                done.push("made the router namespace".to_owned());
                router
            }
        };
        done.extend(self.outside(|| {
            let mut done = if moved { self.names.ensure_uplink(&record, &router)? } else { Vec::new() };
            done.extend(self.names.ensure_table(&record, &self.host_rules)?);
            if moved || !self.names.forwards(&record, &self.host_settings)? {
                done.extend(self.names.ensure_forwarding(&mut record, |record| self.records.write_host(record))?);
            }
            Ok(done)
        })?);
        if !moved {
            return Ok(Repairs { done, lost: BTreeSet::new() });
        }
        if self.refresh(&router)? {
            done.push("brought the set of the host's addresses up to date".to_owned());
        }
        let lost = self.mend_ways(&router, &record, &mut done)?;
        if done.is_empty() {
            self.host_bell.settle().map_err(NetError::link("listen to the host's links"))?;
        }
        Ok(Repairs { done, lost })
    }

    /// Whether a link, an address, a route, a neighbour or a program of the router or the host changed since everything was in
    /// order, or some time has passed.
    fn something_moved(&self, router: &File) -> Result<bool, NetError> {
        let number = |file: &File| file.metadata().map(|about| about.st_ino()).map_err(NetError::io("look at a network namespace"));
        let (inside, outside) = (number(router)?, number(&self.host)?);
        let due = self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_ANYWAY);
        let listen = NetError::link("listen to the router's links");
        let rings = within(router, || self.bell.rings(inside))?.map_err(listen)?;
        let host_rings = self.outside(|| self.host_bell.rings(outside).map_err(NetError::link("listen to the host's links")))?;
        Ok(rings || host_rings || due)
    }

    /// Takes away what somebody added to the router's links, addresses and routes, and gives back what listed instances
    /// lack; the instances that have lost their link.
    fn mend_ways(&self, router: &File, record: &HostRecord, done: &mut Vec<String>) -> Result<BTreeSet<InstanceId>, NetError> {
        let Some(policy) = self.known_policy()? else { return Ok(BTreeSet::new()) };
        let uplink = ways::Uplink { name: lower::UPLINK, v4: record.router_v4(), v6: record.router_v6() };
        let work = || {
            // What was just made told of itself.
            self.bell.drain()?;
            let look = || io::Result::Ok(ways::review(&policy, &uplink, &ways::Found::here()?));
            let mut review = look()?;
            let incomplete: BTreeSet<LinkName> = review.incomplete(&policy);
            self.bell.note(&mut review);
            let removed = ways::mend(review.foreign)?;
            if !removed.is_empty() {
                // With the last address of a link the kernel takes the routes by it, too.
                review.lacking.extend(look()?.lacking.into_iter().filter(|(link, _)| !incomplete.contains(link)));
            }
            done.extend(removed.into_iter().map(|what| format!("removed {what} from the router")));
            done.extend(
                ways::mend(review.lacking.into_values().flatten().collect())?.into_iter().map(|what| format!("{what}: it is back")),
            );
            Ok(review.lost)
        };
        within(router, work)?.map_err(NetError::link("look at the router's links and routes"))
    }

    /// Makes what is missing inside an existing router namespace.
    fn ensure_inside(&self, router: &File, record: &HostRecord, moved: bool) -> Result<Vec<String>, NetError> {
        let mut done = Vec::new();
        match self.known_policy()? {
            None if self.has_filter(router, &record.facts)? => {}
            None => {
                self.load(router, &record.facts, Arc::default())?;
                done.push("loaded the filter of the router".to_owned());
            }
            Some(policy) => {
                let changes = self.changes(router, &record.facts, &policy)?;
                if !changes.is_empty() {
                    self.load(router, &record.facts, policy)?;
                    done.push(format!("loaded the filter of the router again: {}", listing::summary(&changes)));
                }
            }
        }
        done.extend(within(router, || inside_settings(&self.router_settings, moved))??);
        if moved {
            let mended = within(router, || self.shortcut.repair(router, &mut Links::open()?))?;
            done.extend(
                mended
                    .map_err(NetError::link("look at the links' programs"))?
                    .into_iter()
                    .map(|name| format!("gave the link `{name}` its shortcut back")),
            );
        }
        // Another process may have ended between removing a link and forgetting its flows.
        if !self.settled.load(Ordering::Acquire) {
            if let Some(policy) = self.known_policy()? {
                self.cut_forbidden(router, &record.facts, &policy)?;
            }
            self.settled.store(true, Ordering::Release);
        }
        Ok(done)
    }

    /// Whether a filter of this kind is there, whatever it holds.
    pub(super) fn has_filter(&self, router: &File, facts: &Facts) -> Result<bool, NetError> {
        within(router, || {
            let right = rules::generation().is_ok_and(|now| self.rules.knows(now));
            Ok(right || nft::has_chain(TABLE, &lower::version_chain(&lower::base(facts)))?)
        })?
    }

    /// How the live filter differs from the one that should be. Costs two listings unless nobody changed anything since the
    /// last look.
    fn changes(&self, router: &File, facts: &Facts, policy: &NetPolicy) -> Result<Vec<Difference>, NetError> {
        let now = within(router, rules::generation)?.map_err(NetError::io("ask for the generation of the filter"))?;
        if self.rules.knows(now) {
            return Ok(Vec::new());
        }
        let expected = Listing::expected(&lower::text(&lower::full(facts, policy)))?;
        let found = expected.differences(&Listing::live(router)?, "the router");
        if found.is_empty() {
            self.rules.settle(now);
        }
        Ok(found)
    }

    pub(super) fn foreign_changes(&self) -> Result<Vec<Difference>, NetError> {
        let _lock = self.records.lock()?;
        match self.known_policy()? {
            Some(policy) => self.changes(&self.router()?, &self.record()?.facts, &policy),
            None => Ok(Vec::new()),
        }
    }
}

/// Readies a new router namespace, which the calling thread is in: filter first, forwarding last.
fn prepare(closed: &lower::Ruleset, settings: &Kept) -> Result<(), NetError> {
    router::ensure_settings(settings).map_err(NetError::io("set the router namespace's settings"))?;
    nft::apply(&lower::replace(closed), "load the closed filter")?;
    inside_settings(settings, true).map(drop)
}

/// Settings, loopback (when something `moved`) and forwarding of the router namespace; what was changed.
fn inside_settings(settings: &Kept, moved: bool) -> Result<Vec<String>, NetError> {
    let mut changed = router::ensure_settings(settings).map_err(NetError::io("set the router namespace's settings"))?;
    if moved {
        router::ensure_loopback().map_err(NetError::link("configure the router's loopback"))?;
    }
    changed.extend(router::ensure_forwarding(settings).map_err(NetError::io("set the router namespace's forwarding"))?);
    Ok(changed.into_iter().map(|name| format!("set `net/{name}` of the router back")).collect())
}
