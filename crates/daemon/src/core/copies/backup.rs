//! Making an archive.

use super::contents::{Contents, DOCUMENTS, Entry, RANGES, STATE, TREES, Way};
use super::{Copied, Job, failure};
use crate::core::Core;
use crate::core::requests::{Reply, end};
use crate::protocol::{Event, Failure, SnapshotKind};
use moat_archive::{ArchiveError, Head, Writer};
use moat_engine_linux::{Kept, LinuxEngine};
use moat_model::state::Workload;
use moat_model::{InstanceId, Purpose, Service, Slug};
use moat_store::Key;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// The id inside of the user that datastores run as, and the folder of a database's server below its data.
const USER: u32 = 1000;
const CLUSTER: &str = "data";
/// What is read of what a server's program says.
const SAYS: u64 = 4096;

/// What is asked for.
pub(super) struct Wanted {
    file: PathBuf,
    services: BTreeSet<Slug>,
    whole: bool,
    with_key: bool,
}

/// Everything that is needed to make an archive, as of one moment.
pub(super) struct Plan {
    file: PathBuf,
    head: Head,
    key: Key,
    contents: Contents,
    /// The durable state as a text, where everything is wanted.
    state: Option<Vec<u8>>,
    kept: Vec<Item>,
}

struct Item {
    kept: Kept,
    source: Source,
}

/// Who makes the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// The server of this instance of a database.
    Database(InstanceId),
    /// The server of this instance of a Key Value.
    KeyValue(InstanceId),
    /// We do.
    Files,
}

impl Plan {
    /// The services whose data is in it.
    fn services(&self) -> Vec<Slug> {
        self.contents.kept.iter().filter_map(|entry| entry.slug.clone()).collect()
    }
}

impl Core {
    /// Begins a backup.
    pub(in crate::core) fn backup(&mut self, file: PathBuf, services: &[String], with_key: bool, reply: Reply) {
        let whole = services.is_empty();
        let mut wanted = BTreeSet::new();
        for name in services {
            let slug = match self.find(name) {
                Ok(slug) => slug,
                Err(failure) => return end(&reply, Some(failure)),
            };
            if self.desired.services.get(&slug).and_then(Kept::of).is_none() {
                let hint = "disks, databases and Key Values that keep their data can be backed up".to_owned();
                return end(&reply, Some(Failure::refused(format!("`{slug}` keeps nothing"), Some(hint))));
            }
            wanted.insert(slug);
        }
        if whole {
            wanted.extend(self.desired.services.keys().cloned());
        }
        // Into a folder, under a name that says what it is.
        let file = if file.is_dir() {
            let what = if let [one] = services { one.as_str() } else { "backup" };
            file.join(format!("moat-{what}-{}", SnapshotKind::Asked.name(self.engine.now()).replace("-asked", ".moat")))
        } else {
            file
        };
        let text = format!("backing up {}", if whole { "everything".to_owned() } else { super::restore::list(&wanted) });
        let _ = reply.send(Event::Notice { service: None, text });
        let job = Job::Backup(Wanted { file, services: wanted.clone(), whole, with_key });
        self.begin_copy("a backup", wanted, job, reply);
    }

