//! What a program sees, and what it can't do.

use crate::bed::{Bed, holds, test};
use moat_model::NativeRuntime::Python;
use moat_model::Secret;

#[test]
fn a_program_runs_unprivileged_in_namespaces_of_its_own() {
    test(async |bed: &Bed| {
        let host = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_string_lossy().into_owned();
        let lines = bed
            .shell("id -u; id -g; id -un; hostname; grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t '; for n in mnt pid ipc uts net user cgroup; do readlink /proc/self/ns/$n; done; ls /proc | grep -c '^[0-9]'")
            .await;
        assert_eq!(lines[..4], ["1000", "1000", "render", "srv-app-00001"]);
        let none = "0".repeat(16);
        let caps: Vec<String> = ["Inh", "Prm", "Eff", "Bnd", "Amb"].iter().map(|set| format!("Cap{set}:{none}")).collect();
        assert_eq!(lines[4..9], caps);
        assert_eq!(lines[9..11], ["NoNewPrivs:1", "Seccomp:2"]);
        for (line, kind) in lines[11..18].iter().zip(["mnt", "pid", "ipc", "uts", "net", "user", "cgroup"]) {
            assert!(line.starts_with(kind), "{line}");
            assert_ne!(*line, host(kind));
        }
        assert!(lines[18].parse::<u32>().unwrap() < 10, "{lines:?}");
    });
}

#[test]
fn nothing_of_the_host_shows_but_its_tools() {
    test(async |bed: &Bed| {
        let lines = bed
            .shell("for f in /etc/shadow /etc/gshadow /etc/ssh /etc/sudoers /root/.ssh /root/.bashrc /root/.profile /home /var/lib/dpkg /var/log /boot /work /etc/ssl/private /run/moat /sys/kernel/security/lsm; do test -e $f && echo $f; done; ls -A /home 2>/dev/null; find / -xdev -writable -type d 2>/dev/null | grep -v -E '^/(proc|opt/render|tmp|dev|usr)' ; touch /usr/x /etc/x /x /sys/x /proc/sys/kernel/hostname 2>/dev/null && echo wrote; { echo x > /proc/sys/kernel/hostname; } 2>/dev/null && echo wrote; echo done")
            .await;
        assert_eq!(lines, ["done"]);
        // The positive control: the same questions are answered where something is there.
        let lines = bed.shell("for f in /etc/passwd /etc/ssl/certs /usr/bin/env; do test -e $f && echo $f; done; touch /tmp/x /var/tmp/y ~/x . && echo wrote; echo out > /dev/stdout; echo $0").await;
        assert_eq!(lines, ["/etc/passwd", "/etc/ssl/certs", "/usr/bin/env", "wrote", "out", "/bin/bash"]);
    });
}

