//! The sandbox that builds an image from a Dockerfile: Buildah of the machine over the release's source.
//!
//! Buildah is root of the service's own id range and may mount in the sandbox's own namespaces, which building takes; the
//! commands of the Dockerfile run below it in a root of their own (`--isolation chroot`) with the ordinary system call filter
//! of every sandbox and none of these rights. Its network is the build's: closed by the policy, as that of native builds.
//!
//! Invariant: no value of a build argument is in an argument list; Buildah takes them from its environment.

use super::oci::Capabilities;
use super::sandbox::{CACHE, Input, MountOp, PROJECT, SECRETS, SOURCE};
use super::{image, seccomp};
use moat_model::Secret;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The image that a build leaves, an archive, below the release's `project`.
pub const OUTPUT: &str = "image";
/// What the sandbox runs.
const SCRIPT: &str = "/run/moat-build/build.sh";
/// The system call filter of the Dockerfile's commands.
const FILTER: &str = "/run/moat-build/seccomp.json";
/// The images that it builds on: an OCI layout.
const BASES: &str = "/run/moat-build/bases";
/// Buildah's temporary files.
const TEMPORARY: &str = "/opt/render/.cache/tmp";
/// Mebibytes of the service's build storage above which the next build begins with an empty one.
const STORAGE_LIMIT: u32 = 20 << 10;

/// How an image is built. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The Dockerfile, below the source.
    pub file: PathBuf,
    /// The build context, below the source.
    pub context: PathBuf,
    /// Names of the build arguments that the Dockerfile asks for.
    pub args: BTreeSet<String>,
    /// Images that it builds on: their names in the layout, and their references.
    pub bases: Vec<(String, String)>,
    /// Whether `bases` are all; others are Buildah's to pull.
    pub complete: bool,
}

/// What Buildah itself needs besides the rights of an image's root: to mount, and to hand on the right to bind low ports.
pub(super) fn capabilities() -> Capabilities {
    let mut list = image::capabilities().bounding;
    list.extend(["CAP_NET_BIND_SERVICE", "CAP_SYS_ADMIN"].map(str::to_owned));
    Capabilities { bounding: list.clone(), effective: list.clone(), permitted: list, ..Capabilities::default() }
}

pub(super) fn args() -> Vec<String> {
    ["/bin/sh", SCRIPT].map(str::to_owned).to_vec()
}

/// The service's variables that the Dockerfile asks for, over what Buildah needs.
pub(super) fn environment(input: &Input<'_>, recipe: &Recipe) -> BTreeMap<String, Secret> {
    let own = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", super::sandbox::HOME),
        // Where cache mounts are, which the next build finds again.
        ("TMPDIR", TEMPORARY),
        ("LANG", "C.UTF-8"),
    ];
    let mut env: BTreeMap<String, Secret> = own.iter().map(|(key, value)| ((*key).to_owned(), Secret::new(*value))).collect();
    let asked = input.pass_env.iter().chain(&input.instance.env).filter(|(key, _)| recipe.args.contains(*key));
    env.extend(asked.map(|(key, value)| (key.clone(), value.clone())));
    env
}

/// What comes on top of the mounts of every build.
pub(super) fn mounts(input: &Input<'_>, recipe: &Recipe) -> Vec<MountOp> {
    let file = |path: &str, content: String| MountOp::File { path: path.into(), mode: 0o444, owner: 0, content: Secret::new(content) };
    // A filter is data of ours; its serialisation does not fail.
    let filter = serde_json::to_string(&seccomp::filter(input.machine.arch)).unwrap_or_default();
    let mut ops = vec![
        file("/etc/containers/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#.to_owned()),
        file(
            "/etc/containers/registries.conf",
            "unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"disabled\"\n".to_owned(),
        ),
        file(FILTER, filter),
        file(SCRIPT, script(input, recipe)),
    ];
    ops.extend(input.places.bases.iter().map(|bases| MountOp::ReadOnly { source: bases.clone(), target: BASES.into() }));
    ops
}

fn script(input: &Input<'_>, recipe: &Recipe) -> String {
    let source = Path::new(SOURCE);
    let output = format!("{PROJECT}/{OUTPUT}");
    let mut text = format!(
        "set -eu\n\
         storage={CACHE}\n\
         if [ \"$(du -sm $storage | cut -f1)\" -gt {STORAGE_LIMIT} ]; then rm -rf $storage/*; fi\n\
         export CONTAINERS_STORAGE_CONF=/tmp/storage.conf\n\
         keep() {{ printf '[storage]\\ndriver = \"%s\"\\ngraphroot = \"%s\"\\nrunroot = \"/tmp/containers\"\\n' \"$1\" \"$storage/$1\" >/tmp/storage.conf; }}\n\
         keep overlay\n\
         # Not every file system carries an overlay.\n\
         buildah info >/tmp/info 2>&1 || keep vfs\n\
         # What a build that was killed has left.\n\
         buildah rm --all >/tmp/info 2>&1 || true\n\
         mkdir -p $TMPDIR\n\
         rm -rf {output} $TMPDIR/buildah[0-9]* $TMPDIR/storage*\n"
    );
    // Writing to a text does not fail.
    for (index, (name, reference)) in recipe.bases.iter().enumerate() {
        let _ = writeln!(text, "base=$(buildah pull --quiet oci:{BASES}:{name})");
        // Buildah finds an image that is pinned by its digest below any tag.
        let name = reference.split_once('@').map_or_else(|| reference.clone(), |(name, _)| format!("{}:moat-{index}", without_tag(name)));
        let _ = writeln!(text, "buildah tag \"$base\" {}", quoted(&name));
    }
    let _ = write!(text, "buildah bud --isolation chroot --layers --format docker --security-opt seccomp={FILTER} --tag localhost/moat");
    if recipe.complete {
        text.push_str(" --pull=missing");
    }
    for key in recipe.args.iter().filter(|key| input.instance.env.contains_key(*key) || input.pass_env.contains_key(*key)) {
        let _ = write!(text, " --build-arg {}", quoted(key));
    }
    for name in input.instance.secret_files.keys().filter(|name| !name.contains([',', '='])) {
        let _ = write!(text, " --secret {}", quoted(&format!("id={name},src={SECRETS}/{name}")));
    }
    let _ = writeln!(text, " --file {} {}", shown(&source.join(&recipe.file)), shown(&source.join(&recipe.context)));
    // In this form, layers are not packed only to be unpacked at once.
    let _ = writeln!(text, "buildah push --quiet localhost/moat docker-archive:{output}");
    text
}

fn without_tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => path,
        _ => name,
    }
}

fn shown(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
