//! `git push` as a person does it: real git, real hooks, real deploys.

use crate::host::{Host, Said, host, service, wait_for};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

/// What a build runs that goes on only when the test lets it.
const HELD: &str = "echo held-build; until [ -e /tmp/go ]; do sleep 0.1; done";

/// A work tree `shop` on the machine.
struct Tree<'h> {
    host: &'h Host,
}

impl<'h> Tree<'h> {
    fn new(host: &'h Host) -> Self {
        let tree = Self { host };
        fs::create_dir_all(host.path("shop")).unwrap();
        tree.run("git init -q -b main . && git config user.name t && git config user.email t@example.com").ok();
        tree
    }

    fn run(&self, script: &str) -> Said {
        self.host.sh(&self.script(script))
    }

    fn script(&self, script: &str) -> String {
        format!("cd '{}' && export GIT_CONFIG_GLOBAL=/dev/null && {script}", self.host.path("shop").display())
    }

    fn moat(&self, args: &[&str]) -> Said {
        let words: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
        self.run(&format!("'{}' {}", env!("CARGO_BIN_EXE_moat"), words.join(" ")))
    }

    /// Commits files, all that is there.
    fn commit(&self, message: &str, files: &[(&str, &str)]) -> String {
        for (name, text) in files {
            self.host.write(&format!("shop/{name}"), text);
        }
        self.run(&format!("git add -A && git commit -q --allow-empty -m '{message}'")).ok();
        self.run("git rev-parse HEAD").ok().out.trim().to_owned()
    }

    fn push(&self) -> Said {
        self.run("git push moat main")
    }

