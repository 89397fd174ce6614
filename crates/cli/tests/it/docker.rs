//! `runtime: docker`: what a Dockerfile makes, what it may reach meanwhile, and what becomes of a failed one.

use crate::host::{Host, Said, host, service, wait_for};
use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

const SECRET: &str = "hunter2-only-in-the-environment";

const DOCKERFILE: &str = r#"FROM scratch AS tools
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]

FROM tools
ARG GREETING
ARG TOKEN
ARG NOT_GIVEN=by-default
RUN mkdir -p /www /tmp && echo "$GREETING $NOT_GIVEN $UNASKED $(echo -n $TOKEN | wc -c)" > /www/index.html && sleep 1
COPY --chown=33:33 page.txt /www/
RUN --mount=type=secret,id=note wc -c < /run/secrets/note > /www/note
RUN --mount=type=cache,target=/cache echo build >> /cache/builds && cp /cache/builds /www/
USER 33
CMD ["false"]
"#;

/// What a hostile or curious Dockerfile tries; its findings are served.
const ATTEMPTS: &str = r#"
USER 0
RUN exec > /www/report 2>&1; \
    echo "store: $(printf 'PING\r\n' | nc -w 5 store 6379)"; \
    wget -T 5 -q -O - http://vault:10000/ || echo vault-by-name: refused; \
    wget -T 5 -q -O - http://$VAULT_ADDRESS:10000/ || echo vault-by-address: refused; \
    wget -T 5 -q -O - http://169.254.169.254/ || echo metadata: refused; \
    wget -T 5 -q -O - http://192.0.2.77:9/ || echo host: refused; \
    mount -t tmpfs none /www && echo mounted || echo mount: refused; \
    chroot / true && echo chrooted || echo chroot: refused; \
    unshare -U true && echo unshared || echo unshare: refused; \
    echo "processes: $(cat /proc/[0-9]*/environ | tr '\0' '\n' | grep -c of-the-vault)"; \
    echo "files: $(find / -xdev -name of-the-vault 2>&1 | wc -l)"; \
    echo "secrets: $(ls /etc/secrets 2>&1 | wc -l) $(cat /etc/shadow 2>&1 | grep -c root:)"; \
    echo "user: $(cat /proc/self/uid_map | tr -s ' ')"
ARG VAULT_ADDRESS
USER 33
"#;

fn blueprint(command: &str, more: &str) -> String {
    format!(
        r"
services:
  - type: web
    name: front
    runtime: docker
    maxShutdownDelaySeconds: 1
    rootDir: front
    dockerCommand: {command}
    envVars:
      - {{key: GREETING, value: hello from a build}}
      - {{key: TOKEN, value: {SECRET}}}
      - {{key: UNASKED, value: never-asked-for}}
    x-moat: {{secretFiles: {{note: note.txt}}}}
{more}
  - type: pserv
    name: vault
    runtime: python
    buildCommand: touch of-the-vault
    startCommand: python3 -m http.server $PORT --bind ::0
    envVars: [{{key: OWN, value: of-the-vault}}]
  - {{type: keyvalue, name: store, ipAllowList: []}}
"
    )
}

/// A machine with Buildah and a busybox for images.
fn builder() -> Option<Host> {
    let host = host()?;
    for tool in ["buildah --version", "busybox true"] {
        if !host.sh(tool).out.is_empty() || host.sh(tool).code == 0 {
            continue;
        }
        println!("skipped: `{tool}` does not work here; `cargo xtask test` installs what is missing");
        return None;
    }
    Some(host)
}

fn busybox(host: &Host, folder: &str) {
    let to = host.path(folder);
    fs::create_dir_all(&to).unwrap();
    let copied = Command::new("sh").args(["-c", "cp \"$(command -v busybox)\" \"$0\""]).arg(to.join("busybox")).status().unwrap();
    assert!(copied.success());
}

/// Logs of all instances of a service, builds too: how many, and their text.
fn logs(host: &Host, slug: &str) -> (usize, String) {
    let files: Vec<_> = fs::read_dir(host.path(&format!("state/logs/{slug}"))).into_iter().flatten().flatten().collect();
    let text = files.iter().map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect();
    (files.len(), text)
}

#[track_caller]
fn shows(said: &Said, words: &[&str]) {
    let text = format!("{}{}", said.out, said.err);
    for word in words {
        assert!(text.contains(word), "`{word}` is missing:\n{text}");
    }
}

