//! Bad input and faults: a clear message, and nothing half-made is left.

use crate::host::{Host, example, host, service, wait_for};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

fn blueprint(kind: &str, start: &str) -> String {
    format!("services:\n  - type: {kind}\n    name: probe\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: {start}\n")
}

/// Runs a blueprint that must fail; gives what was said, and checks that nothing is left after `down`.
fn fails(host: &Host, text: &str, args: &[&str]) -> String {
    let file = host.write("bad/render.yaml", text);
    let before = host.inventory();
    let said = host.moat(&[&["up", "-d"], args, &[file.to_str().unwrap()]].concat());
    assert_ne!(said.code, 0, "{}\n{}", said.out, said.err);
    host.moat(&["down"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
    format!("{}\n{}", said.out, said.err)
}

#[test]
fn a_command_that_exits_at_once_is_said_with_its_last_lines() {
    let Some(host) = host() else { return };
    let said = fails(&host, &blueprint("web", "\"echo I give up; exit 3\""), &[]);
    assert!(said.contains("exited with status 3") && said.contains("I give up"), "{said}");
}

#[test]
fn a_build_that_fails_is_said_with_its_last_lines() {
    let Some(host) = host() else { return };
    let text = blueprint("web", "python3 -m http.server").replace("\"true\"", "\"echo compiling; echo no such header >&2; exit 9\"");
    let said = fails(&host, &text, &[]);
    assert!(said.contains("build") && said.contains("exited with status 9") && said.contains("no such header"), "{said}");
}

#[test]
fn a_service_on_loopback_only_is_told_to_bind_to_all() {
    let Some(host) = host() else { return };
    let said = fails(&host, &blueprint("pserv", "python3 -m http.server 8000 --bind 127.0.0.1"), &["--start-timeout", "4"]);
    assert!(said.contains("127.0.0.1:8000 only") && said.contains("0.0.0.0"), "{said}");
}

#[test]
fn a_service_that_listens_on_nothing_is_told_about_workers() {
    let Some(host) = host() else { return };
    let said = fails(&host, &blueprint("web", "sleep 600"), &["--start-timeout", "10"]);
    assert!(said.contains("listens on nothing") && said.contains("background worker"), "{said}");
}

#[test]
fn a_service_on_another_port_than_port_is_served_there() {
    let Some(host) = host() else { return };
    let file = host.write("b/render.yaml", &blueprint("web", "python3 -m http.server 3000"));
    let said = host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    assert!(format!("{}{}", said.out, said.err).contains("listens on 3000, not on PORT 10000"), "{}{}", said.out, said.err);
    assert_eq!(host.http(8080, "probe.localhost", "/render.yaml").0, 200);
}

#[test]
fn a_port_already_taken_is_said_with_another_to_use() {
    let Some(host) = host() else { return };
    let file = example(&host, "hello");
    let mut taker = host
        .command("python3")
        .args(["-c", "import socket,time; s=socket.socket(); s.bind(('127.0.0.1',8080)); s.listen(); time.sleep(600)"])
        .spawn()
        .unwrap();
    wait_for("the taker", || host.sh("ss -Htln sport = :8080").out.contains(":8080"));
    let before = host.inventory();
    let said = host.moat(&["up", "-d", file.to_str().unwrap()]);
    let _ = taker.kill();
    let _ = taker.wait();
    assert_eq!(said.code, 3);
    assert!(said.err.contains("127.0.0.1:8080") && said.err.contains("--listen"), "{}", said.err);
    host.moat(&["down"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert!(host.inventory().is_subset(&before));
}

#[test]
fn a_full_state_folder_is_said() {
    let Some(host) = host() else { return };
    let file = example(&host, "hello");
    host.sh(&format!(
        "mkdir -p {0} && mount -t tmpfs -o size=1m none {0} && head -c 1020k /dev/zero > {0}/filler",
        host.path("state").display()
    ))
    .ok();
    let said = host.moat(&["up", "-d", "--start-timeout", "10", file.to_str().unwrap()]);
    assert_ne!(said.code, 0);
    assert!(format!("{}{}", said.out, said.err).to_lowercase().contains("no space"), "{}{}", said.out, said.err);
    host.sh(&format!("rm {}/filler", host.path("state").display()));
    host.moat(&["down"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
}

#[test]
fn a_change_that_does_not_fit_is_refused_whole_and_fits_later() {
    let Some(host) = host() else { return };
    let state = host.path("state").display().to_string();
    host.sh(&format!("mkdir -p {state} && mount -t tmpfs -o size=300m none {state}")).ok();
    let file = host.write("b/render.yaml", &blueprint("worker", "sleep 100000"));
    let file = file.to_str().unwrap();
    host.moat(&["up", "-d", file]).ok();
    let pid = |host: &Host| service(&host.ps(), "probe")["instances"][0]["pid"].as_u64().unwrap();
    let before = pid(&host);
    host.sh(&format!("head -c 400m /dev/zero > {state}/filler"));
    // Larger than what the files have room for.
    let changed = format!("{}{}", blueprint("worker", "sleep 200000"), "# a long comment\n".repeat(150_000));
    host.write("b/render.yaml", &changed);
    let refused = host.moat(&["up", "-d", file]);
    assert!(refused.code == 3 && refused.err.contains("no space left") && refused.err.contains("what ran goes on"), "{}", refused.err);
    assert_eq!(pid(&host), before);
    host.sh(&format!("rm {state}/filler")).ok();
    host.moat(&["up", "-d", file]).ok();
    assert_ne!(pid(&host), before);
    host.moat(&["down"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    host.sh(&format!("umount {state}")).ok();
}

#[test]
fn no_permission_is_said() {
    let Some(host) = host() else { return };
    let file = example(&host, "hello");
    host.sh(&format!("chmod -R a+rX {}", host.path("").display())).ok();
    let said =
        host.sh(&format!("setpriv --reuid 65534 --regid 65534 --clear-groups {} up -d {}", env!("CARGO_BIN_EXE_moat"), file.display()));
    if said.code == 126 || said.err.contains("Permission denied") && said.err.contains("setpriv") {
        println!("skipped: another user can't reach the built program here ({})", said.err.trim());
        return;
    }
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(said.err.contains("root") && said.err.contains("sudo"), "{}", said.err);
}

#[test]
fn killed_at_any_moment_the_next_up_or_down_mends_it() {
    let Some(host) = host() else { return };
    let file = example(&host, "hello");
    let file = file.to_str().unwrap();
    let before = host.inventory();
    for (n, millis) in [30_u64, 150, 400, 900, 1_800].into_iter().enumerate() {
        let mut up = host.spawn(&["up", file]);
        std::thread::sleep(Duration::from_millis(millis));
        let _ = up.kill();
        let _ = up.wait();
        if let Some(daemon) = host.daemon() {
            host.kill(daemon, "KILL");
        }
        if n > 2
            && let Some((plane, _)) = host.processes().into_iter().find(|(_, line)| line.contains("__dataplane"))
        {
            host.kill(plane, "KILL");
        }
        if n % 2 == 1 {
            host.moat(&["up", "-d", file]).ok();
            assert_eq!(host.http(8080, "hello.localhost", "/healthz").0, 200, "after {millis} ms");
        }
        host.moat(&["down"]).ok();
        wait_for("the daemon's end", || host.daemon().is_none());
        assert_eq!(host.inventory(), before, "after {millis} ms");
    }
}

#[test]
fn a_killed_daemon_hurts_no_workload_and_the_next_one_adopts() {
    let Some(host) = host() else { return };
    let file = example(&host, "hello");
    let file = file.to_str().unwrap();
    host.moat(&["up", "-d", file]).ok();
    let pids = |host: &Host| -> Vec<String> {
        let ps = host.ps();
        let mut all: Vec<String> = ps["services"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|s| s["instances"].as_array().unwrap())
            .filter(|i| i["purpose"] == "serve")
            .map(|i| format!("{} {}", i["id"], i["pid"]))
            .collect();
        all.sort();
        all
    };
    let first = pids(&host);
    let instance = |ps: &serde_json::Value, slug: &str| {
        let one = &service(ps, slug)["instances"][0];
        (one["pid"].as_u64().unwrap(), one["address"]["v4"].as_str().unwrap().to_owned())
    };
    let ps = host.ps();
    let ((hello, _), (worker, worker_address), (_, greeter)) = (instance(&ps, "hello"), instance(&ps, "counter"), instance(&ps, "greeter"));
    host.kill(host.daemon().unwrap(), "KILL");
    wait_for("the daemon's end", || host.daemon().is_none());
    // While it is dead: what was allowed goes on, and a worker that listens is reached by nobody but itself.
    let mut listener =
        host.command("nsenter").args([&format!("--net=/proc/{worker}/ns/net"), "python3", "-m", "http.server", "4444"]).spawn().unwrap();
    let ask =
        |pid: u64, url: &str| host.sh(&format!("nsenter --net=/proc/{pid}/ns/net curl -s -m 3 -o /dev/null -w '%{{http_code}}' {url}")).out;
    wait_for("the listener", || ask(worker, &format!("http://{worker_address}:4444/")) == "200");
    assert_eq!(ask(hello, &format!("http://{worker_address}:4444/")), "000");
    assert_eq!(ask(hello, &format!("http://{greeter}:7000/")), "200");
    let _ = listener.kill();
    let _ = listener.wait();
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(pids(&host), first, "the same processes run on");
    assert_eq!(host.http(8080, "hello.localhost", "/healthz").0, 200);
    let verify = host.moat(&["verify"]);
    assert_eq!(verify.code, 0, "{}\n{}", verify.out, verify.err);
}

#[test]
fn a_pre_deploy_command_runs_once_whatever_becomes_of_the_daemon() {
    let Some(host) = host() else { return };
    let written = |word: &str| {
        let logs = std::fs::read_dir(host.path("state/logs/probe")).into_iter().flatten().flatten();
        let texts = logs.map(|log| std::fs::read_to_string(log.path()).unwrap_or_default());
        texts.map(|text| text.matches(word).count()).sum::<usize>()
    };
    // The first goes on when the next daemon comes; the second has ended by then.
    for (round, ends_first) in [("one", false), ("two", true)] {
        let text = format!(
            "services:\n  - type: worker\n    name: probe\n    runtime: node\n    buildCommand: \"true\"\n    startCommand: sleep 100000\n    \
             preDeployCommand: echo begun-$ROUND; sleep 2; echo ended-$ROUND\n    envVars: [{{key: ROUND, value: {round}}}]\n"
        );
        let file = host.write("migrating/render.yaml", &text);
        let mut up = host.spawn(&["up", "-d", file.to_str().unwrap()]);
        wait_for("the command", || written(&format!("begun-{round}")) == 1);
        host.kill(host.daemon().unwrap(), "KILL");
        assert!(!up.wait().unwrap().success());
        if ends_first {
            wait_for("its end", || written(&format!("ended-{round}")) == 1);
        }
        host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
        assert_eq!((written(&format!("begun-{round}")), written(&format!("ended-{round}"))), (1, 1), "{round}");
    }
}

#[test]
fn ctrl_c_stops_all_in_the_middle_and_at_the_end() {
    let Some(host) = host() else { return };
    let file = example(&host, "hello");
    let before = host.inventory();
    for ready in [false, true] {
        let up = host.spawn(&["up", file.to_str().unwrap()]);
        if ready {
            wait_for("the page", || host.http(8080, "hello.localhost", "/healthz").0 == 200);
        } else {
            wait_for("the router namespace", || host.path("run/netns/router").exists());
        }
        // nsenter executes the program in place, so the child is `moat` itself.
        host.kill(up.id(), "INT");
        let output = up.wait_with_output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 130)), "{}", String::from_utf8_lossy(&output.stderr));
        wait_for("the daemon's end", || host.daemon().is_none());
        assert_eq!(host.inventory(), before, "ready: {ready}");
    }
}

#[test]
fn missing_values_are_listed_and_can_be_given() {
    let Some(host) = host() else { return };
    let text = "services:\n  - type: worker\n    name: probe\n    runtime: python\n    buildCommand: \"true\"\n    startCommand: \"echo token=$TOKEN; sleep 600\"\n    envVars:\n      - key: TOKEN\n        sync: false\n      - key: OTHER\n        sync: false\n";
    let file = host.write("b/render.yaml", text);
    let file = file.to_str().unwrap();
    let said = host.moat(&["up", "-d", file]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("TOKEN") && said.err.contains("OTHER") && said.err.contains("--set"), "{}", said.err);
    host.moat(&["up", "-d", "--set", "TOKEN=s3cret", "--set", "probe.OTHER=x", file]).ok();
    wait_for("the line", || host.moat(&["logs", "probe"]).out.contains("token=s3cret"));
    // A secret never appears in an argument list or in what is shown without being asked for.
    assert!(host.processes().iter().all(|(_, line)| !line.contains("s3cret") || line.contains("echo token")), "{:?}", host.processes());
    assert!(!host.moat(&["ps", "--output", "json"]).out.contains("s3cret"));
    assert!(!host.daemon_log().contains("s3cret"));
}

/// Leaves a process so many descriptors that it has not opened.
fn leave_descriptors(host: &Host, pid: u32, free: usize) {
    let open: BTreeSet<u64> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_string_lossy().parse().ok())
        .collect();
    let limit = (0..).filter(|number| !open.contains(number)).nth(free).unwrap();
    host.sh(&format!("prlimit --pid {pid} --nofile={limit}:")).ok();
}

/// What can't be seen is not gone: a daemon that can open nothing ends no instance and starts none a second time.
#[test]
fn a_daemon_out_of_descriptors_hurts_no_workload_and_goes_on_when_it_has_some() {
    let Some(host) = host() else { return };
    // Only what is set changes: the source of all of them is the same.
    let text = "services:\n  - {type: web, name: page, runtime: python, buildCommand: 'true', healthCheckPath: /, startCommand: exec python3 -m http.server $PORT}\n  \
                - {type: worker, name: mill, runtime: python, buildCommand: 'true', startCommand: 'exec sleep 100000'}\n  \
                - {type: worker, name: other, runtime: python, buildCommand: 'true', startCommand: 'exec sleep 100000', envVars: [{key: WORD, sync: false}]}\n";
    let file = host.write("b/render.yaml", text);
    let up = |word: &str| host.moat(&["up", "-d", "--set", &format!("WORD={word}"), file.to_str().unwrap()]);
    up("one").ok();
    let pid = |slug: &str| service(&host.ps(), slug)["instances"][0]["pid"].as_u64().unwrap();
    let (page, mill, other) = (pid("page"), pid("mill"), pid("other"));
    let daemon = host.daemon().unwrap();
    let alive = |pid: u64| std::path::Path::new(&format!("/proc/{pid}")).exists();

    leave_descriptors(&host, daemon, 0);
    // Nobody hears of this end for now; and of the others nothing is seen for longer than one that is not healthy takes traffic.
    host.kill(u32::try_from(mill).unwrap(), "KILL");
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        assert_eq!(host.http(8080, "page.localhost", "/").0, 200);
        assert!(alive(page) && alive(other));
        std::thread::sleep(Duration::from_millis(300));
    }

    // With a few it answers, and says why it can't do more.
    leave_descriptors(&host, daemon, 4);
    assert_eq!((pid("page"), pid("other")), (page, other));
    let refused = up("two");
    assert!(refused.code != 0 && refused.err.contains("error: "), "{refused:?}");
    assert_eq!(host.http(8080, "page.localhost", "/").0, 200);

    host.sh(&format!("prlimit --pid {daemon} --nofile=$(prlimit --pid {daemon} --nofile --noheadings --raw --output HARD):")).ok();
    up("two").ok();
    assert_eq!(host.daemon(), Some(daemon));
    wait_for("the new instance of the one that ended", || {
        let ps = host.ps();
        let instances = service(&ps, "mill")["instances"].as_array().unwrap();
        instances.len() == 1 && instances[0]["ready"] == true && instances[0]["pid"] != mill
    });
    assert_eq!(pid("page"), page, "it was never touched");
    assert_ne!(pid("other"), other);
    // How it ended is known all the same.
    let events = host.moat(&["events", "--output", "json"]).ok().out;
    let ends: Vec<&str> = events.lines().filter(|line| line.contains("\"mill\"") && line.contains("signal 9")).collect();
    assert!(!ends.is_empty() && !events.contains("vanished"), "{events}");
    let verify = host.moat(&["verify"]);
    assert_eq!(verify.code, 0, "{}\n{}", verify.out, verify.err);
}

/// A daemon that can't see what runs when it begins leaves all as it is, and the next one that can goes on with it.
#[test]
fn a_daemon_that_begins_blind_starts_nothing() {
    let Some(host) = host() else { return };
    let file = host.write("b/render.yaml", &blueprint("worker", "exec sleep 100000"));
    let file = file.to_str().unwrap();
    host.moat(&["up", "-d", file]).ok();
    let pid = |host: &Host| service(&host.ps(), "probe")["instances"][0]["pid"].as_u64().unwrap();
    let before = pid(&host);
    let instances = || std::fs::read_dir(host.path("run/instances")).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let folders = instances();
    host.kill(host.daemon().unwrap(), "KILL");
    wait_for("the daemon's end", || host.daemon().is_none());
    // A folder in the place of a file can't be read as one.
    let monitor = folders[0].join("monitor.json");
    let kept = host.path("kept.json");
    std::fs::rename(&monitor, &kept).unwrap();
    std::fs::create_dir(&monitor).unwrap();
    let refused = host.moat(&["up", "-d", file]);
    assert!(refused.code == 3 && refused.err.contains("can't see what runs"), "{refused:?}");
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(instances(), folders);
    std::fs::remove_dir(&monitor).unwrap();
    std::fs::rename(&kept, &monitor).unwrap();
    host.moat(&["up", "-d", file]).ok();
    assert_eq!((pid(&host), instances()), (before, folders));
}
