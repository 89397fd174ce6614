//! What this machine has of what Moat needs. Everything that can be tried is tried, in namespaces that nobody else sees.
//!
//! Main type: [`Finding`]. Invariant: nothing is changed; what is written to try the disk is removed.

use crate::cgroup::{self, Layout};
use crate::monitor::layers;
use crate::toolchain::{self, version};
use crate::{datastore, floors, rootless};
use moat_model::NativeRuntime;
use moat_net_linux::outside::Outside;
use moat_net_linux::{link, ns};
use nix::sched::{CloneFlags, unshare};
use serde::Serialize;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// The oldest kernel whose calls are all there: mount_setattr(2) came with 5.12.
const KERNEL: &str = "5.12";
/// The oldest `nft` that is known to work here.
const NFT: &str = "1.0.6";

const RUNTIMES: [NativeRuntime; 6] =
    [NativeRuntime::Python, NativeRuntime::Node, NativeRuntime::Ruby, NativeRuntime::Go, NativeRuntime::Rust, NativeRuntime::Elixir];

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What: `kernel`, `crun`, `python`.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// Whether Moat can't do without.
    pub required: bool,
    /// What was found: a version, a reason.
    pub found: String,
    /// What to do about it, with the command to run.
    pub hint: Option<String>,
}

fn finding(name: &str, required: bool, found: Result<String, String>, hint: &str) -> Finding {
    let ok = found.is_ok();
    let hint = (!ok && !hint.is_empty()).then(|| hint.to_owned());
    Finding { name: name.to_owned(), ok, required, found: found.unwrap_or_else(|why| why), hint }
}

/// Whose machine is looked at: one Moat's.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Its runtime folder.
    pub run: &'a Path,
    /// Its state folder, which need not be there yet.
    pub state: &'a Path,
    /// The OCI runtime that it is told to use; `crun` of `PATH` when none is.
    pub oci_runtime: Option<&'a Path>,
}

/// Looks at everything: the kernel, the tools, the toolchains, the host's firewall as it is to this Moat. Takes some tenths of a
/// second.
pub fn facts(place: Place<'_>) -> Vec<Finding> {
    let Place { run, state, oci_runtime } = place;
    let mut out = vec![
        finding("root", true, root(), "run moat as root (sudo)"),
        finding("kernel", true, kernel(), "install a newer kernel (Debian 12 and Ubuntu 24.04 have one)"),
        finding("namespaces", true, namespaces(), "sysctl -w user.max_user_namespaces=15000 user.max_net_namespaces=15000"),
        finding("seccomp", true, seccomp(), "use a kernel built with CONFIG_SECCOMP_FILTER"),
        finding("veth", true, veth(), "modprobe veth"),
        finding("nftables", true, nftables(), "modprobe nf_tables nft_ct nft_nat nft_masq"),
        finding(
            "shortcut",
            false,
            shortcut(),
            "use a kernel of 5.11 or newer with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF (without it, packets between services take the router's whole path)",
        ),
        finding("ipv6", false, exists("/proc/sys/net/ipv6", "on", "off"), "start the kernel without ipv6.disable=1"),
        egress(run),
        finding("overlayfs", false, overlay(), "modprobe overlay (sources are copied for each instance without it)"),
        cgroups(run),
        images(state),
        runtime(oci_runtime),
        tool("nft", true, &["--version"], Some(NFT), "apt-get install nftables"),
        tool("bash", false, &["--version"], None, "apt-get install bash (commands run in sh without it)"),
        tool("git", false, &["--version"], None, "apt-get install git (without it, what .gitignore names is copied too)"),
        tool("ip", false, &["-Version"], None, "apt-get install iproute2 (to look at links yourself)"),
        tool("conntrack", false, &["--version"], None, "apt-get install conntrack (to look at flows yourself)"),
        tool("buildah", false, &["--version"], None, crate::recipe::BUILDAH_HINT),
        key_value(),
        postgres(),
    ];
    out.extend(RUNTIMES.iter().map(|&runtime| {
        let mut versions: Vec<String> = toolchain::installed(runtime).into_iter().map(|found| found.version).collect();
        let preferred = versions.first().cloned();
        versions.sort_by_key(|version| version::key(version));
        versions.dedup();
        let found =
            preferred.map(|preferred| if versions.len() == 1 { preferred } else { format!("{preferred} (of {})", versions.join(", ")) });
        finding(runtime.word(), false, found.ok_or_else(|| "not installed".to_owned()), &toolchain::install_hint(runtime))
    }));
    out
}

