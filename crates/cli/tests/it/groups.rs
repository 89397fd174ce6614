//! Control groups without root, as far as any machine can show it: where processes are put and what is left. What the controllers do is
//! shown by a machine of its own (`machine`).

use crate::host::{Host, example, host, wait_for};
use crate::rootless::{User, user};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A part of the version 2 hierarchy that belongs to the user, with a group `shell` in it, where somebody is.
struct Delegated(PathBuf, Child);

impl Delegated {
    fn new(host: &Host, uid: u32) -> Self {
        host.sh("mount -t cgroup2 none /sys/fs/cgroup").ok();
        let name = host.path("").file_name().unwrap().to_string_lossy().into_owned();
        host.sh(&format!(
            "cd /sys/fs/cgroup && mkdir -p {name}/shell && for g in {name} {name}/shell; do chown {uid}:{uid} $g $g/cgroup.procs $g/cgroup.subtree_control; done"
        ))
        .ok();
        let folder = Path::new("/proc").join(host.holder_pid().to_string()).join("root/sys/fs/cgroup").join(name);
        let stays = Command::new("sh")
            .args(["-c", "echo $$ >\"$0/shell/cgroup.procs\" && echo in && exec sleep 1000"])
            .arg(&folder)
            .stdout(Stdio::piped())
            .spawn();
        let mut stays = stays.unwrap();
        let mut word = [0; 3];
        stays.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        Self(folder, stays)
    }

    /// Every group below, with the names of its processes.
    fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut found = Vec::new();
        let mut todo = vec![self.0.clone()];
        while let Some(folder) = todo.pop() {
            let mut processes: Vec<String> = fs::read_to_string(folder.join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
                .map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " "))
                .collect();
            processes.sort();
            found.push((folder.strip_prefix(&self.0).unwrap().display().to_string(), processes));
            todo.extend(fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.path()).filter(|path| path.is_dir()));
        }
        found.sort();
        found
    }

    fn names(&self) -> Vec<String> {
        self.groups().into_iter().map(|(name, _)| name).collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let _ = self.1.kill();
        let _ = self.1.wait();
        for (name, _) in self.groups().iter().rev() {
            let _ = fs::write(self.0.join(name).join("cgroup.kill"), "1");
            for _ in 0..100 {
                if fs::remove_dir(self.0.join(name)).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

#[test]
fn without_root_instances_are_in_groups_of_what_is_delegated_and_nothing_is_left_of_them() {
    let Some(host) = host() else { return };
    let Some(user) = user(&host) else { return };
    let delegated = Delegated::new(&host, User::ID);
    let file = example(&host, "hello");
    host.sh(&format!("chown -R {0}:{0} {1}", User::ID, file.parent().unwrap().display())).ok();
    let file = file.to_str().unwrap();

    // A shell in one group of it: what is Moat's is beside that. Then a group with nobody else in it, which is divided itself.
    for (from, base) in [("shell", Some("moat-")), ("", None)] {
        let began = delegated.names();
        let moat = |args: &[&str]| user.moat_in(&delegated.0.join(from), args);
        let doctor = moat(&["doctor"]);
        // Here other controllers than those that count are of version 2.
        assert!(doctor.out.contains("version 2, delegated to you without memory, cpu, pids"), "{}", doctor.out);
        wait_for("nothing of doctor", || host.processes().is_empty());
        assert_eq!(delegated.names(), began);

        let up = moat(&["up", "-d", "--listen", "127.0.0.1:8473", file]).ok();
        let lack = "memory and CPU of services are not limited: you are not given the controllers `memory`, `cpu`, `pids`; `sudo mkdir -p";
        assert!(up.err.contains(lack) && !up.err.contains("not copied"), "{}", up.err);
        // What starts nothing itself may come from anywhere.
        let moat = |args: &[&str]| user.moat(args);
        let groups = delegated.groups();
        let moats = groups.iter().find(|(name, _)| name == "own" || name.ends_with("/own"));
        let (own, ours) = moats.unwrap_or_else(|| panic!("{groups:?}"));
        for role in ["__holder", "__daemon", "__dataplane", "__monitor"] {
            assert!(ours.iter().any(|line| line.contains(role)), "{role}: {groups:?}");
        }
        let top = own.strip_suffix("own").unwrap().trim_end_matches('/');
        assert!(base.map_or(top.is_empty(), |base| top.starts_with(base)), "{own}");
        // No group with groups below it has processes.
        for (name, processes) in &groups {
            let parent = groups
                .iter()
                .any(|(other, _)| other != name && other.starts_with(name) && (name.is_empty() || other.as_bytes()[name.len()] == b'/'));
            assert!(!parent || processes.is_empty(), "{name}: {processes:?}");
        }
        let counter = groups.iter().find(|(_, lines)| lines.iter().any(|line| line.starts_with("python3 -u counter.py")));
        assert!(counter.is_some_and(|(name, _)| name.contains("/srv-")), "{groups:?}");
        moat(&["verify"]).ok();
        // In the group of the instance, which is the root of its own.
        let exec = user.moat_in(&delegated.0.join("shell"), &["exec", "counter", "--", "grep", "0::", "/proc/self/cgroup"]).ok();
        assert_eq!(exec.out, "0::/\n");

        // Another background process goes where the one before was, and what it starts too.
        host.kill(host.daemon().unwrap(), "KILL");
        wait_for("the daemon's end", || host.daemon().is_none());
        user.moat_in(&delegated.0.join("shell"), &["up", "-d", "--listen", "127.0.0.1:8473", file]).ok();
        let before: Vec<String> = delegated.names();
        moat(&["restart", "counter"]).ok();
        wait_for("another instance in a group", || delegated.names() != before);

        moat(&["down"]).ok();
        wait_for("everything to end", || host.processes().is_empty());
        wait_for("no group", || delegated.names() == began);
    }
}
