//! [`Network`]: the operations of the engine, each safe to repeat and to kill.
//!
//! Blocking work runs on tokio's blocking threads; whatever belongs to a namespace runs in a thread that entered it.
//! Invariant: changes hold the lock of the runtime folder, so two processes never interleave.
#![expect(clippy::needless_pass_by_value, reason = "work moves to another thread with what it needs")]

mod repair;

use crate::conntrack::{self, Ends};
use crate::decide::{Known, flow_is_allowed};
use crate::elements::Batch;
use crate::host::Names;
use crate::leaving::Leaving;
use crate::link::Links;
use crate::listing::Difference;
use crate::lower::{self, Facts};
use crate::mount::Pin;
use crate::outside::Outside;
use crate::record::{HostRecord, Records, Stamp};
use crate::rules::Watch;
use crate::shortcut::{Counts, Holder};
use crate::sysctl::Kept;
use crate::ways::Bell;
use crate::{NetError, nft, ns, outward, router};
use moat_model::policy::NetPolicy;
use moat_model::{AddressPair, InstanceId, LinkName};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::linux::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where the network keeps its things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The runtime folder. Names that the host sees carry six hexadecimal digits of its hash.
    pub run_dir: PathBuf,
    /// Whether packets of open flows may go from link to link where the kernel can do it.
    pub shortcut: bool,
}

/// What [`Network::repair`] found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repairs {
    /// What was mended, in words.
    pub done: Vec<String>,
    /// Listed instances that had no link in this look and the one before, or whose own end was down: [`Network::attach`]
    /// mends it.
    pub lost: BTreeSet<InstanceId>,
}

/// The network of one runtime folder. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) names: Names,
    pub(crate) host: File,
    pin: Pin,
    pub(crate) records: Records,
    applied: Mutex<Option<(Stamp, Arc<NetPolicy>)>>,
    leaving: Leaving,
    shortcut: Holder,
    /// Where this process runs in a user namespace: who knows the machine's own addresses.
    beyond: Option<Outside>,
    /// The router's rules.
    rules: Watch,
    /// Those of the host, which are others' too.
    host_rules: Watch,
    /// Tells of changes of the router's links, addresses, routes and neighbours.
    bell: Bell,
    /// The same of the host.
    host_bell: Bell,
    pub(crate) router_settings: Kept,
    host_settings: Kept,
    /// How often was looked for changes.
    looks: AtomicU32,
    /// Whether this process knows that no flow is left that the policy forbids.
    settled: AtomicBool,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("uplink", &self.inner.names.link).finish_non_exhaustive()
    }
}

impl Network {
    /// The network of a runtime folder. Touches nothing. The namespace of the calling thread is taken as the host's.
    pub fn open(config: Config) -> Result<Self, NetError> {
        let run_dir = std::path::absolute(&config.run_dir).map_err(NetError::io(format!("find `{}`", config.run_dir.display())))?;
        let host = ns::current().map_err(NetError::io("open the host's network namespace"))?;
        Ok(Self {
            inner: Arc::new(Inner {
                names: Names::of(&run_dir),
                host,
                pin: Pin::new(&run_dir),
                records: Records::new(&run_dir),
                applied: Mutex::new(None),
                leaving: Leaving::default(),
                shortcut: Holder::new(config.shortcut),
                beyond: Outside::of_process(),
                rules: Watch::default(),
                host_rules: Watch::default(),
                bell: Bell::of_router(),
                host_bell: Bell::of_host(),
                router_settings: Kept::default(),
                host_settings: Kept::default(),
                looks: AtomicU32::new(0),
                settled: AtomicBool::new(false),
            }),
        })
    }

