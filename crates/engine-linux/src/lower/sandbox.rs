//! An instance to its sandbox: what the monitor mounts, what the OCI runtime is told, what the monitor is told.
//!
//! Invariant: the root file system is a fresh tmpfs that holds nothing but what [`lower`] lists.

use super::native::{environment, is_tool, language, linker, shell};
use super::oci::{Capabilities, Cpu, IdMapping, Linux, Memory, Mount, Namespace, Pids, Process, Resources, Rlimit, Root, Spec, User};
use super::{builder, datastore, etc, image, keyvalue, postgres, seccomp};
use crate::cgroup::Controllers;
use crate::toolchain::Toolchain;
use crate::tools;
use moat_model::state::{Disk, NativeWorkload, Workload};
use moat_model::{Purpose, Secret};
use moat_planner::plan::InstanceSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a service's files are, source and build result.
pub const PROJECT: &str = "/opt/render/project";
/// Where the source is.
pub const SOURCE: &str = "/opt/render/project/src";
/// The home folder of the user that runs everything.
pub const HOME: &str = "/opt/render";
/// Where builds keep their caches, below the home folder.
pub const CACHE: &str = "/opt/render/.cache";
/// The user and group inside, named `render`.
pub const UID: u32 = 1000;
/// How many ids a service's range has.
pub const IDS: u32 = 65_536;
/// Where PID 1 of every sandbox is mounted: this very program.
pub const INIT: &str = "/run/moat-init";
/// Where the toolchain's program has the names that people call it by.
pub const NAMES: &str = "/run/moat-toolchain";
/// Where a Python service's virtual environment is.
pub const VENV: &str = "/opt/render/project/src/.venv";
/// Where `npm install --global` of a build puts programs.
pub const GLOBAL: &str = "/opt/render/project/.npm-global";
/// Where this program's own libraries are, in a sandbox that has an image's.
pub const LIBRARIES: &str = "/run/moat-lib";
/// Where secret files are.
pub const SECRETS: &str = "/etc/secrets";

/// Files and folders of the host's `/etc` that are shown read-only: certificates, the dynamic linker's settings, Debian's
/// alternatives, the time zone, and the package managers' system-wide settings.
pub const HOST_ETC: [&str; 15] = [
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates/extracted",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/etc/services",
    "/etc/pip.conf",
    "/etc/npmrc",
];

