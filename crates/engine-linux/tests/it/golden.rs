//! The lowering of one instance, whole: what the monitor mounts and what the runtime is told.

use crate::bed::{Bed, spec};
use moat_engine_linux::lower::builder::Recipe;
use moat_engine_linux::lower::image::Facts;
use moat_engine_linux::lower::sandbox::{HOME, Input, Machine, Places, UID, lower};
use moat_engine_linux::toolchain::Toolchain;
use moat_model::net::{NetworkId, Ula};
use moat_model::state::{Disk, Dockerfile, ImageOrigin, ImageWorkload, KeyValueWorkload, NativeWorkload, Persistence, Workload};
use moat_model::{InstanceId, LinkName, NativeRuntime, Purpose, Secret};
use moat_planner::plan::InstanceSpec;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn machine() -> Machine {
    Machine {
        arch: "x86_64",
        open_files: 20_000,
        limits: Some(moat_engine_linux::Controllers::ALL),
        swap_accounting: true,
        usr_merge: BTreeMap::from([("bin".to_owned(), Some(PathBuf::from("usr/bin"))), ("lib32".to_owned(), None)]),
        etc: vec!["/etc/ssl/certs".into()],
        bash: true,
        authorities: Some("/etc/ssl/certs/ca-certificates.crt".into()),
        own_exe: "/usr/bin/moat".into(),
        libraries: vec!["/lib64/ld-linux-x86-64.so.2".into(), "/usr/lib/x86_64-linux-gnu/libc.so.6".into()],
    }
}

fn places() -> Places {
    Places {
        root: "/mnt".into(),
        project: Some("/s/releases/app-1/project".into()),
        scratch: "/s/instances/i".into(),
        cache: "/s/cache/app".into(),
        disk: Some("/s/disks/srv-app/d".into()),
        data: Some("/s/data/red-x".into()),
        identity: Some(Secret::new("KEY AND CERTIFICATE")),
        bases: None,
        tools: BTreeMap::new(),
        cgroup: "/moat-t/i".to_owned(),
    }
}

fn native() -> InstanceSpec {
    let workload = NativeWorkload {
        runtime: NativeRuntime::Python,
        version: None,
        source: "/home/me/app".into(),
        root_dir: "web".into(),
        build_command: Some("pip install -r requirements.txt\n./more".to_owned()),
        pre_deploy_command: Some("./migrate".to_owned()),
        initial_deploy_hook: None,
        start_command: "gunicorn app".to_owned(),
        schedule: None,
        disk: Some(Disk { name: "d".to_owned(), mount_path: "/data".into(), size_bytes: 1 }),
    };
    let mut spec = spec("app", Workload::Native(workload));
    spec.id = InstanceId::new("srv-app-abcde").unwrap();
    spec.address = NetworkId::new(0).unwrap().instance(Ula([0xfd00, 1, 2]), 7);
    spec.link = LinkName::of(spec.address.v4);
    spec.secret_files.insert("key".to_owned(), Secret::new("k"));
    spec
}

/// A service of a Dockerfile, and how it is built.
fn dockerfile() -> (InstanceSpec, Recipe) {
    let dockerfile = Dockerfile { source: "/home/me/app".into(), root_dir: "web".into(), file: "Dockerfile".into(), context: ".".into() };
    let mut spec = native();
    spec.workload = Workload::Image(ImageWorkload {
        origin: ImageOrigin::Dockerfile(dockerfile),
        credential: None,
        command: None,
        pre_deploy_command: None,
        initial_deploy_hook: None,
        schedule: None,
        disk: None,
    });
    spec.purpose = Purpose::Build;
    spec.env = ["TOKEN", "UNASKED"].map(|key| (key.to_owned(), Secret::new(format!("value of {key}")))).into();
    let digest = format!("ghcr.io/me/base@sha256:{}", "0".repeat(64));
    let recipe = Recipe {
        file: "web/it's/Dockerfile".into(),
        context: "web".into(),
        args: ["TOKEN", "NOT_GIVEN"].map(str::to_owned).into(),
        bases: vec![("base0".to_owned(), "docker.io/library/python:3".to_owned()), ("base1".to_owned(), digest)],
        complete: true,
    };
    (spec, recipe)
}

