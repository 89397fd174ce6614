//! Where toolchains are, and how each says what it is.

use super::Toolchain;
use moat_model::NativeRuntime;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Folders that are searched after `PATH`, for a background process with a short one.
const SYSTEM: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];

/// The main program of a language.
pub fn program(runtime: NativeRuntime) -> &'static str {
    match runtime {
        NativeRuntime::Python => "python3",
        NativeRuntime::Node => "node",
        NativeRuntime::Ruby => "ruby",
        NativeRuntime::Go => "go",
        NativeRuntime::Rust => "rustc",
        NativeRuntime::Elixir => "elixir",
    }
}

/// Places of version managers below a home folder; `*` is one folder of any name.
fn managed(runtime: NativeRuntime) -> &'static [&'static str] {
    match runtime {
        NativeRuntime::Python => &[
            ".pyenv/versions/*/bin",
            ".local/share/uv/python/*/bin",
            ".asdf/installs/python/*/bin",
            ".local/share/mise/installs/python/*/bin",
        ],
        NativeRuntime::Node => &[
            ".nvm/versions/node/*/bin",
            ".volta/tools/image/node/*/bin",
            ".asdf/installs/nodejs/*/bin",
            ".local/share/mise/installs/node/*/bin",
            ".local/share/fnm/node-versions/*/installation/bin",
        ],
        NativeRuntime::Ruby => {
            &[".rbenv/versions/*/bin", ".rvm/rubies/*/bin", ".asdf/installs/ruby/*/bin", ".local/share/mise/installs/ruby/*/bin"]
        }
        NativeRuntime::Go => &["sdk/*/bin", "go/sdk/*/bin", ".asdf/installs/golang/*/go/bin", ".local/share/mise/installs/go/*/bin"],
        NativeRuntime::Rust => &[".rustup/toolchains/*/bin"],
        NativeRuntime::Elixir => &[".asdf/installs/elixir/*/bin", ".local/share/mise/installs/elixir/*/bin"],
    }
}

/// What to do about a missing one.
pub fn hint(runtime: NativeRuntime, wanted: Option<&str>) -> String {
    let version = wanted.unwrap_or_default();
    match (runtime, wanted) {
        (NativeRuntime::Python, None) => "apt-get install python3 python3-venv".to_owned(),
        (NativeRuntime::Python, Some(_)) => {
            format!("install it with `pyenv install {version}` or `uv python install {version}`, or change PYTHON_VERSION")
        }
        (NativeRuntime::Node, None) => "apt-get install nodejs npm".to_owned(),
        (NativeRuntime::Node, Some(_)) => format!("install it with `nvm install {version}`, or change NODE_VERSION"),
        (NativeRuntime::Ruby, _) => "apt-get install ruby-full ruby-bundler, or install another version with `rbenv install`".to_owned(),
        (NativeRuntime::Go, _) => "apt-get install golang-go, or unpack a release of https://go.dev/dl to /usr/local/go".to_owned(),
        (NativeRuntime::Rust, None) => "apt-get install rustc cargo, or install rustup from https://rustup.rs".to_owned(),
        (NativeRuntime::Rust, Some(_)) => format!("install it with `rustup toolchain install {version}`, or change RUSTUP_TOOLCHAIN"),
        (NativeRuntime::Elixir, _) => "apt-get install elixir".to_owned(),
    }
}

/// The channel of a rustup toolchain's folder: `stable` of `…/stable-x86_64-unknown-linux-gnu/bin`.
pub fn channel(path: &Path) -> Option<String> {
    let name = path.parent()?.file_name()?.to_str()?;
    Some(name.split_once('-').map_or(name, |(channel, _)| channel).to_owned())
}

fn homes() -> Vec<PathBuf> {
    let mut homes: Vec<PathBuf> = std::env::var_os("HOME").map(PathBuf::from).into_iter().collect();
    homes.extend(std::env::var_os("SUDO_USER").map(|user| Path::new("/home").join(user)));
    homes
}

fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

/// Every program of this name on `PATH`, then in the system's folders.
pub fn on_path(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut seen = BTreeSet::new();
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(SYSTEM.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .filter(|file| executable(file) && seen.insert(file.clone()))
        .collect()
}

fn expand(base: &Path, pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once("/*/") else { return vec![base.join(pattern)] };
    let entries = fs::read_dir(base.join(before)).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path().join(after)).collect();
    found.sort();
    found.reverse();
    found
}

fn candidates(runtime: NativeRuntime) -> Vec<PathBuf> {
    let name = program(runtime);
    let mut found = on_path(name);
    let mut folders: Vec<PathBuf> =
        homes().iter().flat_map(|home| managed(runtime).iter().flat_map(|pattern| expand(home, pattern))).collect();
    // A shim says where its manager lives, whoever's home that is: `ROOT/shims/python3` stands for `ROOT/versions/*/bin`.
    for shim in &found {
        if let Some(root) = shim.parent().filter(|folder| folder.ends_with("shims")).and_then(Path::parent) {
            folders.extend(expand(root, "versions/*/bin"));
        }
    }
    match runtime {
        NativeRuntime::Python => {
            let versioned = SYSTEM.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten()).map(|entry| entry.path());
            found.extend(versioned.filter(|path| {
                let minor = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("python3."));
                minor.is_some_and(|minor| minor.bytes().all(|byte| byte.is_ascii_digit())) && executable(path)
            }));
        }
        NativeRuntime::Go => folders.push("/usr/local/go/bin".into()),
        NativeRuntime::Node | NativeRuntime::Ruby | NativeRuntime::Rust | NativeRuntime::Elixir => {}
    }
    found.extend(folders.into_iter().map(|folder| folder.join(name)).filter(|file| executable(file)));
    found
}

