//! Databases: made once, kept through kills and stops, closed to who has no password.

use crate::bed::{Bed, holds, test, until};
use moat_engine::Engine;
use moat_model::InstanceId;
use moat_model::state::{InstancePhase, Workload};
use moat_planner::plan::InstanceSpec;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Runs `psql` inside with arguments; its exit code and what it printed.
async fn psql(bed: &Bed, id: &InstanceId, args: &[&str]) -> (i32, String) {
    let path = bed.source.join("out");
    let file = || OwnedFd::from(fs::File::options().append(true).create(true).open(&path).unwrap());
    fs::write(&path, "").unwrap();
    let null = OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let words = ["psql", "-X", "-A", "-t"].iter().chain(args).map(|word| (*word).to_owned()).collect();
    let code = bed.engine.exec(id, words, BTreeMap::new(), false, [null, file(), file()]).await.unwrap();
    (code, fs::read_to_string(&path).unwrap().trim().to_owned())
}

async fn sql(bed: &Bed, id: &InstanceId, text: &str) -> String {
    let (code, said) = psql(bed, id, &["-v", "ON_ERROR_STOP=1", "-q", "-c", text]).await;
    assert_eq!(code, 0, "{text}: {said}");
    said
}

/// Waits until the database answers.
async fn ready(bed: &Bed, id: &InstanceId) {
    for _ in 0..1500 {
        let phase = bed.engine.observe().await.unwrap().instances[id].phase.clone();
        assert_eq!(phase, InstancePhase::Running, "{:?}", bed.log(id));
        if psql(bed, id, &["-c", "select 1"]).await.0 == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the server did not answer: {:?}", bed.log(id));
}

/// Another instance of the same database.
fn again(first: &InstanceSpec) -> InstanceSpec {
    InstanceSpec { workload: first.workload.clone(), ..Bed::postgres(None) }
}

async fn first_process(bed: &Bed, id: &InstanceId) -> u32 {
    bed.engine.observe().await.unwrap().instances[id].pid.unwrap()
}

/// Ends everything of an instance at once, as a power cut would.
async fn cut(bed: &Bed, id: &InstanceId) {
    kill(Pid::from_raw(first_process(bed, id).await.cast_signed()), Signal::SIGKILL).unwrap();
    bed.engine.wait(id).await.unwrap();
    bed.stop(id, 0).await;
}

fn data(bed: &Bed, spec: &InstanceSpec) -> PathBuf {
    bed.state.join("data").join(spec.service.as_str())
}

#[test]
fn what_is_committed_survives_a_kill_and_a_stop_with_clients() {
    test(async |bed: &Bed| {
        let first = Bed::postgres(None);
        bed.start(&first).await.unwrap();
        ready(bed, &first.id).await;
        assert_eq!(sql(bed, &first.id, "select current_user || ' ' || current_database()").await, "owner Shop-1");
        sql(bed, &first.id, "create table kept (n int)").await;
        sql(bed, &first.id, "insert into kept select generate_series(1, 1000)").await;
        // Two servers on one folder of data would spoil it.
        let second = again(&first);
        let error = bed.start(&second).await.unwrap_err();
        assert!(error.retry && error.to_string().contains("is in use by"), "{error}");
        cut(bed, &first.id).await;

        bed.start(&second).await.unwrap();
        ready(bed, &second.id).await;
        assert_eq!(sql(bed, &second.id, "select count(*) from kept").await, "1000");
        assert!(bed.log(&second.id).iter().all(|line| line != "making the database"));
        // A client that stays: the server sends it away and ends by itself, well before the grace is over.
        let client = psql(bed, &second.id, &["-c", "select pg_sleep(600)"]);
        let stop = async {
            loop {
                let busy = bed.engine.exec(
                    &second.id,
                    ["sh", "-c", "psql -X -A -t -c \"select 'it sleeps' from pg_stat_activity where query like '%pg_sleep(600)' and pid <> pg_backend_pid()\" | grep -q sleeps"].map(str::to_owned).to_vec(),
                    BTreeMap::new(),
                    false,
                    std::array::from_fn(|_| OwnedFd::from(fs::File::options().read(true).write(true).open("/dev/null").unwrap())),
                );
                if busy.await.unwrap() == 0 {
                    break;
                }
            }
            bed.stop(&second.id, 300).await;
        };
        let ((code, said), ()) = tokio::join!(client, stop);
        assert_ne!(code, 0, "{said}");
        assert!(bed.log(&second.id).iter().any(|line| line.contains("database system is shut down")), "{:?}", bed.log(&second.id));

        let third = again(&first);
        bed.start(&third).await.unwrap();
        ready(bed, &third.id).await;
        assert_eq!(sql(bed, &third.id, "select count(*) from kept").await, "1000");
        assert!(
            bed.log(&third.id).iter().all(|line| !line.contains("recovery")),
            "a stop writes everything down: {:?}",
            bed.log(&third.id)
        );
        bed.stop(&third.id, 60).await;
    });
}

#[test]
fn a_server_that_is_killed_while_it_is_made_is_made_anew() {
    test(async |bed: &Bed| {
        let spec = Bed::postgres(None);
        let new = data(bed, &spec).join("new");
        for moment in ["", "PG_VERSION", "base/1/PG_VERSION", "base/5/PG_VERSION", "postgresql.auto.conf"] {
            let spec = again(&spec);
            bed.start(&spec).await.unwrap();
            until(|| new.join(moment).exists() || data(bed, &spec).join("data").exists()).await;
            let whole = data(bed, &spec).join("data").exists();
            cut(bed, &spec.id).await;
            assert!(!whole, "the moment `{moment}` was missed");
        }
        let last = again(&spec);
        bed.start(&last).await.unwrap();
        ready(bed, &last.id).await;
        assert_eq!(sql(bed, &last.id, "select rolname from pg_roles where rolcanlogin order by 1").await, "moat\nowner");
        assert!(!new.exists());
        bed.stop(&last.id, 60).await;
    });
}

#[test]
fn who_has_no_password_stays_out_and_the_owner_is_no_superuser() {
    test(async |bed: &Bed| {
        let spec = Bed::postgres(None);
        bed.start(&spec).await.unwrap();
        ready(bed, &spec.id).await;
        let address = spec.address.v4;
        let by = |rest: &str| format!("host={address} dbname=Shop-1 {rest}");
        let (code, said) = psql(
            bed,
            &spec.id,
            &[
                &by("user=owner password=a-very-secret-word sslmode=require"),
                "-c",
                "select ssl from pg_stat_ssl where pid = pg_backend_pid()",
            ],
        )
        .await;
        assert_eq!((code, said.as_str()), (0, "t"), "TLS is offered");
        for (who, why) in [
            ("user=owner password=another", "password authentication failed"),
            ("user=owner", "no password supplied"),
            ("user=nobody password=a-very-secret-word", "password authentication failed"),
            ("user=moat password=a-very-secret-word", "rejects connection"),
        ] {
            let (code, said) = psql(bed, &spec.id, &[&by(who), "-w", "-c", "select 1"]).await;
            assert!(code != 0 && said.contains(why), "{who}: {said}");
        }
        assert_eq!(
            sql(bed, &spec.id, "select rolsuper, rolcreatedb, rolcreaterole, rolreplication from pg_roles where rolname = 'owner'").await,
            "f|t|f|f"
        );
        assert_eq!(
            sql(bed, &spec.id, "select pg_encoding_to_char(encoding), datcollate from pg_database where datname = 'Shop-1'").await,
            "UTF8|C.UTF-8"
        );
        // Extensions that are marked as trusted, and no others.
        sql(bed, &spec.id, "create extension pgcrypto").await;
        let (code, said) = psql(bed, &spec.id, &["-c", "create extension file_fdw"]).await;
        assert!(code != 0 && said.contains("permission denied"), "{said}");
        // Memory that processes of one query share is there: more than the 64 MiB of other sandboxes.
        let df = bed.engine.exec(
            &spec.id,
            ["sh", "-c", "test $(df --output=size /dev/shm | tail -1) -eq 262144"].map(str::to_owned).to_vec(),
            BTreeMap::new(),
            false,
            std::array::from_fn(|_| OwnedFd::from(fs::File::options().read(true).write(true).open("/dev/null").unwrap())),
        );
        assert_eq!(df.await.unwrap(), 0);

        // The password is in no argument, no log, and no file of the state folder.
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&line).contains("a-very-secret-word"), "{:?}", entry.path());
        }
        bed.stop(&spec.id, 60).await;
        assert_eq!(holds(&bed.state, "a-very-secret-word"), Vec::<PathBuf>::new());
    });
}

