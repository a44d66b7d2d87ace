//! What must not be there any more after a cluster was deleted.

use std::{fs, path::Path};

use nix::{
    sys::signal::{Signal, kill as send},
    unistd::Pid,
};

/// Processes, mounts, cgroups, network devices and files that belong to a home.
pub fn of(home: &Path) -> Vec<String> {
    let mut found: Vec<_> =
        processes(home).into_iter().map(|(pid, command)| format!("process {pid}: {command}")).collect();
    let text = home.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(&*text)).map(|line| format!("mount {line}")));
    for folder in ["skiff/clusters", "skiff/run/clusters"] {
        let entries = fs::read_dir(home.join(folder)).into_iter().flatten();
        found.extend(entries.filter_map(|entry| Some(format!("file {}", entry.ok()?.path().display()))));
    }
    found
}

/// Network devices besides the loopback one. Only of use when no cluster is left at all.
pub fn devices() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let names = text.lines().skip(2).filter_map(|line| line.split(':').next());
    // The kernel puts a few of these into every namespace.
    names.map(|name| name.trim().to_owned()).filter(|name| !["lo", "sit0", "tunl0"].contains(&name.as_str())).collect()
}

/// Cgroups of this name, in any hierarchy; clusters' have a number of eight digits behind it.
pub fn cgroups(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new("/sys/fs/cgroup").to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if is_called(&entry.file_name().to_string_lossy(), name) {
                    found.push(entry.path().display().to_string());
                }
                folders.push(entry.path());
            }
        }
    }
    found
}

/// Whether a cgroup is that of this name, and not that of a longer one.
fn is_called(cgroup: &str, name: &str) -> bool {
    match cgroup.strip_prefix(name) {
        Some("") => true,
        Some(rest) => rest.len() == 9 && rest.starts_with('-') && rest[1..].bytes().all(|b| b.is_ascii_hexdigit()),
        None => false,
    }
}

/// Removes a cgroup and those below it, as far as nothing runs in them any more.
pub fn remove_cgroups(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    // Whoever asks looks again.
    let _ = fs::remove_dir(folder);
}

/// Kills all processes that belong to a home.
pub fn kill(home: &Path) {
    for (pid, _) in processes(home) {
        // It may have ended by now.
        let _ = send(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Processes that were started for this home, or that live on a file system of one of its nodes.
pub fn processes(home: &Path) -> Vec<(i32, String)> {
    let text = home.to_string_lossy().into_owned();
    let this = std::process::id();
    let mut found = Vec::new();
    let own_mounts = fs::read_link("/proc/self/ns/mnt").ok();
    for entry in fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid.cast_unsigned() == this {
            continue;
        }
        let read =
            |name: &str| fs::read(entry.path().join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let command = read("cmdline").unwrap_or_default().replace('\0', " ");
        let other_mounts = fs::read_link(entry.path().join("ns/mnt")).ok() != own_mounts;
        let lives_there = || {
            // Not where something is mounted, which the whole machine sees, but what is.
            let is_of_home = |line: &str| {
                let root = line.split(' ').nth(3).unwrap_or_default();
                root.contains(&text) || line.split_once(" - ").is_some_and(|(_, source)| source.contains(&text))
            };
            read("mountinfo").is_ok_and(|mounts| mounts.lines().any(is_of_home))
        };
        if command.contains(&text) || other_mounts && lives_there() {
            found.push((pid, command));
        }
    }
    found
}
