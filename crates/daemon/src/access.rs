//! Who may talk to the daemon: root, its own user, and members of the group `moat`.
//!
//! Two locks: the socket's mode, and the peer's identity as the kernel tells it, should somebody widen the mode.
//! Whoever may talk to it may run anything as root by way of a blueprint: membership is as good as root.

use nix::unistd::{Gid, Group, Uid, User, chown, geteuid};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// The group whose members may talk to the daemon.
pub const GROUP: &str = "moat";

/// After a connection that could not be accepted.
const AGAIN: Duration = Duration::from_millis(50);

/// What others are told.
pub const REFUSAL: &str = "only root, the user that runs Moat and members of the group `moat` may ask it";

/// Listens at a path. Nobody else can connect before the mode is as it should be.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    // Bound beside its place: a connection can come only once it has its name.
    let aside = path.with_extension("new");
    let _ = fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside)?;
    fs::set_permissions(&aside, Permissions::from_mode(0o600))?;
    if let Some(group) = group() {
        match chown(&aside, None, Some(group.gid)) {
            Ok(()) => fs::set_permissions(&aside, Permissions::from_mode(0o660))?,
            // Not root: the socket is its own user's alone.
            Err(nix::errno::Errno::EPERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    fs::rename(&aside, path)?;
    Ok(listener)
}

/// Talks with whoever comes, each in a task of its own.
pub async fn serve<F: Future<Output = ()> + Send + 'static>(listener: UnixListener, talk: impl Fn(UnixStream) -> F) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(talk(stream))),
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Whether who is at the other end may ask.
pub async fn may_ask(stream: &UnixStream) -> bool {
    let Ok(peer) = stream.peer_cred() else { return false };
    let (uid, gid) = (Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()));
    if uid.is_root() || uid == geteuid() {
        return true;
    }
    // The system's lists of users may be on another machine.
    tokio::task::spawn_blocking(move || group().is_some_and(|group| is_member(&group, uid, gid))).await.unwrap_or(false)
}

fn group() -> Option<Group> {
    Group::from_name(GROUP).ok().flatten()
}

/// Whether a user is in the group: by the group it runs with, or by name.
fn is_member(group: &Group, uid: Uid, gid: Gid) -> bool {
    gid == group.gid || User::from_uid(uid).ok().flatten().is_some_and(|user| user.gid == group.gid || group.mem.contains(&user.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_known_by_group_and_by_name() {
        let gid = Gid::from_raw(4242);
        let members = |names: &[&str]| {
            let mut group = Group::from_gid(Gid::from_raw(0)).unwrap().unwrap();
            group.gid = gid;
            group.mem = names.iter().map(ToString::to_string).collect();
            group
        };
        let root = User::from_uid(Uid::from_raw(0)).unwrap().unwrap().name;
        for (group, uid, primary, expect) in [
            (members(&[]), 65_534, 65_534, false),
            (members(&[]), 65_534, 4242, true),
            (members(&[&root]), 65_534, 65_534, false),
            (members(&[&root]), 0, 0, true),
            (members(&["somebody"]), 0, 0, false),
            // Nobody of this number is known to the system.
            (members(&[&root]), 3_999_999_999, 1, false),
        ] {
            assert_eq!(is_member(&group, Uid::from_raw(uid), Gid::from_raw(primary)), expect, "{uid} {primary} {:?}", group.mem);
        }
    }
}
