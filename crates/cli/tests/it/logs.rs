//! What services write, and reading it.

use crate::host::{Host, host, service, wait_for};
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

/// Says what is put into its /tmp/say, and before that a few lines.
const TALKER: &str = "services:
  - type: worker
    name: talker
    runtime: python
    buildCommand: 'true'
    startCommand: for n in 0 1 2; do echo \"begin $n\"; done; while :; do if test -e /tmp/say; then cat /tmp/say; rm /tmp/say; fi; sleep 0.05; done
  - type: worker
    name: other
    runtime: python
    buildCommand: 'true'
    startCommand: echo the other one; exec sleep 100000
";

fn lines(host: &Host, args: &[&str]) -> Vec<Value> {
    let said = host.moat(&[&["logs", "--output", "json"], args].concat()).ok();
    said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn texts(host: &Host, args: &[&str]) -> Vec<String> {
    lines(host, args).iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect()
}

fn say(host: &Host, text: &str) {
    host.moat(&[
        "exec",
        "talker",
        "--",
        "sh",
        "-c",
        &format!("echo '{text}' > /tmp/new && mv /tmp/new /tmp/say && while test -e /tmp/say; do sleep 0.02; done"),
    ])
    .ok();
}

#[test]
fn lines_are_chosen_by_service_instance_time_and_pattern_and_followed() {
    let Some(host) = host() else { return };
    let file = host.write("b/render.yaml", TALKER);
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let begin = ["begin 0", "begin 1", "begin 2"].map(str::to_owned);
    wait_for("the first lines", || texts(&host, &["talker"]).ends_with(&begin));
    wait_for("the other's", || texts(&host, &["other"]).ends_with(&["the other one".to_owned()]));
    let first = service(&host.ps(), "talker")["instances"][0]["id"].as_str().unwrap().to_owned();

    // Each way to name a service is the same.
    assert_eq!(lines(&host, &["--service", "talker"]), lines(&host, &["talker"]));
    assert!(lines(&host, &[]).iter().any(|line| line["service"] == "other"));
    assert_eq!(host.moat(&["logs", "--service", "talker", "other"]).code, 2);
    assert_eq!(host.moat(&["logs", "--service", "nobody"]).code, 1);

    let mut follow = host.moat_command(&["logs", "-f", "--service", "talker", "--grep", "^said", "--output", "json"]);
    let mut follow = follow.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut followed = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&followed.next().unwrap().unwrap()).unwrap();
    say(&host, "said one");
    let line = next();
    assert_eq!((&line["text"], &line["instance"], &line["stream"]), (&"said one".into(), &first.as_str().into(), &"stdout".into()));
    say(&host, "not this");
    say(&host, "said two");
    let two = next();
    assert_eq!(two["text"], "said two");

    // From its time on, the line itself included; a time that is long ago is all.
    let since = two["time"].as_str().unwrap();
    assert_eq!(texts(&host, &["talker", "--since", since]), ["said two"]);
    assert_eq!(texts(&host, &["talker", "--since", "1d"]), texts(&host, &["talker"]));
    assert_eq!(texts(&host, &["--grep", "said (one|two)|other one"]), ["the other one", "said one", "said two"]);
    assert_eq!(texts(&host, &["talker", "--grep", "said", "-n", "1"]), ["said two"]);
    assert_eq!(texts(&host, &["talker", "-n", "2"]), ["not this", "said two"]);

    // Who follows goes on with the next instance; what one has written that is gone is still there.
    host.moat(&["restart", "talker"]).ok();
    let second = service(&host.ps(), "talker")["instances"].as_array().unwrap().iter().find(|i| i["ready"] == true).unwrap()["id"].clone();
    assert_ne!(second, first);
    wait_for("the old instance's end", || service(&host.ps(), "talker")["instances"].as_array().unwrap().len() == 1);
    say(&host, "said three");
    let line = next();
    assert_eq!((&line["text"], &line["instance"]), (&"said three".into(), &second));
    let of = |id: &str| texts(&host, &["talker", "--instance", id]);
    assert_eq!(of(&first), [&begin[..], &["said one", "not this", "said two"].map(str::to_owned)].concat());
    assert_eq!(of(second.as_str().unwrap()), [&begin[..], &["said three".to_owned()]].concat());
    let times: Vec<String> = lines(&host, &[]).iter().map(|line| line["time"].as_str().unwrap().to_owned()).collect();
    assert!(times.is_sorted(), "{times:?}");
    let _ = follow.kill();
    let _ = follow.wait();
}