fn root() -> Result<String, String> {
    if rootless::inside() {
        let ids = rootless::IDS;
        return Ok(format!("not needed: a user namespace of your own, with {ids} ids that services share"));
    }
    let user = nix::unistd::geteuid();
    if user.is_root() { Ok("yes".to_owned()) } else { Err(format!("user {user}")) }
}

fn kernel() -> Result<String, String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|error| error.to_string())?;
    floors::at_least(release.trim(), KERNEL)
}

fn exists(path: &str, yes: &str, no: &str) -> Result<String, String> {
    if Path::new(path).exists() { Ok(yes.to_owned()) } else { Err(no.to_owned()) }
}

/// Runs something on a thread that ends with its namespaces.
fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| scope.spawn(work).join()).map_err(|_| "the attempt failed".to_owned())
}

fn namespaces() -> Result<String, String> {
    let kinds = ["net", "mnt", "pid", "ipc", "uts", "cgroup", "user"];
    let missing: Vec<&str> = kinds.into_iter().filter(|kind| !Path::new("/proc/self/ns").join(kind).exists()).collect();
    if !missing.is_empty() {
        return Err(format!("without {}", missing.join(", ")));
    }
    let flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    aside(move || unshare(flags))?.map_err(|error| format!("can't be made: {error}"))?;
    match fs::read_to_string("/proc/sys/user/max_user_namespaces") {
        Ok(most) if most.trim() == "0" => Err("user namespaces are turned off".to_owned()),
        _ => Ok(kinds.join(", ")),
    }
}

fn seccomp() -> Result<String, String> {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").map_err(|_| "not in this kernel".to_owned())?;
    if actions.split(' ').any(|action| action.trim() == "errno") { Ok("filters".to_owned()) } else { Err(format!("only {actions}")) }
}

fn veth() -> Result<String, String> {
    let near = link::End { name: "moat0", mac: [2, 0, 0, 0, 0, 1] };
    let far = link::End { name: "moat1", mac: [2, 0, 0, 0, 0, 2] };
    let attempt = || -> std::io::Result<()> {
        let (one, other) = (ns::scratch()?, ns::scratch()?);
        ns::in_ns(&one, || link::Links::open()?.run(vec![link::new_pair(&near, &far, &other)]))?
    };
    attempt().map(|()| "works".to_owned()).map_err(|error| format!("can't be made: {error}"))
}

/// A table with what the filter is made of: connection tracking, address translation, sets and verdict maps.
const TRIAL: &str = "table inet moat {
 set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }
 map m { type ipv4_addr . inet_service : verdict; elements = { 10.0.0.1 . 80 : accept } }
 chain f { type filter hook forward priority 0; policy drop; ct state established,related accept; ip saddr @s drop; ip daddr . tcp dport vmap @m; fib saddr type local drop; }
 chain n { type nat hook prerouting priority -100; meta l4proto tcp dnat ip to 10.0.0.2; }
 chain p { type nat hook postrouting priority 100; masquerade; }
}
";

fn nftables() -> Result<String, String> {
    let nft = toolchain::program("nft").ok_or("`nft` is not installed, so it was not tried")?;
    let attempt = || -> std::io::Result<Result<(), String>> {
        let scratch = ns::scratch()?;
        ns::in_ns(&scratch, || {
            let mut child =
                Command::new(&nft).args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
            if let Some(mut input) = child.stdin.take() {
                input.write_all(TRIAL.as_bytes())?;
            }
            let output = child.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("refused").to_owned();
            Ok(if output.status.success() { Ok(()) } else { Err(said) })
        })?
    };
    attempt().map_err(|error| error.to_string()).and_then(|tried| tried).map(|()| "sets, verdict maps, connection tracking, NAT".to_owned())
}

