//! The supervisor: one small process per pod that holds its namespaces, its containers and their output.
//!
//! It has one thread and one loop, so that it may fork, and no asynchronous runtime, so that it stays
//! small. It outlives the daemon: what the daemon has to know after a restart is in the containers'
//! state files and in the answer to [`Call::Hello`]. When it ends, however it ends, the kernel kills its
//! children, the containers.

mod child;
mod footprint;
pub(crate) mod log;
mod mounts;
mod process;
mod rootfs;
mod sandbox;
mod streams;
mod user;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use rustix::event::{PollFd, PollFlags, poll};

use self::log::{Log, now_nanoseconds};
use self::process::{Channel, ChildMessage};
use self::rootfs::{Result, failed};
use self::sandbox::PidNamespace;
use self::streams::{Interest, Streams};
use crate::cgroup;
use crate::spec::{Answer, Call, ContainerSpec, ContainerState, Event, PidMode, ProcessSpec, Reply, Request};
use crate::wire::{self, Frame};

/// Frames kept for a daemon that is slow to read; more than it ever has open.
const MAX_OUTBOX: usize = 4096;

/// How long nothing must happen before memory is given back.
const QUIET: rustix::fs::Timespec = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };

/// Entry point of a supervisor: the program executed again by the daemon, with a listening
/// `SOCK_SEQPACKET` socket as its standard input.
///
/// Must be called first thing in `main`, before any thread is started. Returns when the sandbox has
/// been shut down.
pub fn supervisor_main() -> ExitCode {
    match Supervisor::new().and_then(|mut supervisor| supervisor.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

/// Writes to the file that the daemon gave as standard error.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A container that has been started.
struct Container {
    spec: ContainerSpec,
    state: ContainerState,
    log: Option<Log>,
    streams: Streams,
}

/// A process on its way to becoming its program.
struct Starting {
    channel: OwnedFd,
    pid: Pid,
    seq: u64,
    what: What,
    terminal: Option<OwnedFd>,
}

#[derive(Clone)]
enum What {
    Container(String),
    Exec,
}

/// What a descriptor is polled for.
#[derive(Clone)]
enum Token {
    Signals,
    Listener,
    Control,
    Starting(usize),
    Stream(String, Interest),
}

struct Supervisor {
    listener: OwnedFd,
    signals: SignalFd,
    own_pid_namespace: File,
    null: File,
    control: Option<OwnedFd>,
    outbox: VecDeque<Frame>,
    pause: Option<Pid>,
    containers: BTreeMap<String, Container>,
    starting: Vec<Starting>,
    execs: BTreeMap<i32, u64>,
    /// Whether something was done since memory was last given back.
    untidy: bool,
    done: bool,
}

impl Supervisor {
    fn new() -> Result<Supervisor> {
        let what = "error starting the supervisor";
        let _ = nix::unistd::setsid();
        nix::sys::prctl::set_child_subreaper(true).map_err(failed(what))?;
        let _ = nix::sys::prctl::set_name(c"skiff-pod");
        // SAFETY: the daemon passed the listener as standard input; this duplicates it.
        let listener = unsafe {
            let raw = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3);
            if raw < 0 {
                return Err(failed(what)(io::Error::last_os_error()));
            }
            OwnedFd::from_raw_fd(raw)
        };
        streams::set_nonblocking(listener.as_fd()).map_err(failed(what))?;
        let null = File::options().read(true).write(true).open("/dev/null").map_err(failed(what))?;
        // SAFETY: replaces the standard input, which is no longer used as the listener.
        unsafe {
            use std::os::fd::AsRawFd;
            libc::dup2(null.as_raw_fd(), 0);
        }
        nix::unistd::chdir("/").map_err(failed(what))?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().map_err(failed(what))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Supervisor {
            listener,
            signals: SignalFd::with_flags(&mask, flags).map_err(failed(what))?,
            own_pid_namespace: File::open("/proc/self/ns/pid").map_err(failed(what))?,
            null,
            control: None,
            outbox: VecDeque::new(),
            pause: None,
            containers: BTreeMap::new(),
            starting: Vec::new(),
            execs: BTreeMap::new(),
            untidy: true,
            done: false,
        })
    }

    fn run(&mut self) -> Result<()> {
        while !(self.done && self.outbox.is_empty()) {
            let mut ready = Vec::new();
            {
                let mut fds = Vec::new();
                let mut tokens = Vec::new();
                let mut add = |fd: BorrowedFd<'_>, flags, token| {
                    // SAFETY: extends the borrow to the end of this block, where `fds` ends; nothing is
                    // closed meanwhile.
                    let fd = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&fd)) };
                    fds.push(PollFd::from_borrowed_fd(fd, flags));
                    tokens.push(token);
                };
                add(self.signals.as_fd(), PollFlags::IN, Token::Signals);
                add(self.listener.as_fd(), PollFlags::IN, Token::Listener);
                if let Some(control) = &self.control {
                    let out = if self.outbox.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
                    add(control.as_fd(), PollFlags::IN | out, Token::Control);
                }
                for (n, starting) in self.starting.iter().enumerate() {
                    add(starting.channel.as_fd(), PollFlags::IN, Token::Starting(n));
                }
                for (id, container) in &self.containers {
                    for (fd, writing, interest) in container.streams.interests() {
                        let flags = match (interest, writing) {
                            (Interest::AttachedHangup(_), _) => PollFlags::empty(),
                            (_, true) => PollFlags::OUT,
                            (_, false) => PollFlags::IN,
                        };
                        add(fd, flags, Token::Stream(id.clone(), interest));
                    }
                }
                let quiet = self.untidy.then_some(&QUIET);
                match poll(&mut fds, quiet) {
                    Ok(0) => {
                        footprint::shrink();
                        self.untidy = false;
                        continue;
                    }
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(e) => return Err(failed("error waiting")(e)),
                }
                for (fd, token) in fds.iter().zip(tokens) {
                    if !fd.revents().is_empty() {
                        ready.push((token, fd.revents()));
                    }
                }
            }
            for (token, flags) in ready.iter().filter(|(t, _)| matches!(t, Token::Stream(..))) {
                let Token::Stream(id, interest) = token else { continue };
                if let Some(container) = self.containers.get_mut(id) {
                    let hung_up = flags.intersects(PollFlags::HUP | PollFlags::ERR);
                    container.streams.handle(*interest, hung_up, container.log.as_mut());
                }
            }
            self.containers.values_mut().for_each(|container| container.streams.tidy());
            // From the last, as those that are done are removed.
            for (token, _) in ready.iter().rev() {
                if let Token::Starting(n) = token {
                    self.hear_child(*n);
                }
            }
            for (token, flags) in ready {
                match token {
                    Token::Signals => self.reap(),
                    Token::Listener => self.accept(),
                    Token::Control => self.talk(flags),
                    Token::Starting(_) | Token::Stream(..) => {}
                }
            }
            self.flush();
        }
        Ok(())
    }

    /// A daemon has come; one that was there is gone, or soon will be.
    fn accept(&mut self) {
        use nix::sys::socket::{SockFlag, accept4};
        use std::os::fd::AsRawFd;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        if let Ok(raw) = accept4(self.listener.as_raw_fd(), flags) {
            // SAFETY: the kernel just made this descriptor for us.
            self.control = Some(unsafe { OwnedFd::from_raw_fd(raw) });
            self.outbox.clear();
        }
    }

    fn talk(&mut self, flags: PollFlags) {
        if !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        let Some(control) = &self.control else { return };
        match wire::receive::<Request>(control.as_fd()) {
            Ok(Some((request, fds))) => self.serve(request, fds),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) => self.disconnect(),
            Err(e) => {
                complain(&format!("error reading a request: {e}"));
                self.disconnect();
            }
        }
    }

    fn disconnect(&mut self) {
        self.control = None;
        self.outbox.clear();
    }

    fn reply(&mut self, reply: &Reply, fds: Vec<OwnedFd>) {
        if self.control.is_none() {
            return;
        }
        match Frame::new(reply, fds) {
            Ok(frame) if self.outbox.len() < MAX_OUTBOX => self.outbox.push_back(frame),
            // It connects again and asks how things are.
            Ok(_) => self.disconnect(),
            Err(e) => complain(&format!("error writing a reply: {e}")),
        }
    }

    fn answer(&mut self, seq: u64, result: Result<Answer>, fds: Vec<OwnedFd>) {
        let answer = result.unwrap_or_else(|text| Answer { error: Some(text), ..Default::default() });
        self.reply(&Reply::Answer(seq, answer), fds);
    }

    fn flush(&mut self) {
        while let (Some(control), Some(frame)) = (&self.control, self.outbox.front()) {
            match frame.send(control.as_fd()) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.disconnect(),
            }
        }
    }

    fn serve(&mut self, request: Request, fds: Vec<OwnedFd>) {
        self.untidy = true;
        let Request { seq, call } = request;
        let done = || Answer::default();
        let (result, fds) = match call {
            Call::Init(spec) => (self.init(&spec).map(|()| done()), Vec::new()),
            Call::Hello => (Ok(self.hello()), Vec::new()),
            Call::Start(path) => match self.start(seq, &path) {
                // Answered when the child is heard.
                Ok(()) => return,
                Err(text) => (Err(text), Vec::new()),
            },
            Call::Exec { exec, id, process, tty, streams } => {
                match self.exec(seq, exec, &id, *process, tty, streams, fds) {
                    Ok(()) => return,
                    Err(text) => (Err(text), Vec::new()),
                }
            }
            Call::Signal { id, signal, all } => (self.signal(&id, signal, all).map(|()| done()), Vec::new()),
            Call::SignalExec { exec, signal } => {
                let pid = self.execs.iter().find(|(_, e)| **e == exec).map(|(pid, _)| *pid);
                let sent = pid.map_or(Ok(()), |pid| send_signal(Pid::from_raw(pid), signal));
                (sent.map(|()| done()), Vec::new())
            }
            Call::Attach { id, streams } => (self.attach(&id, streams, fds).map(|()| done()), Vec::new()),
            Call::Resize { id, width, height } => (self.resize(&id, width, height).map(|()| done()), Vec::new()),
            Call::ReopenLog(id) => (self.reopen_log(&id).map(|()| done()), Vec::new()),
            Call::Connect(port) => match connect(port) {
                Ok(fd) => (Ok(done()), vec![fd]),
                Err(text) => (Err(text), Vec::new()),
            },
            Call::Forget(id) => {
                if self.containers.get(&id).is_some_and(|c| c.state.finished_at != 0) {
                    self.containers.remove(&id);
                }
                (Ok(done()), Vec::new())
            }
            Call::Shutdown => {
                self.shutdown();
                (Ok(done()), Vec::new())
            }
        };
        self.answer(seq, result, fds);
    }

    fn init(&mut self, spec: &crate::spec::SandboxSpec) -> Result<()> {
        sandbox::make(spec)?;
        if spec.share_pid {
            self.pause = Some(sandbox::start_pause(&self.own_pid_namespace)?);
        }
        Ok(())
    }

    fn hello(&self) -> Answer {
        let states = self.containers.iter().map(|(id, c)| (id.clone(), c.state.clone()));
        Answer { containers: states.collect(), ..Default::default() }
    }

    fn pid_namespace(&self, mode: &PidMode) -> Result<PidNamespace> {
        let of = |pid: i32| {
            File::open(format!("/proc/{pid}/ns/pid"))
                .map(PidNamespace::Join)
                .map_err(failed("error opening the PID namespace"))
        };
        match mode {
            PidMode::Own => Ok(PidNamespace::New),
            PidMode::Host => Ok(PidNamespace::Same),
            PidMode::Pod => of(self.pause.ok_or("the pod does not share a PID namespace")?.as_raw()),
            PidMode::Target(id) => of(self.running(id)?.state.pid),
        }
    }

    fn running(&self, id: &str) -> Result<&Container> {
        self.containers
            .get(id)
            .filter(|c| c.state.finished_at == 0 && c.state.pid != 0)
            .ok_or_else(|| format!("container {id} is not running"))
    }

    fn start(&mut self, seq: u64, path: &Path) -> Result<()> {
        let text = std::fs::read(path).map_err(failed(format!("error reading {}", path.display())))?;
        let spec: ContainerSpec =
            serde_json::from_slice(&text).map_err(failed(format!("error in {}", path.display())))?;
        if self.containers.contains_key(&spec.id) {
            return Err(format!("container {} has been started before", spec.id));
        }
        let log = spec
            .log_path
            .as_deref()
            .map(|path| Log::open(path).map_err(failed(format!("error opening {}", path.display()))))
            .transpose()?;
        let namespace = self.pid_namespace(&spec.pid)?;
        let (streams, ends) = if spec.tty {
            (Streams::terminal(spec.stdin_once), None)
        } else {
            let (stdout, stdout_end) = pipe()?;
            let (stderr, stderr_end) = pipe()?;
            let (stdin, stdin_end) = if spec.stdin {
                let (read, write) = pipe()?;
                (Some(write), read)
            } else {
                (None, self.null()?)
            };
            let streams =
                Streams::pipes(stdout, stderr, stdin, spec.stdin_once).map_err(failed("error making pipes"))?;
            (streams, Some([stdin_end, stdout_end, stderr_end]))
        };
        let (ours, theirs) = channel()?;
        match sandbox::fork_in(&namespace, &self.own_pid_namespace)? {
            ForkResult::Child => child::container(&spec, ends, Channel(theirs)),
            ForkResult::Parent { child: pid } => {
                let id = spec.id.clone();
                let state = ContainerState { pid: pid.as_raw(), ..Default::default() };
                self.containers.insert(id.clone(), Container { spec, state, log, streams });
                let what = What::Container(id);
                self.starting.push(Starting { channel: ours, pid, seq, what, terminal: None });
                Ok(())
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn exec(
        &mut self,
        seq: u64,
        exec: u64,
        id: &str,
        process: ProcessSpec,
        tty: bool,
        given: [bool; 3],
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        let container = self.running(id)?;
        let pid = container.state.pid;
        let open =
            |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}")).map_err(failed("error entering the container"));
        let mounts = open("mnt")?;
        let namespace = match container.spec.pid {
            PidMode::Host => PidNamespace::Same,
            _ => PidNamespace::Join(open("pid")?),
        };
        let cgroup = container.spec.cgroup.clone();
        let ends = if tty {
            None
        } else {
            let mut fds = fds.into_iter();
            let mut next = |given| match given {
                true => fds.next().ok_or_else(|| "a stream is missing".to_owned()),
                false => self.null(),
            };
            Some([next(given[0])?, next(given[1])?, next(given[2])?])
        };
        let (ours, theirs) = channel()?;
        match sandbox::fork_in(&namespace, &self.own_pid_namespace)? {
            ForkResult::Child => child::exec(&process, &cgroup, &mounts, ends, Channel(theirs)),
            ForkResult::Parent { child: pid } => {
                self.execs.insert(pid.as_raw(), exec);
                let what = What::Exec;
                self.starting.push(Starting { channel: ours, pid, seq, what, terminal: None });
                Ok(())
            }
        }
    }

    fn null(&self) -> Result<OwnedFd> {
        Ok(self.null.try_clone().map_err(failed("error opening the null device"))?.into())
    }

    /// Reads what a child on its way says.
    fn hear_child(&mut self, n: usize) {
        loop {
            let Some(starting) = self.starting.get_mut(n) else { return };
            let message = match wire::receive::<ChildMessage>(starting.channel.as_fd()) {
                Ok(Some((ChildMessage::Terminal, fds))) => {
                    starting.terminal = fds.into_iter().next();
                    continue;
                }
                Ok(Some((message, _))) => message,
                Ok(None) => ChildMessage::Failed("the process ended before it became the program".into()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => ChildMessage::Failed(format!("error hearing the process: {e}")),
            };
            let starting = self.starting.remove(n);
            match message {
                ChildMessage::Ready(user) => self.started(starting, user),
                ChildMessage::Failed(text) => self.not_started(starting, text),
                ChildMessage::Terminal => {}
            }
            return;
        }
    }

    fn started(&mut self, starting: Starting, user: crate::spec::ResolvedUser) {
        match starting.what {
            What::Container(id) => {
                let Some(container) = self.containers.get_mut(&id) else { return };
                if let Some(terminal) = starting.terminal {
                    let stdin = container.spec.stdin;
                    if let Err(e) = container.streams.set_terminal(terminal, stdin) {
                        complain(&format!("error using the terminal of {id}: {e}"));
                    }
                }
                container.state.started_at = now_nanoseconds();
                container.state.user = Some(user);
                persist(container);
                let state = container.state.clone();
                let answer = Answer { containers: [(id, state)].into(), ..Default::default() };
                self.answer(starting.seq, Ok(answer), Vec::new());
            }
            What::Exec => {
                let answer = Answer { pid: starting.pid.as_raw(), ..Default::default() };
                self.answer(starting.seq, Ok(answer), starting.terminal.into_iter().collect());
            }
        }
    }

    fn not_started(&mut self, starting: Starting, text: String) {
        match starting.what {
            // Its process is reaped as that of nobody.
            What::Container(id) => {
                self.containers.remove(&id);
            }
            What::Exec => {
                self.execs.remove(&starting.pid.as_raw());
            }
        }
        self.answer(starting.seq, Err(text), Vec::new());
    }

    fn reap(&mut self) {
        self.untidy = true;
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            // What it said before it ended is read first.
            if let Some(n) = self.starting.iter().position(|s| s.pid == pid) {
                self.hear_child(n);
            }
            if let Some(exec) = self.execs.remove(&pid.as_raw()) {
                self.reply(&Reply::Event(Event::ExecExited { exec, code }), Vec::new());
            } else if self.pause == Some(pid) {
                complain("the first process of the pod ended");
                self.pause = None;
            } else {
                self.container_ended(pid, code);
            }
        }
    }

    fn container_ended(&mut self, pid: Pid, code: i32) {
        let found = self.containers.iter_mut().find(|(_, c)| c.state.pid == pid.as_raw() && c.state.finished_at == 0);
        let Some((id, container)) = found else { return };
        if container.spec.pid != PidMode::Own
            && let Some(dir) = &container.spec.cgroup.procs_dir
            && let Err(e) = cgroup::kill_all(dir)
        {
            complain(&format!("error ending the processes of {id}: {e}"));
        }
        if let Some(file) = &container.spec.cgroup.oom_file {
            let count = cgroup::read_key(file, "oom_kill").ok().flatten();
            container.state.oom_killed = count.unwrap_or(0) > 0;
        }
        container.streams.finish(container.log.as_mut());
        if let Some(log) = &mut container.log {
            log.finish();
        }
        container.log = None;
        container.state.finished_at = now_nanoseconds();
        container.state.exit_code = code;
        persist(container);
        let event = Event::Exited { id: id.clone(), state: container.state.clone() };
        self.reply(&Reply::Event(event), Vec::new());
    }

    fn signal(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let container = self.running(id)?;
        send_signal(Pid::from_raw(container.state.pid), signal)?;
        if all && let Some(dir) = &container.spec.cgroup.procs_dir {
            for pid in cgroup::processes(dir).map_err(failed("error listing processes"))? {
                send_signal(pid, signal)?;
            }
        }
        Ok(())
    }

    fn attach(&mut self, id: &str, given: [bool; 3], fds: Vec<OwnedFd>) -> Result<()> {
        self.running(id)?;
        let mut fds = fds.into_iter();
        let mut next = |given: bool| if given { fds.next() } else { None };
        let (stdin, stdout, stderr) = (next(given[0]), next(given[1]), next(given[2]));
        match self.containers.get_mut(id) {
            Some(container) => container.streams.attach(stdin, stdout, stderr).map_err(failed("error attaching")),
            None => Err(format!("container {id} is not running")),
        }
    }

    fn resize(&self, id: &str, width: u16, height: u16) -> Result<()> {
        let container = self.running(id)?;
        let terminal = container.streams.terminal_fd().ok_or("the container has no terminal")?;
        set_size(terminal, width, height).map_err(failed("error resizing the terminal"))
    }

    fn reopen_log(&mut self, id: &str) -> Result<()> {
        match self.containers.get_mut(id).and_then(|c| c.log.as_mut()) {
            Some(log) => log.reopen().map_err(failed("error opening the log")),
            None => Err(format!("container {id} is not running")),
        }
    }

    /// Kills everything; the kernel would, but then nobody would note how it ended.
    fn shutdown(&mut self) {
        let running: Vec<_> = self.containers.values().filter(|c| c.state.finished_at == 0).collect();
        for container in running {
            let _ = send_signal(Pid::from_raw(container.state.pid), Signal::SIGKILL as i32);
            if let Some(dir) = &container.spec.cgroup.procs_dir {
                let _ = cgroup::kill_all(dir);
            }
        }
        while self.containers.values().any(|c| c.state.finished_at == 0) {
            match nix::sys::wait::waitid(nix::sys::wait::Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(_) => self.reap(),
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        if let Some(pause) = self.pause.take() {
            let _ = send_signal(pause, Signal::SIGKILL as i32);
        }
        self.done = true;
    }
}

/// Sets the size of a terminal.
pub(crate) fn set_size(terminal: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Writes the state file in one step; a reader sees the old or the new one.
fn persist(container: &Container) {
    let path = &container.spec.state_file;
    let staged = path.with_extension("new");
    let write = || -> io::Result<()> {
        std::fs::write(&staged, serde_json::to_vec(&container.state)?)?;
        std::fs::rename(&staged, path)
    };
    if let Err(e) = write() {
        complain(&format!("error writing {}: {e}", path.display()));
    }
}

fn send_signal(pid: Pid, signal: i32) -> Result<()> {
    // SAFETY: plain system call; real-time signals have no name in the enumeration.
    let result = unsafe { libc::kill(pid.as_raw(), signal) };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            e => Err(failed("error sending a signal")(e)),
        },
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed("error making a pipe"))
}

/// The way between a child and the supervisor; only the supervisor's end does not block.
fn channel() -> Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let what = "error making a channel";
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(failed(what))?;
    streams::set_nonblocking(ours.as_fd()).map_err(failed(what))?;
    Ok((ours, theirs))
}

/// Connects to a port of the pod's loopback, IPv4 first. Loopback answers at once, so this may block.
fn connect(port: u16) -> Result<OwnedFd> {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
    let patience = std::time::Duration::from_secs(2);
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match TcpStream::connect_timeout(&v4, patience) {
        Ok(stream) => Ok(stream.into()),
        Err(first) => {
            let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
            match TcpStream::connect_timeout(&v6, patience) {
                Ok(stream) => Ok(stream.into()),
                Err(second) => Err(format!(
                    "failed to connect to localhost:{port} inside namespace, IPv4: dial tcp4 127.0.0.1:{port}: {first}, IPv6: dial tcp6 [::1]:{port}: {second}"
                )),
            }
        }
    }
}