    /// Runs blocking work off the async threads.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, NetError> + Send + 'static,
    ) -> Result<T, NetError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(NetError::Task)?
    }

    /// Makes whatever is missing of the router namespace, its closed filter, its uplink and the host's masquerading;
    /// whether something was missing.
    pub async fn ensure_router(&self) -> Result<bool, NetError> {
        Ok(!self.repair().await?.done.is_empty())
    }

    /// The same, saying what was done: an element deleted from the filter, a flushed table of the host, forwarding turned
    /// off, an uplink removed, a route added.
    pub async fn repair(&self) -> Result<Repairs, NetError> {
        self.run(Inner::ensure).await
    }

    /// What of the router's filter is not as it should be, without mending it; empty while a change of it is unfinished.
    pub async fn foreign_changes(&self) -> Result<Vec<Difference>, NetError> {
        self.run(Inner::foreign_changes).await
    }

    /// Makes the filter decide by `policy`, in one transaction, and then cuts open flows that it forbids between
    /// instances that it still lists; whether the filter changed. What flows it does not list any more are cut with their
    /// link, by [`Network::detach`]: the filter drops every packet of theirs already.
    pub async fn set_policy(&self, policy: impl Into<Arc<NetPolicy>>) -> Result<bool, NetError> {
        let policy = policy.into();
        self.run(move |inner| inner.set_policy(policy)).await
    }

    /// Loads the whole filter again, whatever the live one holds: for when a probe found that somebody changed it.
    pub async fn reload(&self) -> Result<(), NetError> {
        self.run(Inner::reload).await
    }

    /// The policy that the live filter holds; the empty one when that is unknown.
    pub fn policy(&self) -> Arc<NetPolicy> {
        self.inner.known_policy().ok().flatten().unwrap_or_default()
    }

    /// Connects the namespace of process `pid` to the router: link `eth0` there, `link` here; addresses, routes and
    /// neighbours at both ends. The policy must list the instance before.
    pub async fn attach(&self, pid: u32, address: AddressPair, link: &LinkName) -> Result<(), NetError> {
        let link = link.clone();
        self.run(move |inner| inner.attach(pid, address, &link)).await
    }

    /// Gives up a link that the policy does not list any more; whether it was there. The kernel takes its time: the link,
    /// and the flows of its addresses, leave beside the caller's work and before the next [`Network::attach`] of that link,
    /// [`Network::links`] or [`Network::remove_router`].
    pub async fn detach(&self, link: &LinkName) -> Result<bool, NetError> {
        let link = link.clone();
        let (there, walk) = self.run(move |inner| inner.detach(&link)).await?;
        if walk {
            let inner = Arc::clone(&self.inner);
            drop(tokio::task::spawn_blocking(move || {
                if let Err(error) = inner.leaving.work(|links| inner.take_away(links)) {
                    tracing::warn!(%error, "links could not be removed; trying again before they are needed");
                }
            }));
        }
        Ok(there)
    }

    /// Removes the router namespace, its links, the uplink and the host's table, and restores the host's forwarding;
    /// whether something was there.
    pub async fn remove_router(&self) -> Result<bool, NetError> {
        self.run(Inner::remove).await
    }

    /// The links of instances in the router namespace.
    pub async fn links(&self) -> Result<Vec<LinkName>, NetError> {
        self.run(|inner| {
            inner.leaving.wait_for(None, |links| inner.take_away(links))?;
            inner.inside(router::instance_links)?.map_err(NetError::link("list the links of the router"))
        })
        .await
    }

    /// The router namespace.
    pub fn router_ns(&self) -> Result<File, NetError> {
        self.inner.router()
    }

    /// The text of the filter as it should be: base rules, the host's addresses as last seen, and the policy last
    /// applied.
    pub fn expected_ruleset(&self) -> String {
        lower::text(&self.ruleset())
    }

    /// The same as data, for the tracer.
    pub fn ruleset(&self) -> lower::Ruleset {
        let facts = self.inner.records.host().ok().flatten().map(|record| record.facts).unwrap_or_default();
        lower::full(&facts, &self.policy())
    }

    /// What the shortcut between instances did since it was loaded; `None` where there is none.
    pub fn shortcut(&self) -> Option<Counts> {
        self.inner.shortcut.known().and_then(|shortcut| shortcut.counts().ok())
    }

    /// Makes room in the shortcut's list of flows: forgets those without a packet for long. To be called now and then.
    pub async fn sweep(&self) -> Result<usize, NetError> {
        self.run(|inner| match inner.shortcut.known() {
            Some(shortcut) => shortcut.sweep().map_err(|error| NetError::io("forget idle flows")(io::Error::other(error))),
            None => Ok(0),
        })
        .await
    }

    /// Brings the set of the host's own addresses up to date; whether it changed.
    pub async fn refresh_host_addresses(&self) -> Result<bool, NetError> {
        self.run(Inner::refresh_host_addresses).await
    }

    /// The host's own addresses, the uplink's and loopback left out.
    pub async fn host_addresses(&self) -> Result<BTreeSet<IpAddr>, NetError> {
        self.run(Inner::host_addresses).await
    }

    /// Those by which others may come to the machine: those of bridges of its own and the like left out.
    pub async fn outward_addresses(&self) -> Result<BTreeSet<IpAddr>, NetError> {
        self.run(Inner::outward_addresses).await
    }
}