/// One thing the monitor makes in the root file system, in order. Paths are absolute inside the sandbox unless said otherwise.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub enum MountOp {
    /// A folder, its parents 0755 and root's.
    Dir {
        /// Where.
        path: PathBuf,
        /// Mode.
        mode: u32,
        /// Owner and group, ids of the host.
        owner: u32,
    },
    /// A file.
    File {
        /// Where.
        path: PathBuf,
        /// Mode.
        mode: u32,
        /// Owner and group, ids of the host.
        owner: u32,
        /// Content.
        content: Secret,
    },
    /// A symbolic link.
    Symlink {
        /// Where.
        path: PathBuf,
        /// What it holds.
        target: PathBuf,
    },
    /// A file or folder of the host with everything below it, read-only, no set-user-id, no devices.
    ReadOnly {
        /// Path on the host.
        source: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// A folder of the host.
    Writable {
        /// Path on the host.
        source: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// A folder of the host that the service's own builds mount parts of again, which works only where no flag (no devices,
    /// no set-user-id) is put on it from outside. It can hold neither in effect: the sandbox makes no devices, and gains no
    /// privileges.
    Storage {
        /// Path on the host.
        source: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// A folder of the host below, writes kept in another one.
    Overlay {
        /// Folder of the host that is never written.
        lower: PathBuf,
        /// Folder of the host that holds `upper`, `work` (and the copy, where overlayfs can't be used).
        scratch: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// The root itself, made of an image's layers instead of memory; the first of all where it is there. Paths of what
    /// comes after it are then looked up as inside, symbolic links too, and what is in the way of a file makes room.
    Layers {
        /// Folders of the host that are never written, the topmost first.
        layers: Vec<PathBuf>,
        /// Folder of the host that holds `upper` and `work`.
        scratch: PathBuf,
        /// The id of the host that owns what id 0 owns in the layers.
        first_id: u32,
    },
    /// Memory.
    Tmpfs {
        /// Where.
        target: PathBuf,
        /// Most bytes.
        size: u64,
        /// Mode.
        mode: u32,
    },
    /// The network namespace's own `/sys`, read-only.
    Sysfs {
        /// Where.
        target: PathBuf,
    },
}

/// Facts of the machine that the lowering depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// `std::env::consts::ARCH`.
    pub arch: &'static str,
    /// The hard limit of open files of this process, which can't be raised.
    pub open_files: u64,
    /// The controllers of control groups, where groups are ours to make.
    pub limits: Option<Controllers>,
    /// Whether the kernel counts swap by control group.
    pub swap_accounting: bool,
    /// `bin`, `lib`, … of the host's root: the link's target, or none for a real folder.
    pub usr_merge: BTreeMap<String, Option<PathBuf>>,
    /// Those of [`HOST_ETC`] that exist, and `/usr/etc` comes with `/usr`.
    pub etc: Vec<PathBuf>,
    /// Whether `/bin/bash` exists.
    pub bash: bool,
    /// The certificate authorities that this machine trusts, one file within [`HOST_ETC`].
    pub authorities: Option<PathBuf>,
    /// This program.
    pub own_exe: PathBuf,
    /// What runs it where the libraries of `/usr` are not this machine's: its dynamic linker, and then its libraries. Empty
    /// where it needs none.
    pub libraries: Vec<PathBuf>,
}

/// Folders of the host that belong to one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Where the assembled root file system is moved to, in the monitor's own mount namespace.
    pub root: PathBuf,
    /// The release's `project` folder.
    pub project: Option<PathBuf>,
    /// Writes of this instance: `project/{upper,work}`, `home`, `tmp`.
    pub scratch: PathBuf,
    /// The service's build cache.
    pub cache: PathBuf,
    /// The service's disks, by name.
    pub disk: Option<PathBuf>,
    /// A datastore's data.
    pub data: Option<PathBuf>,
    /// A database's key and certificate for TLS, in PEM.
    pub identity: Option<Secret>,
    /// The images that a Dockerfile builds on.
    pub bases: Option<PathBuf>,
    /// Tools by the names of their releases: their folders.
    pub tools: BTreeMap<String, PathBuf>,
    /// Control group, from the root of each hierarchy.
    pub cgroup: String,
}

/// What [`lower`] needs.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// The instance.
    pub instance: &'a InstanceSpec,
    /// The machine.
    pub machine: &'a Machine,
    /// Folders.
    pub places: &'a Places,
    /// First id of the host in the service's range.
    pub first_id: u32,
    /// The toolchain, or the datastore's server.
    pub toolchain: &'a Toolchain,
    /// What the image of an [`ImageWorkload`](moat_model::state::ImageWorkload), or of a datastore that runs from one, says; or
    /// the image that is a native service's toolchain.
    pub image: Option<&'a image::Facts>,
    /// How an image is built, for the build of one.
    pub recipe: Option<&'a builder::Recipe>,
    /// More variables for builds.
    pub pass_env: &'a BTreeMap<String, Secret>,
}

/// A sandbox in full.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// What the monitor makes, in order.
    pub mounts: Vec<MountOp>,
    /// What the runtime is told.
    pub oci: Spec,
}

