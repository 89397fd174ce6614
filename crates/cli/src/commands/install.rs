//! `moat install` and `moat uninstall`: `moat serve` as a service of systemd.

use super::{need_real_root, own_exe};
use crate::args::InstallArgs;
use crate::command_error::CommandError;
use crate::ui::Ui;
use moat_daemon::Paths;
use moat_daemon::access::GROUP;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const UNIT: &str = "/etc/systemd/system/moat.service";
/// There where systemd runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Variables that are handed on to the service as they are now: what `sudo moat up` goes by, the service goes by.
const HANDED_ON: [&str; 23] = [
    "MOAT_STATE_DIR",
    "MOAT_RUN_DIR",
    "MOAT_OCI_RUNTIME",
    "MOAT_REGISTRY_MIRRORS",
    "MOAT_POSTGRES_IMAGE",
    "MOAT_KEYVALUE_IMAGE",
    "MOAT_SHORTCUT",
    "MOAT_REPAIR",
    // Log-ins of registries and of git, and toolchains of version managers.
    "HOME",
    "SUDO_USER",
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    "PATH",
    // The way to registries.
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// The program that the service manager starts; none where Moat is not installed, or its unit says nothing that is understood.
pub fn installed() -> Option<PathBuf> {
    started_by(&fs::read_to_string(UNIT).ok()?)
}

/// The program of a unit: the first word of what it executes.
fn started_by(unit: &str) -> Option<PathBuf> {
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart="))?;
    let mut letters = command.chars();
    let quoted = command.starts_with('"');
    if quoted {
        letters.next();
    }
    let mut path = String::new();
    loop {
        match letters.next() {
            Some('"') if quoted => break,
            Some(' ') | None if !quoted => break,
            None => return None,
            Some('\\') => path.push(letters.next()?),
            Some('%') => path.push(letters.next().filter(|letter| *letter == '%')?),
            Some(letter) => path.push(letter),
        }
    }
    Some(PathBuf::from(path)).filter(|path| path.is_absolute())
}

/// Writes the unit, the group and the state folder, and starts the service.
pub fn install(args: &InstallArgs, ui: &Ui) -> Result<ExitCode, CommandError> {
    let (handed_on, secret) = handed_on(|name| std::env::var(name).ok());
    for name in secret {
        ui.say(&format!(
            "{name} holds a password, and everybody can read a unit: it is left out (`systemctl edit moat` and `EnvironmentFile=` of a file of root's give it to the service)"
        ));
    }
    let unit = unit(&own_exe()?, &handed_on)?;
    if args.dry_run {
        ui.line(unit.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    need_real_root("a service of the machine")?;
    let state = Paths::from_env().state;
    fs::create_dir_all(&state)
        .and_then(|()| fs::set_permissions(&state, Permissions::from_mode(0o711)))
        .map_err(|error| CommandError::engine(format!("can't make `{}`: {error}", state.display())))?;
    if nix::unistd::Group::from_name(GROUP).ok().flatten().is_none() {
        run("groupadd", &["--system", GROUP])?;
        ui.say(&format!("made the group `{GROUP}`: its members may use Moat without sudo, and so can do all that root can"));
    }
    let folder = Path::new(UNIT).parent().unwrap_or(Path::new("/"));
    let aside = PathBuf::from(format!("{UNIT}.new"));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&aside, unit))
        .and_then(|()| fs::rename(&aside, UNIT))
        .map_err(|error| CommandError::engine(format!("can't write `{UNIT}`: {error}")))?;
    ui.say(&format!("wrote {UNIT}"));
    if !Path::new(BOOTED).exists() {
        ui.say("systemd does not run here: `systemctl enable --now moat` starts it where it does");
        return Ok(ExitCode::SUCCESS);
    }
    run("systemctl", &["daemon-reload"])?;
    run("systemctl", &["enable", "moat"])?;
    if !args.no_start {
        // Starts it; one that ran before goes by the new unit from now on, and what it runs is not touched.
        run("systemctl", &["restart", "moat"])?;
        ui.say("`moat serve` runs, and after a reboot it runs again (`journalctl -u moat` is its log)");
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops the service and removes the unit.
pub fn uninstall(ui: &Ui) -> Result<ExitCode, CommandError> {
    need_real_root("a service of the machine")?;
    if !Path::new(UNIT).exists() {
        ui.say("Moat is not installed");
        return Ok(ExitCode::SUCCESS);
    }
    if Path::new(BOOTED).exists() {
        run("systemctl", &["disable", "--now", "moat"])?;
    }
    fs::remove_file(UNIT).map_err(|error| CommandError::engine(format!("can't remove `{UNIT}`: {error}")))?;
    if Path::new(BOOTED).exists() {
        run("systemctl", &["daemon-reload"])?;
    }
    let state = Paths::from_env().state;
    ui.say(&format!("removed {UNIT}; what runs goes on (`moat down` stops it), and `{}` and the group `{GROUP}` stay", state.display()));
    Ok(ExitCode::SUCCESS)
}

fn run(program: &str, args: &[&str]) -> Result<(), CommandError> {
    let shown = format!("{program} {}", args.join(" "));
    match Command::new(program).args(args).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(CommandError::engine(format!("`{shown}` failed: {}", String::from_utf8_lossy(&output.stderr).trim()))),
        Err(error) => Err(CommandError::engine(format!("can't run `{shown}`: {error}"))),
    }
}

/// What of an environment the service gets, and the names of what has a secret in it.
fn handed_on(value: impl Fn(&str) -> Option<String>) -> (Vec<(&'static str, String)>, Vec<&'static str>) {
    let (mut plain, mut secret) = (Vec::new(), Vec::new());
    for name in HANDED_ON {
        let Some(value) = value(name).filter(|value| !value.is_empty()) else { continue };
        let value = match name {
            // Another folder each time, where it is not absolute.
            "PATH" => value.split(':').filter(|folder| folder.starts_with('/')).collect::<Vec<_>>().join(":"),
            _ => value,
        };
        // `scheme://user:password@host`
        if value.contains("://") && value.contains('@') {
            secret.push(name);
        } else if !value.is_empty() {
            plain.push((name, value));
        }
    }
    // A unit of the system has none, unless it says so (systemd.exec(5)).
    if !plain.iter().any(|(name, _)| *name == "HOME") {
        plain.push(("HOME", "/root".to_owned()));
    }
    (plain, secret)
}

/// The unit (systemd.service(5), systemd.kill(5), systemd.resource-control(5)).
fn unit(exe: &Path, handed_on: &[(&str, String)]) -> Result<String, CommandError> {
    let exe = quoted(&exe.display().to_string())?;
    let line = |(name, value): &(&str, String)| Ok(format!("Environment={}\n", quoted(&format!("{name}={value}"))?));
    let allocator = moat_daemon::client::ALLOCATOR.map(|(name, value)| format!("Environment={name}={value}\n")).concat();
    let environment = handed_on.iter().map(line).collect::<Result<Vec<_>, CommandError>>()?.concat() + &allocator;
    Ok(format!(
        "[Unit]
Description=Moat, runs services on private networks
After=network-online.target nss-lookup.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={exe} serve
{environment}# What runs is not stopped with it, and is found again by the next one.
KillMode=process
Restart=always
RestartSec=1
TimeoutStartSec=120
TimeoutStopSec=60
WatchdogSec=120
# It keeps the limits of what runs in control groups below its own.
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
OOMPolicy=continue

[Install]
WantedBy=multi-user.target
"
    ))
}

/// A word of a unit file in quotes: nothing in it is taken for a specifier or an escape.
fn quoted(text: &str) -> Result<String, CommandError> {
    if text.chars().any(char::is_control) {
        return Err(CommandError::usage(format!("{text:?} has no place in a unit file")));
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_and_values_stay_what_they_are() {
        let unit = unit(Path::new("/opt/my moat/100%"), &[("MOAT_STATE_DIR", "/a\"b\\c".to_owned())]).unwrap();
        assert!(unit.contains("ExecStart=\"/opt/my moat/100%%\" serve\n"), "{unit}");
        assert!(unit.contains("Environment=\"MOAT_STATE_DIR=/a\\\"b\\\\c\"\n"), "{unit}");
        assert!(quoted("a\nExecStartPre=b").is_err());
        assert_eq!(started_by(&unit), Some(PathBuf::from("/opt/my moat/100%")));
        for (line, expect) in [
            ("ExecStart=/usr/bin/moat serve", Some("/usr/bin/moat")),
            ("ExecStart=\"/a \\\"b\\\\c\" serve", Some("/a \"b\\c")),
            ("ExecStart=-/usr/bin/moat serve", None),
            ("ExecStart=/usr/bin/%p serve", None),
            ("ExecStart=\"/usr/bin", None),
            ("ExecStop=/bin/true", None),
        ] {
            assert_eq!(started_by(line), expect.map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn the_service_has_the_log_ins_proxies_and_paths_of_who_installs_it_and_no_password() {
        let of = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            let (plain, secret) = handed_on(find);
            (unit(Path::new("/usr/bin/moat"), &plain).unwrap(), secret)
        };
        let (unit, secret) = of(&[
            ("HOME", "/root"),
            ("DOCKER_CONFIG", "/etc/moat docker"),
            ("REGISTRY_AUTH_FILE", "/root/auth.json"),
            ("PATH", "/opt/node/bin:bin:/usr/bin:"),
            ("HTTPS_PROXY", "http://proxy.example.com:3128"),
            ("NO_PROXY", "localhost,10.0.0.0/8"),
            ("HTTP_PROXY", "http://me:s3cret@proxy.example.com:3128"),
            ("MOAT_REPAIR", ""),
            ("LD_PRELOAD", "/tmp/x.so"),
        ]);
        for line in [
            "Environment=\"HOME=/root\"\n",
            "Environment=\"DOCKER_CONFIG=/etc/moat docker\"\n",
            "Environment=\"REGISTRY_AUTH_FILE=/root/auth.json\"\n",
            "Environment=\"PATH=/opt/node/bin:/usr/bin\"\n",
            "Environment=\"HTTPS_PROXY=http://proxy.example.com:3128\"\n",
            "Environment=\"NO_PROXY=localhost,10.0.0.0/8\"\n",
        ] {
            assert!(unit.contains(line), "{line} is not in {unit}");
        }
        assert_eq!(secret, ["HTTP_PROXY"]);
        assert!(!unit.contains("s3cret") && !unit.contains("LD_PRELOAD") && !unit.contains("MOAT_REPAIR"), "{unit}");
        // systemd gives a service of the system no home.
        assert!(of(&[]).0.contains("Environment=\"HOME=/root\"\n"));
    }
}