impl Inner {
    fn applied(&self) -> MutexGuard<'_, Option<(Stamp, Arc<NetPolicy>)>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn router(&self) -> Result<File, NetError> {
        let found = self.pin.open().map_err(NetError::io("open the router namespace"))?;
        found.ok_or_else(|| NetError::NoRouter { path: self.pin.file() })
    }

    /// Runs work in the router namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
        within(&self.router()?, work)
    }

    /// Runs work in the host's namespace.
    pub(crate) fn outside<T: Send>(&self, work: impl FnOnce() -> Result<T, NetError> + Send) -> Result<T, NetError> {
        ns::in_ns(&self.host, work).map_err(NetError::io("enter the host's network namespace"))?
    }

    /// The policy that the live filter holds, read again only when another process wrote it.
    fn known_policy(&self) -> Result<Option<Arc<NetPolicy>>, NetError> {
        let stamp = self.records.stamp();
        let mut applied = self.applied();
        if let Some((_, policy)) = applied.as_ref().filter(|(seen, _)| *seen == stamp) {
            return Ok(Some(Arc::clone(policy)));
        }
        let policy = self.records.policy()?.map(Arc::new);
        *applied = policy.clone().map(|policy| (stamp, policy));
        Ok(policy)
    }

    /// Remembers what was just written.
    fn remember(&self, policy: Arc<NetPolicy>) {
        *self.applied() = Some((self.records.stamp(), policy));
    }

    fn record(&self) -> Result<HostRecord, NetError> {
        if let Some(record) = self.records.host()? {
            return Ok(record);
        }
        let mut record = self.outside(|| self.names.choose())?;
        record.facts = Facts { uplink_v4: Some(record.router_v4()), uplink_v6: record.router_v6(), ..Facts::default() };
        self.records.write_host(&record)?;
        Ok(record)
    }

    /// Makes one ruleset of another, in one transaction: elements straight to the kernel, the rest as text.
    fn change(&self, router: &File, old: &lower::Ruleset, new: &lower::Ruleset) -> Result<(), NetError> {
        match Batch::between(old, new) {
            Some(batch) => within(router, || self.rules.during(|| batch.run()))?
                .map_err(|error| NetError::Nft { doing: "change elements of the filter", output: error.to_string() }),
            None => within(router, || self.rules.during(|| nft::apply(&lower::transaction(old, new), "change the filter")))?,
        }
    }

    /// Loads the whole filter in place of whatever rules are there, and cuts what it forbids.
    fn load(&self, router: &File, facts: &Facts, policy: Arc<NetPolicy>) -> Result<(), NetError> {
        self.records.begin()?;
        let text = format!("flush ruleset\n{}", lower::replace(&lower::full(facts, &policy)));
        self.rules.forget();
        within(router, || nft::apply(&text, "load the filter"))??;
        self.cut_forbidden(router, facts, &policy)?;
        self.records.finish(&policy)?;
        self.remember(policy);
        Ok(())
    }

    fn set_policy(&self, policy: Arc<NetPolicy>) -> Result<bool, NetError> {
        lower::check(&policy)?;
        let _lock = self.records.lock()?;
        let router = self.router()?;
        let facts = self.record()?.facts;
        let Some(old) = self.known_policy()? else {
            self.load(&router, &facts, policy)?;
            return Ok(true);
        };
        let (gone, come) = lower::difference(&old, &policy);
        let nothing = NetPolicy::default();
        if gone == nothing && come == nothing {
            let live = self.has_filter(&router, &facts)?;
            if !live {
                self.load(&router, &facts, policy)?;
            }
            return Ok(!live);
        }
        self.records.begin()?;
        match self.change(&router, &lower::full(&facts, &gone), &lower::full(&facts, &come)) {
            Ok(()) => {}
            // The live filter is not what it was believed to be: somebody flushed or changed it.
            Err(NetError::Nft { .. }) => {
                self.load(&router, &facts, policy)?;
                return Ok(true);
            }
            Err(error) => return Err(error),
        }
        if closes_between_listed(&gone, &policy) {
            self.cut_forbidden(&router, &facts, &policy)?;
        } else if !gone.sources.is_empty() {
            self.leave_shortcut(&router, &addresses_of(&gone))?;
        }
        self.records.finish_change(&gone, &come, &policy)?;
        self.remember(policy);
        Ok(true)
    }

    fn reload(&self) -> Result<(), NetError> {
        let _lock = self.records.lock()?;
        let facts = self.record()?.facts;
        self.load(&self.router()?, &facts, self.known_policy()?.unwrap_or_default())
    }

    fn refresh_host_addresses(&self) -> Result<bool, NetError> {
        let _lock = self.records.lock()?;
        self.refresh(&self.router()?)
    }

    fn refresh(&self, router: &File) -> Result<bool, NetError> {
        let mut record = self.record()?;
        let now = self.host_addresses().or_else(|error| self.known_addresses(&record, error))?;
        if record.facts.host_addresses == now {
            return Ok(false);
        }
        let old = lower::base(&record.facts);
        record.facts.host_addresses = now;
        if let Err(error) = self.change(router, &old, &lower::base(&record.facts)) {
            tracing::warn!(%error, "the live filter is not what it was; loading it again");
            self.load(router, &record.facts, self.known_policy()?.unwrap_or_default())?;
        } else if let Some(policy) = self.known_policy()? {
            self.cut_forbidden(router, &record.facts, &policy)?;
        }
        self.records.write_host(&record)?;
        Ok(true)
    }

    /// The host's own addresses. In a user namespace these are those of its namespace, and the machine's.
    fn host_addresses(&self) -> Result<BTreeSet<IpAddr>, NetError> {
        let mut all = self.outside(|| self.names.host_addresses())?;
        if let Some(beyond) = &self.beyond {
            all.extend(beyond.addresses().map_err(NetError::io("ask the process outside for the machine's addresses"))?);
        }
        Ok(all)
    }

    fn outward_addresses(&self) -> Result<BTreeSet<IpAddr>, NetError> {
        if let Some(beyond) = &self.beyond {
            return beyond.outward().map_err(NetError::io("ask the process outside for the machine's addresses"));
        }
        self.outside(|| {
            let outward = outward::addresses().map_err(NetError::io("list the host's addresses"))?;
            // Of an uplink of one's own, where nothing has a default route.
            Ok(outward.intersection(&self.names.host_addresses()?).copied().collect())
        })
    }

    /// Those last seen, while the process outside is away: nothing leaves without it.
    fn known_addresses(&self, record: &HostRecord, error: NetError) -> Result<BTreeSet<IpAddr>, NetError> {
        if self.beyond.is_none() {
            return Err(error);
        }
        tracing::debug!(%error, "going on with the machine's addresses as they were");
        Ok(record.facts.host_addresses.clone())
    }

    fn attach(&self, pid: u32, address: AddressPair, link: &LinkName) -> Result<(), NetError> {
        let doing = || NetError::io(format!("open the network namespace of process {pid}"));
        let instance = ns::of_pid(pid).map_err(doing())?;
        let router = self.router()?;
        let number = |file: &File| file.metadata().map(|data| data.st_ino()).map_err(doing());
        let own = number(&instance)?;
        if own == number(&router)? || own == number(&self.host)? {
            return Err(doing()(io::Error::new(io::ErrorKind::InvalidInput, "it has no network namespace of its own")));
        }
        self.leaving.wait_for(Some(link), |links| self.take_away(links))?;
        let shortcut = |links: &mut Links, index| self.shortcut.attach(&router, links, index);
        within(&router, || router::attach(&instance, address, link, shortcut))?.map_err(NetError::link(format!("make the link `{link}`")))
    }

    /// Whether the link is there, and whether somebody must take it away now.
    fn detach(&self, link: &LinkName) -> Result<(bool, bool), NetError> {
        let router = match self.router() {
            Ok(router) => router,
            Err(NetError::NoRouter { .. }) => return Ok((false, false)),
            Err(error) => return Err(error),
        };
        let leaves = self.leaving.has(link);
        let there = within(&router, || router::has_link(link))?.map_err(NetError::link(format!("look for the link `{link}`")))?;
        Ok((there && !leaves, self.leaving.add(link)))
    }

    /// Removes these links and cuts every flow of their addresses.
    fn take_away(&self, links: &BTreeSet<LinkName>) -> Result<(), NetError> {
        let router = match self.router() {
            Ok(router) => router,
            // They went with it.
            Err(NetError::NoRouter { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut addresses = BTreeSet::new();
        for link in links {
            addresses.extend(within(&router, || router::detach(link))?.map_err(NetError::link(format!("remove the link `{link}`")))?);
        }
        self.cut(&router, |flow| flow.avoids(&addresses))
    }

    /// Forgets every flow that the policy forbids.
    fn cut_forbidden(&self, router: &File, facts: &Facts, policy: &NetPolicy) -> Result<(), NetError> {
        let known = Known::new(facts, policy);
        self.cut(router, |flow| flow_is_allowed(facts, &known, flow))
    }

    pub(crate) fn cut(&self, router: &File, keep: impl Fn(&Ends) -> bool + Send + Sync) -> Result<(), NetError> {
        // The shortcut first: what it forgets meets the filter again.
        let work = || Ok(self.shortcut.cut(router, &keep)?.max(conntrack::cut(&keep)?));
        let count = within(router, work)?.map_err(NetError::io("cut flows that are forbidden now"))?;
        if count > 0 {
            tracing::info!(count, "cut flows that are forbidden now");
        }
        Ok(())
    }

    /// Sends flows of these addresses to the filter, which knows them no more.
    fn leave_shortcut(&self, router: &File, lost: &BTreeSet<IpAddr>) -> Result<(), NetError> {
        let work = || self.shortcut.cut(router, |flow| flow.avoids(lost));
        within(router, work)?.map(drop).map_err(NetError::io("cut flows of an instance that goes"))
    }

    fn remove(&self) -> Result<bool, NetError> {
        let lock = self.records.lock()?;
        let record = match self.records.host() {
            Ok(record) => record,
            Err(NetError::Record { .. }) => None,
            Err(error) => return Err(error),
        };
        let mut changed = false;
        self.leaving.wait_for(None, |links| self.take_away(links))?;
        if let Ok(router) = self.router() {
            // Whoever still holds the namespace keeps a closed room.
            within(&router, router::dismantle)?.map_err(NetError::link("remove the links of the router"))?;
            changed = true;
        }
        self.shortcut.forget();
        self.rules.forget();
        self.host_rules.forget();
        changed |= self.outside(|| self.names.remove(record.as_ref()))?;
        changed |= self.pin.remove()?;
        *self.applied() = None;
        self.records.remove()?;
        drop(lock);
        Ok(changed)
    }
}

/// Runs work in a namespace.
fn within<T: Send>(ns: &impl AsFd, work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
    ns::in_ns(ns, work).map_err(NetError::io("enter the router namespace"))
}

/// Whether what a policy lost may have closed a flow of which both ends are still listed.
fn closes_between_listed(gone: &NetPolicy, policy: &NetPolicy) -> bool {
    let lost = gone.sources.values().map(|entry| entry.address);
    let lost: BTreeSet<AddressPair> = lost
        .chain(gone.receivers.iter().map(|(_, to)| *to))
        .chain(gone.pairs.iter().map(|(_, to)| *to))
        .chain(gone.ingress.iter().map(|(to, _)| *to))
        .collect();
    !lost.is_empty() && policy.sources.values().any(|entry| lost.contains(&entry.address))
}

/// Addresses that a policy listed.
fn addresses_of(policy: &NetPolicy) -> BTreeSet<IpAddr> {
    policy.sources.values().flat_map(|entry| [IpAddr::V4(entry.address.v4), IpAddr::V6(entry.address.v6)]).collect()
}
