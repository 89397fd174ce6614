//! `moat git init`: a bare repository with hooks, and the remote `moat` of the work tree around.

use super::{ENDING, REMOVED, Repository, Settings, all};
use crate::args::GitInitArgs;
use crate::command_error::CommandError;
use crate::commands::{check, need_root, own_exe, up};
use crate::ui::{Tone, Ui};
use moat_daemon::Paths;
use moat_model::Slug;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// End of the name of what is being made.
const FRESH: &str = ".new";
/// The remote's name.
const REMOTE: &str = "moat";

/// Makes the repository, or changes the settings of the one that is there.
pub fn run(args: &GitInitArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    need_root()?;
    let tree = work_tree();
    let name = name(args, tree.as_deref())?;
    let paths = Paths::from_env();
    let parent = all(&paths);
    let fail = |error: io::Error| CommandError::engine(format!("can't make `{}`: {error}", parent.join(name.as_str()).display()));
    DirBuilder::new().recursive(true).mode(0o711).create(&paths.state).map_err(fail)?;
    DirBuilder::new().recursive(true).mode(0o700).create(&parent).map_err(fail)?;
    let parent = fs::canonicalize(&parent).map_err(fail)?;
    clean(&parent);
    let folder = parent.join(format!("{name}{ENDING}"));
    let before = Repository::open(&folder).ok();
    let settings = settings(args, before.as_ref().map(|repository| &repository.settings), tree.as_deref())?;
    check_branch(&settings.branch)?;

    // What is not whole yet has another name.
    let fresh = parent.join(format!("{name}.{}{FRESH}", std::process::id()));
    let at = if before.is_some() { &folder } else { &fresh };
    let made = make(at, &settings, &paths).map_err(fail);
    let placed = made.and_then(|()| if before.is_some() { Ok(()) } else { fs::rename(&fresh, &folder).map_err(fail) });
    if placed.is_err() {
        let _ = fs::remove_dir_all(&fresh);
    }
    placed?;

    let remote = tree.as_deref().map(|tree| add_remote(tree, &folder)).transpose()?;
    if ui.json() {
        ui.print_json(&serde_json::json!({ "name": name, "folder": folder, "branch": settings.branch, "file": settings.file }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let push = format!("git push {REMOTE} {}", settings.branch);
    ui.line(&format!("`{name}` is at {}", folder.display()));
    match remote {
        Some(()) => ui.line(&format!("this work tree's remote `{REMOTE}` is set: {}", ui.paint(Tone::Strong, &format!("sudo {push}")))),
        None => ui.line(&format!("in a work tree: git remote add {REMOTE} {} && {push}", folder.display())),
    }
    ui.line(&ui.paint(Tone::Dim, &format!("from elsewhere: git remote add {REMOTE} ssh://root@THIS-MACHINE{}", folder.display())));
    Ok(ExitCode::SUCCESS)
}

/// Removes what a killed `init` or `remove` has left.
fn clean(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.strip_suffix(FRESH).and_then(|name| name.rsplit('.').next());
        if name.ends_with(REMOVED) || maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Tried again the next time.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The root of the work tree that this is called in.
fn work_tree() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    git(&here, &["rev-parse", "--show-toplevel"]).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What git prints about a work tree, which may belong to the person who called sudo.
fn git(tree: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(["-c", "safe.directory=*", "-C"]).arg(tree).args(args).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn name(args: &GitInitArgs, tree: Option<&Path>) -> Result<Slug, CommandError> {
    if let Some(name) = &args.name {
        return Slug::new(name).map_err(|error| CommandError::usage(error.to_string()));
    }
    let folder = tree.and_then(Path::file_name).map(OsStr::to_string_lossy);
    folder.and_then(|folder| Slug::slugify(&folder)).ok_or_else(|| {
        CommandError::usage("a repository needs a name").hint("call this in a git work tree, or write `moat git init --name NAME`")
    })
}

fn settings(args: &GitInitArgs, before: Option<&Settings>, tree: Option<&Path>) -> Result<Settings, CommandError> {
    let mut settings = before.cloned().unwrap_or_else(|| Settings {
        branch: tree.and_then(usual_branch).unwrap_or_else(|| "main".to_owned()),
        file: "render.yaml".to_owned(),
        listen: "127.0.0.1:8080".to_owned(),
        start_timeout_seconds: 900,
        given: BTreeMap::new(),
        pass_env: Vec::new(),
        remotes: Vec::new(),
        repo_slug: String::new(),
    });
    if let Some(file) = &args.file {
        settings.file = inside(file)?;
    }
    if let Some(branch) = &args.branch {
        settings.branch.clone_from(branch);
    }
    if let Some(listen) = &args.listen {
        settings.listen.clone_from(listen);
    }
    if let Some(seconds) = args.start_timeout {
        settings.start_timeout_seconds = seconds;
    }
    settings.given.extend(up::given(&args.set, &args.env_file)?);
    for pair in up::passed(&args.pass_env) {
        let same = |other: &String| other.split('=').next() == pair.split('=').next();
        settings.pass_env.retain(|other| !same(other));
        settings.pass_env.push(pair);
    }
    let urls = tree.map(check::remotes).unwrap_or_default();
    for url in urls.into_iter().chain(args.repo.iter().cloned()) {
        if !settings.remotes.contains(&url) {
            settings.remotes.push(url);
        }
    }
    if let Some(tree) = tree {
        let [_, _, slug] = up::git_facts(tree);
        settings.repo_slug = slug;
    }
    Ok(settings)
}

/// `main`, or the branch that is checked out where there is none of that name.
fn usual_branch(tree: &Path) -> Option<String> {
    if git(tree, &["rev-parse", "--verify", "--quiet", "refs/heads/main"]).is_some() {
        return Some("main".to_owned());
    }
    git(tree, &["symbolic-ref", "--quiet", "--short", "HEAD"])
}

fn check_branch(branch: &str) -> Result<(), CommandError> {
    let fine = Command::new("git")
        .args(["check-ref-format", "--branch", branch])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| CommandError::refused(format!("can't run `git`: {error}")).hint("apt-get install git"))?;
    if fine.success() { Ok(()) } else { Err(CommandError::usage(format!("`{branch}` is no name of a branch"))) }
}

/// A path in the repository.
fn inside(file: &Path) -> Result<String, CommandError> {
    let outside = || CommandError::usage(format!("`{}` is no path in a repository", file.display())).hint("such as `deploy/render.yaml`");
    let mut path = PathBuf::new();
    for part in file.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(outside()),
        }
    }
    path.to_str().filter(|path| !path.is_empty()).map(str::to_owned).ok_or_else(outside)
}

/// Makes a repository with settings and hooks, or writes these anew.
fn make(folder: &Path, settings: &Settings, paths: &Paths) -> io::Result<()> {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("--git-dir").arg(folder).args(args).current_dir("/").stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(io::Error::other(said)) }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    git(&["init", "--quiet", "--bare", "--template="])?;
    git(&["symbolic-ref", "HEAD", &format!("refs/heads/{}", settings.branch)])?;
    // A service may keep a commit that a forced push has made unreachable.
    git(&["config", "gc.pruneExpire", "never"])?;
    git(&["config", "receive.denyDeleteCurrent", "refuse"])?;
    git(&["config", "uploadpack.allowAnySHA1InWant", "true"])?;
    Repository::save(folder, settings)?;
    let hooks = folder.join("hooks");
    DirBuilder::new().recursive(true).mode(0o700).create(&hooks)?;
    for hook in ["pre-receive", "post-receive"] {
        let aside = hooks.join(format!(".{hook}.new"));
        let text = script(hook, paths).map_err(|error| io::Error::other(error.message))?;
        fs::write(&aside, text)?;
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o755))?;
        fs::rename(&aside, hooks.join(hook))?;
    }
    Ok(())
}

