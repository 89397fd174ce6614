//! What is a native service's own: its command in a shell, its environment, and the root of an image that is its language's
//! toolchain.

use super::image;
use super::postgres;
use super::sandbox::{CACHE, GLOBAL, HOME, Input, LIBRARIES, MountOp, NAMES, PROJECT, VENV, cwd, strings};
use crate::{tools, venv};
use moat_model::state::{NativeWorkload, Workload};
use moat_model::{NativeRuntime, Purpose, Secret};
use moat_planner::plan::InstanceSpec;
use std::collections::BTreeMap;
use std::path::Path;

/// Whether it installs a tool.
pub(super) fn is_tool(instance: &InstanceSpec) -> bool {
    instance.purpose == Purpose::Build && instance.release.as_deref().is_some_and(tools::is_tool)
}

/// The service's command for this purpose, in a shell.
pub(super) fn shell(input: &Input<'_>, native: &NativeWorkload) -> Result<Vec<String>, &'static str> {
    let purpose = input.instance.purpose;
    let own = match purpose {
        Purpose::Serve | Purpose::Cron => Some(&native.start_command),
        Purpose::Build => native.build_command.as_ref(),
        Purpose::PreDeploy => native.pre_deploy_command.as_ref(),
        Purpose::Job => None,
    };
    let text = input.instance.command.as_ref().or(own).ok_or("the service has no command for this purpose")?;
    let text = match native.runtime {
        _ if purpose != Purpose::Build || is_tool(input.instance) => text.clone(),
        NativeRuntime::Python => format!("{}\n{text}", venv::make(VENV)),
        // `corepack enable` puts programs beside itself.
        NativeRuntime::Node => format!(
            "mkdir -p {GLOBAL}/bin\nif command -v corepack >/dev/null; then ln -sf \"$(command -v corepack)\" {GLOBAL}/bin/corepack; fi\n{text}"
        ),
        NativeRuntime::Ruby | NativeRuntime::Go | NativeRuntime::Rust | NativeRuntime::Elixir => text.clone(),
    };
    let strict = matches!(purpose, Purpose::Build | Purpose::PreDeploy);
    let mut args = strings(match (input.machine.bash, strict) {
        (true, true) => &["/bin/bash", "-e", "-o", "pipefail", "-c"],
        (true, false) => &["/bin/bash", "-c"],
        (false, true) => &["/bin/sh", "-e", "-c"],
        (false, false) => &["/bin/sh", "-c"],
    });
    args.push(text);
    Ok(args)
}

/// The whole environment: a few variables that every program expects, then the service's own, which win.
pub(super) fn environment(input: &Input<'_>) -> BTreeMap<String, Secret> {
    let mut env: BTreeMap<String, Secret> = BTreeMap::new();
    let mut set = |key: &str, value: &str| {
        env.insert(key.to_owned(), Secret::new(value));
    };
    let mut path = Vec::new();
    if let Workload::Native(native) = &input.instance.workload
        && !is_tool(input.instance)
    {
        if native.runtime == NativeRuntime::Python {
            path.push(format!("{VENV}/bin"));
            set("VIRTUAL_ENV", VENV);
            set("VENV_ROOT", VENV);
            // uv makes one of its own below `rootDir` otherwise, where no start command finds its programs.
            set("UV_PROJECT_ENVIRONMENT", VENV);
            // The cache is another mount.
            set("UV_LINK_MODE", "copy");
        }
        if native.runtime == NativeRuntime::Node {
            path.push(format!("{}/node_modules/.bin", cwd(&input.instance.workload)));
            // Within the release, so that what a build brought is there at the start.
            set("COREPACK_HOME", &format!("{PROJECT}/.corepack"));
            set("COREPACK_ENABLE_DOWNLOAD_PROMPT", "0");
        }
        path.extend(input.places.tools.keys().map(|tool| tools::place(tool).join(tools::SHIMS).to_string_lossy().into_owned()));
        path.push(format!("{GLOBAL}/bin"));
        set("npm_config_prefix", GLOBAL);
    }
    if matches!(input.instance.workload, Workload::Native(_)) {
        // npm looks for it below its prefix otherwise, where the machine's is not.
        let own = Path::new("/etc/npmrc");
        set("npm_config_globalconfig", if input.machine.etc.iter().any(|path| path == own) { "/etc/npmrc" } else { "/usr/etc/npmrc" });
    }
    if let Workload::Postgres(server) = &input.instance.workload {
        for (key, value) in postgres::environment(server) {
            set(key, value);
        }
    }
    if !input.toolchain.names.is_empty() || !input.toolchain.others.is_empty() {
        path.push(NAMES.to_owned());
    }
    path.extend(input.toolchain.path.iter().map(|dir| dir.to_string_lossy().into_owned()));
    path.extend(["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(str::to_owned));
    set("PATH", &path.join(":"));
    set("HOME", HOME);
    set("USER", "render");
    set("LOGNAME", "render");
    let native = matches!(input.instance.workload, Workload::Native(_));
    // The image of a language was looked into; that of a server was not.
    set("SHELL", if input.machine.bash && (native || input.image.is_none()) { "/bin/bash" } else { "/bin/sh" });
    set("LANG", "C.UTF-8");
    // Many programs bring a list of authorities of their own, which knows nothing of a company's.
    let authorities = input.machine.authorities.as_ref().map(|file| file.to_string_lossy());
    if let (Some(file), Workload::Native(_)) = (&authorities, &input.instance.workload) {
        set("SSL_CERT_FILE", file);
        if input.instance.purpose == Purpose::Build {
            set("REQUESTS_CA_BUNDLE", file);
            set("NODE_EXTRA_CA_CERTS", file);
        }
    }
    if input.instance.purpose == Purpose::Build {
        set("XDG_CACHE_HOME", CACHE);
        set("npm_config_cache", &format!("{CACHE}/npm"));
        env.extend(input.pass_env.clone());
    }
    env.extend(input.toolchain.env.iter().map(|(key, value)| (key.clone(), Secret::new(value.as_str()))));
    env.extend(input.instance.env.clone());
    env
}

/// The root of an image that is a language's toolchain: its own `/usr`, and libraries for PID 1 of ours.
pub(super) fn language(input: &Input<'_>, image: &image::Facts) -> Vec<MountOp> {
    let layers = MountOp::Layers { layers: image.layers.clone(), scratch: input.places.scratch.join("root"), first_id: input.first_id };
    let libraries = input.machine.libraries.iter().filter_map(|library| {
        let target = Path::new(LIBRARIES).join(library.file_name()?);
        Some(MountOp::ReadOnly { source: library.clone(), target })
    });
    std::iter::once(layers).chain(libraries).collect()
}

/// What runs PID 1 of ours with this machine's libraries: those of an image can be older, or another C library's.
pub(super) fn linker(input: &Input<'_>) -> Vec<String> {
    let linker = input.machine.libraries.first().filter(|_| input.image.is_some());
    let Some(name) = linker.and_then(|linker| linker.file_name()) else { return Vec::new() };
    let linker = Path::new(LIBRARIES).join(name).to_string_lossy().into_owned();
    vec![linker, "--library-path".to_owned(), LIBRARIES.to_owned()]
}