/// Makes the sandbox of an instance. The only failure is a purpose that has no command.
pub fn lower(input: &Input<'_>) -> Result<Sandbox, &'static str> {
    let instance = input.instance;
    let mut filter = seccomp::filter(input.machine.arch);
    let (process, own) = match (&instance.workload, input.image) {
        (Workload::Image(_), None) if instance.purpose == Purpose::Build => {
            let recipe = input.recipe.ok_or("it is not known how its image is built")?;
            filter = seccomp::building(input.machine.arch);
            let mut own = mounts(input);
            own.extend(builder::mounts(input, recipe));
            let program = Program {
                user: User { uid: 0, gid: 0, additional_gids: Vec::new(), umask: 0o022 },
                args: init(None).chain(builder::args()).collect(),
                env: builder::environment(input, recipe),
                cwd: HOME.to_owned(),
                capabilities: builder::capabilities(),
            };
            (program, own)
        }
        (Workload::Image(workload), Some(facts)) => (
            Program {
                user: image::user(facts),
                args: image::args(input, workload, facts)?,
                env: image::environment(input, facts),
                cwd: facts.working_dir.clone(),
                capabilities: image::capabilities(),
            },
            image::mounts(input, facts),
        ),
        (Workload::Image(_), None) => return Err("its image is not there"),
        // Its commands come as a native program's.
        (Workload::Static(_), _) => return Err("a static site has no instances"),
        (Workload::KeyValue(_) | Workload::Postgres(_), image) => (
            datastore::program(input, &cwd(&instance.workload), image),
            image.map_or_else(|| mounts(input), |image| datastore::image_mounts(input, image)),
        ),
        (Workload::Native(native), _) => (
            Program {
                user: User { uid: UID, gid: UID, additional_gids: Vec::new(), umask: 0o022 },
                args: linker(input).into_iter().chain(init(None)).chain(shell(input, native)?).collect(),
                env: environment(input),
                cwd: if is_tool(instance) { HOME.to_owned() } else { cwd(&instance.workload) },
                capabilities: Capabilities::default(),
            },
            mounts(input),
        ),
    };
    let limits = instance.limits;
    let mapping = vec![IdMapping { container_id: 0, host_id: input.first_id, size: IDS }];
    let soft = input.machine.open_files.min(65_536);
    let ceiling = i64::from(limits.cpu_millis.max(1000)) * 100;
    let memory = i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX);
    let mut rlimits = vec![
        Rlimit { kind: "RLIMIT_NOFILE".to_owned(), hard: input.machine.open_files, soft },
        Rlimit { kind: "RLIMIT_CORE".to_owned(), hard: 0, soft: 0 },
    ];
    // PID 1 is ours, but for an image's, and does not count against the service.
    let pids = i64::from(limits.pids) + 1;
    let controllers = input.machine.limits;
    if !controllers.is_some_and(|controllers| controllers.pids) {
        // Counted for each user of each user namespace since Linux 5.14, so for this instance alone.
        let pids = u64::from(limits.pids) + 1;
        rlimits.push(Rlimit { kind: "RLIMIT_NPROC".to_owned(), hard: pids, soft: pids });
    }
    let oci = Spec {
        oci_version: "1.0.2".to_owned(),
        process: Process {
            terminal: false,
            user: process.user,
            args: process.args,
            env: process.env.into_iter().map(|(key, value)| format!("{key}={}", value.expose())).collect(),
            cwd: process.cwd,
            capabilities: process.capabilities,
            rlimits,
            no_new_privileges: true,
        },
        root: Root { path: input.places.root.clone(), readonly: false },
        hostname: instance.host_name().to_owned(),
        mounts: runtime_mounts(shared_memory(instance), controllers.is_some()),
        linux: Linux {
            uid_mappings: mapping.clone(),
            gid_mappings: mapping,
            namespaces: ["pid", "ipc", "uts", "mount", "cgroup", "user"]
                .into_iter()
                .map(|kind| Namespace { kind: kind.to_owned() })
                .collect(),
            cgroups_path: input.places.cgroup.clone(),
            resources: controllers.map(|controllers| Resources {
                memory: controllers.memory.then(|| Memory { limit: memory, swap: input.machine.swap_accounting.then_some(memory) }),
                cpu: controllers.cpu.then(|| Cpu {
                    shares: (u64::from(limits.cpu_millis) * 1024 / 1000).max(2),
                    quota: Some(ceiling),
                    period: Some(100_000),
                }),
                pids: controllers.pids.then_some(Pids { limit: pids }),
            }),
            seccomp: filter,
            masked_paths: strings(&[
                "/proc/acpi",
                "/proc/asound",
                "/proc/interrupts",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/sched_debug",
                "/proc/scsi",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/sys/devices/virtual/powercap",
                "/sys/firmware",
            ]),
            readonly_paths: strings(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]),
        },
    };
    Ok(Sandbox { mounts: own, oci })
}

/// What differs between an image's program and every other.
pub(super) struct Program {
    pub(super) user: User,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, Secret>,
    pub(super) cwd: String,
    pub(super) capabilities: Capabilities,
}

pub(super) fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// Bytes of `/dev/shm`. A database shares memory between the processes of one query there, as much as its plan has.
fn shared_memory(instance: &InstanceSpec) -> u64 {
    match instance.workload {
        Workload::Postgres(_) => instance.limits.memory_bytes,
        Workload::Native(_) | Workload::Image(_) | Workload::KeyValue(_) | Workload::Static(_) => 64 << 20,
    }
}

fn runtime_mounts(shared_memory: u64, limits: bool) -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, options: &[&str]| Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: kind.to_owned(),
        options: strings(options),
    };
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &format!("size={}k", shared_memory >> 10)]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    if limits {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]));
    }
    mounts
}

