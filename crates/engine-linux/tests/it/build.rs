//! Sources, builds, releases.

use crate::bed::{Bed, holds, test, until};
use moat_engine::Engine;
use moat_engine_linux::{BuildRequest, Release};
use moat_model::NativeRuntime::{Node, Python, Rust};
use moat_model::state::{InstancePhase, NativeWorkload, Workload};
use moat_model::{Purpose, Secret};
use moat_planner::plan::InstanceSpec;
use std::collections::BTreeSet;
use std::path::PathBuf;

fn native(spec: &mut InstanceSpec) -> &mut NativeWorkload {
    match &mut spec.workload {
        Workload::Native(native) => native,
        Workload::Image(_) | Workload::KeyValue(_) | Workload::Postgres(_) | Workload::Static(_) => unreachable!(),
    }
}

fn request(spec: &mut InstanceSpec) -> BuildRequest {
    let (service, slug, env) = (spec.service.clone(), spec.slug.clone(), spec.env.clone());
    let native = native(spec);
    BuildRequest {
        service,
        slug,
        source: native.source.clone(),
        root_dir: native.root_dir.clone(),
        build_fingerprint: native.build_command.clone().unwrap_or_default(),
        runtime: native.runtime,
        version: native.version.clone(),
        commands: native.build_command.iter().cloned().collect(),
        env,
    }
}

#[test]
fn python_builds_into_a_virtual_environment_and_serves() {
    test(async |bed: &Bed| {
        bed.write("web/app.py", "import sys, os\nprint(sys.prefix, os.getcwd(), open('made.txt').read(), flush=True)\n");
        let mut spec = bed.native(Python, "python app.py && exec python -m http.server $PORT --bind 0.0.0.0");
        native(&mut spec).root_dir = PathBuf::from("web");
        native(&mut spec).build_command = Some(
            "python -c 'import sys; assert sys.prefix.endswith(\".venv\")'\npip --version\necho -n built > made.txt; test -z \"$NODE_ENV\""
                .to_owned(),
        );
        bed.release(&mut spec).await;
        bed.start(&spec).await.unwrap();
        bed.logged(&spec.id, "/opt/render/project/src/.venv /opt/render/project/src/web built").await;
        let mut listeners = Vec::new();
        for _ in 0..3000 {
            listeners = bed.engine.listeners(&spec.id).await.unwrap();
            if !listeners.is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(listeners.len(), 1, "{:?}", bed.log(&spec.id));
        assert_eq!((listeners[0].endpoint.port, listeners[0].loopback_only), (10000, false));
    });
}

#[test]
fn the_same_source_is_built_once() {
    test(async |bed: &Bed| {
        bed.write("a.txt", "1");
        let mut spec = bed.native(Python, "cat a.txt");
        let first = bed.engine.prepare_release(request(&mut spec), |_| ()).await.unwrap().release;
        assert!(!first.cached);
        // A build that never finished is done again.
        assert_eq!(bed.engine.prepare_release(request(&mut spec), |_| ()).await.unwrap().release, first);
        bed.engine.seal_release(&first.name).await.unwrap();
        let sealed = Release { cached: true, ..first.clone() };
        assert_eq!(bed.engine.prepare_release(request(&mut spec), |_| ()).await.unwrap().release, sealed);
        bed.write("a.txt", "2");
        let second = bed.engine.prepare_release(request(&mut spec), |_| ()).await.unwrap().release;
        assert_ne!(second.name, first.name);
        native(&mut spec).build_command = Some("true".to_owned());
        assert_ne!(bed.engine.prepare_release(request(&mut spec), |_| ()).await.unwrap().release.name, second.name);
        bed.engine.collect_garbage(&BTreeSet::from([first.name.clone()])).await.unwrap();
        let left = || {
            let entries = std::fs::read_dir(bed.state.join("releases")).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        // Their names are gone at once, their files by and by.
        let found: Vec<String> = left().into_iter().filter(|name| !name.starts_with('.')).collect();
        assert_eq!(found, std::slice::from_ref(&first.name));
        until(|| left() == [first.name.clone()]).await;
    });
}

/// A power cut comes when it likes: what says that a release is finished is written after all that is in it has come to the disk,
/// and is on the disk itself before anybody hears of it.
#[test]
fn a_release_is_on_the_disk_before_it_is_said_to_be_finished() {
    test(async |bed: &Bed| {
        bed.write("a.txt", "1");
        let mut spec = bed.native(Python, "cat a.txt");
        let release = bed.engine.prepare_release(request(&mut spec), |_| ()).await.unwrap().release;
        let trace = bed.source.parent().unwrap().join("trace");
        let traced = std::process::Command::new("strace")
            .args(["-f", "-y", "-e", "trace=syncfs,fsync,fdatasync,rename,renameat,renameat2", "-o"])
            .arg(&trace)
            .arg(bed.config().own_exe)
            .arg("seal")
            .args([&bed.state, &bed.run])
            .arg(&release.name)
            .status()
            .expect("`strace` is missing: `cargo xtask test` installs it");
        assert!(traced.success());
        let trace = std::fs::read_to_string(trace).unwrap();
        let folder = bed.state.join("releases").join(&release.name);
        // Of each call what it is called and the path that matters, in the order in which they came back well.
        let calls: Vec<(&str, bool, bool)> = trace
            .lines()
            .filter(|line| line.contains(folder.to_str().unwrap()) && line.trim_end().ends_with("= 0"))
            .filter_map(|line| {
                Some((line.split_once('(')?.0.rsplit(' ').next()?, line.contains("/sealed.new"), line.contains("/sealed\"")))
            })
            .collect();
        assert_eq!(calls, [("syncfs", false, false), ("fsync", true, false), ("rename", true, true), ("fsync", false, false)], "{trace}");
        assert!(bed.engine.prepare_release(request(&mut spec), |_| ()).await.unwrap().release.cached);
    });
}

#[test]
fn a_release_that_the_machine_s_toolchain_does_not_fit_any_more_says_so() {
    test(async |bed: &Bed| {
        let mut spec = bed.native(Python, "echo ran");
        bed.release(&mut spec).await;
        let path = bed.state.join("releases").join(spec.release.as_deref().unwrap()).join("lock.json");
        let mut lock: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let exact = lock["exact"].as_str().unwrap().to_owned();
        let own = std::process::Command::new("python3").arg("--version").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&own.stdout).trim(), format!("Python {exact}"), "the exact version is written down");
        let line = exact.rsplit_once('.').unwrap().0.to_owned();
        for (made_with, runs) in [(exact.as_str(), true), (&format!("{line}.0"), true), ("2.6.9", false)] {
            lock["exact"] = made_with.into();
            std::fs::write(&path, lock.to_string()).unwrap();
            let mut again = bed.native(Python, "echo ran");
            again.release.clone_from(&spec.release);
            if runs {
                assert_eq!(bed.run(again).await.1, ["ran".to_owned()], "{made_with}");
                continue;
            }
            let error = bed.start(&again).await.unwrap_err();
            assert!(error.to_string().contains("was built with python 2.6.9, and this machine has python"), "{error}");
            assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("`moat up` builds it anew")), "{error:?}");
        }
        // One from before the exact version was written down starts as ever.
        lock.as_object_mut().unwrap().remove("exact");
        std::fs::write(&path, lock.to_string()).unwrap();
        assert_eq!(bed.run(spec).await.1, ["ran".to_owned()]);
    });
}

