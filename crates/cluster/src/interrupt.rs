//! Ctrl-C while a cluster is being created: noticed between steps, so that the half-made cluster can be
//! taken away again.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::{Error, Result};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Catches SIGINT and SIGTERM for as long as it lives.
pub(crate) struct Interrupts {
    previous: Vec<(Signal, SigAction)>,
}

impl Interrupts {
    pub(crate) fn catch() -> Self {
        INTERRUPTED.store(false, Ordering::Relaxed);
        let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
        let mut previous = Vec::new();
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
            if let Ok(old) = unsafe { sigaction(signal, &action) } {
                previous.push((signal, old));
            }
        }
        Self { previous }
    }

    /// Fails once a signal has come.
    pub(crate) fn check(&self) -> Result<()> {
        match INTERRUPTED.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        for (signal, action) in &self.previous {
            // SAFETY: puts back what was installed before.
            let _ = unsafe { sigaction(*signal, action) };
        }
    }
}
