//! COPY inside of the root file system.

use std::{
    fs, io,
    os::{
        fd::BorrowedFd,
        unix::{
            ffi::OsStrExt,
            fs::{OpenOptionsExt, PermissionsExt, chown, lchown, symlink},
        },
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::{
    select::{Content, Selected, open_file, select},
    step::{Copy, Origin},
    user,
};

/// Copies what is selected of `from`; the process' root is already the image's, so that its links stay inside.
pub(super) fn copy(from: BorrowedFd<'_>, copy: &Copy) -> Result<(), String> {
    let selection = select(from, &copy.patterns, &copy.ignore).map_err(|e| e.to_string())?;
    let owner = match &copy.owner {
        Some(owner) => {
            let user = user::find(owner)?;
            // Without a group the number of the user is that of the group, as in Docker.
            let by_number = owner.parse::<u32>().ok();
            Some((user.uid, by_number.unwrap_or(user.gid)))
        }
        None if matches!(copy.from, Origin::Directory(_)) => Some((0, 0)),
        None => None,
    };
    let destination = Path::new(&copy.destination);
    let as_name = selection.single_file && !copy.destination.ends_with('/') && !destination.is_dir();
    let root = if as_name { destination.parent().unwrap_or(destination) } else { destination };
    make_directories(root, owner).map_err(|e| format!("cannot make {}: {e}", root.display()))?;
    let mut directories = Vec::new();
    for entry in &selection.entries {
        let target = if as_name { destination.to_owned() } else { destination.join(&entry.target) };
        one(from, entry, &target, owner, copy.mode)
            .map_err(|e| format!("cannot copy \"/{}\" to {}: {e}", entry.path, target.display()))?;
        if matches!(entry.content, Content::Directory) {
            directories.push((target, entry));
        }
    }
    // Nothing is written into them any more.
    for (target, entry) in directories.iter().rev() {
        set_time(target, entry).map_err(|e| format!("cannot set the time of {}: {e}", target.display()))?;
    }
    Ok(())
}

/// New directories on the way belong to the owner that was asked for.
fn make_directories(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let missing: Vec<PathBuf> = path.ancestors().take_while(|dir| !dir.is_dir()).map(Path::to_owned).collect();
    for dir in missing.iter().rev() {
        fs::create_dir(dir)?;
        if let Some((uid, gid)) = owner {
            chown(dir, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}

fn one(
    from: BorrowedFd<'_>,
    entry: &Selected,
    target: &Path,
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
) -> io::Result<()> {
    let (uid, gid) = owner.unwrap_or((entry.stat.st_uid, entry.stat.st_gid));
    let permissions = fs::Permissions::from_mode(mode.unwrap_or(entry.stat.st_mode & 0o7777));
    if let Some(parent) = target.parent() {
        make_directories(parent, owner)?;
    }
    match &entry.content {
        Content::Directory => {
            if !target.is_dir() {
                fs::create_dir(target)?;
            }
            chown(target, Some(uid), Some(gid))?;
            return fs::set_permissions(target, permissions);
        }
        Content::File => {
            make_room(target)?;
            let mut source = open_file(from, &entry.path)?;
            let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(target)?;
            io::copy(&mut source, &mut file)?;
            // In this order: a change of the owner takes set-user-id away.
            chown(target, Some(uid), Some(gid))?;
            file.set_permissions(permissions)?;
        }
        Content::Link(link) => {
            make_room(target)?;
            symlink(std::ffi::OsStr::from_bytes(link), target)?;
            lchown(target, Some(uid), Some(gid))?;
        }
    }
    set_time(target, entry)
}

/// Takes away what is no directory.
fn make_room(target: &Path) -> io::Result<()> {
    match fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() => {
            Err(io::Error::new(io::ErrorKind::IsADirectory, "cannot copy to a directory that is there"))
        }
        Ok(_) => fs::remove_file(target),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn set_time(target: &Path, entry: &Selected) -> io::Result<()> {
    let time = Timespec { tv_sec: entry.stat.st_mtime as _, tv_nsec: entry.stat.st_mtime_nsec as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
