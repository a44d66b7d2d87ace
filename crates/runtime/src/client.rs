//! The daemon's side of a supervisor: starting one, finding one again, talking to it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::spec::{Answer, Call, Event, Reply, Request};
use crate::wire::{self, Frame};

/// The name of the socket in a sandbox's run directory.
const SOCKET: &str = "supervisor.sock";
const LOG: &str = "supervisor.log";

/// Why a supervisor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It is gone.
    #[error("the pod's supervisor has ended")]
    Gone,
    /// It could not; the text is for the user.
    #[error("{0}")]
    Refused(String),
    /// It could not be talked to.
    #[error("cannot talk to the pod's supervisor")]
    Io(#[source] io::Error),
}

type Pending = Mutex<Option<HashMap<u64, oneshot::Sender<(Answer, Vec<OwnedFd>)>>>>;

/// A connection to a supervisor. Cloning gives another handle on the same one.
#[derive(Clone)]
pub(crate) struct Client(Arc<Inner>);

struct Inner {
    socket: Arc<AsyncFd<OwnedFd>>,
    /// `None` once the connection has ended.
    pending: Arc<Pending>,
    sequence: AtomicU64,
    reader: tokio::task::AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A socket address in a directory whose path may be longer than an address can hold.
fn address(directory: &OwnedFd) -> io::Result<UnixAddr> {
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    Ok(UnixAddr::new(path.as_str())?)
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

/// Starts a supervisor with its socket in `directory`, which only root may enter.
pub(crate) fn spawn(command: &[std::ffi::OsString], directory: &Path) -> io::Result<()> {
    let [program, arguments @ ..] = command else {
        return Err(io::Error::other("no supervisor command is configured"));
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let parent = open_directory(directory)?;
    bind(listener.as_raw_fd(), &address(&parent)?)?;
    listen(&listener, Backlog::new(4)?)?;
    let log = std::fs::File::options().create(true).append(true).open(directory.join(LOG))?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .spawn()?;
    tokio::spawn(async move {
        match child.wait().await {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!(%status, "a pod's supervisor ended"),
            Err(e) => tracing::warn!(error = %e, "cannot wait for a pod's supervisor"),
        }
    });
    Ok(())
}

impl Client {
    /// Connects to the supervisor whose socket is in `directory`. `events` gets what it says unasked,
    /// and is closed when the connection ends.
    pub(crate) fn connect(directory: &Path, events: mpsc::UnboundedSender<Event>) -> io::Result<Client> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        let parent = open_directory(directory)?;
        connect(fd.as_raw_fd(), &address(&parent)?)?;
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        // SAFETY: an owned descriptor always gives the same number and is closed only with the wrapper.
        let socket = unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)?;
        let socket = Arc::new(socket);
        let pending: Arc<Pending> = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader = tokio::spawn(read(socket.clone(), pending.clone(), events)).abort_handle();
        Ok(Client(Arc::new(Inner { socket, pending, sequence: AtomicU64::new(1), reader })))
    }

    /// Asks for something and waits for the answer.
    pub(crate) async fn call(&self, call: Call, fds: Vec<OwnedFd>) -> Result<(Answer, Vec<OwnedFd>), CallError> {
        let seq = self.0.sequence.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match &mut *lock(&self.0.pending) {
            Some(pending) => pending.insert(seq, sender),
            None => return Err(CallError::Gone),
        };
        let frame = Frame::new(&Request { seq, call }, fds).map_err(CallError::Io)?;
        let sent = self.0.socket.async_io(Interest::WRITABLE, |socket| frame.send(socket.as_fd())).await;
        match sent {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                return Err(CallError::Gone);
            }
            Err(e) => return Err(CallError::Io(e)),
        }
        // Its descriptors are the other side's now: who waits for the end of a pipe must see it.
        drop(frame);
        let (answer, fds) = receiver.await.map_err(|_| CallError::Gone)?;
        match answer.error {
            Some(text) => Err(CallError::Refused(text)),
            None => Ok((answer, fds)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read(socket: Arc<AsyncFd<OwnedFd>>, pending: Arc<Pending>, events: mpsc::UnboundedSender<Event>) {
    loop {
        let received = socket.async_io(Interest::READABLE, |socket| wire::receive::<Reply>(socket.as_fd())).await;
        match received {
            Ok(Some((Reply::Answer(seq, answer), fds))) => {
                let waiting = lock(&pending).as_mut().and_then(|pending| pending.remove(&seq));
                if let Some(waiting) = waiting {
                    // Who asked may have given up.
                    let _ = waiting.send((answer, fds));
                }
            }
            Ok(Some((Reply::Event(event), _))) => {
                let _ = events.send(event);
            }
            Ok(None) => break,
            Err(e) => {
                if e.kind() != io::ErrorKind::ConnectionReset {
                    tracing::warn!(error = %e, "cannot hear a pod's supervisor");
                }
                break;
            }
        }
    }
    // Those who still wait learn that there is no answer.
    lock(&pending).take();
}
