//! Lines of CRI's log format: `<time> <stdout|stderr> <F|P> <content>`, and which of them are wanted.

use jiff::Timestamp;

/// Which output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stream {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// What a reader of logs asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) follow: bool,
    pub(crate) timestamps: bool,
    pub(crate) since: Option<Timestamp>,
    pub(crate) tail_lines: Option<usize>,
    pub(crate) limit_bytes: Option<usize>,
    pub(crate) stream: Stream,
}

/// Turns raw lines into what the reader gets.
pub(super) struct Filter {
    timestamps: bool,
    since: Option<Timestamp>,
    left: Option<usize>,
    stream: Stream,
    /// The next content begins a line, as the container wrote them.
    at_start: bool,
}

impl Filter {
    pub(super) fn new(options: &Options) -> Filter {
        Filter {
            timestamps: options.timestamps,
            since: options.since,
            left: options.limit_bytes,
            stream: options.stream,
            at_start: true,
        }
    }

    /// Nothing more is wanted.
    pub(super) fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Appends what is wanted of a raw line. What is not in the format is left out.
    pub(super) fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some((time, stream, partial, content)) = split(line) else { return };
        let other = match self.stream {
            Stream::All => false,
            Stream::Stdout => stream != b"stdout",
            Stream::Stderr => stream != b"stderr",
        };
        if other {
            return;
        }
        if let Some(since) = self.since {
            let at = std::str::from_utf8(time).ok().and_then(|t| t.parse::<Timestamp>().ok());
            if at.is_some_and(|at| at < since) {
                return;
            }
        }
        let from = out.len();
        if self.timestamps && self.at_start {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(content);
        if !partial {
            out.push(b'\n');
        }
        self.at_start = !partial;
        if let Some(left) = &mut self.left {
            let taken = (out.len() - from).min(*left);
            out.truncate(from + taken);
            *left -= taken;
        }
    }
}

/// Time, stream, whether the line goes on in the next, and content without its newline.
fn split(line: &[u8]) -> Option<(&[u8], &[u8], bool, &[u8])> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
    let content = parts.next().unwrap_or_default();
    if time.is_empty() || (stream != b"stdout" && stream != b"stderr") {
        return None;
    }
    let partial = tags.split(|b| *b == b':').next() == Some(b"P");
    Some((time, stream, partial, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr P tw\n2026-01-01T00:00:02Z stderr F o\nrubbish\n2026-01-01T00:00:03Z stdout F \n";

    fn filtered(options: &Options) -> String {
        let mut filter = Filter::new(options);
        let mut out = Vec::new();
        for line in LOG.as_bytes().split_inclusive(|b| *b == b'\n') {
            filter.push(line, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_readers_get() {
        assert_eq!(filtered(&Options::default()), "one\ntwo\n\n");
        let stamped = Options { timestamps: true, ..Options::default() };
        assert_eq!(filtered(&stamped), "2026-01-01T00:00:01Z one\n2026-01-01T00:00:02Z two\n2026-01-01T00:00:03Z \n");
        let since = Some("2026-01-01T00:00:02Z".parse().unwrap());
        assert_eq!(filtered(&Options { since, ..Options::default() }), "two\n\n");
        assert_eq!(filtered(&Options { limit_bytes: Some(5), ..Options::default() }), "one\nt");
        assert_eq!(filtered(&Options { stream: Stream::Stderr, ..Options::default() }), "two\n");
    }
}