    /// A push in the background, as in another terminal.
    fn start_push(&self) -> Child {
        let script = self.script("exec git push moat main");
        self.host.command("bash").args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

fn blueprint(build: &str, variable: &str) -> String {
    format!(
        r#"
services:
  - type: web
    name: site
    runtime: python
    buildCommand: echo building-$RENDER_GIT_COMMIT; {build}
    startCommand: python3 -u -m http.server $PORT --bind 0.0.0.0
    buildFilter: {{ignoredPaths: ["**/*.md", side]}}
  - type: worker
    name: side
    runtime: python
    rootDir: side
    buildCommand: "true"
    startCommand: cat note; exec sleep 100000
    maxShutdownDelaySeconds: 1
  - type: worker
    name: frozen
    runtime: python
    autoDeployTrigger: off
    buildCommand: "true"
    startCommand: cat index.html; exec sleep 100000
    maxShutdownDelaySeconds: 1
    envVars: [{{key: VARIABLE, value: {variable}}}]
"#
    )
}

fn commit_of(host: &Host, slug: &str) -> String {
    service(&host.ps(), slug)["commit"].as_str().unwrap_or_default().to_owned()
}

fn instance(host: &Host, slug: &str) -> String {
    // The one before may still be ending.
    let ps = host.ps();
    let ready = service(&ps, slug)["instances"].as_array().unwrap().iter().find(|instance| instance["ready"] == true);
    ready.map(|instance| instance["id"].as_str().unwrap().to_owned()).unwrap_or_default()
}

/// Lets a build that waits go on, once it has begun.
fn let_go() {
    wait_for("the build to wait", || {
        let mut processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        processes.any(|process| {
            let waits = fs::read(process.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains("until [ -e /tmp/go ]"));
            // Only inside the sandbox is this the root: the processes around it have the word among their arguments too.
            waits && process.join("root/opt/render/project").is_dir() && fs::write(process.join("root/tmp/go"), "").is_ok()
        })
    });
}

#[test]
fn a_push_deploys_what_it_concerns_and_leaves_nothing() {
    let Some(host) = host() else { return };
    let tree = Tree::new(&host);
    let before = host.inventory();
    let init = tree.moat(&["git", "init"]).ok();
    assert!(init.out.contains("git push moat main") && init.out.contains("state/git/shop.git"), "{}", init.out);

    // What can't be run is refused, with all that is wrong, and nothing has changed.
    tree.commit("wrong", &[("render.yaml", &blueprint("true", "one").replace("name: site", "nam: site")), ("index.html", "one\n")]);
    let refused = tree.push();
    assert_ne!(refused.code, 0);
    for word in ["remote: error[E0201]", "render.yaml:4:5", "the push is refused", "pre-receive hook declined"] {
        assert!(refused.err.contains(word), "`{word}` is missing:\n{}", refused.err);
    }
    assert_eq!(tree.run("git ls-remote moat").ok().out, "");
    tree.commit("no blueprint", &[("side/note", "first\n")]);
    let refused = tree.run("git rm -q render.yaml && git commit -q -m gone && git push moat main");
    assert!(refused.code != 0 && refused.err.contains("there is no `render.yaml` in commit"), "{}", refused.err);

    // One that is right is deployed while the pusher watches.
    host.write("shop/.env", "never committed");
    let first = tree.commit("first", &[("render.yaml", &blueprint("true", "one")), (".gitignore", ".env\n")]);
    let push = tree.push().ok();
    for word in [&format!("building-{first}"), "http://site.localhost:8080", "live"] {
        assert!(push.err.contains(word), "`{word}` is missing:\n{}", push.err);
    }
    assert_eq!(host.http(8080, "site.localhost", "/"), (200, "one\n".to_owned()));
    assert_eq!(host.http(8080, "site.localhost", "/.env").0, 404);
    for slug in ["site", "side", "frozen"] {
        assert_eq!(commit_of(&host, slug), first, "{slug}");
    }

    // Another branch is kept, and nothing else happens.
    let push = tree.run("git push moat main:refs/heads/other").ok();
    assert!(push.err.contains("`other` is kept and not deployed"), "{}", push.err);

    // A service is deployed by the files that concern it.
    let (side, frozen) = (instance(&host, "side"), instance(&host, "frozen"));
    let second = tree.commit("second", &[("index.html", "two\n")]);
    let push = tree.push().ok();
    assert!(push.err.contains("no file below its `rootDir` has changed"), "{}", push.err);
    assert!(push.err.contains("`autoDeployTrigger` is `off`"), "{}", push.err);
    assert_eq!(host.http(8080, "site.localhost", "/"), (200, "two\n".to_owned()));
    assert_eq!((commit_of(&host, "site"), commit_of(&host, "side")), (second.clone(), first.clone()));
    assert_eq!((instance(&host, "side"), instance(&host, "frozen")), (side.clone(), frozen.clone()));
    let serving = instance(&host, "site");
    let third = tree.commit("third", &[("side/note", "third\n"), ("README.md", "words\n")]);
    let push = tree.push().ok();
    assert!(push.err.contains("no changed file fits its `buildFilter`"), "{}", push.err);
    assert_eq!((commit_of(&host, "site"), commit_of(&host, "side")), (second.clone(), third.clone()));
    assert_eq!((instance(&host, "site"), instance(&host, "frozen")), (serving, frozen.clone()));
    assert_ne!(instance(&host, "side"), side);

    // A commit whose message says so is kept only.
    let fourth = tree.commit("fourth [skip render]", &[("index.html", "four\n")]);
    let push = tree.push().ok();
    assert!(push.err.contains("not deployed, as its message says `[skip render]`"), "{}", push.err);
    assert_eq!(commit_of(&host, "site"), second);
    let list = tree.moat(&["git", "list", "--output", "json"]).ok().json();
    assert_eq!((&list[0]["name"], &list[0]["pushed"]), (&"shop".into(), &fourth.clone().into()), "{list}");

    // Settings come by any push; what is held keeps its source. The commit before is compared as well.
    let fifth = tree.commit("fifth", &[("render.yaml", &blueprint("true", "two"))]);
    let push = tree.push().ok();
    assert!(push.err.contains("its settings have changed, and are applied"), "{}", push.err);
    let inside = |script: &str| host.moat(&["exec", "frozen", "--", "sh", "-c", script]).ok().out;
    assert_eq!(inside("echo $VARIABLE $RENDER_GIT_COMMIT; cat index.html"), format!("two {first}\none\n"));
    assert_eq!(host.http(8080, "site.localhost", "/"), (200, "four\n".to_owned()));
    assert_eq!(commit_of(&host, "site"), fifth);

    // Asked for, it is deployed.
    let unknown = tree.moat(&["git", "deploy", "shop", "nothing"]);
    assert!(unknown.code == 1 && unknown.err.contains("there is no service `nothing`"), "{}", unknown.err);
    tree.moat(&["git", "deploy", "shop", "frozen"]).ok();
    assert_eq!(inside("cat index.html"), "four\n");
    assert_eq!((commit_of(&host, "frozen"), commit_of(&host, "side")), (fifth, third));

    // A failed build leaves what runs, and says so to the pusher.
    tree.commit("broken", &[("render.yaml", &blueprint("echo it breaks; exit 3", "two"))]);
    let push = tree.push().ok();
    assert!(push.err.contains("it breaks") && push.err.contains("what ran before stays"), "{}", push.err);
    assert_eq!(host.http(8080, "site.localhost", "/"), (200, "four\n".to_owned()));

    // Nothing is left.
    let refused = tree.moat(&["git", "remove", "shop"]);
    assert!(refused.code == 1 && refused.err.contains("moat down shop"), "{}", refused.err);
    host.moat(&["down", "shop"]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
    tree.moat(&["git", "remove", "shop"]).ok();
    assert!(!host.path("state/git").exists());
    assert_eq!(fs::read_dir(host.path("state/sources")).unwrap().count(), 0);
    assert_eq!(tree.run("git remote").ok().out, "");
}

#[test]
fn pushes_wait_for_each_other_and_outlive_whoever_watches() {
    let Some(host) = host() else { return };
    let tree = Tree::new(&host);
    tree.moat(&["git", "init", "--start-timeout", "60"]).ok();
    let web = |build: &str, more: &str| {
        format!(
            "services:\n  - type: worker\n    name: w\n    runtime: python\n    buildCommand: '{build}'\n    startCommand: exec sleep 100000\n    maxShutdownDelaySeconds: 1\n{more}"
        )
    };

    // Values that nobody gave: refused, and given once.
    let asks = "    envVars: [{key: TOKEN, sync: false}]\n";
    tree.commit("asks", &[("render.yaml", &web(HELD, asks))]);
    let refused = tree.push();
    assert!(
        refused.code != 0 && refused.err.contains("w.TOKEN") && refused.err.contains("moat git init --name shop --set"),
        "{}",
        refused.err
    );
    tree.moat(&["git", "init", "--set", "w.TOKEN=for-the-worker"]).ok();
    assert_eq!(tree.run("grep -rlaF for-the-worker ../state || true").out, "", "it is sealed");

    // A watcher that goes away stops nothing, nor does a daemon that is killed.
    let mut push = tree.start_push();
    wait_for("the build", || tree.run("cat ../state/logs/w/*.log 2>/dev/null").out.contains("held-build"));
    push.kill().unwrap();
    push.wait().unwrap();
    assert_eq!(service(&host.ps(), "w")["state"]["phase"], "building");
    host.kill(host.daemon().unwrap(), "KILL");
    tree.moat(&["git", "list"]).ok();
    let first = tree.run("git rev-parse HEAD").ok().out.trim().to_owned();

    // Of those that come while it builds, the last is deployed.
    let second = tree.commit("second", &[("render.yaml", &web("echo second-build", asks))]);
    let waiting = tree.start_push();
    wait_for("the second push to wait", || host.moat(&["events"]).out.contains(&format!("commit {} waits", &second[..7])));
    let third = tree.commit("third", &[("render.yaml", &web("echo third-build", asks))]);
    let last = tree.start_push();
    let superseded = Said::from(waiting.wait_with_output().unwrap()).ok();
    assert!(superseded.err.contains(&format!("commit {} is skipped: {}", &second[..7], &third[..7])), "{}", superseded.err);
    assert_eq!(host.ps()["services"][0]["commit"], serde_json::Value::Null);
    let_go();
    let last = Said::from(last.wait_with_output().unwrap()).ok();
    assert!(last.err.contains("third-build") && !last.err.contains("second-build"), "{}", last.err);
    assert_eq!(commit_of(&host, "w"), third);
    assert_ne!(first, third);
    assert_eq!(host.moat(&["exec", "w", "--", "sh", "-c", "echo $TOKEN"]).ok().out, "for-the-worker\n");
}

#[test]
fn what_a_push_can_t_bring_is_said() {
    let Some(host) = host() else { return };
    let tree = Tree::new(&host);
    tree.moat(&["git", "init", "deploy/blueprint.yaml", "--name", "other", "--branch", "live"]).ok();
    let text = "services:\n  - type: worker\n    name: w\n    runtime: python\n    buildCommand: 'true'\n    startCommand: cat deploy/word large; exec sleep 100000\n    x-moat: {secretFiles: {word: word}}\n";
    let modules = "[submodule \"lib\"]\n\tpath = lib\n\turl = ../lib.git\n";
    tree.commit("a submodule", &[("deploy/blueprint.yaml", text), ("deploy/word", "secret-word"), (".gitmodules", modules)]);
    let push = |tree: &Tree<'_>| tree.run("git push moat main:live");
    let refused = push(&tree);
    assert!(refused.code != 0 && refused.err.contains("`../lib.git`") && refused.err.contains(".gitmodules"), "{}", refused.err);

    // Pointers of Git LFS are told of.
    fs::remove_file(host.path("shop/.gitmodules")).unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    tree.commit("large", &[(".gitattributes", "large filter=lfs diff=lfs merge=lfs -text\n"), ("large", pointer)]);
    let pushed = push(&tree).ok();
    assert!(pushed.err.contains("`large`: kept by Git LFS"), "{}", pushed.err);
    let secret = host.moat(&["exec", "w", "--", "cat", "/etc/secrets/word"]).ok();
    assert_eq!(secret.out, "secret-word");

    // Over ssh nothing of this environment is there, and no `moat git receive` in between.
    let ssh =
        host.write("ssh", "#!/bin/sh\nwhile [ \"$1\" != root@machine ]; do shift; done\nshift\nexec env -i PATH=\"$PATH\" sh -c \"$*\"\n");
    tree.commit("over ssh", &[("deploy/word", "another-word")]);
    let url = format!("ssh://root@machine{}", host.path("state/git/other.git").display());
    let pushed = tree.run(&format!("chmod 755 '{0}' && GIT_SSH_COMMAND='{0}' git push {url} main:live", ssh.display())).ok();
    assert!(pushed.err.contains("deploying commit"), "{}", pushed.err);
    assert_eq!(host.moat(&["exec", "w", "--", "cat", "/etc/secrets/word"]).ok().out, "another-word");

    // Who is not root can't push, and is told.
    let binary = Path::new(env!("CARGO_BIN_EXE_moat"));
    let theirs = host.path("theirs");
    host.sh(&format!("cd '{}' && chmod 711 . && cp -r shop theirs && chown -R 65534:65534 theirs", host.path("").display())).ok();
    let as_nobody = |script: &str| {
        host.sh(&format!(
            "cd '{}' && HOME=/nonexistent exec setpriv --reuid=65534 --regid=65534 --clear-groups bash -c \"{script}\"",
            theirs.display()
        ))
    };
    if as_nobody(&format!("test -x {}", binary.display())).code != 0 {
        println!("skipped in part: `{}` can't be run by others", binary.display());
        return;
    }
    let denied = as_nobody("git push moat main:live");
    assert!(denied.code != 0 && denied.err.contains("no permission") && denied.err.contains("sudo git push"), "{}", denied.err);
    let seen = as_nobody(&format!("cat {}/moat.json", host.path("state/git/other.git").display()));
    assert_ne!(seen.code, 0, "others read the settings");
}