/// Every toolchain of a language that works, the preferred one first (only that one, when the first is enough).
pub fn all(runtime: NativeRuntime, first_only: bool) -> Vec<Toolchain> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for candidate in candidates(runtime) {
        let Some(toolchain) = probe(runtime, &candidate) else { continue };
        if seen.insert(toolchain.program.clone()) {
            out.push(toolchain);
            if first_only {
                break;
            }
        }
    }
    out
}

/// Asks a program about itself: the lines it prints.
fn ask(program: &Path, args: &[&str]) -> Option<Vec<String>> {
    let out = Command::new(program).args(args).current_dir("/").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).lines().map(|line| line.trim().to_owned()).collect())
}

fn probe(runtime: NativeRuntime, candidate: &Path) -> Option<Toolchain> {
    let mut toolchain = Toolchain::default();
    match runtime {
        NativeRuntime::Python => {
            let lines = ask(
                candidate,
                &[
                    "-c",
                    "import sys; print('%d.%d.%d' % sys.version_info[:3]); print(sys.base_prefix); print('%d.%d' % sys.version_info[:2])",
                ],
            )?;
            let [version, prefix, minor] = lines.as_slice() else { return None };
            let prefix = PathBuf::from(prefix);
            toolchain.program = fs::canonicalize(prefix.join("bin").join(format!("python{minor}"))).ok()?;
            toolchain.version.clone_from(version);
            toolchain.path.push(prefix.join("bin"));
            // Only names that would mean another program, or none: a `venv` remembers the folder it was called from.
            let other = |name: &&str| fs::canonicalize(prefix.join("bin").join(name)).ok().as_ref() != Some(&toolchain.program);
            toolchain.names = ["python", "python3"].iter().filter(|name| other(name)).map(|&name| name.to_owned()).collect();
            toolchain.show(&prefix, &toolchain.program.clone());
        }
        NativeRuntime::Node => {
            let lines = ask(candidate, &["-p", "process.version + '\\n' + process.execPath"])?;
            let [version, exe] = lines.as_slice() else { return None };
            toolchain.program = fs::canonicalize(exe).ok()?;
            version.trim_start_matches('v').clone_into(&mut toolchain.version);
            prefixed(&mut toolchain);
        }
        NativeRuntime::Ruby => {
            let lines = ask(candidate, &["-e", "puts RUBY_VERSION, RbConfig.ruby"])?;
            let [version, exe] = lines.as_slice() else { return None };
            toolchain.program = fs::canonicalize(exe).ok()?;
            toolchain.version.clone_from(version);
            prefixed(&mut toolchain);
        }
        NativeRuntime::Go => {
            let lines = ask(candidate, &["env", "GOVERSION", "GOROOT"])?;
            let [version, root] = lines.as_slice() else { return None };
            let root = fs::canonicalize(root).ok()?;
            toolchain.program = root.join("bin/go");
            version.trim_start_matches("go").clone_into(&mut toolchain.version);
            toolchain.path.push(root.join("bin"));
            toolchain.show(&root, &toolchain.program.clone());
        }
        NativeRuntime::Rust => {
            let version = ask(candidate, &["--version"])?.first()?.split(' ').nth(1)?.to_owned();
            let sysroot = fs::canonicalize(ask(candidate, &["--print", "sysroot"])?.first()?).ok()?;
            toolchain.program = sysroot.join("bin/rustc");
            toolchain.version = version;
            toolchain.path.push(sysroot.join("bin"));
            toolchain.show(&sysroot, &toolchain.program.clone());
        }
        NativeRuntime::Elixir => {
            let lines = ask(candidate, &["-e", "IO.puts(System.version()); IO.puts(:code.lib_dir(:elixir)); IO.puts(:code.root_dir())"])?;
            let [version, library, erlang] = lines.as_slice() else { return None };
            let root = fs::canonicalize(Path::new(library).join("../..")).ok()?;
            let erlang = fs::canonicalize(erlang).ok()?;
            toolchain.program = fs::canonicalize(root.join("bin/elixir")).or_else(|_| fs::canonicalize(candidate)).ok()?;
            toolchain.version.clone_from(version);
            for tree in [&root, &erlang] {
                toolchain.path.push(tree.join("bin"));
                toolchain.show(tree, &toolchain.program.clone());
            }
        }
    }
    Some(toolchain)
}

/// A program at `PREFIX/bin/NAME` that needs its prefix.
fn prefixed(toolchain: &mut Toolchain) {
    let program = toolchain.program.clone();
    let Some(bin) = program.parent() else { return };
    toolchain.path.push(bin.to_owned());
    toolchain.show(bin.parent().unwrap_or(bin), &program);
}
