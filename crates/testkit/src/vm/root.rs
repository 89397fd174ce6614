//! The disk of a machine: a Debian made by `debootstrap`, in an ext4 file system.

use crate::images::{Cache, hash, run};
use serde::Serialize;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Counts up when what is made of a [`Root`] changes though it does not.
const FORMAT: u32 = 1;
/// What is installed.
const SUITE: &str = "bookworm";
/// Where packages come from when this machine's own sources have no such suite.
const MIRROR: &str = "http://deb.debian.org/debian";
/// Whose signature counts.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What every machine has besides Debian's minimal base; the agent is Python.
const ALWAYS: [&str; 9] =
    ["systemd-sysv", "udev", "dbus", "kmod", "procps", "iproute2", "python3-minimal", "linux-image-cloud-amd64", "busybox-static"];
/// How big a disk is, in MiB. It is sparse.
const SIZE: u64 = 4096;
/// Units that would start by themselves and serve nothing here. Most of a boot's time is theirs under emulation; what is found by walking
/// over all devices is found by name instead.
const OFF: [&str; 27] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "logrotate.timer",
    "getty@.service",
    "serial-getty@.service",
    "modprobe@.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount",
    "kmod-static-nodes.service",
    "systemd-binfmt.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-sysusers.service",
    "systemd-udev-trigger.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-user-sessions.service",
];
/// Text files of every machine. A given machine number: else each start of the image would be a first one.
const FILES: [(&str, &str); 5] = [
    ("etc/hostname", "machine\n"),
    ("etc/hosts", "127.0.0.1 localhost machine\n::1 localhost\n"),
    ("etc/machine-id", "7f1d3c1e0a5b4c7e9d2f8a6b5c4d3e2f\n"),
    ("usr/local/lib/agent.py", include_str!("agent.py")),
    (
        "etc/systemd/system/agent.service",
        "[Unit]\nDescription=runs what the test says\n[Service]\nExecStart=/usr/bin/python3 -u /usr/local/lib/agent.py\nRestart=always\n[Install]\nWantedBy=multi-user.target\n",
    ),
];

/// What a machine has installed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Root {
    /// Debian packages besides those that every machine has.
    pub packages: &'static [&'static str],
    /// Units of theirs that are not to be started at boot.
    pub disabled: &'static [&'static str],
}

/// A disk that machines are made of. It is shared: nobody writes it.
#[derive(Clone, Debug)]
pub struct Image(PathBuf);

impl Image {
    /// The disk.
    pub fn disk(&self) -> PathBuf {
        self.0.join("disk.ext4")
    }
    /// The kernel it is booted with.
    pub fn kernel(&self) -> PathBuf {
        self.0.join("vmlinuz")
    }
}

impl Root {
    /// The image, made once and then taken from the cache.
    ///
    /// # Errors
    /// What `debootstrap` and `mke2fs` say; no network at the first run; not root.
    pub fn image(&self) -> io::Result<Image> {
        let cache = Cache::lock_by("lock-of-machines")?;
        let key = hash(&(FORMAT, SUITE, ALWAYS, OFF, FILES, self))?;
        let folder = cache.once(&format!("machine-{key}"), |folder| {
            let root = folder.join("root");
            self.install(&root, &cache.folder("debs-of-machines")?)?;
            configure(&root)?;
            fs::copy(kernel(&root)?, folder.join("vmlinuz"))?;
            filesystem(&root, &folder.join("disk.ext4"), "moat-root", SIZE)?;
            fs::remove_dir_all(&root)
        })?;
        Ok(Image(folder))
    }

    /// What it mounts meanwhile stays in a mount namespace that ends with it.
    fn install(&self, root: &Path, packages: &Path) -> io::Result<()> {
        let include: Vec<&str> = ALWAYS.iter().chain(self.packages).copied().collect();
        let mut debootstrap = Command::new("unshare");
        debootstrap
            .args(["--mount", "--propagation", "private", "--", "debootstrap", "--variant=minbase"])
            .arg(format!("--keyring={KEYRING}"))
            .arg(format!("--include={}", include.join(",")))
            .arg(format!("--cache-dir={}", packages.display()))
            .arg(SUITE)
            .arg(root)
            .arg(mirror())
            .envs([("DEBIAN_FRONTEND", "noninteractive"), ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")])
            // The kernel has all that the boot needs built in.
            .env("INITRD", "No");
        run(&mut debootstrap).map_err(|error| {
            let log = fs::read_to_string(root.join("debootstrap/debootstrap.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            io::Error::other(format!("{error}\n{}", lines[lines.len().saturating_sub(20)..].join("\n")))
        })?;
        if !self.disabled.is_empty() {
            run(Command::new("chroot").arg(root).args(["systemctl", "--quiet", "disable"]).args(self.disabled))?;
        }
        Ok(())
    }
}

/// Where this machine gets the suite's packages from.
fn mirror() -> String {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(CODENAME) $(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    let listed = run(&mut apt).unwrap_or_default();
    let own = listed.lines().find_map(|line| line.strip_prefix(SUITE)?.strip_prefix(" Debian "));
    own.map_or_else(|| MIRROR.to_owned(), |uri| uri.trim_end_matches('/').to_owned())
}

fn configure(root: &Path) -> io::Result<()> {
    for (path, text) in FILES {
        fs::write(root.join(path), text)?;
    }
    let units = root.join("etc/systemd/system");
    for unit in OFF {
        let _ = fs::remove_file(units.join(unit));
        symlink("/dev/null", units.join(unit))?;
    }
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    symlink("/etc/systemd/system/agent.service", wanted.join("agent.service"))?;
    // The journal of a boot outlives it.
    for folder in ["payload", "var/log/journal"] {
        fs::create_dir_all(root.join(folder))?;
    }
    for folder in ["usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"] {
        let folder = root.join(folder);
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    Ok(())
}

fn kernel(root: &Path) -> io::Result<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(root.join("boot"))?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")));
    found.pop().ok_or_else(|| io::Error::other("no kernel came with `linux-image-cloud-amd64`"))
}

/// An ext4 file system that holds what is in a folder, with so many MiB more.
pub fn filesystem(content: &Path, disk: &Path, label: &str, spare: u64) -> io::Result<()> {
    let used = run(Command::new("du").args(["--summarize", "--block-size=M"]).arg(content))?;
    let used: u64 = used.split('M').next().and_then(|number| number.parse().ok()).ok_or_else(|| io::Error::other(used.clone()))?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-L", label, "-E", "root_owner=0:0,nodiscard", "-d"]).arg(content).arg(disk);
    run(mke2fs.arg(format!("{}M", used + used / 8 + spare)).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")).map(drop)
}
