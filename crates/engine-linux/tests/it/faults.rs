//! What goes wrong around an instance.

use crate::bed::{Bed, test, until};
use moat_engine::{Engine, StepOutcome};
use moat_engine_linux::{BuildRequest, LinuxEngine};
use moat_model::NativeRuntime::Python;
use moat_model::state::Workload;
use moat_planner::Step;
use nix::mount::{MsFlags, mount, umount};
use nix::pty::openpty;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;

#[test]
fn a_full_disk_is_named() {
    test(async |bed: &Bed| {
        bed.write("big.bin", &"x".repeat(3 << 20));
        let spec = bed.native(Python, "true");
        let Workload::Native(native) = &spec.workload else { unreachable!() };
        let request = BuildRequest {
            service: spec.service.clone(),
            slug: spec.slug.clone(),
            source: native.source.clone(),
            root_dir: native.root_dir.clone(),
            build_fingerprint: String::new(),
            runtime: native.runtime,
            version: None,
            commands: Vec::new(),
            env: BTreeMap::new(),
        };
        let releases = bed.state.join("releases");
        mount(Some("small"), &releases, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        let error = bed.engine.prepare_release(request.clone(), |_| ()).await.unwrap_err();
        assert!(error.to_string().contains("No space left on device"), "{error}");
        assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("free some space")), "{error:?}");
        assert_eq!(std::fs::read_dir(&releases).unwrap().count(), 0, "half a copy is left");
        umount(&releases).unwrap();
        // The positive control: with room it works.
        assert!(!bed.engine.prepare_release(request, |_| ()).await.unwrap().release.cached);
    });
}

#[test]
fn a_runtime_that_fails_leaves_its_words_and_nothing_else() {
    test(async |bed: &Bed| {
        let mut spec = bed.native(Python, "true");
        bed.release(&mut spec).await;
        let fake = bed.source.join("bad-runtime");
        std::fs::write(&fake, "#!/bin/sh\nwhile [ \"$1\" != --log ]; do shift; done\necho 'no such luck' > \"$2\"\nexit 1\n").unwrap();
        std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let config = moat_engine_linux::Config { oci_runtime: Some(fake), ..bed.config() };
        let other = LinuxEngine::open(config).unwrap();
        bed.permit(&spec).await;
        let error = other.apply(&Step::StartInstance { instance: Box::new(spec.clone()) }).await.unwrap_err();
        assert!(error.to_string().ends_with("the runtime could not start the sandbox: no such luck"), "{error}");
        assert!(bed.engine.observe().await.unwrap().instances.is_empty());
        assert!(bed.log(&spec.id).iter().any(|line| line.contains("no such luck")), "the log of a failed start is kept");
        // And the same instance starts once the runtime is right.
        bed.start(&spec).await.unwrap();
        assert_eq!(bed.end(&spec.id).await.code, 0);
    });
}

#[test]
fn what_a_killed_start_left_is_cleaned_and_done_again() {
    test(async |bed: &Bed| {
        let mut spec = bed.native(Python, "echo up; sleep 600");
        bed.release(&mut spec).await;
        // Killed before anything was written, and killed between the monitor's first breath and the word to go on.
        let garbage = bed.run.join("instances/srv-app-garbage");
        std::fs::create_dir(&garbage).unwrap();
        bed.start(&spec).await.unwrap();
        let folder = bed.run.join("instances").join(spec.id.as_str());
        let kept = bed.source.join("kept");
        std::fs::create_dir(&kept).unwrap();
        for file in ["instance.json", "job.json"] {
            std::fs::copy(folder.join(file), kept.join(file)).unwrap();
        }
        bed.stop(&spec.id, 0).await;
        std::fs::create_dir(&folder).unwrap();
        for file in ["instance.json", "job.json"] {
            std::fs::copy(kept.join(file), folder.join(file)).unwrap();
        }
        let (mine, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut monitor = std::process::Command::new(bed.config().own_exe)
            .args([std::ffi::OsStr::new("__monitor"), folder.as_os_str()])
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        let mut word = [0; 6];
        (&mine).read_exact(&mut word).unwrap();
        assert_eq!(&word, b"ready\n");
        drop(mine);
        assert!(!monitor.wait().unwrap().success());
        bed.permit(&spec).await;
        assert_eq!(bed.engine.apply(&Step::StartInstance { instance: Box::new(spec.clone()) }).await.unwrap(), StepOutcome::Changed);
        bed.logged(&spec.id, "up").await;
        bed.engine.apply(&Step::EnsureRouter).await.unwrap();
        assert!(!garbage.exists());
    });
}

#[test]
fn a_killed_engine_process_hurts_no_instance() {
    test(async |bed: &Bed| {
        let mut spec = bed.native(Python, "echo up; while :; do echo tick; sleep 0.05; done");
        bed.release(&mut spec).await;
        bed.permit(&spec).await;
        // A whole process that starts the instance and is killed with everything it holds.
        let file = bed.source.parent().unwrap().join("spec.json");
        std::fs::write(&file, serde_json::to_vec(&spec).unwrap()).unwrap();
        let config = bed.config();
        let mut engine = std::process::Command::new(&config.own_exe)
            .arg("start")
            .arg(&config.state_dir)
            .arg(&config.run_dir)
            .arg(&file)
            .spawn()
            .unwrap();
        bed.logged(&spec.id, "up").await;
        engine.kill().unwrap();
        engine.wait().unwrap();
        let seen = bed.log(&spec.id).len();
        until(|| bed.log(&spec.id).len() > seen + 3).await;
        assert_eq!(bed.engine.observe().await.unwrap().instances[&spec.id].phase, moat_model::state::InstancePhase::Running);
    });
}

#[test]
fn a_terminal_works_inside() {
    test(async |bed: &Bed| {
        let mut spec = bed.native(Python, "echo up; sleep 600");
        bed.release(&mut spec).await;
        bed.start(&spec).await.unwrap();
        bed.logged(&spec.id, "up").await;
        let pty = openpty(None, None).unwrap();
        let end = || pty.slave.try_clone().unwrap();
        let argv = ["sh", "-c", "test -t 0 && test -t 1 && tty && exit 5"].map(str::to_owned).to_vec();
        let code = bed.engine.exec(&spec.id, argv, std::collections::BTreeMap::new(), true, [end(), end(), end()]).await.unwrap();
        drop(pty.slave);
        let mut said = Vec::new();
        // The last reader's end gives an error instead of an end of file.
        let _ = std::fs::File::from(pty.master).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        assert_eq!((code, said.trim()), (5, "/dev/pts/0"));
    });
}
