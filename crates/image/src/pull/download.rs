//! One layer: its blob is written to `downloads`, hashed on its way, and unpacked at the same time by a thread that follows the file.
//!
//! What was written is kept when a download stops, so that the next one asks only for the rest. Nothing is published before both digests, the
//! blob's and the unpacked content's, are right.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::origin::{ATTEMPTS, pause};
use super::{Work, too_much};
use crate::digest::{Digest, Hasher};
use crate::error::{Doing as _, ImageError};
use crate::manifest::Descriptor;
use crate::progress::Progress;
use crate::registry::Fault;
use crate::room;
use crate::unpack::LayerProblem;

const BUFFER: usize = 256 << 10;
/// Bytes between two words about a layer.
const TELL_EACH: u64 = 1 << 20;

/// How far a download is, for the thread that follows it.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Bytes in the file.
    available: u64,
    /// All bytes are there, and are right.
    complete: bool,
    /// What was in the file is void: the download failed or started anew.
    void: bool,
    /// The follower found the layer to be refused.
    refused: bool,
}

impl Shared {
    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn is_refused(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).refused
    }
}

/// Reads a file that still grows.
struct Follow<'a> {
    work: &'a Work<'a>,
    file: &'a File,
    shared: &'a Shared,
    position: u64,
}

impl Read for Follow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.work.check().map_err(io::Error::other)?;
        let available = {
            let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                if state.void {
                    return Err(io::Error::other("the download stopped"));
                }
                if state.available > self.position || state.complete {
                    break state.available;
                }
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let most = usize::try_from(available - self.position).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// Brings one layer into the store.
pub(super) fn fetch(work: &Work<'_>, layer: &Descriptor, diff_id: &Digest, tell: &Sender<Progress>) -> Result<(), ImageError> {
    if layer.size > work.limits.layer_bytes {
        return Err(too_much(&format!("the layer `{}`", layer.digest), layer.size, work.limits.layer_bytes));
    }
    let path = work.store.download_path(&layer.digest);
    let file = open_locked(work, &path)?;
    if !work.store.has_layer(diff_id) {
        let shared = Shared::default();
        let (downloaded, unpacked) = std::thread::scope(|scope| {
            let follower = scope.spawn(|| {
                let unpacked = unpack(work, layer, diff_id, Follow { work, file: &file, shared: &shared, position: 0 }, tell);
                // Other problems may come from wrong bytes, which the download finds.
                let refused = |problem: &LayerProblem| !matches!(problem, LayerProblem::Read(_) | LayerProblem::Malformed(_));
                if matches!(&unpacked, Err(error @ ImageError::Layer { source, .. }) if refused(source) || room::is_full(error)) {
                    shared.update(|state| state.refused = true);
                }
                unpacked
            });
            let downloaded = download(work, layer, &file, &path, &shared, tell);
            shared.update(|state| if downloaded.is_ok() { state.complete = true } else { state.void = true });
            (downloaded, follower.join())
        });
        let unpacked = unpacked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let void = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (downloaded, unpacked) {
            (Err(_), Err(unpacked)) if void.refused => return Err(unpacked),
            (Err(downloaded), _) => return Err(downloaded),
            (Ok(()), Ok(())) => {}
            // It followed bytes that were thrown away; now they are right.
            (Ok(()), Err(_)) if void.void => {
                let whole = Shared::default();
                whole.update(|state| (state.available, state.complete) = (layer.size, true));
                unpack(work, layer, diff_id, Follow { work, file: &file, shared: &whole, position: 0 }, tell)?;
            }
            (Ok(()), Err(unpacked)) => return Err(unpacked),
        }
    }
    std::fs::remove_file(&path).doing("remove", &path)
}

fn unpack(work: &Work<'_>, layer: &Descriptor, diff_id: &Digest, from: Follow<'_>, tell: &Sender<Progress>) -> Result<(), ImageError> {
    work.store.add_layer(work.lease, diff_id, from, work.limits, work.room, &mut |done| {
        let _ = tell.send(Progress::Unpacking { layer: layer.digest, done, total: layer.size });
    })
}

/// Opens the file of a download, alone: another pull of the same layer is waited for.
fn open_locked(work: &Work<'_>, path: &std::path::Path) -> Result<File, ImageError> {
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).doing("open", path)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => {
                    work.check()?;
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error).doing("lock", path),
            }
        }
        // Whoever had the lock before removed the file when it was done.
        let mine = file.metadata().doing("look at", path)?;
        if std::fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino())) {
            return Ok(file);
        }
    }
}