#[test]
fn another_version_is_answered_and_touches_nothing() {
    test(async |bed: &Bed| {
        let newest =
            *moat_engine_linux::toolchain::postgres::installed().keys().next_back().expect("`cargo xtask test` installs PostgreSQL");
        let wanting = |major| {
            let mut spec = Bed::postgres(None);
            let Workload::Postgres(server) = &mut spec.workload else { unreachable!() };
            server.major = Some(major);
            spec
        };
        let error = bed.start(&wanting(99)).await.unwrap_err();
        assert!(error.to_string().contains("PostgreSQL 99 is not on this machine, which has"), "{error}");
        let hint = error.hint.as_ref().unwrap();
        for words in [format!("postgresMajorVersion: \"{newest}\""), "apt-get install postgresql-99".to_owned(), "postgres:99".to_owned()] {
            assert!(hint.contains(&words), "{hint}");
        }
        let right = wanting(newest);
        assert!(!data(bed, &right).exists());
        bed.start(&right).await.unwrap();
        ready(bed, &right.id).await;
        bed.stop(&right.id, 60).await;

        // As if an older server had written it.
        let version = data(bed, &right).join("data/PG_VERSION");
        let control = data(bed, &right).join("data/global/pg_control");
        fs::write(&version, "9\n").unwrap();
        let before = fs::read(&control).unwrap();
        let error = bed.start(&wanting(newest)).await.unwrap_err();
        assert!(error.to_string().contains(&format!("its data is PostgreSQL 9's, and PostgreSQL {newest} is asked for")), "{error}");
        let error = bed.start(&Bed::postgres(None)).await.unwrap_err();
        assert!(error.to_string().contains("PostgreSQL 9 is not on this machine"), "{error}");
        assert_eq!(fs::read(&control).unwrap(), before);
        // A link of the server's own making leads nowhere.
        fs::remove_file(&version).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &version).unwrap();
        let error = bed.start(&Bed::postgres(None)).await.unwrap_err();
        assert!(error.to_string().contains("read the version"), "{error}");
    });
}
