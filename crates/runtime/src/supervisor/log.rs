//! A container's log in CRI's format: `<time> <stream> <F|P> <text>`, one line each.
//!
//! `P` marks a piece of a line that goes on in the next entry, `F` the last or only piece.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest piece of a line.
const MAX_PIECE: usize = 16 * 1024;

/// Where output comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Stdout,
    Stderr,
}

/// The log of one container.
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    /// What has come of the current line, by source.
    pending: [Vec<u8>; 2],
    /// Entries being put together for one write.
    out: Vec<u8>,
}

impl Log {
    pub(super) fn open(path: &Path) -> io::Result<Log> {
        let mut log = Log { path: path.to_owned(), file: None, pending: Default::default(), out: Vec::new() };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file again by its name, after it was renamed to be rotated.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW);
        self.file = Some(options.open(&self.path)?);
        Ok(())
    }

    /// Adds output. A log that cannot be written, as on a full disk, loses it rather than stopping the
    /// container.
    pub(super) fn write(&mut self, source: Source, mut data: &[u8]) {
        let time = now_rfc3339();
        let mut pending = std::mem::take(&mut self.pending[source as usize]);
        while let Some(end) = data.iter().position(|b| *b == b'\n') {
            pending.extend_from_slice(&data[..end]);
            data = &data[end + 1..];
            while pending.len() > MAX_PIECE {
                let rest = pending.split_off(MAX_PIECE);
                self.entry(&time, source, b'P', &pending);
                pending = rest;
            }
            self.entry(&time, source, b'F', &pending);
            pending.clear();
        }
        pending.extend_from_slice(data);
        while pending.len() >= MAX_PIECE {
            let rest = pending.split_off(MAX_PIECE);
            self.entry(&time, source, b'P', &pending);
            pending = rest;
        }
        self.pending[source as usize] = pending;
        self.flush();
    }

    /// Writes what is left of unfinished lines, when nothing more comes.
    pub(super) fn finish(&mut self) {
        let time = now_rfc3339();
        for source in [Source::Stdout, Source::Stderr] {
            let rest = std::mem::take(&mut self.pending[source as usize]);
            if !rest.is_empty() {
                self.entry(&time, source, b'F', &rest);
            }
        }
        self.flush();
    }

    fn entry(&mut self, time: &str, source: Source, tag: u8, text: &[u8]) {
        let stream = match source {
            Source::Stdout => " stdout ",
            Source::Stderr => " stderr ",
        };
        self.out.extend_from_slice(time.as_bytes());
        self.out.extend_from_slice(stream.as_bytes());
        self.out.extend_from_slice(&[tag, b' ']);
        self.out.extend_from_slice(text);
        self.out.push(b'\n');
    }

    fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&self.out);
        }
        self.out.clear();
        self.out.shrink_to(4 * MAX_PIECE);
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now_nanoseconds() -> i64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME);
    now.map_or(0, |now| now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

fn now_rfc3339() -> String {
    rfc3339(now_nanoseconds())
}

/// A time in RFC 3339 with nanoseconds, in UTC. By hand: a calendar library would be most of a
/// supervisor's memory.
fn rfc3339(nanoseconds: i64) -> String {
    let (seconds, fraction) = (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in cycles of 400 years; a year then ends with its leap day.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, year) } else { (month - 9, year + 1) };
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let year = year + era * 400;
    format!("{year:04}-{month:02}-{of_month:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_772_323_199, "2026-02-28T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(rfc3339(seconds * 1_000_000_000 + 5), format!("{text}.000000005Z"));
        }
    }

    #[test]
    fn lines_are_split_and_joined() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path).expect("opens");
        log.write(Source::Stdout, b"one\ntw");
        log.write(Source::Stderr, b"err\n");
        log.write(Source::Stdout, b"o\n\n");
        let long = vec![b'x'; MAX_PIECE + 5];
        log.write(Source::Stdout, &long);
        log.write(Source::Stdout, b"end\n");
        std::fs::rename(&path, dir.path().join("old")).expect("renames");
        log.reopen().expect("reopens");
        log.write(Source::Stdout, b"unfinished");
        log.finish();
        let entries = |name: &str| -> Vec<String> {
            let text = std::fs::read_to_string(dir.path().join(name)).expect("readable");
            let after_time = |line: &str| line.split_once(' ').expect("a time").1.to_owned();
            text.lines().map(after_time).collect()
        };
        let old = entries("old");
        assert_eq!(old[..4], ["stdout F one", "stderr F err", "stdout F two", "stdout F "]);
        assert_eq!(old[4], format!("stdout P {}", "x".repeat(MAX_PIECE)));
        assert_eq!(old[5], "stdout F xxxxxend");
        assert_eq!(entries("0.log"), ["stdout F unfinished"]);
    }
}
