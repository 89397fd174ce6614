//! [`Holder`]: the shortcut of the router namespace that is there now.
//!
//! Invariant: entries name links by number, so a shortcut serves one router namespace only; another one gets a new one.

use super::{Shortcut, remove};
use crate::conntrack::Ends;
use crate::link::Links;
use moat_model::LinkName;
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
    /// The number of the router namespace, and its shortcut unless it is unwanted or the kernel refused it.
    known: Option<(u64, Option<Arc<Shortcut>>)>,
}

impl Holder {
    /// One that never has a shortcut unless it is wanted.
    pub fn new(wanted: bool) -> Self {
        Self { wanted, state: Mutex::default() }
    }

    /// The shortcut of a router namespace, which the calling thread is in; none when the kernel has refused it, which is
    /// said once.
    pub fn of(&self, router: &File, links: &mut Links) -> io::Result<Option<Arc<Shortcut>>> {
        let number = router.metadata()?.st_ino();
        let mut state = self.lock();
        if let Some((_, shortcut)) = state.known.as_ref().filter(|(known, _)| *known == number) {
            return Ok(shortcut.clone());
        }
        let opened = if self.wanted { Shortcut::open(links).map(|shortcut| Some(Arc::new(shortcut))) } else { Ok(None) };
        let shortcut = opened.unwrap_or_else(|error| {
            tracing::warn!(%error, "no shortcut between instances: every packet takes the router's whole path");
            None
        });
        if shortcut.is_none()
            && let Err(error) = remove(links)
            // Who may not ask can't have attached any.
            && error.kind() != io::ErrorKind::PermissionDenied
        {
            tracing::warn!(%error, "programs of a shortcut may still be on links: the policy does not close what they know");
        }
        *state = State { known: Some((number, shortcut.clone())) };
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

    /// Attaches again what lost its programs, and takes away those of another version; the names of those links. One that is
    /// not up yet is being made, and gets them before it is.
    pub fn repair(&self, router: &File, links: &mut Links) -> io::Result<Vec<String>> {
        let Some(shortcut) = self.of(router, links)? else { return Ok(Vec::new()) };
        let with_clsact = links.with_clsact()?;
        let mut mended = Vec::new();
        for link in links.all()?.into_iter().filter(|link| link.up && LinkName::parse(&link.name).is_some()) {
            if !shortcut.holds(links, link.index, &with_clsact)? && shortcut.mend(links, link.index).is_ok() {
                mended.push(link.name);
            }
        }
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
