//! Users and groups of a container, from its own files.
//!
//! The files are the image's: they may be links, pipes, devices or of any size. They are read once the
//! root has changed, so that links end within, and only if they are ordinary and not too long.

use std::io::{self, Read};

use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};

use crate::spec::{ResolvedUser, UserSpec};

/// Longest file read.
const MAX_FILE: u64 = 4 << 20;

/// Who a process is to be, and where its home is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) user: ResolvedUser,
    pub(super) home: String,
}

/// Reads a file of the container; empty if it is not there or not an ordinary one.
fn read(path: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let fd = match fs::openat2(fs::CWD, path, flags, Mode::empty(), resolve) {
        Ok(fd) => fd,
        Err(_) => return Ok(String::new()),
    };
    let stat = fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd).take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Looks the user up in the files of this root.
pub(super) fn resolve(spec: &UserSpec) -> Result<Found, String> {
    let text = |path| read(path).map_err(|e| format!("cannot read {path}: {e}"));
    resolve_in(spec, &text("/etc/passwd")?, &text("/etc/group")?)
}

fn resolve_in(spec: &UserSpec, passwd: &str, group: &str) -> Result<Found, String> {
    let (user, group_part) = match spec.user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (spec.user.as_str(), None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    // name:password:uid:gid:comment:home:shell. A name wins over the same number.
    let entries = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = entries()
        .find(|fields| fields[0] == user)
        .or_else(|| entries().find(|f| number.is_some() && f.get(2).and_then(|u| u.parse().ok()) == number));
    let field = |n: usize| entry.as_ref().and_then(|fields| fields.get(n)).copied();
    let uid = match (number, field(2).and_then(|uid| uid.parse().ok())) {
        (_, Some(uid)) => uid,
        (Some(uid), None) => uid,
        (None, None) => {
            return Err(format!("unable to find user {user}: no matching entries in passwd file"));
        }
    };
    let groups: Vec<Vec<&str>> = group.lines().map(|line| line.split(':').collect()).collect();
    let by_name = |name: &str| {
        let gid = |fields: &Vec<&str>| fields.get(2).and_then(|gid| gid.parse().ok());
        groups.iter().find(|fields| fields[0] == name).and_then(gid)
    };
    let gid = match (spec.gid, group_part) {
        (Some(gid), _) => gid,
        (None, Some(name)) => match (by_name(name), name.parse()) {
            (Some(gid), _) | (None, Ok(gid)) => gid,
            (None, Err(_)) => {
                return Err(format!("unable to find group {name}: no matching entries in group file"));
            }
        },
        (None, None) => field(3).and_then(|gid| gid.parse().ok()).unwrap_or(0),
    };
    let mut all = vec![gid];
    if !spec.strict_groups
        && let Some(name) = field(0)
    {
        // name:password:gid:member,member
        for fields in &groups {
            let is_member = fields.get(3).is_some_and(|list| list.split(',').any(|m| m == name));
            if is_member && let Some(gid) = fields.get(2).and_then(|gid| gid.parse().ok()) {
                all.push(gid);
            }
        }
    }
    all.extend(&spec.groups);
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|gid| seen.insert(*gid));
    let home = field(5).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    Ok(Found { user: ResolvedUser { uid, gid, groups: all }, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv:/bin/false\n\
        1234:x:7:8::/seven:\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nextra:x:200:web,other\nmore:x:201:web\n";

    fn check(user: &str, gid: Option<u32>, strict: bool) -> Result<(u32, u32, Vec<u32>), String> {
        let spec = UserSpec { user: user.into(), gid, groups: vec![500, 200], strict_groups: strict };
        resolve_in(&spec, PASSWD, GROUP).map(|f| (f.user.uid, f.user.gid, f.user.groups))
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(check("", None, false), Ok((0, 0, vec![0, 500, 200])));
        assert_eq!(check("web", None, false), Ok((101, 102, vec![102, 200, 201, 500])));
        assert_eq!(check("101", None, false), Ok((101, 102, vec![102, 200, 201, 500])));
        assert_eq!(check("web", None, true), Ok((101, 102, vec![102, 500, 200])));
        assert_eq!(check("web:extra", None, true), Ok((101, 200, vec![200, 500])));
        assert_eq!(check("web:99", None, true), Ok((101, 99, vec![99, 500, 200])));
        assert_eq!(check("web", Some(5), true), Ok((101, 5, vec![5, 500, 200])));
        assert_eq!(check("9999", None, false), Ok((9999, 0, vec![0, 500, 200])));
        assert_eq!(check("1234", None, true), Ok((7, 8, vec![8, 500, 200])));
        let error = check("nobody", None, false).expect_err("not there");
        assert_eq!(error, "unable to find user nobody: no matching entries in passwd file");
        assert!(check("web:nogroup", None, false).is_err());
    }
}