fn shortcut() -> Result<String, String> {
    let short = |error: moat_net_linux::ShortcutError| error.to_string().lines().next().unwrap_or("refused").to_owned();
    moat_net_linux::check_shortcut().map(|()| "packets of open flows go from service to service".to_owned()).map_err(short)
}

/// Whether another firewall of this machine closes the way to the internet.
fn egress(run: &Path) -> Finding {
    if rootless::inside() {
        let (found, hint) = match rootless::egress_program() {
            Ok(program) => (Ok(format!("by `{}`", program.display())), String::new()),
            Err(rootless::NoEgress { why, hint }) => (Err(format!("without root: {why}")), hint),
        };
        return finding("egress", false, found, &hint);
    }
    let obstacles = match moat_net_linux::egress_obstacles(run) {
        Ok(obstacles) => obstacles,
        Err(error) => {
            return finding("egress", false, Err(format!("the host's firewall can't be read: {error}")), "run moat as root (sudo)");
        }
    };
    let join = |words: Vec<&str>| words.join("; ");
    let hint = join(obstacles.iter().map(|obstacle| obstacle.hint.as_str()).collect());
    let what = join(obstacles.iter().map(|obstacle| obstacle.what.as_str()).collect());
    finding("egress", false, if what.is_empty() { Ok("no firewall of this machine is in the way".to_owned()) } else { Err(what) }, &hint)
}

fn overlay() -> Result<String, String> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let module = || Command::new("modprobe").args(["-n", "-q", "overlay"]).status().is_ok_and(|status| status.success());
    if known.lines().any(|line| line.ends_with("\toverlay")) || module() {
        Ok("yes".to_owned())
    } else {
        Err("not in this kernel".to_owned())
    }
}

/// Control groups without root: those that are delegated to the user.
fn delegated(run: &Path) -> Finding {
    let own = Outside::at(run).about().ok();
    let group = own.as_ref().and_then(|about| about.group.as_deref());
    let controllers = match (group, own.is_some()) {
        (Some(base), _) => Ok(rootless::controllers(base)),
        (None, true) => Err(rootless::NoGroups {
            why: "this Moat began where no control groups were given to you".to_owned(),
            hint: "`moat down` and `moat up`".to_owned(),
        }),
        (None, false) => rootless::would_have(),
    };
    match controllers {
        Ok(controllers) if controllers.missing().is_empty() => match rootless::ends_with_session(group) {
            None => finding("cgroups", false, Ok("version 2, delegated to you".to_owned()), ""),
            Some(keeps) => {
                finding("cgroups", false, Err("version 2, delegated to you until you log out, when services end".to_owned()), &keeps)
            }
        },
        Ok(controllers) => {
            let found = format!("version 2, delegated to you without {}", controllers.missing().join(", "));
            finding("cgroups", false, Err(found), &rootless::give())
        }
        Err(rootless::NoGroups { why, hint }) => {
            let found = format!("without root: memory and CPU of services are not limited, processes are: {why}");
            finding("cgroups", false, Err(found), &hint)
        }
    }
}

fn cgroups(run: &Path) -> Finding {
    if rootless::inside() {
        return delegated(run);
    }
    let wanted = ["cpu", "memory", "pids"];
    let lacks = |have: &dyn Fn(&str) -> bool| wanted.into_iter().filter(|&controller| !have(controller)).collect::<Vec<_>>().join(", ");
    let (words, missing) = match cgroup::layout() {
        Layout::V2 => {
            let controllers = fs::read_to_string(Path::new(cgroup::ROOT).join("cgroup.controllers")).unwrap_or_default();
            ("version 2", lacks(&|controller| controllers.split_whitespace().any(|name| name == controller)))
        }
        layout @ (Layout::V1 | Layout::Hybrid) => {
            let words = if layout == Layout::V1 { "version 1" } else { "hybrid: version 1 limits beside a version 2 tree" };
            (words, lacks(&|controller| Path::new(cgroup::ROOT).join(controller).is_dir()))
        }
        Layout::Missing => ("none is mounted", wanted.join(", ")),
    };
    let found = if missing.is_empty() { Ok(words.to_owned()) } else { Err(format!("{words}, without {missing}")) };
    finding("cgroups", true, found, "mount -t cgroup2 none /sys/fs/cgroup, with the controllers enabled on the kernel's command line")
}

