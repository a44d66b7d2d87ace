//! Users and groups of an image, from its /etc/passwd and /etc/group; to be used inside of its root.

use std::{fs::File, io::Read};

/// Larger than any such file that is meant.
const MAX_BYTES: u64 = 4 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// The user of `name`, `uid`, `name:group` or `uid:gid`; root if it is empty.
pub(super) fn find(text: &str) -> Result<User, String> {
    find_in(text, &read("/etc/passwd"), &read("/etc/group"))
}

/// An image without these files has no names.
fn read(path: &str) -> String {
    let mut text = Vec::new();
    let file = std::fs::metadata(path).ok().filter(|m| m.is_file()).and_then(|_| File::open(path).ok());
    match file.map(|file| file.take(MAX_BYTES).read_to_end(&mut text)) {
        Some(Ok(_)) => String::from_utf8_lossy(&text).into_owned(),
        _ => String::new(),
    }
}

fn find_in(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, wanted_group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let lines = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect()
    };
    let known = lines(passwd)
        .into_iter()
        .find(|fields| fields.len() >= 6 && (fields[0] == name || (fields[2] == name && name.parse::<u32>().is_ok())));
    let number = |text: &str| text.parse::<u32>().ok();
    let mut user = match &known {
        Some(fields) => User {
            uid: number(&fields[2]).ok_or_else(|| format!("user {name} has no number"))?,
            gid: number(&fields[3]).ok_or_else(|| format!("user {name} has no group"))?,
            groups: Vec::new(),
            home: fields[5].clone(),
        },
        None => User {
            uid: number(name)
                .ok_or_else(|| format!("unable to find user {name}: no matching entries in passwd file"))?,
            gid: 0,
            groups: Vec::new(),
            home: "/".to_owned(),
        },
    };
    if name == "0" && known.is_none() {
        user.home = "/root".to_owned();
    }
    let groups = lines(group);
    if let Some(wanted) = wanted_group {
        let found = groups.iter().find(|fields| fields.len() >= 3 && fields[0] == wanted);
        user.gid = found
            .and_then(|fields| number(&fields[2]))
            .or_else(|| number(wanted))
            .ok_or_else(|| format!("unable to find group {wanted}: no matching entries in group file"))?;
    } else if let Some(fields) = known {
        let member = |group: &&Vec<String>| group.len() >= 4 && group[3].split(',').any(|member| member == fields[0]);
        user.groups = groups.iter().filter(member).filter_map(|group| number(&group[2])).collect();
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:100:101:app:/home/app:/bin/sh\n";
        let group = "root:x:0:\nweb:x:7:app,other\n";
        let find = |text: &str| find_in(text, passwd, group);
        let user = |uid, gid, groups: &[u32], home: &str| User { uid, gid, groups: groups.to_vec(), home: home.into() };
        assert_eq!(find("").unwrap(), user(0, 0, &[], "/root"));
        assert_eq!(find("app").unwrap(), user(100, 101, &[7], "/home/app"));
        assert_eq!(find("app:web").unwrap(), user(100, 7, &[], "/home/app"));
        assert_eq!(find("55:66").unwrap(), user(55, 66, &[], "/"));
        assert!(find("nobody").unwrap_err().contains("no matching entries"));
        assert!(find("app:none").is_err());
    }
}
