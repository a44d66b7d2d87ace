//! Carrying out one instruction on a root file system, in a process with namespaces of its own.
//!
//! The overlay of the layers is mounted in a mount namespace that only this process has, so it goes with the process,
//! however that ends; and the process ends with the one that started it. RUN has its own PID, IPC and UTS namespaces
//! and the machine's network, as `docker build --network=host`.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::symlink, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{prctl, signal::Signal},
};
use serde::{Deserialize, Serialize};

use super::{copy, pattern::Ignore, user};

/// The subcommand with which a build starts the process for an instruction.
pub const SUBCOMMAND: &str = "image-build-step";

/// Exit code of a step that could not be begun; the file says why.
const CANNOT: u8 = 125;
const ERROR: &str = "error";
const STEP: &str = "step.json";

/// One instruction, ready to be carried out.
#[derive(Serialize, Deserialize)]
pub(super) struct Step {
    /// Layers, top first.
    pub(super) lower: Vec<PathBuf>,
    /// Where changes go, in overlayfs' form.
    pub(super) upper: PathBuf,
    pub(super) action: Action,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Action {
    Run { arguments: Vec<String>, environment: Vec<(String, String)>, user: String, directory: String },
    Copy(Copy),
    MakeDirectory { path: String },
}

#[derive(Serialize, Deserialize)]
pub(super) struct Copy {
    pub(super) from: Origin,
    pub(super) patterns: Vec<String>,
    pub(super) ignore: Ignore,
    /// Absolute; ends with a slash if it is meant as a directory.
    pub(super) destination: String,
    pub(super) owner: Option<String>,
    pub(super) mode: Option<u32>,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Origin {
    Directory(PathBuf),
    /// Of another stage or image, top first.
    Layers(Vec<PathBuf>),
}

/// Carries out a step with this program as helper; `scratch` is an empty directory on the file system of the upper
/// one. Says in words what went wrong.
pub(super) fn run(program: &Path, scratch: &Path, step: &Step) -> Result<(), String> {
    let failed = |e: io::Error| format!("cannot start the step: {e}");
    let text = serde_json::to_vec(step).map_err(|e| failed(e.into()))?;
    fs::write(scratch.join(STEP), text).map_err(failed)?;
    // What the program prints is for those who watch, as all that the build says.
    let status = Command::new(program)
        .args([SUBCOMMAND, "outer"])
        .arg(scratch)
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    match fs::read_to_string(scratch.join(ERROR)) {
        Ok(text) if !text.is_empty() => Err(text),
        _ => Err(match status.code() {
            Some(code) => format!("did not complete successfully: exit code: {code}"),
            None => format!("did not complete successfully: {status}"),
        }),
    }
}

/// Main function of the helper. Must be called before the process has threads.
pub fn build_step_main(mut arguments: impl Iterator<Item = OsString>) -> u8 {
    let which = arguments.next().unwrap_or_default();
    let scratch = PathBuf::from(arguments.next().unwrap_or_default());
    let Ok(mut report) = File::create(scratch.join(ERROR)) else { return CANNOT };
    let result = if which == "outer" { outer(&scratch) } else { inner(&scratch).map(|()| 0) };
    result.unwrap_or_else(|error| {
        // If that fails, too, the exit code remains.
        let _ = report.write_all(error.as_bytes());
        CANNOT
    })
}

fn told(what: &str) -> impl FnOnce(nix::Error) -> String {
    move |error| format!("cannot {what}: {}", error.desc())
}

/// Makes the namespaces; only a child of this process is inside of the new PID namespace.
fn outer(scratch: &Path) -> Result<u8, String> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(told("tie the step to the build"))?;
    let kinds =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(kinds).map_err(told("make namespaces (this needs root)"))?;
    let mut inner = Command::new("/proc/self/exe");
    inner.args([SUBCOMMAND, "inner"]).arg(scratch);
    let status = inner.status().map_err(|e| format!("cannot start the step: {e}"))?;
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(CANNOT))
}