#[test]
fn the_filter_refuses_what_reaches_outside() {
    test(async |bed: &Bed| {
        bed.write(
            "probe.py",
            r#"
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    ctypes.set_errno(0)
    result = libc.syscall(*args)
    print(name, "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()])
call("getpid", 39)
call("unshare-user", 272, 0x10000000)
call("unshare-net", 272, 0x40000000)
call("clone-user", 56, 0x10000000 | 17, 0, 0, 0, 0)
call("clone3", 435, 0, 0)
call("mount", 165, 0, 0, 0, 0, 0)
call("umount2", 166, 0, 0)
call("setns", 308, 0, 0)
call("bpf", 321, 0, 0, 0)
call("perf", 298, 0, 0, 0, 0, 0)
call("keyctl", 250, 0, 0, 0)
call("handle", 304, 0, 0, 0)
call("kexec", 246, 0, 0, 0, 0)
call("reboot", 169, 0, 0, 0, 0)
call("module", 175, 0, 0, 0)
call("swapon", 167, 0, 0)
call("io_uring", 425, 0, 0)
call("unknown", 999)
for name, *kind in [("vsock", 40, 1), ("packet", 17, 3), ("alg", 38, 5), ("raw", 2, 3, 1), ("tcp", 2, 1), ("tcp6", 10, 1), ("unix", 1, 1), ("netlink", 16, 3)]:
    try:
        socket.socket(*kind).close()
        print(name, "ok")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
"#,
        );
        let lines = bed.shell("python3 probe.py").await;
        let expect = [
            "getpid ok",
            "unshare-user EPERM",
            "unshare-net EPERM",
            "clone-user ENOSYS",
            "clone3 ENOSYS",
            "mount EPERM",
            "umount2 EPERM",
            "setns EPERM",
            "bpf EPERM",
            "perf EPERM",
            "keyctl EPERM",
            "handle EPERM",
            "kexec EPERM",
            "reboot EPERM",
            "module EPERM",
            "swapon EPERM",
            "io_uring EPERM",
            "unknown ENOSYS",
            "vsock EAFNOSUPPORT",
            "packet EAFNOSUPPORT",
            "alg EAFNOSUPPORT",
            "raw EPERM",
            "tcp ok",
            "tcp6 ok",
            "unix ok",
            "netlink ok",
        ];
        assert_eq!(lines, expect);
        // Threads and processes still work without clone3 and with the filter on clone.
        let lines = bed.shell("python3 -c 'import threading,subprocess; t=threading.Thread(target=lambda: print(\"thread\", flush=True)); t.start(); t.join(); subprocess.run([\"echo\", \"process\"])'").await;
        assert_eq!(lines, ["thread", "process"]);
    });
}

#[test]
fn the_environment_is_exactly_what_was_asked_for() {
    test(async |bed: &Bed| {
        let mut spec =
            bed.native(Python, "env -0 | tr '\\0\\n' '\\n~'; cat /etc/secrets/key.pem; cat key.pem; stat -c %a /etc/secrets/key.pem");
        spec.env.insert("ODD".to_owned(), Secret::new("a b\n\"$c'"));
        spec.env.insert("TOKEN".to_owned(), Secret::new("hunter2-in-the-environment"));
        spec.secret_files.insert("key.pem".to_owned(), Secret::new("hunter2-in-a-file\n"));
        bed.release(&mut spec).await;
        bed.start(&spec).await.unwrap();
        assert_eq!(bed.end(&spec.id).await.code, 0);
        let mut lines = bed.log(&spec.id);
        let secrets = lines.split_off(lines.len() - 3);
        assert_eq!(secrets, ["hunter2-in-a-file", "hunter2-in-a-file", "400"]);
        let mut keys: Vec<&str> = lines.iter().map(|line| line.split_once('=').unwrap().0).collect();
        keys.sort_unstable();
        // Where the machine has a list of authorities.
        keys.retain(|key| *key != "SSL_CERT_FILE");
        // `_`, `PWD` and `SHLVL` are the shell's own.
        let own = ["HOME", "LANG", "LOGNAME", "ODD", "PATH", "PORT", "PWD", "SHELL", "SHLVL", "TOKEN", "USER"];
        let managers =
            ["UV_LINK_MODE", "UV_PROJECT_ENVIRONMENT", "VENV_ROOT", "VIRTUAL_ENV", "_", "npm_config_globalconfig", "npm_config_prefix"];
        assert_eq!(keys, [&own[..], &managers].concat());
        assert!(lines.contains(&"ODD=a b~\"$c'".to_owned()), "{lines:?}");
        assert!(lines.contains(&"HOME=/opt/render".to_owned()));
        // Only what the program itself printed to its log holds them in the state folder.
        let found = holds(&bed.state, "hunter2");
        assert_eq!(found, [bed.engine.log_path(&spec.id)]);
        bed.stop(&spec.id, 0).await;
        assert_eq!(holds(&bed.run, "hunter2"), Vec::<std::path::PathBuf>::new());
    });
}

#[test]
fn no_secret_is_in_an_argument_of_a_process() {
    test(async |bed: &Bed| {
        let mut spec = bed.native(Python, "echo up; sleep 600");
        spec.env.insert("TOKEN".to_owned(), Secret::new("hunter2"));
        bed.release(&mut spec).await;
        bed.start(&spec).await.unwrap();
        bed.logged(&spec.id, "up").await;
        let mut ours = 0;
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(arguments) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let text = String::from_utf8_lossy(&arguments);
            ours += u32::from(text.contains(spec.id.as_str()));
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert!(ours > 0, "the monitor was not seen");
    });
}

#[test]
fn limits_bite() {
    test(async |bed: &Bed| {
        let mut spec = bed.native(Python, "python3 -c 'x = bytearray(200 << 20); print(len(x))'");
        spec.limits.memory_bytes = 64 << 20;
        let (report, lines) = bed.run(spec.clone()).await;
        assert!(report.oom, "{report:?} {lines:?}");
        assert_eq!((report.code, report.signal), (137, Some(9)));
        // The positive control: with more, the same program ends well.
        let mut spec = bed.native(Python, "python3 -c 'x = bytearray(200 << 20); print(len(x))'");
        spec.limits.memory_bytes = 512 << 20;
        let (report, lines) = bed.run(spec).await;
        assert_eq!((report.code, report.oom), (0, false), "{lines:?}");

        let fork = "python3 -c 'import os,time\nn = 0\ntry:\n  while n < 100:\n    if os.fork() == 0: time.sleep(60); os._exit(0)\n    n += 1\nexcept OSError as e: print(e.strerror)\nprint(n)'";
        let mut spec = bed.native(Python, fork);
        spec.limits.pids = 20;
        let (_, lines) = bed.run(spec).await;
        // The program itself is one of the twenty.
        assert_eq!(lines, ["Resource temporarily unavailable", "19"]);
    });
}

#[test]
fn a_command_inside_has_the_programs_environment_and_its_own_exit_code() {
    use std::io::{Read, Seek};
    test(async |bed: &Bed| {
        let mut spec =
            bed.native(Python, "for n in mnt pid ipc uts net user cgroup; do readlink /proc/self/ns/$n; done > ns; echo up; sleep 600");
        spec.env.insert("TOKEN".to_owned(), Secret::new("hunter2"));
        bed.release(&mut spec).await;
        bed.start(&spec).await.unwrap();
        bed.logged(&spec.id, "up").await;
        for (argv, extra, code, said) in [
            (
                &["sh", "-c", "echo $TOKEN $MORE; id -u; ls /proc/1/root 2>&1; exit 42"][..],
                Some("x y"),
                42,
                "hunter2 x y\n1000\nls: cannot access '/proc/1/root': Permission denied\n",
            ),
            (&["true"][..], None, 0, ""),
            (&["no-such-command"][..], None, 127, "moat: `no-such-command`: command not found\n"),
            (&["/etc"][..], None, 126, "moat: `/etc`: Permission denied (os error 13)\n"),
            (&["sh", "-c", "kill -TERM $$"][..], None, 143, ""),
            (
                &["grep", "-E", "NoNewPrivs|Seccomp:|CapEff", "/proc/self/status"][..],
                None,
                0,
                "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
            ),
            // The very namespaces of the program, compared inside: PID 1 hides its own from others.
            (&["sh", "-c", "for n in mnt pid ipc uts net user cgroup; do readlink /proc/self/ns/$n; done | cmp - ns"][..], None, 0, ""),
        ] {
            let mut out = tempfile::tempfile().unwrap();
            let fd = |file: &std::fs::File| std::os::fd::OwnedFd::from(file.try_clone().unwrap());
            let null = std::fs::File::open("/dev/null").unwrap();
            let env = extra.map(|value| ("MORE".to_owned(), Secret::new(value))).into_iter().collect();
            let argv: Vec<String> = argv.iter().map(|&arg| arg.to_owned()).collect();
            let got = bed.engine.exec(&spec.id, argv.clone(), env, false, [fd(&null), fd(&out), fd(&out)]).await.unwrap();
            let mut text = String::new();
            out.rewind().unwrap();
            out.read_to_string(&mut text).unwrap();
            assert_eq!((got, text.as_str()), (code, said), "{argv:?}");
        }
        let gone = moat_model::InstanceId::new("srv-app-gone").unwrap();
        let null = || std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(
            bed.engine
                .exec(&gone, vec!["true".to_owned()], std::collections::BTreeMap::default(), false, [null(), null(), null()])
                .await
                .is_err()
        );
    });
}

#[test]
fn a_monitor_is_small() {
    test(async |bed: &Bed| {
        use moat_engine::Engine;
        let mut spec = bed.native(Python, "echo up; sleep 600");
        bed.release(&mut spec).await;
        bed.start(&spec).await.unwrap();
        bed.logged(&spec.id, "up").await;
        let seen = bed.engine.observe().await.unwrap().instances[&spec.id].clone();
        let kib = |pid: u32, field: &str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap().to_owned();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let (monitor, first) = (kib(seen.monitor_pid.unwrap(), "VmRSS:"), kib(seen.pid.unwrap(), "VmRSS:"));
        println!("monitor {monitor} KiB ({} anonymous), first process {first} KiB", kib(seen.monitor_pid.unwrap(), "RssAnon:"));
        // Nothing is inherited but the three standard descriptors, what the monitor opened, and no more.
        let open = std::fs::read_dir(format!("/proc/{}/fd", seen.monitor_pid.unwrap())).unwrap().count();
        assert!(open <= 9, "{open} descriptors");
        assert!(monitor <= 8 << 10, "{monitor} KiB even without optimisation");
    });
}
