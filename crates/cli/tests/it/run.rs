//! The main job.

use crate::host::{example, host, service, wait_for};

#[test]
fn hello_runs_is_proved_and_leaves_nothing() {
    let Some(host) = host() else { return };
    let file = example(&host, "hello");
    let file = file.to_str().unwrap();
    let before = host.inventory();

    let up = host.moat(&["up", "-d", file]).ok();
    for word in ["http://hello.localhost:8080", "greeter:7000", "receives nothing"] {
        assert!(up.out.contains(word), "`{word}` is missing:\n{}\n{}", up.out, up.err);
    }

    // Public: the page shows what the private service and the worker did.
    let (status, body) = host.http(8080, "hello.localhost:8080", "/");
    assert_eq!(status, 200, "{body}");
    // Private: the same listener does not know the private service.
    assert_eq!(host.http(8080, "greeter.localhost:8080", "/").0, 404);
    assert_eq!(host.http(8080, "greeter", "/").0, 404);
    assert_eq!(host.http(8080, "counter.localhost", "/").0, 404);

    let ps = host.ps();
    for (slug, kind) in [("hello", "web"), ("greeter", "pserv"), ("counter", "worker"), ("clock", "cron"), ("store", "keyvalue")] {
        assert_eq!(service(&ps, slug)["state"]["phase"], "live", "{slug}");
        assert_eq!(service(&ps, slug)["state"]["kind"], kind);
    }

    // Reachability: one answer for a pair, the same in the table.
    let said = host.moat(&["explain", "counter", "store:6379"]).ok();
    assert!(said.out.starts_with("allow:") && said.out.contains("same-network"), "{}", said.out);
    let said = host.moat(&["explain", "hello", "counter:80"]).ok();
    assert!(said.out.starts_with("deny:") && said.out.contains("receives-nothing"), "{}", said.out);
    let said = host.moat(&["explain", "hello", "greeter:7000", "--trace"]).ok();
    assert!(said.out.contains("delivered"), "{}", said.out);
    let said = host.moat(&["explain", "hello", "greeter:18012", "--trace"]).ok();
    assert!(said.out.contains("dropped"), "{}", said.out);
    let matrix = host.moat(&["reach", "--output", "json"]).ok().json();
    assert!(matrix.to_string().contains("same-network"), "{matrix}");

    // Names: by who asks.
    let lookup = |from: &str, name: &str| {
        host.moat(&[
            "exec",
            from,
            "--",
            "python3",
            "-c",
            &format!("import socket; print(sorted({{a[4][0] for a in socket.getaddrinfo('{name}', 1)}}))"),
        ])
    };
    let vip = service(&ps, "greeter")["address"]["v4"].as_str().unwrap().to_owned();
    assert!(lookup("hello", "greeter").ok().out.contains(&vip));
    let instance = service(&ps, "greeter")["instances"][0]["address"]["v4"].as_str().unwrap().to_owned();
    assert!(lookup("counter", "greeter-discovery").ok().out.contains(&instance));
    assert_ne!(lookup("hello", "counter").code, 0, "a worker has no name");

    // A command's exit code is `exec`'s.
    assert_eq!(host.moat(&["exec", "greeter", "--", "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(host.moat(&["exec", "greeter", "--", "no-such-command"]).code, 127);

    // A denied flow is counted with both names.
    let hello = service(&ps, "hello")["instances"][0]["address"]["v4"].as_str().unwrap().to_owned();
    let counter = service(&ps, "counter")["instances"][0]["address"]["v4"].as_str().unwrap().to_owned();
    let attempt = format!("import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.sendto(b'x',('{counter}',4444))");
    host.moat(&["exec", "hello", "--", "python3", "-c", &attempt]).ok();
    wait_for("the denied flow", || {
        let flows = host.moat(&["denied", "--output", "json"]).ok().json();
        flows
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f["from"] == "hello" && f["to"] == "counter" && f["port"] == 4444 && f["because"] == "receives-nothing")
    });
    assert!(!hello.is_empty());

    // Proved live.
    let verify = host.moat(&["verify"]);
    assert_eq!(verify.code, 0, "{}\n{}", verify.out, verify.err);

    // Logs of the kept files.
    let logs = host.moat(&["logs", "greeter"]).ok();
    assert!(!logs.out.trim().is_empty());

    // The same again changes nothing.
    let pid = service(&host.ps(), "greeter")["instances"][0]["pid"].clone();
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(service(&host.ps(), "greeter")["instances"][0]["pid"], pid);

    host.moat(&["down", file]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
}

#[test]
fn a_cron_job_runs_and_its_output_is_kept() {
    let Some(host) = host() else { return };
    let file = host.write(
        "b/render.yaml",
        "services:\n  - type: cron\n    name: tick\n    runtime: python\n    schedule: \"* * * * * *\"\n    buildCommand: \"true\"\n    startCommand: echo ticked $RENDER_SERVICE_TYPE\n",
    );
    let up = host.moat(&["up", "-d", file.to_str().unwrap()]);
    if up.code == 2 {
        // Seconds are not part of the format: then a minute is the shortest schedule.
        let file = host.write(
            "b/render.yaml",
            "services:\n  - type: cron\n    name: tick\n    runtime: python\n    schedule: \"* * * * *\"\n    buildCommand: \"true\"\n    startCommand: echo ticked $RENDER_SERVICE_TYPE\n",
        );
        host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    }
    let mut out = String::new();
    for _ in 0..2 {
        // A minute's schedule needs more patience than one wait gives.
        let began = std::time::Instant::now();
        while began.elapsed().as_secs() < 45 && !out.contains("ticked cron") {
            std::thread::sleep(std::time::Duration::from_millis(300));
            out = host.moat(&["logs", "tick"]).out;
        }
    }
    assert!(out.contains("ticked cron"), "{out}\n{}", host.daemon_log());
}

#[test]
fn what_is_no_longer_named_runs_on_until_it_is_pruned() {
    let Some(host) = host() else { return };
    let service = |name: &str, variables: &str| {
        format!(
            "  - type: worker\n    name: {name}\n    runtime: python\n    buildCommand: 'true'\n    startCommand: env > $HOME/env; exec sleep 100000\n    envVars:\n      - {{key: STAYS, value: x}}\n{variables}"
        )
    };
    let write = |services: &[String]| host.write("render.yaml", &format!("services:\n{}", services.concat()));
    let file = write(&[service("first", "      - {key: GOES, value: y}\n"), service("second", "")]);
    let file = file.to_str().unwrap();
    host.moat(&["up", "-d", file]).ok();
    let names = || {
        let ps = host.ps();
        ps["services"].as_array().unwrap().iter().map(|s| s["state"]["service"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let variables = || host.moat(&["exec", "first", "--", "cat", "/opt/render/env"]).ok().out;
    assert_eq!(names(), ["first", "second"]);
    assert!(variables().contains("GOES=y"));

    // Nothing is lost by leaving it out.
    write(&[service("first", "")]);
    let up = host.moat(&["up", "-d", file]).ok();
    assert!(up.err.contains("moat up --prune"), "{}", up.err);
    assert_eq!(names(), ["first", "second"]);
    assert!(variables().contains("GOES=y"));

    host.moat(&["up", "-d", "--prune", file]).ok();
    assert_eq!(names(), ["first"]);
    let left = variables();
    assert!(left.contains("STAYS=x") && !left.contains("GOES"), "{left}");

    // A restart of the daemon brings nothing back.
    host.kill(host.daemon().unwrap(), "KILL");
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(names(), ["first"]);
}

#[test]
fn a_repository_of_elsewhere_is_fetched_for_each_deploy() {
    let Some(host) = host() else { return };
    let git = |script: &str| {
        let script = format!("set -e; cd '{}'; export GIT_CONFIG_GLOBAL=/dev/null; {script}", host.path("").display());
        host.sh(&script).ok();
    };
    git("git init -q -b main work; cd work; git config user.name t; git config user.email t@example.com; \
         mkdir app; echo 'print(\"first\")' > app/say.py; echo secret > .env; echo .env > .gitignore; git add .; git commit -qm one; \
         git clone -q --bare . ../theirs.git; git remote add up ../theirs.git");
    let blueprint = |branch: &str| {
        format!(
            "services:\n  - type: worker\n    name: sayer\n    runtime: python\n    repo: 'file://{}'\n    branch: {branch}\n    rootDir: app\n    buildCommand: 'true'\n    startCommand: python3 -u say.py; ls -A ..; exec sleep 100000\n",
            host.path("theirs.git").display()
        )
    };
    let file = host.write("ours/render.yaml", &blueprint("main"));
    let file = file.to_str().unwrap();
    let checked = host.moat(&["check", file]).ok();
    assert!(checked.out.contains("N0307"), "{}", checked.out);
    host.moat(&["up", "-d", file]).ok();
    let says = |word: &str| wait_for(word, || host.moat(&["logs", "sayer"]).ok().out.lines().any(|line| line.ends_with(word)));
    says("first");
    says(".gitignore");
    assert!(!host.moat(&["logs", "sayer"]).ok().out.contains(".env\n"), "what is not committed is not there");

    // What is pushed comes with the next deploy; another branch as well.
    git("cd work; echo 'print(\"second\")' > app/say.py; git commit -qam two; git push -q up main; \
         git checkout -qb side; echo 'print(\"third\")' > app/say.py; git commit -qam three; git push -q up side");
    host.moat(&["up", "-d", file]).ok();
    says("second");
    host.write("ours/render.yaml", &blueprint("side"));
    host.moat(&["up", "-d", file]).ok();
    says("third");

    // A branch that is not there: what ran before stays, and git's words are told.
    host.write("ours/render.yaml", &blueprint("nowhere"));
    let up = host.moat(&["up", "-d", file]);
    assert_eq!(up.code, 1);
    assert!(up.err.contains("branch `nowhere`") && up.err.contains("what ran before stays"), "{}", up.err);
    assert_eq!(host.ps()["services"][0]["instances"].as_array().unwrap().len(), 1);
}