#[test]
fn an_instance_never_changes_its_release_nor_another_instance() {
    test(async |bed: &Bed| {
        bed.write("a.txt", "as built");
        let command = "cat a.txt; echo changed > a.txt; cat a.txt";
        let mut spec = bed.native(Python, command);
        bed.release(&mut spec).await;
        for _ in 0..2 {
            let mut again = bed.native(Python, command);
            again.release.clone_from(&spec.release);
            let (report, lines) = bed.run(again).await;
            assert_eq!(report.code, 0, "{lines:?}");
            assert_eq!(lines, ["as builtchanged"].map(str::to_owned));
        }
        assert!(holds(&bed.state.join("releases"), "changed").is_empty());
        assert_eq!(std::fs::read_to_string(bed.source.join("a.txt")).unwrap(), "as built");
    });
}

#[test]
fn a_failing_build_says_so_and_its_release_never_runs() {
    test(async |bed: &Bed| {
        let mut spec = bed.native(Python, "echo never");
        native(&mut spec).build_command = Some("echo first\nfalse\necho never".to_owned());
        let release = bed.engine.prepare_release(request(&mut spec), |_| ()).await.unwrap().release;
        let mut build = spec.clone();
        build.purpose = Purpose::Build;
        build.release = Some(release.name.clone());
        let (report, lines) = bed.run(build).await;
        assert_eq!((report.code, lines), (1, vec!["first".to_owned()]));
        spec.release = Some(release.name);
        let error = bed.start(&spec).await.unwrap_err();
        assert!(error.to_string().contains("its build has not finished"), "{error}");
    });
}

