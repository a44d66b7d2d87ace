//! Standard output and standard error. Who reads them may stop to; then there is nothing left to do.

use std::{fmt, io::Write as _};

/// Writes bytes to standard output; ends the program quietly when nobody reads any more.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

/// Writes text to standard output.
pub(crate) fn text(text: &str) {
    bytes(text.as_bytes());
}

pub(crate) fn line(line: fmt::Arguments<'_>) {
    bytes(format!("{line}\n").as_bytes());
}

pub(crate) fn complain(line: fmt::Arguments<'_>) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// A line on standard output.
macro_rules! say {
    ($($arg:tt)*) => { $crate::out::line(format_args!($($arg)*)) };
}
/// A line on standard error.
macro_rules! tell {
    ($($arg:tt)*) => { $crate::out::complain(format_args!($($arg)*)) };
}
pub(crate) use {say, tell};
