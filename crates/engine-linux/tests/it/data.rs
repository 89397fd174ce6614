//! What is kept: disks and Key Values.

use crate::bed::{Bed, test};
use moat_model::NativeRuntime::Python;
use moat_model::Purpose;
use moat_model::state::{Disk, Persistence, Workload};
use std::os::fd::OwnedFd;

async fn cli(bed: &Bed, id: &moat_model::InstanceId, args: &[&str]) -> i32 {
    let null = || OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/null").unwrap());
    let words = std::iter::once("redis-cli").chain(args.iter().copied()).map(str::to_owned).collect();
    bed.engine.exec(id, words, std::collections::BTreeMap::default(), false, [null(), null(), null()]).await.unwrap()
}

async fn ready(bed: &Bed, id: &moat_model::InstanceId) {
    for _ in 0..300 {
        let phase = moat_engine::Engine::observe(&bed.engine).await.unwrap().instances[id].phase.clone();
        assert_eq!(phase, moat_model::state::InstancePhase::Running, "{:?}", bed.log(id));
        if cli(bed, id, &["-e", "ping"]).await == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the server did not answer: {:?}", bed.log(id));
}

#[test]
fn a_key_value_keeps_its_data_as_it_was_told() {
    test(async |bed: &Bed| {
        for (persistence, kept) in [(Persistence::JournalSnapshot, true), (Persistence::Snapshot, true), (Persistence::Off, false)] {
            let mut first = Bed::key_value(persistence);
            first.service = moat_model::ServiceId::new(format!("red-{persistence:?}").to_lowercase()).unwrap();
            bed.start(&first).await.unwrap();
            ready(bed, &first.id).await;
            assert_eq!(cli(bed, &first.id, &["-e", "set", "k", "v"]).await, 0);
            assert_eq!(cli(bed, &first.id, &["-e", "no-such-command"]).await, 1);
            // Two servers on one folder of data would spoil it.
            let mut second = Bed::key_value(persistence);
            second.service.clone_from(&first.service);
            if kept {
                let error = bed.start(&second).await.unwrap_err();
                assert!(error.retry && error.to_string().contains("is in use by"), "{error}");
            }
            bed.stop(&first.id, 10).await;
            bed.start(&second).await.unwrap();
            ready(bed, &second.id).await;
            let script = "return redis.call('get', 'k') == 'v' and 1 or redis.error_reply('gone')";
            assert_eq!(cli(bed, &second.id, &["-e", "eval", script, "0"]).await == 0, kept, "{persistence:?}");
            bed.stop(&second.id, 10).await;
        }
    });
}

#[test]
fn a_disk_is_there_for_what_serves_and_for_nothing_else() {
    test(async |bed: &Bed| {
        let disk = Disk { name: "files".to_owned(), mount_path: "/opt/render/project/src/data".into(), size_bytes: 1 << 30 };
        let with = |command: &str| {
            let mut spec = bed.native(Python, command);
            let Workload::Native(native) = &mut spec.workload else { unreachable!() };
            native.disk = Some(disk.clone());
            spec
        };
        let (report, lines) = bed.run(with("echo kept > data/file && id -u && stat -c %u data")).await;
        assert_eq!((report.code, lines), (0, vec!["1000".to_owned(), "1000".to_owned()]));
        let (_, lines) = bed.run(with("cat data/file")).await;
        assert_eq!(lines, ["kept"]);
        let mut job = with("true");
        job.purpose = Purpose::Job;
        job.command = Some("ls data 2>/dev/null || echo none".to_owned());
        let (_, lines) = bed.run(job).await;
        assert_eq!(lines, ["none"]);
    });
}