#[test]
fn a_dockerfile_is_built_runs_and_reaches_only_datastores() {
    let Some(host) = builder() else { return };
    busybox(&host, "shop/front");
    host.write("shop/front/page.txt", "a page of the source\n");
    let dockerfile = host.write("shop/front/Dockerfile", DOCKERFILE);
    host.write("shop/note.txt", "12345");
    let serve = "httpd -f -h /www -p $PORT";
    let file = host.write("shop/render.yaml", &blueprint(serve, ""));
    let file = file.to_str().unwrap();
    let before = host.inventory();
    shows(&host.moat(&["plan", file]).ok(), &["front/Dockerfile"]);

    // Built: stages, arguments that it asks for, and no value in anybody's argument list.
    let mut up = host.spawn(&["up", "-d", file]);
    let mut arguments = String::new();
    while up.try_wait().unwrap().is_none() {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            arguments.push_str(&String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).unwrap_or_default()));
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let up = Said::from(up.wait_with_output().unwrap());
    let up = up.ok();
    assert!(arguments.contains("buildah"), "the build was not seen");
    assert!(!arguments.contains(SECRET), "a secret is an argument of a process");
    assert!(!format!("{}{}", up.out, up.err).contains(SECRET));
    let page = host.http(8080, "front.localhost", "/");
    assert_eq!(page, (200, format!("hello from a build by-default  {}\n", SECRET.len())));
    assert_eq!(host.http(8080, "front.localhost", "/page.txt"), (200, "a page of the source\n".to_owned()));
    assert_eq!(host.http(8080, "front.localhost", "/note"), (200, "5\n".to_owned()));
    let whoami = host.moat(&["exec", "front", "--", "id", "-u"]).ok();
    assert_eq!(whoami.out.trim(), "33");
    let (count, text) = logs(&host, "front");
    assert_eq!(count, 2, "a build and an instance: {text}");
    assert!(text.contains("RUN mkdir -p /www"), "{text}");

    // The same again builds nothing, nor after all of it was stopped.
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(logs(&host, "front").0, 2);
    host.moat(&["down", file]).ok();
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(logs(&host, "front").0, 3, "only an instance");
    assert_eq!(host.http(8080, "front.localhost", "/").0, 200);

    // What is said of builds, and what is so.
    for (to, word) in [("store:6379", "build-to-datastore"), ("vault:10000", "deny:"), ("host", "deny:")] {
        let said = host.moat(&["explain", "build:front", to]).ok();
        assert!(said.out.contains(word), "{to}: {}", said.out);
    }
    let verify = host.moat(&["verify"]);
    assert_eq!(verify.code, 0, "{}\n{}", verify.out, verify.err);

    // A build that tries what it must not, with all that it tries to reach running.
    let ps = host.ps();
    let vault = service(&ps, "vault");
    let address = vault["instances"][0]["address"]["v4"].as_str().unwrap();
    let served = host.moat(&["exec", "front", "--", "wget", "-q", "-O", "-", "http://vault:10000/"]).ok();
    assert!(served.out.contains("of-the-vault"), "{served:?}");
    fs::write(&dockerfile, format!("{DOCKERFILE}ARG VAULT_ADDRESS={address}\n{}", ATTEMPTS.replace("ARG VAULT_ADDRESS\n", ""))).unwrap();
    host.moat(&["up", "-d", file]).ok();
    let (status, report) = host.http(8080, "front.localhost", "/report");
    assert_eq!(status, 200, "{report}");
    for line in [
        "store: +PONG",
        "vault-by-name: refused",
        "vault-by-address: refused",
        "metadata: refused",
        "host: refused",
        "mount: refused",
        "chroot: refused",
        "unshare: refused",
        "processes: 0",
        "files: 0",
        "secrets: 1 0",
    ] {
        assert!(report.contains(line), "`{line}` is missing:\n{report}");
    }
    assert!(!report.contains("user: 0 0"), "root of the build is root of the machine:\n{report}");
    assert!(logs(&host, "front").1.contains("Using cache"), "the steps before are not repeated");

    // A cache mount is there for the next build.
    host.write("shop/front/page.txt", "another page\n");
    host.moat(&["up", "-d", file]).ok();
    assert_eq!(host.http(8080, "front.localhost", "/builds"), (200, "build\nbuild\n".to_owned()));

    // A step that fails: its last lines are shown, and what ran before stays.
    fs::write(&dockerfile, format!("{DOCKERFILE}RUN echo just before it fails; exit 3\n")).unwrap();
    let failed = host.moat(&["up", "-d", file]);
    assert_eq!(failed.code, 1, "{failed:?}");
    shows(&failed, &["its build exited with status", "just before it fails", "what ran before stays"]);
    assert_eq!(host.http(8080, "front.localhost", "/report").0, 200);

    // A file that is not there is said with its name.
    host.write("shop/render.yaml", &blueprint(serve, "    dockerfilePath: ./docker/Dockerfile.prod"));
    let missing = host.moat(&["up", "-d", file]);
    assert_eq!(missing.code, 1, "{missing:?}");
    shows(&missing, &["there is no Dockerfile `front/./docker/Dockerfile.prod`", "dockerfilePath"]);

    host.moat(&["down", file]).ok();
    wait_for("the daemon's end", || host.daemon().is_none());
    assert_eq!(host.inventory(), before);
}

