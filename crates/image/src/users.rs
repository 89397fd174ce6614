//! Names of users and groups, looked up in the image's own `/etc/passwd` and `/etc/group` (passwd(5), group(5)).

use crate::error::ImageError;
use crate::store::Image;

/// Who a program runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's id.
    pub uid: u32,
    /// The group's id.
    pub gid: u32,
    /// Supplementary groups, in order; none where a group was asked for.
    pub groups: Vec<u32>,
    /// The home folder of `/etc/passwd`, `/` where it has none.
    pub home: String,
    /// The name in `/etc/passwd`, if the user has a line there.
    pub name: Option<String>,
}

/// Larger files of a hostile image are read up to here.
const FILE: u64 = 4 << 20;
/// The greatest id a sandbox has; 65535 stands for "no id" in some calls.
const LAST_ID: u32 = 65534;

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Image {
    /// Looks up `user`, `uid`, `user:group` and the like, as `USER` of a Dockerfile means them; empty is root.
    ///
    /// A number needs no line in the image. A name that the image does not know, or an id over 65534, is an error.
    pub fn user(&self, user: &str) -> Result<User, ImageError> {
        let read = |path| {
            Ok::<_, ImageError>(self.read(path, FILE)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default())
        };
        look_up(user, &read("/etc/passwd")?, &read("/etc/group")?).map_err(|reason| ImageError::User { user: user.to_owned(), reason })
    }
}

fn look_up(user: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (who, group_name) = user.split_once(':').map_or((user, None), |(who, group)| (who, Some(group).filter(|group| !group.is_empty())));
    let who = if who.is_empty() { "0" } else { who };
    let accounts = || passwd.lines().filter_map(account);
    let number = id(who)?;
    // A name of digits is a number, unless a user is called so.
    let account = accounts().find(|account| account.name == who).or_else(|| accounts().find(|account| Some(account.uid) == number));
    let uid = match (&account, number) {
        (Some(account), _) => account.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(format!("the image's `/etc/passwd` has no `{who}`")),
    };
    let groups = || group.lines().filter_map(parse_group);
    let (gid, extra) = if let Some(name) = group_name {
        let number = id(name)?;
        let found = groups().find(|group| group.name == name).map(|group| group.gid).or(number);
        (found.ok_or_else(|| format!("the image's `/etc/group` has no `{name}`"))?, Vec::new())
    } else {
        let gid = account.as_ref().map_or(0, |account| account.gid);
        let is_in =
            |group: &Group<'_>| account.as_ref().is_some_and(|account| group.members.split(',').any(|name| name.trim() == account.name));
        let mut extra: Vec<u32> = groups().filter(is_in).map(|group| group.gid).collect();
        extra.sort_unstable();
        extra.dedup();
        (gid, extra)
    };
    if uid > LAST_ID || gid > LAST_ID {
        return Err(format!("its ids {uid}:{gid} are over {LAST_ID}, the greatest that a sandbox has"));
    }
    let home = account.as_ref().map(|account| account.home).filter(|home| home.starts_with('/')).unwrap_or("/").to_owned();
    let groups = extra.into_iter().filter(|gid| *gid <= LAST_ID).collect();
    Ok(User { uid, gid, groups, home, name: account.map(|account| account.name.to_owned()) })
}

/// A number, or none for a name.
fn id(text: &str) -> Result<Option<u32>, String> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("`{text}` is too great for an id"))
}

fn account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.split(':');
    let (name, _, uid, gid, _, home) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next(), fields.next());
    Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.unwrap_or("") })
}

fn parse_group(line: &str) -> Option<Group<'_>> {
    let mut fields = line.split(':');
    let (name, _, gid, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next().unwrap_or(""));
    Some(Group { name, gid: gid.parse().ok()?, members })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nredis:x:999:998::/home/redis:/bin/false\n1234:x:50:51::relative:/x\nbig:x:70000:1::/:\n";
    const GROUP: &str = "root:x:0:\nredis:x:998:\ntls:x:100:other,redis\nlog:x:101:redis\n77:x:9:\nhuge:x:70000:redis\n";

    #[test]
    fn users_as_a_dockerfile_means_them() {
        for (user, uid, gid, groups, home) in [
            ("", 0, 0, &[][..], "/root"),
            ("0", 0, 0, &[], "/root"),
            ("root", 0, 0, &[], "/root"),
            ("redis", 999, 998, &[100, 101], "/home/redis"),
            ("999", 999, 998, &[100, 101], "/home/redis"),
            ("redis:tls", 999, 100, &[], "/home/redis"),
            ("redis:", 999, 998, &[100, 101], "/home/redis"),
            (":tls", 0, 100, &[], "/root"),
            ("4711", 4711, 0, &[], "/"),
            ("4711:12", 4711, 12, &[], "/"),
            ("1234", 50, 51, &[], "/"),
            ("0:77", 0, 9, &[], "/root"),
        ] {
            let found = look_up(user, PASSWD, GROUP).unwrap();
            assert_eq!((found.uid, found.gid, found.groups.as_slice(), found.home.as_str()), (uid, gid, groups, home), "{user}");
        }
        for (user, says) in [
            ("nobody", "no `nobody`"),
            ("redis:none", "no `none`"),
            ("big", "over 65534"),
            ("99999999999", "too great"),
            ("1:70000", "over"),
            ("-1", "no `-1`"),
        ] {
            assert!(look_up(user, PASSWD, GROUP).unwrap_err().contains(says), "{user}");
        }
        assert_eq!(look_up("5", "", "").unwrap().gid, 0);
        assert!(look_up("root", "", "").is_err());
    }
}
