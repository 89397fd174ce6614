//! The same attempts where root is that of a user namespace only, as for a Moat of a user who is not root.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

/// Runs this program's tests of attack rows as a user without any privilege, in namespaces of its own.
#[test]
fn every_row_holds_without_root() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root to become somebody else");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("it");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let as_user = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
        command.args(["unshare", "--user", "--map-root-user", "--net", "--mount"]).current_dir("/").stdin(Stdio::null());
        command
    };
    let may = as_user().arg("true").output().unwrap();
    if !may.status.success() {
        println!("skipped: this kernel has no user namespaces for users: {}", String::from_utf8_lossy(&may.stderr).trim());
        return;
    }
    // Each test makes its machine on a thread of its own, and mostly waits. Row 29 takes a minute for every port there is: once is enough.
    let mut tests = as_user();
    tests.arg(&program).args(["::row", "an_element_that_opens_a_worker", "--skip", "row_29", "--test-threads=4"]);
    let output = tests.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let passed = said.lines().filter(|line| line.starts_with("test ") && line.ends_with(" ok")).count();
    assert!(passed >= 12 && !said.contains("skipped:"), "{said}");
}