    /// Looks at what runs now, and decides how everything is copied.
    pub(super) fn plan_backup(&self, engine: &LinuxEngine, wanted: Wanted) -> Result<Plan, Failure> {
        let mut kept = Vec::new();
        let mut contents = Contents { whole: wanted.whole, kept: Vec::new() };
        for service in wanted.services.iter().filter_map(|slug| self.desired.services.get(slug)) {
            let Some(what) = Kept::of(service) else { continue };
            if !engine.kept_folder(&what).exists() {
                if wanted.whole {
                    // It has never run.
                    continue;
                }
                return Err(Failure::refused(format!("`{}` has kept nothing yet", service.slug), None));
            }
            let source = self.source(service)?;
            let way = match source {
                Source::Database(_) | Source::KeyValue(_) => Way::Server,
                Source::Files if self.serving(&service.slug).is_some() => Way::StoodStill,
                Source::Files => Way::AtRest,
            };
            contents.kept.push(Entry::of(&what, Some(service), way));
            kept.push(Item { kept: what, source });
        }
        let state_error = |error: crate::state::StateError| Failure { message: crate::chain(&error), hint: None, exit_code: 3 };
        let state = if wanted.whole { Some(self.durable.to_text().map_err(state_error)?) } else { None };
        let key_error = |error: moat_store::StoreError| Failure { message: crate::chain(&error), hint: None, exit_code: 3 };
        let mut head = Head {
            id: moat_planner::alloc::letters(crate::blueprints::random(), 20),
            created: self.engine.now().to_string(),
            moat: env!("CARGO_PKG_VERSION").to_owned(),
            machine: nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            whole: wanted.whole,
            services: contents.kept.iter().filter_map(|entry| Some(entry.slug.as_ref()?.to_string())).collect(),
            key: None,
        };
        if wanted.with_key {
            head.include_key(&Key::bytes_of(&Key::path(&self.paths.state)).map_err(key_error)?);
        }
        let key = Key::of(&self.paths.state).map_err(key_error)?;
        Ok(Plan { file: wanted.file, head, key, contents, state, kept })
    }

    /// The instance of a service that is ready.
    fn serving(&self, slug: &Slug) -> Option<&InstanceId> {
        let serves = |live: &crate::core::Live| live.slug == *slug && live.purpose == Purpose::Serve && live.ready && !live.stopping;
        self.live.iter().find(|(_, live)| serves(live)).map(|(id, _)| id)
    }

    fn source(&self, service: &Service) -> Result<Source, Failure> {
        let source = match service.workload {
            Workload::Postgres(_) => Source::Database,
            Workload::KeyValue(_) => Source::KeyValue,
            Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => return Ok(Source::Files),
        };
        match self.serving(&service.slug) {
            Some(id) => Ok(source(id.clone())),
            // Nobody uses it.
            None if self.wanted(&service.slug) == 0 && !self.serves(&service.slug) => Ok(Source::Files),
            None => {
                let slug = &service.slug;
                let hint = format!("say it again when it runs (`moat ps`), or `moat suspend {slug}` first");
                Err(Failure::refused(format!("`{slug}` does not run now"), Some(hint)))
            }
        }
    }
}

/// Makes the archive. `after_trees` is called once releases may change again.
pub(super) async fn run(engine: &LinuxEngine, plan: Plan, after_trees: impl FnOnce()) -> Result<Copied, Failure> {
    let services = plan.services();
    let Plan { file, head, key, contents, state, kept } = plan;
    let (trees, ranges, place) = (engine.trees(), engine.ranges_file(), file.clone());
    let mut writer = blocking(move || {
        let contents = serde_json::to_vec(&contents).map_err(|error| ArchiveError::Refused(error.to_string()))?;
        let mut writer = Writer::create(&place, &head, &key, &contents)?;
        if let Some(state) = state {
            write_machine(&mut writer, &state, &ranges, trees)?;
        }
        Ok(writer)
    })
    .await?;
    after_trees();
    for item in kept {
        writer = write_kept(engine, writer, item).await?;
    }
    let written = blocking(move || writer.finish()).await?;
    Ok(Copied::Archive { file, bytes: written.bytes, services })
}

