//! [`Holder`]: the shortcut of the router namespace that is there now.
//!
//! Invariant: entries name links by number, so a shortcut serves one router namespace only; another one gets a new one.

use super::{Shortcut, attached};
use crate::conntrack::Ends;
use crate::link::Links;
use moat_model::LinkName;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Opens the shortcut when it is first needed and remembers when there is none.
#[derive(Debug)]
pub struct Holder {
    wanted: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the router namespace, and its shortcut unless the kernel refused it.
    known: Option<(u64, Option<Arc<Shortcut>>)>,
    /// Whether every link's programs were looked at by this process.
    looked: bool,
}

impl Holder {
    /// One that never has a shortcut unless it is wanted.
    pub fn new(wanted: bool) -> Self {
        Self { wanted, state: Mutex::default() }
    }

    /// The shortcut of a router namespace, which the calling thread is in; none when the kernel has refused it, which is
    /// said once.
    pub fn of(&self, router: &File, links: &mut Links) -> io::Result<Option<Arc<Shortcut>>> {
        if !self.wanted {
            return Ok(None);
        }
        let number = router.metadata()?.st_ino();
        let mut state = self.lock();
        if let Some((_, shortcut)) = state.known.as_ref().filter(|(known, _)| *known == number) {
            return Ok(shortcut.clone());
        }
        let shortcut = match Shortcut::open(links) {
            Ok(shortcut) => Some(Arc::new(shortcut)),
            Err(error) => {
                tracing::warn!(%error, "no shortcut between instances: every packet takes the router's whole path");
                None
            }
        };
        *state = State { known: Some((number, shortcut.clone())), looked: false };
        Ok(shortcut)
    }

    /// The shortcut, if there is one and this process knows it.
    pub fn known(&self) -> Option<Arc<Shortcut>> {
        self.lock().known.as_ref().and_then(|(_, shortcut)| shortcut.clone())
    }

    /// Gives up the shortcut of a router namespace that goes.
    pub fn forget(&self) {
        *self.lock() = State::default();
    }

    /// Attaches a link; one that the kernel refuses goes without, until a repair succeeds.
    pub fn attach(&self, router: &File, links: &mut Links, index: u32) -> io::Result<()> {
        let Some(shortcut) = self.of(router, links)? else { return Ok(()) };
        if let Err(error) = shortcut.attach(links, index) {
            tracing::warn!(%error, "no shortcut for a link: its packets take the router's whole path");
        }
        Ok(())
    }

    /// Attaches again what lost its programs; the names of those links. One that is not up yet is being made, and gets them before it
    /// is. The first look of a process is at each link's
    /// programs, later ones at the places that hold them, which cost one question for all links.
    pub fn repair(&self, router: &File, links: &mut Links) -> io::Result<Vec<String>> {
        let Some(shortcut) = self.of(router, links)? else { return Ok(Vec::new()) };
        let looked = self.lock().looked;
        let hooked = links.hooked()?;
        let mut mended = Vec::new();
        for link in links.all()?.into_iter().filter(|link| link.up && LinkName::parse(&link.name).is_some()) {
            let whole = hooked.contains(&link.index) && (looked || attached(links, link.index)?.iter().all(Option::is_some));
            if !whole && shortcut.attach(links, link.index).is_ok() {
                mended.push(link.name);
            }
        }
        self.lock().looked = true;
        Ok(mended)
    }

    /// Forgets every flow that `keep` refuses; how many.
    pub fn cut(&self, router: &File, keep: impl Fn(&Ends) -> bool) -> io::Result<usize> {
        match self.of(router, &mut Links::open()?)? {
            Some(shortcut) => shortcut.cut(keep).map_err(io::Error::other),
            None => Ok(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Links {
    /// Numbers of the links that programs can be attached to.
    fn hooked(&mut self) -> io::Result<BTreeSet<u32>> {
        use netlink_packet_route::RouteNetlinkMessage::{GetQueueDiscipline, NewQueueDiscipline};
        use netlink_packet_route::tc::{TcAttribute, TcMessage};
        let found = self.query(GetQueueDiscipline(TcMessage::default()))?;
        Ok(found
            .iter()
            .filter_map(|message| if let NewQueueDiscipline(message) = message { Some(message) } else { None })
            .filter(|message| message.attributes.contains(&TcAttribute::Kind("clsact".to_owned())))
            .filter_map(|message| u32::try_from(message.header.index).ok())
            .collect())
    }
}
