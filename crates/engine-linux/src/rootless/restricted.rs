//! Why a machine lets no user make user namespaces: the settings that restrict them, told apart, each with what lifts it.

use super::RootlessError;
use std::fs;

/// Ubuntu's, since 23.10: AppArmor takes the rights away that a user namespace gives, but for programs that a profile lets have them.
const APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
/// Debian's, off by default before Debian 11.
const CLONE: &str = "/proc/sys/kernel/unprivileged_userns_clone";
/// The kernel's own.
const MOST: &str = "/proc/sys/user/max_user_namespaces";

/// What failed, with the setting that is the reason and what lifts it; `otherwise` is what to do where no setting is.
pub fn explain(what: &str, otherwise: &str) -> RootlessError {
    match restriction(|file| fs::read_to_string(file).ok()) {
        Some((why, lift)) => RootlessError::new(format!("{what} ({why})")).hint(format!("{lift}, or run it with sudo")),
        None => RootlessError::new(what).hint(otherwise),
    }
}

/// The first setting that restricts, in words, and what lifts it for good. `read` reads a file of `/proc/sys`.
fn restriction(read: impl Fn(&str) -> Option<String>) -> Option<(String, String)> {
    let set = |file: &str, value: &str| read(file).is_some_and(|now| now.trim() == value);
    let name = |file: &str| file.trim_start_matches("/proc/sys/").replace('/', ".");
    let keep =
        |file: &str, value: &str| format!("`echo {}={value} | sudo tee /etc/sysctl.d/60-moat.conf` and `sudo sysctl --system`", name(file));
    if set(APPARMOR, "1") {
        let why = format!("AppArmor gives user namespaces no rights: `{}` is 1, as on Ubuntu 24.04", name(APPARMOR));
        return Some((why, format!("{}, or a profile for moat alone (guide: Without root)", keep(APPARMOR, "0"))));
    }
    if set(CLONE, "0") {
        return Some((format!("`{}` is 0", name(CLONE)), keep(CLONE, "1")));
    }
    set(MOST, "0").then(|| (format!("`{}` is 0", name(MOST)), keep(MOST, "15000")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_named_with_what_lifts_it() {
        for (settings, says) in [
            (&[][..], None),
            (&[(APPARMOR, "0\n"), (CLONE, "1\n"), (MOST, "15000\n")], None),
            (&[(APPARMOR, "1\n"), (CLONE, "1\n")], Some(("AppArmor", "echo kernel.apparmor_restrict_unprivileged_userns=0 |"))),
            (&[(CLONE, "0\n")], Some(("`kernel.unprivileged_userns_clone` is 0", "echo kernel.unprivileged_userns_clone=1 |"))),
            (&[(MOST, "0\n")], Some(("`user.max_user_namespaces` is 0", "echo user.max_user_namespaces=15000 |"))),
        ] {
            let read = |file: &str| settings.iter().find(|(name, _)| *name == file).map(|(_, value)| (*value).to_owned());
            match (restriction(read), says) {
                (None, None) => {}
                (Some((why, lift)), Some((reason, command))) => assert!(why.contains(reason) && lift.contains(command), "{why}; {lift}"),
                (found, _) => panic!("{settings:?}: {found:?}"),
            }
        }
    }
}
