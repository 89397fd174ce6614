//! An image's instance: its command line, its environment, its user, and the root file system of its layers.
//!
//! The program is PID 1, as images expect; nothing of the host is shown inside but three files of `/etc`.

use super::oci::{Capabilities, User};
use super::sandbox::{Input, MountOp, SECRETS};
use moat_model::state::ImageWorkload;
use moat_model::{Purpose, Secret};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What an image says about how it is run, with its user looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Folders of its layers, the topmost first.
    pub layers: Vec<PathBuf>,
    /// The start of the command line.
    pub entrypoint: Vec<String>,
    /// The arguments where none are given.
    pub command: Vec<String>,
    /// Environment, in its order.
    pub env: Vec<(String, String)>,
    /// Absolute.
    pub working_dir: String,
    /// User inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home folder of the user.
    pub home: String,
    /// The signal that asks it to end.
    pub stop_signal: i32,
}

/// What root may do inside (and whoever a program of root's becomes), as container engines give it, but for what makes
/// device nodes, raw sockets and audit records. It means the service's own ids, files and processes: the user namespace
/// has no others.
const CAPABILITIES: [&str; 10] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// What a shell would do something with; a command without them needs no shell, which an image may not have.
const SHELL: &str = "|&;<>()`*?[]~\n";

pub(super) fn capabilities() -> Capabilities {
    let list: Vec<String> = CAPABILITIES.map(str::to_owned).into();
    Capabilities { bounding: list.clone(), effective: list.clone(), permitted: list, ..Capabilities::default() }
}

pub(super) fn user(image: &Facts) -> User {
    User { uid: image.uid, gid: image.gid, additional_gids: image.groups.clone(), umask: 0o022 }
}

/// Program and arguments: the entry point, then `dockerCommand` or the image's own command. What Moat itself is asked to
/// run (a pre-deploy command, a job) runs in the image's shell without the entry point.
pub(super) fn args(input: &Input<'_>, workload: &ImageWorkload, image: &Facts) -> Result<Vec<String>, &'static str> {
    let in_a_shell = |text: &str| ["/bin/sh", "-c", text].map(str::to_owned).to_vec();
    let instance = input.instance;
    if let Some(text) = &instance.command {
        return Ok(in_a_shell(text));
    }
    let own = match instance.purpose {
        Purpose::Serve | Purpose::Cron => match &workload.command {
            Some(text) => words(text, &environment(input, image)).unwrap_or_else(|| in_a_shell(text)),
            None => image.command.clone(),
        },
        Purpose::PreDeploy => return workload.pre_deploy_command.as_deref().map(in_a_shell).ok_or("the service has no pre-deploy command"),
        Purpose::Build | Purpose::Job => return Err("an image has no command for this purpose"),
    };
    let args: Vec<String> = image.entrypoint.iter().cloned().chain(own).collect();
    if args.is_empty() {
        return Err("the image names no command; write `dockerCommand`");
    }
    Ok(args)
}

/// The words of a command with its variables replaced; `None` where it takes a shell.
fn words(text: &str, env: &BTreeMap<String, Secret>) -> Option<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.trim().chars().peekable();
    let mut quote: Option<char> = None;
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(q)) if c == q => quote = None,
            ('\\', None | Some('"')) => {
                let next = chars.next()?;
                if quote.is_some() && !matches!(next, '"' | '\\' | '$' | '`') {
                    word.get_or_insert_default().push('\\');
                }
                word.get_or_insert_default().push(next);
            }
            ('$', None | Some('"')) => {
                let braces = chars.next_if_eq(&'{').is_some();
                let mut name = String::new();
                while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                if name.is_empty() || braces && chars.next() != Some('}') {
                    return None;
                }
                let value = env.get(&name).map(Secret::expose).unwrap_or_default();
                // A shell would split it.
                if quote.is_none() && value.contains(|c: char| c.is_whitespace() || SHELL.contains(c)) {
                    return None;
                }
                if quote.is_some() || !value.is_empty() {
                    word.get_or_insert_default().push_str(value);
                }
            }
            ('`', Some('"')) => return None,
            (c, None) if c.is_whitespace() && c != '\n' => words.extend(word.take()),
            (c, None) if SHELL.contains(c) || c == '#' && word.is_none() => return None,
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    // `A=b program` and an open quote are a shell's.
    (quote.is_none() && words.first().is_some_and(|first| !first.contains('='))).then_some(words)
}

