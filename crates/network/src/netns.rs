//! Network namespaces: creating, pinning to a file, entering from a short-lived thread.
//!
//! A thread's namespace is never changed while it may run other work: whatever has to happen inside a
//! namespace runs on a thread of its own, which ends there. Sockets opened by it stay in the namespace.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use crate::{Error, Result};

/// The namespace of the thread that opens it, also where /proc is another PID namespace's.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// A network namespace, held by an open file.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    pin: Option<PathBuf>,
}

impl NetNs {
    /// A new namespace with its loopback device up. It ends with the last file and process in it.
    pub fn create() -> Result<Self> {
        let create = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(CURRENT)
        };
        let fd = on_new_thread(create).and_then(|file| file).map_err(Error::io("create a network namespace"))?;
        let namespace = Self { fd: fd.into(), pin: None };
        crate::links::Links::open_in(namespace.as_fd())?.set_up("lo")?;
        Ok(namespace)
    }

    /// A new namespace that lives on, without any process, as a bind mount on `path`.
    pub fn create_pinned(path: &Path) -> Result<Self> {
        let mut namespace = Self::create()?;
        let pin = || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            File::options().write(true).create_new(true).open(path)?;
            let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&namespace.fd));
            let bound = mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
            bound.inspect_err(|_| drop(fs::remove_file(path)))?;
            Ok(())
        };
        pin().map_err(Error::io(format!("pin a network namespace to {}", path.display())))?;
        namespace.pin = Some(path.to_owned());
        Ok(namespace)
    }

    /// Opens a pinned namespace, or that of a process through /proc/PID/ns/net.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(format!("open the network namespace {}", path.display())))?;
        Ok(Self { fd: file.into(), pin: Some(path.to_owned()) })
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        let file = File::open(CURRENT).map_err(Error::io("open this thread's network namespace"))?;
        Ok(Self { fd: file.into(), pin: None })
    }

    /// Takes a file that is already open on a namespace.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd, pin: None }
    }

    /// Where the namespace was opened or pinned.
    pub fn path(&self) -> Option<&Path> {
        self.pin.as_deref()
    }

    /// Runs `work` in the namespace, on a thread of its own, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        run_in(self.fd.as_fd(), work).map_err(Error::io("enter a network namespace"))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<NetNs> for OwnedFd {
    fn from(namespace: NetNs) -> Self {
        namespace.fd
    }
}

/// Removes a pin. The namespace ends when nothing else holds it. A pin that is not there is fine.
pub fn unpin(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: not mounted, as after a reboot.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => {
            return Err(Error::io(format!("unmount {}", path.display()))(errno.into()));
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Runs `work` on a new thread that has entered `namespace`.
pub(crate) fn run_in<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_new_thread(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        Ok::<_, io::Error>(work())
    })?
}

fn on_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let handle = thread::Builder::new().name("netns".to_owned()).stack_size(256 << 10).spawn_scoped(scope, work)?;
        handle.join().map_err(|_| io::Error::other("the thread in the network namespace panicked"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn work_runs_inside_and_sockets_stay() {
        let namespace = NetNs::create().unwrap();
        let listener = namespace.run(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        assert!(namespace.run(|| TcpStream::connect(address).is_ok()).unwrap());
        let other = NetNs::create().unwrap();
        assert!(!other.run(|| TcpStream::connect(address).is_ok()).unwrap());
    }

    #[test]
    fn a_pin_outlives_its_file_and_goes_away() {
        let dir = std::env::temp_dir().join(format!("skiff-netns-{}", std::process::id()));
        let pin = dir.join("ns");
        let inside = NetNs::create_pinned(&pin).unwrap().run(|| NetNs::current().map(drop)).unwrap();
        inside.unwrap();
        NetNs::open(&pin).unwrap().run(|| ()).unwrap();
        unpin(&pin).unwrap();
        unpin(&pin).unwrap();
        assert!(!pin.exists());
        fs::remove_dir(dir).unwrap();
    }
}
