//! A container's output and input, and those who are attached to them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::log::{Log, Source};

/// Bytes read at once.
const CHUNK: usize = 32 * 1024;
/// Bytes that may wait for one who is attached, or for the container; more is not read meanwhile, so
/// that who does not keep up slows the other side down, as with a pipe.
const MAX_PENDING: usize = 64 * 1024;

/// Bytes on their way into a descriptor that may not take them all at once.
#[derive(Default)]
pub(super) struct Sink {
    fd: Option<OwnedFd>,
    pending: Vec<u8>,
    /// Close once everything is written.
    ending: bool,
}

impl Sink {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Sink> {
        set_nonblocking(fd.as_fd())?;
        Ok(Sink { fd: Some(fd), ..Default::default() })
    }

    /// The descriptor, if bytes wait for it.
    pub(super) fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().filter(|_| !self.pending.is_empty()).map(AsFd::as_fd)
    }

    fn has_room(&self) -> bool {
        self.fd.is_none() || self.pending.len() < MAX_PENDING
    }

    pub(super) fn push(&mut self, data: &[u8]) {
        if self.fd.is_some() {
            self.pending.extend_from_slice(data);
            self.flush();
        }
    }

    /// Writes what can be written.
    pub(super) fn flush(&mut self) {
        let mut written = 0;
        while let Some(fd) = &self.fd
            && written < self.pending.len()
        {
            match rustix::io::write(fd, &self.pending[written..]) {
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The reader has gone.
                Err(_) => self.fd = None,
            }
        }
        if self.fd.is_none() {
            written = self.pending.len();
        }
        self.pending.drain(..written);
        if self.pending.is_empty() {
            self.pending.shrink_to(4096);
            if self.ending {
                self.fd = None;
            }
        }
    }

    /// Closes the descriptor after what is pending.
    fn end(&mut self) {
        self.ending = true;
        self.flush();
    }
}

/// One who is attached.
pub(super) struct Attached {
    stdin: Option<OwnedFd>,
    outputs: [Sink; 2],
}

/// The input and output of a container.
#[derive(Default)]
pub(super) struct Streams {
    /// Output and error output; with a terminal only the first, which is then also the way in.
    outputs: [Option<OwnedFd>; 2],
    tty: bool,
    stdin: Option<Sink>,
    stdin_once: bool,
    attached: Vec<Attached>,
}

/// What to wait for on a descriptor, and what to do then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// Read this output.
    Output(usize),
    /// Write to the container's input.
    Stdin,
    /// Read the input of this one attached.
    AttachedInput(usize),
    /// Write this output to this one attached.
    AttachedOutput(usize, usize),
    /// See whether this one attached is still there.
    AttachedHangup(usize),
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}

impl Streams {
    /// With pipes.
    pub(super) fn pipes(
        stdout: OwnedFd,
        stderr: OwnedFd,
        stdin: Option<OwnedFd>,
        stdin_once: bool,
    ) -> io::Result<Streams> {
        set_nonblocking(stdout.as_fd())?;
        set_nonblocking(stderr.as_fd())?;
        Ok(Streams {
            outputs: [Some(stdout), Some(stderr)],
            stdin: stdin.map(Sink::new).transpose()?,
            stdin_once,
            ..Default::default()
        })
    }

    /// With a terminal, which is yet to come.
    pub(super) fn terminal(stdin_once: bool) -> Streams {
        Streams { tty: true, stdin_once, ..Default::default() }
    }

    /// The terminal has come.
    pub(super) fn set_terminal(&mut self, master: OwnedFd, stdin: bool) -> io::Result<()> {
        set_nonblocking(master.as_fd())?;
        if stdin {
            self.stdin = Some(Sink::new(master.try_clone()?)?);
        }
        self.outputs[0] = Some(master);
        Ok(())
    }