/// The image's environment, then what every program expects, then the service's own, which wins.
pub(super) fn environment(input: &Input<'_>, image: &Facts) -> BTreeMap<String, Secret> {
    let mut env: BTreeMap<String, Secret> = image.env.iter().map(|(key, value)| (key.clone(), Secret::new(value.as_str()))).collect();
    let usual = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", &image.home),
        ("HOSTNAME", input.instance.slug.as_str()),
    ];
    for (key, value) in usual {
        env.entry(key.to_owned()).or_insert_with(|| Secret::new(value));
    }
    env.extend(input.instance.env.clone());
    env
}

pub(super) fn mounts(input: &Input<'_>, image: &Facts) -> Vec<MountOp> {
    let (instance, places) = (input.instance, input.places);
    let mut ops = vec![
        MountOp::Layers { layers: image.layers.clone(), scratch: places.scratch.join("root"), first_id: input.first_id },
        MountOp::Sysfs { target: "/sys".into() },
    ];
    ops.extend(super::etc::network(input));
    if let (Some(disk), Some(folder)) = (instance.workload.disk(), &places.disk) {
        ops.push(MountOp::Writable { source: folder.clone(), target: disk.mount_path.clone() });
    }
    ops.extend(secret_files(input, image.uid));
    ops
}

/// Secret files. Every user of the sandbox reads them: the entry points of many images begin as the superuser and run the server
/// as another user. Nobody outside comes to this mount.
pub(super) fn secret_files(input: &Input<'_>, user: u32) -> Vec<MountOp> {
    let files = &input.instance.secret_files;
    let mut ops = Vec::new();
    if !files.is_empty() {
        // In memory: what a layer shows there is on a disk.
        ops.push(MountOp::Tmpfs { target: SECRETS.into(), size: 4 << 20, mode: 0o755 });
    }
    ops.extend(files.iter().map(|(name, content)| {
        let path = Path::new(SECRETS).join(name);
        MountOp::File { path, mode: 0o444, owner: input.first_id + user, content: content.clone() }
    }));
    ops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_words_or_a_shells() {
        let env = BTreeMap::from([("PORT", "9000"), ("TWO", "a b"), ("NONE", "")].map(|(k, v)| (k.to_owned(), Secret::new(v))));
        for (text, wanted) in [
            ("server /data", Some(&["server", "/data"][..])),
            ("  a   b ", Some(&["a", "b"])),
            ("x --address 0.0.0.0:$PORT", Some(&["x", "--address", "0.0.0.0:9000"])),
            ("x ${PORT}1 '$PORT' \"$TWO\" $NONE \"$NONE\" $UNKNOWN", Some(&["x", "90001", "$PORT", "a b", ""])),
            ("sh -lc 'export A=$PORT; n8n start'", Some(&["sh", "-lc", "export A=$PORT; n8n start"])),
            ("x --console-address \":9001\"", Some(&["x", "--console-address", ":9001"])),
            ("a\\ b \"c\\\"d\\e\"", Some(&["a b", "c\"d\\e"])),
            ("x a#b --y=z", Some(&["x", "a#b", "--y=z"])),
            ("x $TWO", None),
            ("a && b", None),
            ("a | b", None),
            ("a > b", None),
            ("a $(b)", None),
            ("a ${B:-c}", None),
            ("a *.txt", None),
            ("A=b c", None),
            ("a 'b", None),
            ("a # b", None),
            ("a\nb", None),
            ("", None),
        ] {
            let wanted = wanted.map(|words| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
            assert_eq!(words(text, &env), wanted, "{text}");
        }
    }
}