fn inner(scratch: &Path) -> Result<(), String> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(told("tie the step to the build"))?;
    let failed = |what: &'static str| move |e: io::Error| format!("cannot {what}: {e}");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(told("keep mounts to itself"))?;
    let text = fs::read(scratch.join(STEP)).map_err(failed("read the step"))?;
    let step: Step = serde_json::from_slice(&text).map_err(|e| format!("cannot read the step: {e}"))?;
    std::env::set_current_dir(scratch).map_err(failed("enter the step's directory"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    overlay(&step.lower, Some(&step.upper), "root").map_err(failed("mount the layers"))?;
    match step.action {
        Action::Run { arguments, environment, user, directory } => {
            // The machine's own files: what names it knows the step knows, too.
            let files = ["etc/resolv.conf", "etc/hosts"].map(|path| (path, fs::read(Path::new("/").join(path)).ok()));
            enter_for_good().map_err(told("enter the root file system"))?;
            basics(&files).map_err(failed("mount /proc and /dev"))?;
            execute(&arguments, environment, &user, &directory)
        }
        Action::Copy(copy) => {
            let from = match &copy.from {
                Origin::Directory(dir) => File::open(dir),
                Origin::Layers(lower) => overlay(lower, None, "from").and_then(|()| File::open("from")),
            };
            let from = from.map_err(failed("open the source"))?;
            chroot()?;
            copy::copy(from.as_fd(), &copy)
        }
        Action::MakeDirectory { path } => {
            chroot()?;
            fs::create_dir_all(&path).map_err(|e| format!("cannot make {path}: {e}"))
        }
    }
}

/// Only this program's own code runs after it, so that no way back needs to be closed.
fn chroot() -> Result<(), String> {
    nix::unistd::chroot("root").and_then(|()| nix::unistd::chdir("/")).map_err(told("enter the root file system"))
}

/// Mounts layers, top first, at a new directory here. Short links stand for them, because all of their paths have to
/// fit in a page.
fn overlay(lower: &[PathBuf], upper: Option<&Path>, at: &str) -> io::Result<()> {
    let mut names = Vec::new();
    for (index, dir) in lower.iter().enumerate() {
        let name = format!("{}{index}", &at[..1]);
        symlink(dir, &name)?;
        names.push(name);
    }
    // Overlayfs wants two lower layers where it has no upper one, and one otherwise.
    let empty = format!("{at}-empty");
    fs::create_dir(&empty)?;
    names.push(empty.clone());
    if lower.is_empty() {
        let second = format!("{at}-empty2");
        fs::create_dir(&second)?;
        names.push(second);
    }
    let mut options = format!("lowerdir={},redirect_dir=off,metacopy=off,index=off", names.join(":"));
    if let Some(upper) = upper {
        symlink(upper, "upper")?;
        fs::create_dir("work")?;
        options.push_str(",upperdir=upper,workdir=work");
    }
    fs::create_dir(at)?;
    Ok(mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?)
}

/// Makes the overlay the root, with nothing of the old one left.
fn enter_for_good() -> nix::Result<()> {
    nix::unistd::chdir("root")?;
    // The old root comes to lie upon the new one, from where it is taken away.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

/// Parts of /proc that reach beyond the namespaces, as container runtimes close them.
const HIDDEN: &[&str] =
    &["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/proc/scsi", "/proc/latency_stats"];
const READ_ONLY: &[&str] = &["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"];
const DEVICES: &[(&str, u64, u64)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// What is mounted for a program. It all lies inside of the root already, so that a link of the image leads nowhere
/// else.
fn basics(files: &[(&str, Option<Vec<u8>>)]) -> io::Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    for dir in ["/proc", "/dev", "/sys"] {
        fs::create_dir_all(dir)?;
    }
    mount(Some("proc"), "/proc", Some("proc"), safe, None::<&str>)?;
    mount(Some("tmpfs"), "/dev", Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755,size=65536k"))?;
    for (name, major, minor) in DEVICES {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let path = Path::new("/dev").join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(*major, *minor))?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    }
    for (name, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(Path::new("/proc/self").join(target), Path::new("/dev").join(name))?;
    }
    fs::create_dir("/dev/shm")?;
    mount(Some("shm"), "/dev/shm", Some("tmpfs"), safe, Some("mode=1777,size=65536k"))?;
    for (path, content) in files {
        let (Some(content), target) = (content, Path::new("/").join(path)) else { continue };
        if fs::symlink_metadata(&target).is_err() {
            fs::create_dir_all("/etc")?;
            File::create(&target)?;
        }
        // A link that leads nowhere: the image wants none.
        if !target.is_file() {
            continue;
        }
        let source = Path::new("/dev").join(target.file_name().unwrap_or_default());
        fs::write(&source, content)?;
        mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        fs::remove_file(&source)?;
    }
    for path in READ_ONLY.iter().filter(|path| Path::new(path).exists()) {
        mount(Some(*path), *path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | safe;
        mount(None::<&str>, *path, None::<&str>, flags, None::<&str>)?;
    }
    for path in HIDDEN.iter().map(Path::new).filter(|path| path.exists()) {
        if path.is_dir() {
            mount(Some("tmpfs"), path, Some("tmpfs"), safe | MsFlags::MS_RDONLY, None::<&str>)?;
        } else {
            mount(Some("/dev/null"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
    }
    Ok(())
}

/// Becomes the program, with a container's capabilities and no terminal to type into. Without a list of devices that
/// may be used there must be no making of devices, so that capability is left out.
fn execute(
    arguments: &[String],
    environment: Vec<(String, String)>,
    user: &str,
    directory: &str,
) -> Result<(), String> {
    let user = user::find(user)?;
    nix::unistd::setsid().map_err(told("leave the terminal"))?;
    nix::unistd::sethostname("buildkitsandbox").map_err(told("set the host name"))?;
    drop_capabilities().map_err(|e| format!("cannot give up capabilities: {e}"))?;
    let groups: Vec<_> = user.groups.iter().map(|gid| nix::unistd::Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups).map_err(told("set the groups"))?;
    nix::unistd::setgid(nix::unistd::Gid::from_raw(user.gid)).map_err(told("set the group"))?;
    nix::unistd::setuid(nix::unistd::Uid::from_raw(user.uid)).map_err(told("set the user"))?;
    // Changing the user undoes it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(told("tie the step to the build"))?;
    let (program, rest) = arguments.split_first().ok_or("no command given")?;
    let mut command = Command::new(program);
    command.args(rest).env_clear().env("HOME", user.home).envs(environment);
    if !directory.is_empty() {
        std::env::set_current_dir(directory).map_err(|e| format!("cannot enter {directory}: {e}"))?;
    }
    Err(format!("cannot run {:?}: {}", OsString::from(program).as_bytes().escape_ascii().to_string(), command.exec()))
}

fn drop_capabilities() -> io::Result<()> {
    use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
    let kept = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FSETID
        | CapabilitySet::FOWNER
        | CapabilitySet::NET_RAW
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETFCAP
        | CapabilitySet::SETPCAP
        | CapabilitySet::NET_BIND_SERVICE
        | CapabilitySet::SYS_CHROOT
        | CapabilitySet::KILL
        | CapabilitySet::AUDIT_WRITE;
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The kernel knows no more.
            Err(rustix::io::Errno::INVAL) => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