/// The number at the end of each line.
fn numbers(host: &Host, service: &str) -> Vec<u64> {
    texts(host, &[service, "--grep", "^n [0-9]+$"]).iter().map(|text| text[2..].parse().unwrap()).collect()
}

#[test]
fn no_line_is_lost_over_a_daemon_that_is_killed_and_one_that_becomes_another() {
    let Some(host) = host() else { return };
    let text = "services:\n  - type: worker\n    name: writer\n    runtime: python\n    buildCommand: 'true'\n    \
                startCommand: exec perl -e '$| = 1; while (1) { print \"n \", $n++, \"\\n\"; select(undef, undef, undef, 0.002) }'\n";
    let file = host.write("b/render.yaml", text);
    let file = file.to_str().unwrap();
    host.moat(&["up", "-d", file]).ok();
    let written = |host: &Host, more: usize| {
        let before = numbers(host, "writer").len();
        wait_for("more lines", || numbers(host, "writer").len() > before + more);
    };
    written(&host, 200);
    let log = || {
        let folder = host.path("state/logs/writer");
        let logs = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        logs.filter_map(|path| std::fs::read_to_string(path).ok())
            .filter(|text| text.contains(" F n "))
            .map(|text| text.lines().count())
            .sum::<usize>()
    };
    host.kill(host.daemon().unwrap(), "KILL");
    wait_for("the daemon's end", || host.daemon().is_none());
    // Nobody is needed to write them.
    let before = log();
    wait_for("more lines without a daemon", || log() > before + 200);
    host.moat(&["up", "-d", file]).ok();
    written(&host, 200);
    let other = host.path("moat-new");
    std::fs::copy(env!("CARGO_BIN_EXE_moat"), &other).unwrap();
    host.moat(&["upgrade", "--binary", other.to_str().unwrap()]).ok();
    written(&host, 200);
    let numbers = numbers(&host, "writer");
    assert_eq!(numbers, (0..u64::try_from(numbers.len()).unwrap()).collect::<Vec<_>>());
}

/// One service writes as much as it can; another a line now and then.
#[test]
fn a_flood_slows_only_who_writes_it() {
    let Some(host) = host() else { return };
    let text = "services:\n  - type: worker\n    name: flood\n    runtime: python\n    buildCommand: 'true'\n    \
                startCommand: while ! test -e /tmp/go; do sleep 0.05; done; perl -e 'print \"n \", $_, \"\\n\", \"x\" x 90, \"\\n\" for 0..599999'; echo over; exec sleep 100000\n  \
                - type: worker\n    name: ticker\n    runtime: python\n    buildCommand: 'true'\n    \
                startCommand: exec perl -e '$| = 1; while (1) { print \"n \", $n++, \"\\n\"; select(undef, undef, undef, 0.01) }'\n";
    let file = host.write("b/render.yaml", text);
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let monitor = |slug: &str| {
        let id = service(&host.ps(), slug)["instances"][0]["id"].as_str().unwrap().to_owned();
        host.processes().into_iter().find(|(_, line)| line.contains("__monitor") && line.contains(&id)).unwrap().0
    };
    let (flood, ticker) = (monitor("flood"), monitor("ticker"));
    assert_ne!(flood, ticker);
    let before = numbers(&host, "ticker").len();
    host.moat(&["exec", "flood", "--", "touch", "/tmp/go"]).ok();
    wait_for("the end of the flood", || texts(&host, &["flood", "-n", "1"]) == ["over"]);
    // Whole where it is kept: two files of 16 MiB at most.
    let mut bytes = 0;
    for entry in std::fs::read_dir(host.path("state/logs/flood")).unwrap() {
        bytes += entry.unwrap().metadata().unwrap().len();
    }
    assert!(bytes <= 33 << 20, "{bytes} bytes");
    let kept = numbers(&host, "flood");
    assert!(kept.len() > 80_000 && kept.last() == Some(&599_999), "{} lines", kept.len());
    assert!(kept.windows(2).all(|pair| pair[1] == pair[0] + 1));
    // The other went on meanwhile, and lost nothing.
    let ticks = numbers(&host, "ticker");
    assert!(ticks.len() > before + 50, "{before}, then {}", ticks.len());
    assert_eq!(ticks, (0..u64::try_from(ticks.len()).unwrap()).collect::<Vec<_>>());
    // Who floods is not in a group that a flood could end, and neither is who keeps its log.
    let group = Command::new("cat").arg(format!("/proc/{flood}/cgroup")).output().unwrap();
    let own = service(&host.ps(), "flood")["instances"][0]["id"].as_str().unwrap().to_owned();
    assert!(!String::from_utf8_lossy(&group.stdout).contains(&own));
}
