//! The durable state: what it holds, and writing what changed of it.
//!
//! Invariant: [`Durable`] is what the loop works with; what [`State`] wrote last is on disk, and a change reaches the disk whole or
//! not at all.

use crate::deploy::{Deployed, PreDeploy};
use crate::history::History;
use crate::protocol::UpRequest;
use crate::public::{Asked, PublicSettings, Signing, StoredCertificate};
use crate::settings::{Settings, Sleep};
use jiff::Timestamp;
use moat_model::{Generation, Service, Slug};
use moat_planner::memory::Memory;
use moat_store::{Changes, Documents, EventKind, Store, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Everything that outlives the daemon. A field is named in [`aggregates!`] below as well, which stores it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Durable {
    /// Counts accepted changes.
    pub generation: Generation,
    /// Ids, addresses and generated secrets.
    pub memory: Memory,
    /// Accepted blueprints by path.
    pub blueprints: BTreeMap<PathBuf, UpRequest>,
    /// Services that their blueprint no longer names, and that nobody removed.
    pub kept: BTreeMap<Slug, Service>,
    /// The last push of each blueprint that is not accepted yet.
    pub queued: BTreeMap<PathBuf, UpRequest>,
    /// Services whose deploy is not over.
    pub deploying: BTreeSet<Slug>,
    /// What runs of each service.
    pub deployed: BTreeMap<Slug, Deployed>,
    /// The deploys of each service.
    pub history: History,
    /// What people have set about services beside their blueprints.
    pub settings: BTreeMap<Slug, Settings>,
    /// Services that sleep, or wake.
    pub sleep: BTreeMap<Slug, Sleep>,
    /// The pre-deploy commands of deploys that are not over.
    pub pre_deploys: BTreeMap<Slug, PreDeploy>,
    /// When cron jobs run next.
    pub cron: BTreeMap<Slug, CronDue>,
    /// What people have set about the public side.
    pub public: PublicSettings,
    /// Certificates that people gave, by their first names.
    pub certificates: BTreeMap<String, StoredCertificate>,
    /// What certificates are made with.
    pub signing: Signing,
    /// What came of asking for certificates, by name.
    pub asked: BTreeMap<String, Asked>,
}

/// When a cron job runs next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronDue {
    /// The time of day; none where it is still to be reckoned.
    pub at: Option<Timestamp>,
    /// Its time came while the run before was not over: it follows when that has ended.
    #[serde(default)]
    pub late: bool,
}

/// How each field is stored: a `map` or a `set` by its keys, a structure by its `fields`. The name is the stored one, too.
macro_rules! aggregates {
    ($($how:ident $name:ident,)+) => {
        impl Durable {
            fn changes(&self, before: &Self) -> Result<Changes, StoreError> {
                let mut changes = Changes::default();
                $(changes.$how(stringify!($name), &before.$name, &self.$name)?;)+
                Ok(changes)
            }

            fn read(generation: Generation, mut documents: Documents) -> Result<Self, StoreError> {
                Ok(Self { generation, $($name: documents.$how(stringify!($name))?,)+ })
            }

            /// Becomes the other, copying only what differs.
            fn follow(&mut self, other: &Self) {
                self.generation = other.generation;
                $(if self.$name != other.$name {
                    self.$name.clone_from(&other.$name);
                })+
            }
        }
    };
}

aggregates! {
    fields memory,
    map blueprints,
    map kept,
    map queued,
    set deploying,
    map deployed,
    fields history,
    map settings,
    map sleep,
    map pre_deploys,
    map cron,
    fields public,
    map certificates,
    fields signing,
    map asked,
}

/// All of a state in one text, for a machine that is to go on with it.
#[derive(Serialize, Deserialize)]
struct Whole {
    generation: Generation,
    documents: serde_json::Value,
}