/// The working folder.
pub(super) fn cwd(workload: &Workload) -> String {
    match workload {
        Workload::Native(native) => Path::new(SOURCE).join(&native.root_dir).to_string_lossy().trim_end_matches('/').to_owned(),
        Workload::KeyValue(_) => keyvalue::DATA.to_owned(),
        Workload::Postgres(_) => postgres::DATA.to_owned(),
        Workload::Image(_) | Workload::Static(_) => "/".to_owned(),
    }
}

/// PID 1 of ours, before a program and its arguments.
pub(super) fn init(stop_signal: Option<String>) -> impl Iterator<Item = String> {
    let own = strings(&[INIT, crate::monitor::VERB, crate::monitor::INIT_FLAG]);
    own.into_iter().chain(stop_signal.map(|signal| format!("{}{signal}", crate::monitor::STOP_SIGNAL))).chain(["--".to_owned()])
}

fn mounts(input: &Input<'_>) -> Vec<MountOp> {
    let (instance, places, machine) = (input.instance, input.places, input.machine);
    let user = input.first_id + UID;
    let dir = |path: &str, mode: u32, owner: u32| MountOp::Dir { path: path.into(), mode, owner };
    let read_only = |source: &Path, target: &Path| MountOp::ReadOnly { source: source.to_owned(), target: target.to_owned() };
    let mut ops = if let Some(image) = input.image {
        language(input, image)
    } else {
        let mut ops = vec![read_only(Path::new("/usr"), Path::new("/usr"))];
        for (name, link) in &machine.usr_merge {
            let path = Path::new("/").join(name);
            ops.push(match link {
                Some(target) => MountOp::Symlink { path, target: target.clone() },
                None => read_only(&path, &path),
            });
        }
        for folder in ["/proc", "/dev", "/etc", "/run", "/var", "/mnt"] {
            ops.push(dir(folder, 0o755, 0));
        }
        for (path, target) in [("/var/run", "/run"), ("/var/tmp", "/tmp")] {
            ops.push(MountOp::Symlink { path: path.into(), target: target.into() });
        }
        ops
    };
    ops.push(MountOp::Sysfs { target: "/sys".into() });
    ops.extend(machine.etc.iter().map(|path| read_only(path, path)));
    ops.extend(etc::own(input));
    ops.push(read_only(&machine.own_exe, Path::new(INIT)));
    ops.extend(input.toolchain.trees.iter().map(|tree| read_only(tree, tree)));
    ops.extend(
        input
            .toolchain
            .names
            .iter()
            .map(|name| MountOp::Symlink { path: Path::new(NAMES).join(name), target: input.toolchain.program.clone() }),
    );
    let others = input.toolchain.others.iter();
    ops.extend(others.map(|(name, program)| MountOp::Symlink { path: Path::new(NAMES).join(name), target: program.clone() }));
    ops.push(MountOp::Writable { source: places.scratch.join("home"), target: HOME.into() });
    if instance.purpose == Purpose::Build {
        ops.push(MountOp::Writable { source: places.scratch.join("tmp"), target: "/tmp".into() });
        let (source, target) = (places.cache.clone(), CACHE.into());
        ops.push(if input.recipe.is_some() { MountOp::Storage { source, target } } else { MountOp::Writable { source, target } });
    } else {
        ops.push(MountOp::Tmpfs { target: "/tmp".into(), size: instance.limits.memory_bytes, mode: 0o1777 });
    }
    ops.extend(places.tools.iter().map(|(name, folder)| read_only(folder, &tools::place(name))));
    if let Some(project) = &places.project {
        ops.push(if let (true, Some(name)) = (is_tool(instance), &instance.release) {
            // Programs of a tool know the place that they were installed at.
            MountOp::Writable { source: project.clone(), target: tools::place(name) }
        } else if instance.purpose == Purpose::Build {
            MountOp::Writable { source: project.clone(), target: PROJECT.into() }
        } else {
            MountOp::Overlay { lower: project.clone(), scratch: places.scratch.join("project"), target: PROJECT.into() }
        });
    }
    if let (Workload::Native(NativeWorkload { disk: Some(Disk { mount_path, .. }), .. }), Some(disk)) = (&instance.workload, &places.disk) {
        ops.push(MountOp::Writable { source: disk.clone(), target: mount_path.clone() });
    }
    ops.extend(datastore::own_mounts(input));
    if !instance.secret_files.is_empty() {
        ops.push(dir(SECRETS, 0o755, 0));
    }
    for (name, content) in &instance.secret_files {
        ops.push(MountOp::File { path: Path::new(SECRETS).join(name), mode: 0o400, owner: user, content: content.clone() });
    }
    ops
}