/// A hook, which is called with another environment than this.
fn script(hook: &str, paths: &Paths) -> Result<String, CommandError> {
    let absolute = |path: &Path| fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned());
    let mut variables = vec![("MOAT_STATE_DIR".to_owned(), absolute(&paths.state)), ("MOAT_RUN_DIR".to_owned(), absolute(&paths.run))];
    // What this shell tells a daemon (mirrors, images, the runtime) the hooks tell one that they start.
    for (name, value) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let is_word = name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
        if name.starts_with("MOAT_") && is_word && variables.iter().all(|(known, _)| *known != name) {
            variables.push((name, value.into()));
        }
    }
    variables.sort();
    let exports: Vec<String> =
        variables.iter().map(|(name, value)| format!("{name}={}\nexport {name}\n", quoted(value.as_os_str()))).collect();
    Ok(format!(
        r#"#!/bin/sh
# Written by `moat git init`.
{exports}moat={own}
[ -x "$moat" ] || moat=$(command -v moat) || {{
    echo "error: Moat's program is not where it was: say moat git init again" >&2
    exit 1
}}
exec "$moat" git hook {hook}
"#,
        exports = exports.concat(),
        own = quoted(own_exe()?.as_os_str()),
    ))
}

/// As one word of a shell.
fn quoted(text: &OsStr) -> String {
    format!("'{}'", text.to_string_lossy().replace('\'', r"'\''"))
}