impl Durable {
    /// All of it as one text, with secrets in clear.
    pub fn to_text(&self) -> Result<Vec<u8>, StateError> {
        let mut documents = Documents::default();
        documents.apply(&self.changes(&Self::default())?);
        Ok(serde_json::to_vec(&Whole { generation: self.generation, documents: documents.to_json()? })?)
    }

    /// What [`Self::to_text`] gave.
    pub fn from_text(text: &[u8]) -> Result<Self, StateError> {
        let whole: Whole = serde_json::from_slice(text)?;
        Ok(Self::read(whole.generation, Documents::from_json(serde_json::from_value(whole.documents)?))?)
    }

    /// Whether it is of the same installation as another: it goes on with the same addresses and names.
    pub fn continues(&self, other: &Self) -> bool {
        let prefix = |durable: &Self| serde_json::to_value(&durable.memory).ok().and_then(|memory| memory.get("ula").cloned());
        self.memory == Memory::default() || prefix(self) == prefix(other)
    }
}

/// Why the state can't be read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// By the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A state's text is not one.
    #[error("it is no state of Moat's")]
    Text(#[from] serde_json::Error),
    /// The state of an earlier version is not readable.
    #[error("can't read `{path}`")]
    Before {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state of an earlier version is not understood.
    #[error("`{path}` is damaged ({source}): move it away to start anew; instances that run are found again")]
    BeforeDamaged {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Where documents are written; [`Store`] is the real one.
pub trait Disk: std::fmt::Debug + Send {
    /// Writes changes, all or none.
    fn write(&mut self, generation: Generation, changes: &Changes) -> Result<(), StoreError>;
    /// Makes the last good copy anew where something changed since it was made.
    fn keep_copy(&mut self) -> Result<(), StoreError>;
}

impl Disk for Store {
    fn write(&mut self, generation: Generation, changes: &Changes) -> Result<(), StoreError> {
        self.write(generation, changes)
    }
    fn keep_copy(&mut self) -> Result<(), StoreError> {
        if self.copy_is_due() { self.keep_copy() } else { Ok(()) }
    }
}

/// The durable state on disk.
#[derive(Debug)]
pub struct State {
    disk: Box<dyn Disk>,
    /// What was written last.
    written: Durable,
}

/// A durable state that was opened.
#[derive(Debug)]
pub struct Found {
    /// To write to.
    pub state: State,
    /// What it holds.
    pub durable: Durable,
    /// What people should know about how it was found.
    pub said: Option<(EventKind, String)>,
}

impl State {
    /// Opens the state of a folder.
    pub fn open(folder: &Path) -> Result<Found, StateError> {
        let opened = Store::open(folder)?;
        let mut said = opened.restored.map(|restored| {
            let (why, damaged) = (restored.why, restored.damaged.display());
            let text = format!(
                "the durable state was damaged ({why}): its last good copy took its place, and changes made since that copy are lost; \
                 the damaged file is `{damaged}`"
            );
            (EventKind::StateRestored, text)
        });
        let (generation, is_new) = (opened.store.generation(), opened.store.is_new());
        let mut state = Self::of(Box::new(opened.store), generation, opened.documents)?;
        let before = folder.join("state.json");
        if before.exists() {
            let aside = folder.join("state.json.before-sqlite");
            if is_new {
                let durable = earlier(&before)?;
                state.save(&durable)?;
                let text =
                    format!("`{}` was taken over; `{}` keeps it, with secrets in clear: remove it", before.display(), aside.display());
                said = Some((EventKind::Notice, text));
            }
            let moved = fs::set_permissions(&before, Permissions::from_mode(0o600)).and_then(|()| fs::rename(&before, &aside));
            moved.map_err(|source| StateError::Before { path: before, source })?;
        }
        let durable = state.written().clone();
        Ok(Found { state, durable, said })
    }

    /// A state that a disk holds as these documents.
    pub fn of(disk: Box<dyn Disk>, generation: Generation, documents: Documents) -> Result<Self, StoreError> {
        Ok(Self { disk, written: Durable::read(generation, documents)? })
    }

    /// What was written last.
    pub fn written(&self) -> &Durable {
        &self.written
    }

    /// Writes what changed since the last time, all or nothing.
    pub fn save(&mut self, durable: &Durable) -> Result<(), StoreError> {
        self.disk.write(durable.generation, &durable.changes(&self.written)?)?;
        self.written.follow(durable);
        Ok(())
    }

    /// Makes the last good copy anew where something changed since it was made.
    pub fn keep_copy(&mut self) -> Result<(), StoreError> {
        self.disk.keep_copy()
    }
}

/// The state as versions before 0.2 wrote it.
fn earlier(path: &Path) -> Result<Durable, StateError> {
    let text = fs::read(path).map_err(|source| StateError::Before { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| StateError::BeforeDamaged { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use moat_model::Secret;

    fn up(secret: &str) -> UpRequest {
        UpRequest {
            given: BTreeMap::from([("TOKEN".to_owned(), Secret::new(secret))]),
            ..UpRequest::new("/app/render.yaml", "services: []")
        }
    }

    #[test]
    fn what_is_saved_is_found_and_only_what_changed_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let Found { mut state, mut durable, said } = State::open(folder.path()).unwrap();
        assert_eq!(said, None);
        durable.generation.0 = 3;
        durable.blueprints.insert(PathBuf::from("/app/render.yaml"), up("s3cret"));
        durable.deploying.insert(Slug::new("web").unwrap());
        durable.memory = serde_json::from_str(r#"{"regions": {"oregon": 0}}"#).unwrap();
        state.save(&durable).unwrap();
        assert!(durable.changes(&state.written).unwrap().is_empty());
        durable.deploying.clear();
        state.save(&durable).unwrap();
        drop(state);
        let found = State::open(folder.path()).unwrap().durable;
        assert_eq!(found.generation, Generation(3));
        assert_eq!(found.blueprints, durable.blueprints);
        assert_eq!(found.memory, durable.memory);
        assert!(found.deploying.is_empty());
    }

    #[test]
    fn a_state_of_an_earlier_version_is_taken_over_once() {
        let folder = tempfile::tempdir().unwrap();
        let before = folder.path().join("state.json");
        let text = |secret: &str| {
            let blueprints = BTreeMap::from([("/app/render.yaml", up(secret))]);
            serde_json::json!({
                "version": 1, "generation": 7, "memory": {"regions": {"oregon": 0}}, "blueprints": blueprints, "kept": {},
                "deploying": ["web"], "deployed": {},
            })
            .to_string()
        };
        fs::write(&before, text("s3cret")).unwrap();
        let Found { state, durable: found, said } = State::open(folder.path()).unwrap();
        assert!(said.unwrap().1.contains("taken over"));
        assert_eq!((found.generation, found.blueprints.len(), found.deploying.len()), (Generation(7), 1, 1));
        drop(state);
        let aside = folder.path().join("state.json.before-sqlite");
        assert_eq!(fs::metadata(&aside).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!before.exists());

        // One that lies there later is not taken for the state.
        fs::write(&before, "{").unwrap();
        let Found { durable: found, said, .. } = State::open(folder.path()).unwrap();
        assert_eq!((found.generation, said), (Generation(7), None));
    }

    #[test]
    fn an_earlier_state_that_is_damaged_is_refused_and_left() {
        let folder = tempfile::tempdir().unwrap();
        let before = folder.path().join("state.json");
        fs::write(&before, "{").unwrap();
        assert!(matches!(State::open(folder.path()), Err(StateError::BeforeDamaged { .. })));
        assert_eq!(fs::read_to_string(&before).unwrap(), "{");
        fs::write(&before, r#"{"generation": 2}"#).unwrap();
        assert_eq!(State::open(folder.path()).unwrap().durable.generation, Generation(2));
    }
}
