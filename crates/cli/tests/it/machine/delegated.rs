//! A user of the machine, without root: the control groups that systemd gives away limit what the user's Moat runs.

use super::{Bed, bed, controllers};
use serde_json::Value;

/// The groups of all instances.
const GROUPS: &str = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/moat-*.scope/moat-*/*-*";
const BLUEPRINT: &str = "services:
  - type: web
    name: page
    runtime: image
    image: {url: docker.io/library/busy:1}
    dockerCommand: serve page
    envVars: [{key: PORT, value: 7000}]
  - type: pserv
    name: echo
    runtime: image
    image: {url: docker.io/library/busy:1}
    dockerCommand: serve echo
    envVars: [{key: PORT, value: 7000}]
";
/// Runs what follows as the user, whom nobody has logged in.
const AS_DEV: &str = "env HOME=/home/dev XDG_RUNTIME_DIR=/run/user/1000 setpriv --reuid 1000 --regid 1000 --init-groups";

#[test]
#[ignore = "takes some six minutes of a processor; `cargo xtask test --run-ignored only machine::` runs it"]
fn a_user_without_root_has_limits_by_delegated_control_groups() {
    let Some(mut bed) = bed() else { return };
    bed.ok("cp /payload/moat /usr/local/lib/moat");
    bed.ok(&format!(
        "printf '#!/bin/sh\\ncd\\nexec {AS_DEV} /usr/local/lib/moat \"$@\"\\n' >/usr/local/bin/moat && chmod +x /usr/local/bin/moat"
    ));
    bed.ok("useradd --create-home --uid 1000 dev && grep dev: /etc/subuid && systemctl -q unmask systemd-logind systemd-user-sessions && systemctl start systemd-user-sessions systemd-logind");
    bed.ok(&format!(
        "mkdir /home/dev/app && printf '{}' >/home/dev/app/render.yaml && chown -R dev: /home/dev",
        BLUEPRINT.replace('\n', "\\n")
    ));

    // As older systems have it: Ubuntu 22.04's keeps that controller.
    bed.ok(r"mkdir /etc/systemd/system/user@.service.d && printf '[Service]\nDelegate=\nDelegate=pids memory\n' >/etc/systemd/system/user@.service.d/a.conf && systemctl daemon-reload");
    // No systemd of the user's own yet: that is said, with what starts it; then that one controller is not given away.
    let finding = groups(&mut bed);
    assert!(finding["ok"] == false && finding["found"].as_str().unwrap().contains("no systemd of user 1000"), "{finding}");
    told(&mut bed, &finding, "loginctl");
    bed.wait("the user's systemd", "test -S /run/user/1000/systemd/private");
    let finding = groups(&mut bed);
    assert!(finding["ok"] == false && finding["found"] == "version 2, delegated to you without cpu", "{finding}");
    told(&mut bed, &finding, "");
    bed.wait("the user's systemd", "test -S /run/user/1000/systemd/private");
    bed.ok("mv /var/lib/systemd/linger/dev /root");
    let finding = groups(&mut bed);
    assert!(finding["ok"] == false && finding["hint"] == "`sudo loginctl enable-linger dev`", "{finding}");
    bed.ok("mv /root/dev /var/lib/systemd/linger");
    let finding = groups(&mut bed);
    assert!(finding["ok"] == true && finding["found"] == "version 2, delegated to you", "{finding}");
    bed.said("control groups are delegated");

    bed.ok("moat image load /payload/busy.tar");
    let up = bed.sh("moat up -d --listen 0.0.0.0:8080 /home/dev/app/render.yaml");
    assert!(up.code == 0 && !up.err.contains("limited") && !up.err.contains("log out"), "{} {}", up.out, up.err);
    bed.said("up");
    let scopes = format!("{AS_DEV} systemctl --user --no-legend list-units 'moat-*.scope'");
    assert_eq!(bed.ok(&scopes).lines().count(), 1, "of all commands, only the one that started it has left one");
    controllers(&mut bed, GROUPS, 2);
    // Where groups have groups below them there are no processes.
    let moats = GROUPS.trim_end_matches("/moat-*/*-*");
    assert_eq!(bed.ok(&format!("cat {moats}/cgroup.procs {moats}/moat-*/cgroup.procs")), "");
    assert!(bed.ok(&format!("for pid in $(cat {moats}/own/cgroup.procs); do tr '\\0' ' ' </proc/$pid/cmdline; done")).contains("__daemon"));
    assert_eq!(bed.ok("moat exec echo -- cat /proc/self/cgroup"), "0::/\n");
    bed.verify("without root");
    assert_eq!(groups(&mut bed)["ok"], true);

    bed.ok("moat down");
    // Nobody who runs the program is left, and no group.
    bed.wait("the end of all of it", "! find /sys/fs/cgroup -name 'moat-*' | grep . && ! pgrep -u dev -x moat");
    assert_eq!(bed.ok(&scopes), "");
    bed.ok("! test -e /run/user/1000/moat/outside.sock && ! test -e /run/user/1000/moat/holder.json");
}

/// What `doctor` says to the user of control groups.
#[track_caller]
fn groups(bed: &mut Bed) -> Value {
    let findings = bed.json("moat doctor --output json");
    findings.as_array().unwrap().iter().find(|finding| finding["name"] == "cgroups").unwrap().clone()
}

/// Runs what a hint says, as whoever may use sudo, of the commands that have a word.
#[track_caller]
fn told(bed: &mut Bed, finding: &Value, word: &str) {
    let hint = finding["hint"].as_str().unwrap();
    for command in hint.split('`').skip(1).step_by(2).filter(|command| command.contains(word) && !command.starts_with("moat")) {
        bed.ok(&command.replace("sudo ", ""));
    }
}
