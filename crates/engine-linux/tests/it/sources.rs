//! Source that git brings.

use crate::bed::{Bed, test};
use moat_engine_linux::BuildRequest;
use moat_model::NativeRuntime::Python;
use moat_model::state::{Source, Workload};
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

fn git(folder: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-C"]).arg(folder).args(args);
    let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn commit(folder: &Path, file: &str, text: &str) -> String {
    fs::write(folder.join(file), text).unwrap();
    git(folder, &["add", "-A"]);
    git(folder, &["commit", "-q", "-m", text]);
    git(folder, &["rev-parse", "HEAD"])
}

#[test]
fn commits_are_taken_compared_and_collected() {
    test(async |bed: &Bed| {
        let repository = bed.config().state_dir.join("theirs");
        fs::create_dir_all(&repository).unwrap();
        git(&repository, &["init", "-q", "-b", "main"]);
        let first = commit(&repository, "a b.txt", "first");
        let second = commit(&repository, "other", "second");
        let third = commit(&repository, "\u{e9}", "third");

        // One folder for every commit, each as it was.
        let source = |commit: Option<&String>| Source::Repository {
            url: repository.display().to_string(),
            branch: commit.is_none().then(|| "main".to_owned()),
            commit: commit.cloned(),
        };
        let spec = bed.native(Python, "true");
        let Workload::Native(native) = &spec.workload else { unreachable!() };
        let request = |commit: Option<&String>| BuildRequest {
            service: spec.service.clone(),
            slug: spec.slug.clone(),
            source: source(commit),
            root_dir: PathBuf::new(),
            build_fingerprint: String::new(),
            runtime: native.runtime,
            version: native.version.clone(),
            commands: Vec::new(),
            env: std::collections::BTreeMap::new(),
        };
        let project = |name: &str| bed.config().state_dir.join("releases").join(name).join("project/src");
        for (commit, has, lacks) in [(&first, "a b.txt", "other"), (&third, "other", ".git"), (&second, "other", "\u{e9}")] {
            let release = bed.engine.prepare_release(request(Some(commit)), |_| ()).await.unwrap().release;
            assert_eq!(release.commit.as_ref(), Some(commit));
            assert!(project(&release.name).join(has).exists() && !project(&release.name).join(lacks).exists(), "{commit}");
        }
        // Each is fetched without its history.
        let fetched = fs::read_dir(bed.config().state_dir.join("sources")).unwrap().flatten().filter(|entry| entry.path().is_dir());
        for entry in fetched {
            assert_eq!(git(&entry.path(), &["rev-parse", "--is-shallow-repository"]), "true", "{}", entry.path().display());
        }
        let newest = bed.engine.prepare_release(request(None), |_| ()).await.unwrap().release;
        assert_eq!(newest.commit, Some(third.clone()));
        let missing = "0123456789012345678901234567890123456789".to_owned();
        let error = bed.engine.prepare_release(request(Some(&missing)), |_| ()).await.unwrap_err();
        assert!(error.to_string().contains(&missing), "{error}");

        // What differs, by the names as they are; what is not there any more is left out.
        let from: BTreeSet<String> = [first.clone(), third.clone(), missing, "--output=/tmp/x".to_owned()].into();
        let changed = bed.engine.changed_files(repository.clone(), from, third.clone()).await.unwrap();
        assert_eq!(changed.get(&first).unwrap(), &["other", "\u{e9}"]);
        assert!(changed.get(&third).unwrap().is_empty() && changed.len() == 2, "{changed:?}");

        // Only what nobody has any more goes, and not while somebody reads it.
        let folder = bed.config().state_dir.join("sources");
        let left = || fs::read_dir(&folder).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
        assert_eq!(left(), 2);
        let bases = bed.config().state_dir.join("builds").join(spec.service.as_str()).join("bases");
        fs::create_dir_all(&bases).unwrap();
        bed.engine.collect_fetched(vec![source(Some(&first))], [spec.service.clone()].into()).await.unwrap();
        assert!(left() == 1 && bases.exists());
        let lock =
            fs::read_dir(&folder).unwrap().flatten().find(|entry| entry.path().extension().is_some_and(|end| end == "lock")).unwrap();
        let held = Flock::lock(File::open(lock.path()).unwrap(), FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
        bed.engine.collect_fetched(Vec::new(), BTreeSet::new()).await.unwrap();
        assert!(left() == 1 && !bases.exists());
        drop(held);
        bed.engine.collect_fetched(Vec::new(), BTreeSet::new()).await.unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert_eq!(bed.engine.prepare_release(request(Some(&second)), |_| ()).await.unwrap().release.commit, Some(second.clone()));
    });
}