/// Layers of images: shown with a service's own ids below an overlay, on the file system of the state folder.
fn images(state: &Path) -> Finding {
    let hint = "images, Dockerfiles and languages from images need Linux 5.19 (Debian 12 and Ubuntu 24.04 have a newer one) and a state folder on ext4, xfs or btrfs (MOAT_STATE_DIR moves it)";
    if rootless::inside() {
        return finding("images", false, Ok("layers are unpacked for your own ids".to_owned()), "");
    }
    if !nix::unistd::geteuid().is_root() {
        return finding("images", false, Err("not tried without root".to_owned()), "run moat as root (sudo)");
    }
    // The folder, or where it will be made.
    let Some(folder) = state.ancestors().find(|folder| folder.is_dir()) else {
        return finding("images", false, Err(format!("there is no `{}`", state.display())), hint);
    };
    let place = folder.join(format!(".moat-doctor-{}", std::process::id()));
    let attempt = || -> std::io::Result<Result<(), String>> {
        fs::create_dir(&place)?;
        // Its mounts end with its thread.
        let tried = aside(|| layers::trial(&place)).and_then(|tried| tried.map_err(|error| error.to_string()));
        fs::remove_dir_all(&place)?;
        Ok(tried)
    };
    let tried = attempt().map_err(|error| format!("`{}`: {error}", place.display())).and_then(|tried| tried);
    let shown = format!("layers can be shown with other ids below `{}`", folder.display());
    finding("images", false, tried.map(|()| shown), hint)
}

/// The OCI runtime that starts services: the one told, else `crun`.
fn runtime(told: Option<&Path>) -> Finding {
    let name = told.and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or("crun");
    let found = match told {
        Some(path) if path.is_file() => floors::runtime(path),
        Some(path) => Err(format!("`{}`, which MOAT_OCI_RUNTIME names, is not a file", path.display())),
        None => toolchain::program("crun").ok_or_else(|| "not installed".to_owned()).and_then(|path| floors::runtime(&path)),
    };
    let hint = match told {
        Some(_) => format!("install a newer `{name}`, or unset MOAT_OCI_RUNTIME and apt-get install crun"),
        None => "apt-get install crun".to_owned(),
    };
    finding(name, true, found, &hint)
}

fn tool(name: &str, required: bool, args: &[&str], floor: Option<&str>, hint: &str) -> Finding {
    let ask = || -> Result<String, String> {
        let path = toolchain::program(name).ok_or("not installed")?;
        let said = floors::said(&path, args)?;
        let found = floors::version_in(said.lines().next().unwrap_or_default()).unwrap_or("installed").to_owned();
        floor.map_or(Ok(found.clone()), |floor| floors::at_least(&found, floor))
    };
    finding(name, required, ask(), hint)
}

fn key_value() -> Finding {
    let found = toolchain::keyvalue::installed().map(|(_, server)| server.words());
    let [_, instead] = datastore::instead();
    finding("key value server", false, found.ok_or(instead), "apt-get install redis-server (or valkey-server) to need no image")
}

fn postgres() -> Finding {
    let installed = toolchain::postgres::installed();
    let versions: Vec<&str> = installed.values().map(|(_, version)| version.as_str()).collect();
    let [instead, _] = datastore::instead();
    let found = if versions.is_empty() { Err(instead) } else { Ok(versions.join(", ")) };
    finding("postgresql server", false, found, "apt-get install postgresql to need no image (its own server need not run)")
}
