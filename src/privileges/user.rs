//! Whose the running appliance is: `process.user`, or the package's user if there is one.
//!
//! /etc/passwd and /etc/group are read as files: a static program cannot load what the C library would ask.

use std::fs;

use caps::securebits::set_keepcaps;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// Made by the Debian package.
pub(super) const DEFAULT: &str = "farrier";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Its supplementary groups; the operator's group may be one of them.
    pub(super) groups: Vec<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error(
        "process.user: this machine has no user {name}: make one with `useradd --system --user-group {name}`, or name another, or its number"
    )]
    Unknown { name: String },
    #[error("process.user: {name} cannot be taken on ({reason}): start as root, or as that user")]
    NotPermitted { name: String, reason: String },
}

/// The user to become; `None` if we are it already, or have none to become.
pub(super) fn wanted(named: Option<&str>) -> Result<Option<User>, UserError> {
    let passwd = read("/etc/passwd");
    let groups = read("/etc/group");
    let found = find(&passwd, &groups, named.unwrap_or(DEFAULT));
    let own = Uid::effective();
    if named == Some(own.to_string().as_str()) {
        return Ok(None);
    }
    match (named, found) {
        (Some(name), None) => Err(UserError::Unknown { name: name.to_owned() }),
        (None, None) => Ok(None),
        (_, Some(user)) if user.uid == own.as_raw() => Ok(None),
        (Some(_), Some(user)) => Ok(Some(user)),
        // Unasked, only root becomes somebody else, and only who exists where we are: a user namespace has few users.
        (None, Some(user)) => Ok(Some(user).filter(|user| own.is_root() && is_mapped(user.uid))),
    }
}

pub(super) fn by_number(uid: u32) -> Option<User> {
    find(&read("/etc/passwd"), "", &uid.to_string())
}

/// One way: there is no return.
pub(super) fn become_user(user: &User) -> Result<(), UserError> {
    let refused = |reason: String| UserError::NotPermitted { name: user.name.clone(), reason };
    // Capabilities would go with the user; which of them stay is decided right after.
    set_keepcaps(true).map_err(|error| refused(error.to_string()))?;
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setgroups(&groups)
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid))
        .map_err(|errno| refused(errno.desc().to_owned()))?;
    set_keepcaps(false).map_err(|error| refused(error.to_string()))
}

fn read(path: &str) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// By name or number. `name:password:uid:gid:…` and `name:password:gid:member,member`.
fn find(passwd: &str, groups: &str, wanted: &str) -> Option<User> {
    let mut users = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid: u32 = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some((name, uid, gid))
    });
    let (name, uid, gid) = users.find(|(name, uid, _)| *name == wanted || uid.to_string() == wanted)?;
    let supplementary = groups.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let gid = fields.nth(2)?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == name).then_some(gid)
    });
    Some(User { name: name.to_owned(), uid, gid, groups: supplementary.collect() })
}

/// Whether this number means somebody in our user namespace.
fn is_mapped(uid: u32) -> bool {
    let map = read("/proc/self/uid_map");
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) => {
                (first..first.saturating_add(count)).contains(&u64::from(uid))
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken:x\nnumber:x:many:1::/:\n\
                          farrier:x:997:996::/var/lib/farrier:/usr/sbin/nologin\n";
    const GROUPS: &str = "root:x:0:\nfarrier:x:996:\nadm:x:4:ada,farrier\nnot:x:5:farriers\n";

    #[test]
    fn a_user_is_found_by_name_and_number_with_its_groups() {
        let farrier = find(PASSWD, GROUPS, "farrier").unwrap();
        assert_eq!(farrier, User { name: "farrier".into(), uid: 997, gid: 996, groups: vec![4] });
        assert_eq!(find(PASSWD, GROUPS, "997"), Some(farrier));
        for unknown in ["farr", "broken", "number", "", "x", "998"] {
            assert_eq!(find(PASSWD, GROUPS, unknown), None, "{unknown}");
        }
    }

    #[test]
    fn nobody_is_unknown_quietly_and_the_missing_are_told() {
        let told = wanted(Some("no-such-user-here")).unwrap_err().to_string();
        assert!(told.contains("process.user") && told.contains("useradd"), "{told}");
        // Whoever runs this already is who they are.
        let own = Uid::effective().to_string();
        assert_eq!(wanted(Some(&own)).unwrap(), None);
        assert!(is_mapped(Uid::effective().as_raw()));
    }
}