/// What counts of a datastore's image.
fn server_image() -> Facts {
    Facts {
        layers: vec!["/s/images/layers/b".into(), "/s/images/layers/a".into()],
        entrypoint: Vec::new(),
        command: Vec::new(),
        env: [("PATH", "/image/bin"), ("LANG", "en_US.utf8"), ("PG_MAJOR", "15")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        working_dir: "/".to_owned(),
        uid: UID,
        gid: UID,
        groups: Vec::new(),
        home: HOME.to_owned(),
        stop_signal: 2,
    }
}

fn check(name: &str, instance: &InstanceSpec, recipe: Option<&Recipe>, image: Option<&Facts>) {
    let toolchain = Toolchain {
        program: "/root/.pyenv/versions/3.11.7/bin/python3.11".into(),
        version: "3.11.7".to_owned(),
        trees: vec!["/root/.pyenv/versions/3.11.7".into()],
        path: vec!["/root/.pyenv/versions/3.11.7/bin".into()],
        names: vec!["python".to_owned()],
        env: BTreeMap::new(),
        others: Vec::new(),
    };
    let pass_env = BTreeMap::from([("PIP_INDEX_URL".to_owned(), Secret::new("https://index"))]);
    let tool = recipe.is_none() && matches!(instance.workload, Workload::Native(_));
    let tools = BTreeMap::from([("+uv-0123".to_owned(), PathBuf::from("/s/releases/+uv-0123/project"))]);
    let tools = if tool { tools } else { BTreeMap::new() };
    let places = Places { bases: recipe.map(|_| "/s/builds/srv-app/bases".into()), tools, ..places() };
    let input = Input {
        instance,
        machine: &machine(),
        places: &places,
        first_id: 1_000_000,
        toolchain: if recipe.is_some() { &Toolchain::default() } else { &toolchain },
        image,
        recipe,
        pass_env: &pass_env,
    };
    let mut sandbox = serde_json::to_value(lower(&input).unwrap()).unwrap();
    // The table of calls has tests of its own.
    sandbox["oci"]["linux"]["seccomp"]["syscalls"] = "…".into();
    let text = serde_json::to_string_pretty(&sandbox).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let expect = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expect, "`{}` differs (UPDATE=1 rewrites it):\n{text}", path.display());
}

#[test]
fn an_instance_lowers_to_this() {
    check("serve.json", &native(), None, None);
    check("build.json", &InstanceSpec { purpose: Purpose::Build, ..native() }, None, None);
    let mut key_value = native();
    key_value.workload =
        Workload::KeyValue(KeyValueWorkload { maxmemory_policy: "allkeys-lru".to_owned(), persistence: Persistence::Snapshot });
    check("keyvalue.json", &key_value, None, None);
    let postgres =
        InstanceSpec { workload: Bed::postgres(Some(15)).workload, env: BTreeMap::new(), secret_files: BTreeMap::new(), ..native() };
    check("postgres.json", &postgres, None, None);
    check("language.json", &native(), None, Some(&server_image()));
    let release = Some("+uv-0123".to_owned());
    let install = Some("install it".to_owned());
    check("tool.json", &InstanceSpec { purpose: Purpose::Build, release, command: install, ..native() }, None, None);
    let (spec, recipe) = dockerfile();
    check("dockerfile.json", &spec, Some(&recipe), None);
    let image = server_image();
    check("keyvalue-image.json", &key_value, None, Some(&image));
    check("postgres-image.json", &postgres, None, Some(&image));
}

#[test]
fn a_purpose_without_a_command_is_refused_and_one_with_its_own_runs_it() {
    let machine = machine();
    let args = |spec: &InstanceSpec| {
        let (places, toolchain, pass_env) = (places(), Toolchain::default(), BTreeMap::new());
        let input = Input {
            instance: spec,
            machine: &machine,
            places: &places,
            first_id: 1_000_000,
            toolchain: &toolchain,
            image: None,
            recipe: None,
            pass_env: &pass_env,
        };
        lower(&input).map(|sandbox| sandbox.oci.process.args[4..].to_vec())
    };
    for (purpose, command, expect) in [
        (Purpose::Serve, None, Ok(vec!["/bin/bash", "-c", "gunicorn app"])),
        (Purpose::Cron, None, Ok(vec!["/bin/bash", "-c", "gunicorn app"])),
        (Purpose::Job, Some("./job"), Ok(vec!["/bin/bash", "-c", "./job"])),
        (Purpose::Job, None, Err("the service has no command for this purpose")),
        (Purpose::PreDeploy, None, Ok(vec!["/bin/bash", "-e", "-o", "pipefail", "-c", "./migrate"])),
    ] {
        let spec = InstanceSpec { purpose, command: command.map(str::to_owned), ..native() };
        assert_eq!(args(&spec), expect.map(|args| args.into_iter().map(str::to_owned).collect()), "{purpose:?}");
    }
}