fn write_machine(writer: &mut Writer, state: &[u8], ranges: &Path, trees: Vec<(&'static str, PathBuf)>) -> Result<(), ArchiveError> {
    writer.part(STATE);
    writer.folder(Path::new(""), 0o700, 0)?;
    writer.file(Path::new(DOCUMENTS), 0o600, 0, &mut &*state, state.len() as u64)?;
    if let Ok(text) = std::fs::read(ranges) {
        writer.file(Path::new(RANGES), 0o600, 0, &mut &*text, text.len() as u64)?;
    }
    for (name, path) in trees {
        writer.part(&format!("{TREES}{name}"));
        writer.tree(&path, Path::new(""), &|id| id)?;
    }
    Ok(())
}

async fn write_kept(engine: &LinuxEngine, mut writer: Writer, Item { kept, source }: Item) -> Result<Writer, Failure> {
    writer.part(&kept.path().to_string_lossy());
    match source {
        Source::Files => {
            let copy = engine.scratch_for(&kept).map_err(|error| failure(&error))?;
            let copied = engine.copy_kept(&kept, copy.clone()).await.map_err(|error| failure(&error));
            let from = copy.clone();
            let written = match copied {
                Ok(()) => blocking(move || writer.tree(&from, Path::new(""), &LinuxEngine::id_inside).map(|()| writer)).await,
                Err(failure) => Err(failure),
            };
            blocking(move || std::fs::remove_dir_all(&copy).or_else(ignore_missing).map_err(ArchiveError::Write)).await?;
            written
        }
        Source::KeyValue(id) => {
            let copy = engine.scratch_for(&kept).map_err(|error| failure(&error))?;
            let copied = engine.dump_keyvalue(&id, copy.clone()).await.map_err(|error| failure(&error));
            let from = copy.clone();
            let written = match copied {
                Ok(()) => blocking(move || write_snapshot(&mut writer, &from).map(|()| writer)).await,
                Err(failure) => Err(failure),
            };
            blocking(move || std::fs::remove_file(&copy).or_else(ignore_missing).map_err(ArchiveError::Write)).await?;
            written
        }
        Source::Database(id) => write_database(engine, writer, &id).await,
    }
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// A Key Value's snapshot, where its server looks for one.
fn write_snapshot(writer: &mut Writer, from: &Path) -> Result<(), ArchiveError> {
    let open = || File::open(from).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (size, mut file) = open().map_err(ArchiveError::Write)?;
    writer.folder(Path::new(""), 0o755, USER)?;
    writer.file(Path::new("dump.rdb"), 0o600, USER, &mut file, size)
}

/// What a database's server writes of itself, as it comes.
async fn write_database(engine: &LinuxEngine, mut writer: Writer, id: &InstanceId) -> Result<Writer, Failure> {
    let broken = |error: io::Error| Failure { message: format!("can't make a pipe: {error}"), hint: None, exit_code: 3 };
    let (output, to_output) = io::pipe().map_err(broken)?;
    let (errors, to_errors) = io::pipe().map_err(broken)?;
    let said = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        let _ = (&errors).take(SAYS).read_to_end(&mut text);
        // What is not read would stop the program.
        let _ = io::copy(&mut &errors, &mut io::sink());
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let written = tokio::spawn(blocking(move || {
        writer.folder(Path::new(""), 0o755, USER)?;
        writer.folder(Path::new(CLUSTER), 0o700, USER)?;
        writer.stream(Path::new(CLUSTER), output).map(|()| writer)
    }));
    let code = engine.base_backup(id, to_output.into(), to_errors.into()).await;
    let (written, said) = (written.await, said.await.unwrap_or_default());
    let written = written.unwrap_or_else(|error| Err(Failure { message: error.to_string(), hint: None, exit_code: 70 }));
    match code.map_err(|error| failure(&error))? {
        0 => written,
        code => {
            let hint = if said.contains("pg_hba.conf") {
                "its server was started by an earlier Moat: `moat restart` it once".to_owned()
            } else {
                "`moat logs` of the database may say more".to_owned()
            };
            Err(Failure { message: format!("`pg_basebackup` ended with status {code}: {said}"), hint: Some(hint), exit_code: 3 })
        }
    }
}

/// Runs what blocks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| refused(&error)),
        Err(error) => Err(Failure { message: error.to_string(), hint: None, exit_code: 70 }),
    }
}

/// An archive's error as an answer.
pub(super) fn refused(error: &ArchiveError) -> Failure {
    let hint = match error {
        ArchiveError::WrongKey => Some("name its key: `--key FILE` (`STATE/key` of the machine that made it)".to_owned()),
        ArchiveError::Damaged(_) => Some("nothing was changed; take another backup".to_owned()),
        ArchiveError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
            Some("a backup never takes the place of a file: name another".to_owned())
        }
        ArchiveError::Io { .. }
        | ArchiveError::NotAnArchive
        | ArchiveError::Newer
        | ArchiveError::Write(_)
        | ArchiveError::Changed(_)
        | ArchiveError::Kind(_)
        | ArchiveError::Refused(_)
        | ArchiveError::Seal(_) => None,
    };
    Failure::refused(crate::chain(error), hint)
}