#[test]
fn what_git_ignores_is_not_source_and_what_was_never_committed_is() {
    test(async |bed: &Bed| {
        let git = |args: &[&str]| {
            assert!(std::process::Command::new("git").arg("-C").arg(&bed.source).args(args).output().unwrap().status.success());
        };
        git(&["init", "-q"]);
        for (path, content) in
            [(".gitignore", "dist/\n*.log\n"), ("kept.txt", ""), ("gone.txt", ""), ("x.log", ""), ("dist/out.js", ""), ("new/deep.txt", "")]
        {
            bed.write(path, content);
        }
        git(&["add", "kept.txt", "gone.txt", ".gitignore"]);
        std::fs::remove_file(bed.source.join("gone.txt")).unwrap();
        std::os::unix::fs::symlink("/etc/shadow", bed.source.join("link")).unwrap();
        let lines = bed.shell("find . -mindepth 1 | sort; cat link || true").await;
        assert_eq!(lines.last().unwrap(), "cat: link: No such file or directory");
        let mut files = lines[..lines.len() - 1].to_vec();
        files.retain(|line| !line.starts_with("cat:"));
        assert_eq!(files, ["./.gitignore", "./kept.txt", "./link", "./new", "./new/deep.txt"]);
    });
}

#[test]
fn node_runs_and_its_cache_outlives_a_build() {
    test(async |bed: &Bed| {
        bed.write("package.json", r#"{"name":"x","version":"1.0.0"}"#);
        let mut spec = bed.native(Node, "node -e 'console.log(process.cwd(), require(\"os\").homedir())'");
        native(&mut spec).build_command = Some("npm --version && npm config get cache && echo mark >> ~/.cache/mark".to_owned());
        bed.release(&mut spec).await;
        let (report, lines) = bed.run(spec).await;
        assert_eq!((report.code, lines), (0, vec!["/opt/render/project/src /opt/render".to_owned()]));
        assert_eq!(std::fs::read_to_string(bed.state.join("cache/app/mark")).unwrap(), "mark\n");
    });
}

#[test]
fn a_rust_toolchain_under_a_home_folder_builds() {
    test(async |bed: &Bed| {
        if moat_engine_linux::toolchain::installed(Rust).is_empty() {
            println!("skipped: no Rust toolchain here");
            return;
        }
        bed.write("Cargo.toml", "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n");
        bed.write("src/main.rs", "fn main() { println!(\"built\"); }");
        let mut spec = bed.native(Rust, "exec target/debug/app");
        spec.env.insert("CARGO_HOME".to_owned(), Secret::new("/opt/render/project/.cargo"));
        native(&mut spec).build_command = Some("cargo build --offline".to_owned());
        bed.release(&mut spec).await;
        let (report, lines) = bed.run(spec).await;
        assert_eq!((report.code, lines), (0, vec!["built".to_owned()]));
    });
}

#[test]
fn a_version_that_is_not_here_is_named_with_what_is() {
    test(async |bed: &Bed| {
        let mut spec = bed.native(Python, "true");
        native(&mut spec).version = Some("3.99".to_owned());
        let error = bed.engine.prepare_release(request(&mut spec), |_| ()).await.unwrap_err();
        assert!(error.to_string().contains("python 3.99 is not installed; found 3."), "{error}");
        assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("PYTHON_VERSION")), "{error:?}");
        native(&mut spec).version = None;
        native(&mut spec).root_dir = PathBuf::from("nowhere");
        let error = bed.engine.prepare_release(request(&mut spec), |_| ()).await.unwrap_err();
        assert!(error.to_string().contains("`rootDir` is `nowhere`"), "{error}");
    });
}

#[test]
fn a_link_in_the_source_leads_no_mount_and_no_file_out() {
    test(async |bed: &Bed| {
        let outside = bed.source.parent().unwrap().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, bed.source.join("data")).unwrap();
        std::os::unix::fs::symlink(outside.join("key"), bed.source.join("key")).unwrap();
        let mut spec = bed.native(Python, "cat key");
        spec.secret_files.insert("key".to_owned(), Secret::new("hunter2"));
        bed.release(&mut spec).await;
        let (report, lines) = bed.run(spec.clone()).await;
        assert_eq!((report.code, lines), (0, vec!["hunter2".to_owned()]));
        let disk = moat_model::state::Disk { name: "d".to_owned(), mount_path: "/opt/render/project/src/data/in".into(), size_bytes: 1 };
        native(&mut spec).disk = Some(disk);
        let error = bed.start(&spec).await.unwrap_err();
        assert!(error.to_string().contains("disks/srv-app/d"), "{error}");
        assert_eq!(bed.engine.wait(&spec.id).await.unwrap(), InstancePhase::Lost);
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    });
}