/// Completes the file. It holds the right bytes afterwards.
fn download(
    work: &Work<'_>,
    layer: &Descriptor,
    file: &File,
    path: &std::path::Path,
    shared: &Shared,
    tell: &Sender<Progress>,
) -> Result<(), ImageError> {
    let mut hasher = hash_present(work, layer, file, path)?;
    shared.update(|state| state.available = hasher.bytes());
    let mut failures = 0;
    let mut wrong = false;
    loop {
        let before = hasher.bytes();
        let (index, client) = work.origin.client(failures);
        let result = attempt(work, layer, file, path, shared, tell, &mut hasher, client);
        if hasher.bytes() > before {
            failures = 0;
        }
        let fault = match result {
            Ok(()) => {
                let actual = std::mem::take(&mut hasher).finish();
                if actual == layer.digest {
                    return Ok(());
                }
                restart(file, path, shared)?;
                let mismatch = ImageError::Mismatch { what: format!("the layer `{}`", layer.digest), expected: layer.digest, actual };
                // Once more, from the start: what was there before may have been damaged.
                if std::mem::replace(&mut wrong, true) {
                    return Err(mismatch);
                }
                Fault::Passing { reason: mismatch.to_string(), wait: Some(Duration::ZERO) }
            }
            Err(Trouble::Here(error)) => return Err(error),
            Err(Trouble::There(fault)) => fault,
        };
        failures += 1;
        let most = if matches!(fault, Fault::Passing { .. }) { ATTEMPTS.max(work.origin.places()) } else { work.origin.places() };
        if failures >= most {
            return Err(work.origin.error(index, fault));
        }
        let _ = tell.send(Progress::Retrying { layer: layer.digest, reason: fault.words() });
        pause(failures - 1, &fault, work.cancel);
    }
}

/// On which side an attempt failed.
enum Trouble {
    Here(ImageError),
    There(Fault),
}

impl From<ImageError> for Trouble {
    fn from(error: ImageError) -> Self {
        Self::Here(error)
    }
}

#[expect(clippy::too_many_arguments, reason = "one step of `download`, with all of its state")]
fn attempt(
    work: &Work<'_>,
    layer: &Descriptor,
    file: &File,
    path: &std::path::Path,
    shared: &Shared,
    tell: &Sender<Progress>,
    hasher: &mut Hasher,
    client: &crate::registry::Client,
) -> Result<(), Trouble> {
    if hasher.bytes() == layer.size {
        return Ok(());
    }
    work.check()?;
    let (start, mut body) = client.blob(&layer.digest.to_string(), hasher.bytes()).map_err(Trouble::There)?;
    if start == 0 && hasher.bytes() > 0 {
        *hasher = Hasher::default();
        restart(file, path, shared)?;
    }
    let mut writer = file;
    let mut buffer = vec![0; BUFFER];
    let mut told = hasher.bytes();
    let tell_now = |done| {
        let _ = tell.send(Progress::Downloading { layer: layer.digest, done, total: layer.size });
    };
    tell_now(told);
    loop {
        work.check()?;
        if shared.is_refused() {
            return Err(ImageError::Cancelled.into());
        }
        let broken = |error: io::Error| Trouble::There(Fault::Passing { reason: format!("the connection breaks: {error}"), wait: None });
        let count = body.read(&mut buffer).map_err(broken)?;
        let done = hasher.bytes() + count as u64;
        if done > layer.size {
            return Err(Trouble::There(Fault::Lasting(format!(
                "it sends more than the {} bytes of the layer `{}`",
                layer.size, layer.digest
            ))));
        }
        if count == 0 {
            if done < layer.size {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            }
            tell_now(done);
            return Ok(());
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        work.room.take(count as u64).and_then(|()| writer.write_all(bytes)).doing("write", path)?;
        hasher.update(bytes);
        shared.update(|state| state.available = done);
        if done >= told + TELL_EACH {
            told = done;
            tell_now(done);
        }
    }
}

/// Hashes what an earlier pull left, and puts the file's position behind it.
fn hash_present(work: &Work<'_>, layer: &Descriptor, file: &File, path: &std::path::Path) -> Result<Hasher, ImageError> {
    let mut hasher = Hasher::default();
    if file.metadata().doing("look at", path)?.len() > layer.size {
        file.set_len(0).doing("empty", path)?;
    }
    let mut reader = file;
    let mut buffer = vec![0; BUFFER];
    loop {
        work.check()?;
        let count = reader.read(&mut buffer).doing("read", path)?;
        if count == 0 {
            return Ok(hasher);
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
    }
}

/// Removes what was downloaded of these layers and is nobody else's now.
pub(super) fn drop_partial<'a>(store: &crate::store::Store, layers: impl Iterator<Item = &'a Descriptor>) {
    for layer in layers {
        let path = store.download_path(&layer.digest);
        let Ok(file) = File::open(&path) else { continue };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // What stays by a failure here is collected some day.
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn restart(file: &File, path: &std::path::Path, shared: &Shared) -> Result<(), ImageError> {
    use std::io::Seek as _;
    shared.update(|state| state.void = true);
    let mut file = file;
    file.set_len(0).and_then(|()| file.rewind()).doing("empty", path)
}
