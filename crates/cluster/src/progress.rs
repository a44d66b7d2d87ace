//! Telling what is being done.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// Where steps are reported. One step is under way at a time.
pub trait Progress {
    fn begin(&mut self, what: &str);
    fn done(&mut self);
    fn failed(&mut self);
}

/// A spinner that becomes a tick on a terminal, a line per step elsewhere; on standard error.
#[derive(Debug, Default)]
pub struct Console {
    step: Option<(String, Option<ProgressBar>)>,
}

impl Console {
    /// Changes the words beside the spinner; without a terminal nothing is written.
    pub fn update(&self, what: &str) {
        if let Some((_, Some(spinner))) = &self.step {
            spinner.set_message(what.to_owned());
        }
    }

    fn finish(&mut self, sign: &str) {
        let Some((what, spinner)) = self.step.take() else {
            return;
        };
        let mut stderr = std::io::stderr().lock();
        // Nobody reads it any more: no reason to stop working.
        let _ = match spinner {
            Some(spinner) => {
                spinner.finish_and_clear();
                writeln!(stderr, " {sign} {what}")
            }
            None if sign == DONE => Ok(()),
            None => writeln!(stderr, "failed: {what}"),
        };
    }
}

const DONE: &str = "✓";

impl Progress for Console {
    fn begin(&mut self, what: &str) {
        self.finish(DONE);
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(" {spinner} {msg}").expect("a constant template");
            let spinner = ProgressBar::new_spinner().with_style(style).with_message(what.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(80));
            spinner
        });
        if spinner.is_none() {
            let _ = writeln!(std::io::stderr(), "{what}");
        }
        self.step = Some((what.to_owned(), spinner));
    }

    fn done(&mut self) {
        self.finish(DONE);
    }

    fn failed(&mut self) {
        self.finish("✗");
    }
}

/// Says nothing: for tests and for callers that only want the result.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _: &str) {}
    fn done(&mut self) {}
    fn failed(&mut self) {}
}