/// Sets the remote of a work tree. Nothing is fetched from it, so that no file of root's gets among the owner's.
fn add_remote(tree: &Path, folder: &Path) -> Result<(), CommandError> {
    let config = git(tree, &["rev-parse", "--path-format=absolute", "--git-path", "config"]).map(PathBuf::from);
    let owner = config.as_ref().and_then(|path| fs::metadata(path).ok());
    let receiver = format!("{} git receive", quoted(own_exe()?.as_os_str()));
    let folder = folder.to_string_lossy();
    for (key, value) in [("url", &*folder), ("receivepack", &receiver)] {
        git(tree, &["config", &format!("remote.{REMOTE}.{key}"), value])
            .ok_or_else(|| CommandError::engine(format!("can't set the remote `{REMOTE}` of `{}`", tree.display())))?;
    }
    // git has replaced the file.
    if let (Some(path), Some(owner)) = (config, owner) {
        let _ = std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()));
    }
    Ok(())
}

/// Removes the remote of the work tree around, where it leads to this folder.
pub fn forget_remote(folder: &Path) {
    let Some(tree) = work_tree() else { return };
    let url = git(&tree, &["config", "--get", &format!("remote.{REMOTE}.url")]);
    if url.is_some_and(|url| Path::new(&url) == folder) {
        let config = git(&tree, &["rev-parse", "--path-format=absolute", "--git-path", "config"]).map(PathBuf::from);
        let owner = config.as_ref().and_then(|path| fs::metadata(path).ok());
        // A remote that stays leads nowhere, which git says.
        let _ = git(&tree, &["config", "--remove-section", &format!("remote.{REMOTE}")]);
        if let (Some(path), Some(owner)) = (config, owner) {
            let _ = std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blueprint_lies_in_the_repository() {
        for (file, want) in [
            ("render.yaml", Some("render.yaml")),
            ("./deploy/render.yaml", Some("deploy/render.yaml")),
            ("deploy//render.yaml", Some("deploy/render.yaml")),
            ("/etc/passwd", None),
            ("../render.yaml", None),
            ("a/../b", None),
            (".", None),
        ] {
            assert_eq!(inside(Path::new(file)).ok().as_deref(), want, "{file}");
        }
    }

    #[test]
    fn words_of_a_shell() {
        assert_eq!(quoted(OsStr::new("/opt/it's here/moat")), r"'/opt/it'\''s here/moat'");
    }
}