    pub(super) fn terminal_fd(&self) -> Option<BorrowedFd<'_>> {
        self.outputs[0].as_ref().filter(|_| self.tty).map(AsFd::as_fd)
    }

    pub(super) fn attach(
        &mut self,
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> io::Result<()> {
        if let Some(stdin) = &stdin {
            set_nonblocking(stdin.as_fd())?;
        }
        let sink = |fd: Option<OwnedFd>| fd.map(Sink::new).transpose().map(Option::unwrap_or_default);
        self.attached.push(Attached { stdin, outputs: [sink(stdout)?, sink(stderr)?] });
        Ok(())
    }

    /// What to wait for; the flag says whether for writing.
    pub(super) fn interests(&self) -> Vec<(BorrowedFd<'_>, bool, Interest)> {
        let mut out = Vec::new();
        for (n, output) in self.outputs.iter().enumerate() {
            let keeps_up = self.attached.iter().all(|a| a.outputs[n].has_room());
            if let Some(fd) = output.as_ref().filter(|_| keeps_up) {
                out.push((fd.as_fd(), false, Interest::Output(n)));
            }
        }
        let stdin_has_room = self.stdin.as_ref().is_none_or(Sink::has_room);
        if let Some(fd) = self.stdin.as_ref().and_then(Sink::waiting) {
            out.push((fd, true, Interest::Stdin));
        }
        for (who, attached) in self.attached.iter().enumerate() {
            if let Some(fd) = attached.stdin.as_ref().filter(|_| stdin_has_room) {
                out.push((fd.as_fd(), false, Interest::AttachedInput(who)));
            }
            for (n, sink) in attached.outputs.iter().enumerate() {
                match (sink.waiting(), &sink.fd) {
                    (Some(fd), _) => out.push((fd, true, Interest::AttachedOutput(who, n))),
                    (None, Some(fd)) => {
                        out.push((fd.as_fd(), false, Interest::AttachedHangup(who)));
                    }
                    (None, None) => {}
                }
            }
        }
        out
    }

    /// Does what an interest was in. `hung_up` says that the other side is closed.
    pub(super) fn handle(&mut self, interest: Interest, hung_up: bool, log: Option<&mut Log>) {
        match interest {
            Interest::Output(n) => {
                self.read_output(n, log);
            }
            Interest::Stdin => {
                if let Some(stdin) = &mut self.stdin {
                    stdin.flush();
                }
            }
            Interest::AttachedInput(who) => self.read_input(who),
            Interest::AttachedOutput(who, n) => {
                if let Some(attached) = self.attached.get_mut(who) {
                    attached.outputs[n].flush();
                }
            }
            Interest::AttachedHangup(who) => {
                if hung_up && let Some(attached) = self.attached.get_mut(who) {
                    // The daemon closes all of them together.
                    attached.outputs.iter_mut().for_each(|sink| sink.fd = None);
                }
            }
        }
    }

    /// Forgets those who left.
    pub(super) fn tidy(&mut self) {
        self.attached.retain(|a| a.stdin.is_some() || a.outputs.iter().any(|s| s.fd.is_some()));
    }

    /// Reads one chunk; false when there is none now.
    fn read_output(&mut self, n: usize, log: Option<&mut Log>) -> bool {
        let Some(fd) = &self.outputs[n] else { return false };
        let mut chunk = [0; CHUNK];
        match rustix::io::read(fd, &mut chunk) {
            Ok(0) => self.outputs[n] = None,
            Ok(length) => {
                let data = &chunk[..length];
                if let Some(log) = log {
                    log.write(if n == 0 { Source::Stdout } else { Source::Stderr }, data);
                }
                self.attached.iter_mut().for_each(|a| a.outputs[n].push(data));
                return true;
            }
            Err(Errno::INTR) => return true,
            Err(Errno::AGAIN) => {}
            // A terminal whose last user has closed it fails instead of ending.
            Err(_) => self.outputs[n] = None,
        }
        false
    }

    fn read_input(&mut self, who: usize) {
        let Some(attached) = self.attached.get_mut(who) else { return };
        let Some(fd) = &attached.stdin else { return };
        let mut chunk = [0; CHUNK];
        match rustix::io::read(fd, &mut chunk) {
            Ok(length) if length > 0 => {
                if let Some(stdin) = &mut self.stdin {
                    stdin.push(&chunk[..length]);
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            _ => {
                attached.stdin = None;
                if self.stdin_once
                    && let Some(stdin) = &mut self.stdin
                {
                    if self.tty {
                        // End of file for whoever reads the terminal's line.
                        stdin.push(&[4]);
                    } else {
                        stdin.end();
                    }
                }
            }
        }
    }

    /// Reads what is left when all processes have ended, and closes everything.
    pub(super) fn finish(&mut self, mut log: Option<&mut Log>) {
        for n in 0..2 {
            while self.read_output(n, log.as_deref_mut()) {}
            self.outputs[n] = None;
        }
        self.stdin = None;
        for attached in &mut self.attached {
            attached.stdin = None;
            attached.outputs.iter_mut().for_each(Sink::end);
        }
        self.tidy();
    }
}