/// Debian's registry on the machine's own loopback, which no build can reach.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_base_image_comes_from_a_registry_that_builds_do_not_reach() {
    let Some(host) = builder() else { return };
    if host.sh("command -v docker-registry").code != 0 {
        println!("skipped: `docker-registry` is not installed; `cargo xtask test` installs it");
        return;
    }
    // Free on this machine's loopback, as it is a namespace of its own.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let data = host.path("registry");
    let config = host.write(
        "registry.yml",
        &format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
            data.display()
        ),
    );
    let child = host.command("docker-registry").arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _registry = Registry(child);
    wait_for("the registry", || host.sh(&format!("curl -sf http://{address}/v2/")).code == 0);
    busybox(&host, "base");
    host.write(
        "base/Dockerfile",
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nENV FROM_BASE=of-the-base\n",
    );
    let storage = format!("--root {0} --runroot {0}/run --storage-driver vfs", host.path("storage").display());
    host.sh(&format!(
        "set -e; buildah {storage} bud --isolation chroot -t base {} && buildah {storage} push --tls-verify=false base docker://{address}/team/base:1",
        host.path("base").display()
    ))
    .ok();
    let digest = host.sh(&format!(
        "curl -sfI -H 'Accept: application/vnd.oci.image.manifest.v1+json' http://{address}/v2/team/base/manifests/1 | tr -d '\\r' | sed -n 's/^[Dd]ocker-[Cc]ontent-[Dd]igest: //p'"
    ));
    let digest = digest.ok().out.trim().to_owned();

    // By a variable, by its digest, and as something to copy from.
    host.write(
        "app/Dockerfile",
        &format!(
            "ARG REGISTRY\nFROM $REGISTRY/team/base:1 AS first\nRUN echo $FROM_BASE > /made\n\nFROM {address}/team/base@{digest}\nCOPY --from=first /made /www/index.html\nCOPY --from={address}/team/base:1 /bin/busybox /www/copied\nCMD [\"/bin/sh\", \"-c\", \"exec httpd -f -h /www -p $PORT\"]\n"
        ),
    );
    let file = host.write(
        "app/render.yaml",
        &format!("services:\n  - type: web\n    name: app\n    runtime: docker\n    maxShutdownDelaySeconds: 1\n    envVars: [{{key: REGISTRY, value: '{address}'}}]\n"),
    );
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    assert_eq!(host.http(8080, "app.localhost", "/"), (200, "of-the-base\n".to_owned()));

    // What was fetched to build on stays for the next build, as long as the service is there.
    let bases = || host.sh(&format!("ls -d '{}'/*/bases", host.path("state/builds").display())).out.lines().count();
    assert_eq!(bases(), 1);
    host.moat(&["down"]).ok();
    assert_eq!(bases(), 0);
    wait_for("the daemon's end", || host.daemon().is_none());
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    assert_eq!(bases(), 0, "the image is still here, and nothing is built");

    // What the registry does not have is said by its name, and by whom.
    host.write("app/Dockerfile", &format!("FROM {address}/team/no-such-base:1\n"));
    let missing = host.moat(&["up", "-d", file.to_str().unwrap()]);
    assert_eq!(missing.code, 1, "{missing:?}");
    shows(&missing, &[&format!("the registry `{address}` has no image"), "no-such-base", "what ran before stays"]);
}
