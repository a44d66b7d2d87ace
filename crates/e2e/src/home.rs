//! A user's home: where skiff keeps its clusters, and the kubeconfig.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{Output, command, host, leftovers};

/// All homes of all test runs are here, each with the number of the process that owns it. Not below
/// cargo's target folder: paths of sockets may not be long.
const HOMES: &str = "skiff-e2e";
const OWNER: &str = "owner";

static HOMES_OF_THIS_PROCESS: AtomicU32 = AtomicU32::new(0);

/// Removed, with all its clusters, when it is dropped.
#[derive(Debug)]
pub struct Home {
    pub dir: PathBuf,
}

impl Home {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "this makes a folder")]
    pub fn new() -> Self {
        let number = HOMES_OF_THIS_PROCESS.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(HOMES).join(format!("{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        fs::write(dir.join(OWNER), identity(std::process::id()).expect("this process")).expect("a file");
        Self { dir }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// `skiff` with this home.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(host::skiff());
        command.args(args);
        self.environment(&mut command);
        command
    }

    /// Makes `command` find this home.
    pub fn environment(&self, command: &mut Command) {
        command
            .env("SKIFF_HOME", self.dir.join("skiff"))
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", &self.dir)
            .current_dir(&self.dir);
    }

    /// Runs `skiff` to its end.
    pub fn skiff(&self, args: &[&str]) -> Output {
        command::run(&mut self.command(args), "")
    }

    /// Runs `skiff` under the name of kind to its end; its clusters are isolated like all others of the tests.
    pub fn kind(&self, args: &[&str]) -> Output {
        let link = self.dir.join("kind");
        if !link.exists() {
            std::os::unix::fs::symlink(host::skiff(), &link).expect("a link");
        }
        let mut command = Command::new(link);
        command.args(args).env("SKIFF_ISOLATED", "1");
        self.environment(&mut command);
        command::run(&mut command, "")
    }

    /// Writes a file for a command to read, and returns its path.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.dir.join(name);
        fs::write(&path, content).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    }

    fn clusters(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.join("skiff/clusters")) else { return Vec::new() };
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }

    /// Deletes all clusters, and tells what is left of them.
    pub fn clear(&self) -> Vec<String> {
        let mut left = Vec::new();
        for name in self.clusters() {
            if let Err(error) = self.skiff(&["cluster", "delete", &name]).result() {
                left.push(error);
            }
        }
        left.extend(leftovers::of(&self.dir));
        left
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let left = self.clear();
        if left.is_empty() {
            let _ = fs::remove_dir_all(&self.dir);
        } else if !std::thread::panicking() {
            panic!("left behind: {left:#?}");
        }
    }
}

/// Takes away what test runs left that were killed.
pub fn clear_after_the_killed() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir().join(HOMES)) else { return };
    for dir in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let owner = fs::read_to_string(dir.join(OWNER)).unwrap_or_default();
        let alive = owner.split(' ').next().and_then(|pid| pid.parse().ok()).and_then(identity) == Some(owner.clone());
        if !alive {
            eprintln!("taking away {}, of a run that was killed", dir.display());
            leftovers::kill(&dir);
            let home = Home { dir };
            let left = home.clear();
            if !left.is_empty() {
                eprintln!("still there: {left:#?}");
            }
            let _ = fs::remove_dir_all(&home.dir);
            std::mem::forget(home);
        }
    }
}

/// A process' number and start, which together never come again.
fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name, in parentheses, may hold anything; field 22 counts from the number.
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{pid} {start}"))
}
