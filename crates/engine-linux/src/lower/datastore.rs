//! A datastore's instance: the machine's own server over the machine's files, or an image's over the image's.
//!
//! Both have the same user, settings, data folder and home. Of an image only the files and the environment are taken: neither
//! its entry point nor its user runs, so that data written by one kind of server is found by the other. There its program is
//! PID 1, since a program of the machine may not run over an image's libraries.

use super::image::{self, Facts};
use super::native::environment;
use super::oci::{Capabilities, User};
use super::sandbox::{HOME, Input, MountOp, Program, UID, init};
use super::{etc, keyvalue, postgres};
use moat_image::Image;
use moat_model::Secret;
use moat_model::state::Workload;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;

/// What the image of a datastore says that counts.
pub(crate) fn facts(image: Image, workload: &Workload) -> Facts {
    let stop_signal = match workload {
        Workload::Postgres(_) => postgres::STOP_SIGNAL,
        Workload::KeyValue(_) | Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => Signal::SIGTERM,
    };
    Facts {
        layers: image.layers,
        entrypoint: Vec::new(),
        command: Vec::new(),
        env: image.config.env,
        working_dir: "/".to_owned(),
        uid: UID,
        gid: UID,
        groups: Vec::new(),
        home: HOME.to_owned(),
        stop_signal: stop_signal as i32,
    }
}

/// What runs, over the machine's files or an image's.
pub(super) fn program(input: &Input<'_>, cwd: &str, facts: Option<&Facts>) -> Program {
    let server = match &input.instance.workload {
        Workload::Postgres(_) => vec!["/bin/sh".to_owned(), postgres::START.to_owned()],
        Workload::KeyValue(_) | Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => {
            vec![input.toolchain.program.to_string_lossy().into_owned(), keyvalue::CONFIG.to_owned()]
        }
    };
    let stop = matches!(input.instance.workload, Workload::Postgres(_)).then(|| postgres::STOP_SIGNAL.to_string());
    let mut env: BTreeMap<String, Secret> = BTreeMap::new();
    env.extend(facts.iter().flat_map(|facts| &facts.env).map(|(key, value)| (key.clone(), Secret::new(value.as_str()))));
    env.extend(environment(input));
    Program {
        user: User { uid: UID, gid: UID, additional_gids: Vec::new(), umask: 0o022 },
        args: if facts.is_some() { server } else { init(stop).chain(server).collect() },
        env,
        cwd: cwd.to_owned(),
        capabilities: Capabilities::default(),
    }
}

/// The root file system where the server is an image's.
pub(super) fn image_mounts(input: &Input<'_>, facts: &Facts) -> Vec<MountOp> {
    let (instance, places) = (input.instance, input.places);
    let mut ops = vec![
        MountOp::Layers { layers: facts.layers.clone(), scratch: places.scratch.join("root"), first_id: input.first_id },
        MountOp::Sysfs { target: "/sys".into() },
    ];
    // The image knows its own users; this one is the same whoever's server it is.
    ops.extend(etc::own(input));
    ops.push(MountOp::Writable { source: places.scratch.join("home"), target: HOME.into() });
    ops.push(MountOp::Tmpfs { target: "/tmp".into(), size: instance.limits.memory_bytes, mode: 0o1777 });
    ops.extend(own_mounts(input));
    ops.extend(image::secret_files(input, UID));
    ops
}

/// Data and settings.
pub(super) fn own_mounts(input: &Input<'_>) -> Vec<MountOp> {
    let (instance, places, memory) = (input.instance, input.places, input.instance.limits.memory_bytes);
    let user = input.first_id + UID;
    let dir = |path: &str, mode: u32, owner: u32| MountOp::Dir { path: path.into(), mode, owner };
    let mut ops = Vec::new();
    match &instance.workload {
        Workload::KeyValue(server) => {
            ops.push(match &places.data {
                Some(data) => MountOp::Writable { source: data.clone(), target: keyvalue::DATA.into() },
                None => dir(keyvalue::DATA, 0o700, user),
            });
            let content = Secret::new(keyvalue::config(server, memory));
            ops.push(MountOp::File { path: keyvalue::CONFIG.into(), mode: 0o644, owner: 0, content });
        }
        Workload::Postgres(server) => {
            ops.extend(places.data.iter().map(|data| MountOp::Writable { source: data.clone(), target: postgres::DATA.into() }));
            ops.push(dir(postgres::SOCKETS, 0o755, user));
            let files = postgres::files(server, memory, &input.toolchain.program, places.identity.as_ref());
            ops.extend(files.into_iter().map(|(path, content, secret)| {
                let (mode, owner) = if secret { (0o400, user) } else { (0o444, 0) };
                MountOp::File { path: path.into(), mode, owner, content }
            }));
        }
        Workload::Native(_) | Workload::Image(_) | Workload::Static(_) => {}
    }
    ops
}
