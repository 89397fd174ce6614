//! The shortcut: later packets of an open flow between two instances go from link to link, past the router's stack.
//!
//! [`Shortcut`] holds two programs of the kernel's virtual machine (`bpf/shortcut.c`) and their tables of flows. The first
//! packet of every flow is decided by the filter; the programs learn from what came through, and decide nothing. Functions
//! with links run in a thread of the router namespace. Invariants: no link without both programs or none of them counts as
//! attached; a flow that the policy forbids has no entry once [`Shortcut::cut`] returned; without a shortcut everything
//! works as well, only slower.

mod holder;
mod hooks;
mod records;

pub use holder::Holder;

use crate::conntrack::Ends;
use crate::link::Links;
use aya::maps::{HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use aya::programs::{ProgramFd, ProgramInfo, SchedClassifier, loaded_programs};
use aya::{Ebpf, EbpfError};
use hooks::{Found, PLACES};
use records::{FLOW4, FLOW6, Fate, KEY4, KEY6, Record, Table};
use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

mod limits {
    #![expect(dead_code, clippy::unreadable_literal, reason = "written by the build script; some matter only to the programs")]
    include!(concat!(env!("OUT_DIR"), "/limits.rs"));
}

/// The programs, as the compiler made them.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shortcut.o"));
const FLOWS4: &str = "moat_flows4";
const FLOWS6: &str = "moat_flows6";
const COUNTS: &str = "moat_counts";

/// Why there is no shortcut.
#[derive(Debug, thiserror::Error)]
pub enum ShortcutError {
    /// The kernel refused the programs or their maps.
    #[error("the kernel refused the programs: {0}")]
    Load(#[from] EbpfError),
    /// A program could not be loaded, looked up or used.
    #[error("the kernel refused a program: {0}")]
    Program(#[from] aya::programs::ProgramError),
    /// A map could not be opened or used.
    #[error("the kernel refused a map of flows: {0}")]
    Map(#[from] MapError),
    /// A link's programs could not be listed or attached.
    #[error("programs could not be attached to a link: {0}")]
    Link(#[from] io::Error),
    /// The object lacks a part, or what runs here is of another version.
    #[error("the programs lack `{0}`")]
    Missing(&'static str),
}

/// What the shortcut did since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets that took it.
    pub taken: u64,
    /// Flows that were learned.
    pub learned: u64,
    /// Flows that found no room and take the router's path.
    pub no_room: u64,
    /// Directions of flows that are remembered now: two for each flow.
    pub remembered: u64,
}

/// The loaded programs and their maps.
pub struct Shortcut {
    programs: [ProgramFd; 2],
    ids: [u32; 2],
    flows: Mutex<Flows>,
    counts: PerCpuArray<MapData, u64>,
}

/// The flows of each family.
struct Flows {
    v4: Table<KEY4, FLOW4>,
    v6: Table<KEY6, FLOW6>,
}

impl std::fmt::Debug for Shortcut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shortcut").finish_non_exhaustive()
    }
}

/// Whether this kernel takes the programs, for who may ask it (root).
pub fn check() -> Result<(), ShortcutError> {
    Shortcut::load().map(drop)
}

impl Shortcut {
    /// Takes over what the links of this namespace already have, else loads anew and exchanges what they have: an entry of
    /// another table would be out of reach.
    pub fn open(links: &mut Links) -> Result<Self, ShortcutError> {
        let (named, with_clsact) = (hooks::named(), links.with_clsact()?);
        let mut found = Vec::new();
        for link in links.all()? {
            let programs = Found::of(links, link.index, &with_clsact)?;
            if programs.any(&named) {
                found.push((link.index, programs));
            }
        }
        let adopted = found.iter().find_map(|(_, programs)| programs.pair(&named)).map(Self::adopt);
        let shortcut = match adopted {
            Some(Ok(shortcut)) => shortcut,
            Some(Err(error)) => {
                tracing::warn!(%error, "the shortcut that runs can't be taken over; open connections may break");
                Self::load()?
            }
            None => Self::load()?,
        };
        for (index, programs) in found {
            if !programs.is_whole(shortcut.ids, || named.clone()) {
                hooks::gone_or(shortcut.mend(links, index))?;
            }
        }
        Ok(shortcut)
    }

    fn load() -> Result<Self, ShortcutError> {
        let mut object = Ebpf::load(OBJECT)?;
        let mut load = |name: &'static str| -> Result<(ProgramFd, u32), ShortcutError> {
            let program = object.program_mut(name).ok_or(ShortcutError::Missing(name))?;
            let program: &mut SchedClassifier = program.try_into()?;
            program.load()?;
            Ok((program.fd()?.try_clone()?, program.info()?.id()))
        };
        let [(enter, enter_id), (leave, leave_id)] = [load(PLACES[0].program)?, load(PLACES[1].program)?];
        let mut map = |name: &'static str| object.take_map(name).ok_or(ShortcutError::Missing(name));
        Ok(Self {
            programs: [enter, leave],
            ids: [enter_id, leave_id],
            flows: Mutex::new(Flows { v4: HashMap::try_from(map(FLOWS4)?)?, v6: HashMap::try_from(map(FLOWS6)?)? }),
            counts: PerCpuArray::try_from(map(COUNTS)?)?,
        })
    }

    /// Programs by their numbers, with the maps they use.
    fn adopt(ids: [u32; 2]) -> Result<Self, ShortcutError> {
        let all: Vec<ProgramInfo> = loaded_programs().filter_map(Result::ok).filter(|info| ids.contains(&info.id())).collect();
        let program = |id: u32| all.iter().find(|info| info.id() == id).ok_or(ShortcutError::Missing("a program"));
        let (enter, leave) = (program(ids[0])?, program(ids[1])?);
        let (mut v4, mut v6, mut counts) = (None, None, None);
        for id in enter.map_ids()?.unwrap_or_default() {
            let info = MapInfo::from_id(id)?;
            match info.name_as_str() {
                Some(FLOWS4) => v4 = Some(HashMap::try_from(Map::HashMap(MapData::from_id(id)?))?),
                Some(FLOWS6) => v6 = Some(HashMap::try_from(Map::HashMap(MapData::from_id(id)?))?),
                Some(COUNTS) => counts = Some(PerCpuArray::try_from(Map::PerCpuArray(MapData::from_id(id)?))?),
                _ => {}
            }
        }
        let flows = Flows { v4: v4.ok_or(ShortcutError::Missing(FLOWS4))?, v6: v6.ok_or(ShortcutError::Missing(FLOWS6))? };
        Ok(Self {
            programs: [enter.fd()?, leave.fd()?],
            ids,
            flows: Mutex::new(flows),
            counts: counts.ok_or(ShortcutError::Missing(COUNTS))?,
        })
    }

    /// Attaches both programs to the link with this number, which is new.
    pub fn attach(&self, links: &mut Links, index: u32) -> io::Result<()> {
        hooks::attach(links, index, &self.programs)
    }

    /// Attaches what a link lacks of the programs, and takes away what it has of another version or by another way.
    pub fn mend(&self, links: &mut Links, index: u32) -> io::Result<()> {
        self.attach(links, index)?;
        hooks::strip(links, index, Some(self.ids), &hooks::named())
    }

    /// Whether the link with this number has both programs and nothing else of Moat's.
    pub fn holds(&self, links: &mut Links, index: u32, with_clsact: &BTreeSet<u32>) -> io::Result<bool> {
        Ok(Found::of(links, index, with_clsact)?.is_whole(self.ids, hooks::named))
    }

    /// Forgets every flow that `keep` refuses; how many.
    pub fn cut(&self, keep: impl Fn(&Ends) -> bool) -> Result<usize, ShortcutError> {
        self.forget(|record| if record.is_opener() && !keep(&record.ends()) { Fate::ForgetBoth } else { Fate::Keep })
    }

    /// Forgets flows without a packet for longer than the limits; how many. They take no shortcut any more anyway: this
    /// makes room.
    pub fn sweep(&self) -> Result<usize, ShortcutError> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).map_err(io::Error::from)?;
        self.sweep_at(u32::try_from(Duration::from(now).as_secs()).unwrap_or(u32::MAX))
    }

    fn sweep_at(&self, now: u32) -> Result<usize, ShortcutError> {
        self.forget(|record| {
            // The programs' clock may be a moment ahead of this one.
            let idle = now.wrapping_sub(record.seen());
            if idle < u32::MAX / 2 && idle > record.limit() { Fate::Forget } else { Fate::Keep }
        })
    }

    fn forget(&self, fate: impl Fn(&Record<'_>) -> Fate) -> Result<usize, ShortcutError> {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(records::forget(&mut flows.v4, &fate)? + records::forget(&mut flows.v6, &fate)?)
    }

    /// What it did since it was loaded.
    pub fn counts(&self) -> Result<Counts, ShortcutError> {
        let sum = |index: u32| -> Result<u64, ShortcutError> { Ok(self.counts.get(&index, 0)?.iter().sum()) };
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let both = flows.v4.keys().flatten().map(drop).chain(flows.v6.keys().flatten().map(drop));
        let remembered = both.fold(0, |count, ()| count + 1);
        Ok(Counts { taken: sum(0)?, learned: sum(1)?, no_room: sum(2)?, remembered })
    }
}

/// Takes Moat's programs away from every link of this namespace: without who cuts their flows they must not run.
pub fn remove(links: &mut Links) -> io::Result<()> {
    let (named, with_clsact) = (hooks::named(), links.with_clsact()?);
    for link in links.all()? {
        if Found::of(links, link.index, &with_clsact)?.any(&named) {
            hooks::gone_or(hooks::strip(links, link.index, None, &named))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
