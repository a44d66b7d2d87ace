//! Lengths of time: as Go writes and reads them, and as kubectl shows ages.

use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};

/// A length of time with a sign, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GoDuration(pub(crate) i64);

impl GoDuration {
    /// Reads `1h30m`, `500ms`, `0`, `-1s`.
    pub(crate) fn parse(text: &str) -> Option<GoDuration> {
        let (sign, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (-1.0, rest),
            None => (1.0, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Some(GoDuration(0));
        }
        let mut nanoseconds = 0.0;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let number: f64 = rest[..digits].parse().ok()?;
            rest = &rest[digits..];
            let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            nanoseconds += number
                * match &rest[..unit] {
                    "ns" => 1.0,
                    "us" | "µs" => 1e3,
                    "ms" => 1e6,
                    "s" => 1e9,
                    "m" => 60e9,
                    "h" => 3600e9,
                    _ => return None,
                };
            rest = &rest[unit..];
        }
        Some(GoDuration((sign * nanoseconds) as i64))
    }

    pub(crate) fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// Nothing if it is zero or less.
    pub(crate) fn positive(self) -> Option<Duration> {
        u64::try_from(self.0).ok().filter(|n| *n > 0).map(Duration::from_nanos)
    }

    /// In seconds, rounded up.
    pub(crate) fn seconds_up(self) -> i64 {
        self.0.div_euclid(1_000_000_000) + i64::from(self.0.rem_euclid(1_000_000_000) > 0)
    }
}

/// As Go prints it: `1h0m0s`, `1.5s`, `250ms`.
impl std::fmt::Display for GoDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let nanoseconds = self.0.unsigned_abs();
        let fraction = |n: u64, unit: u64| {
            let digits = unit.ilog10() as usize;
            let text = format!("{:0digits$}", n % unit);
            match text.trim_end_matches('0') {
                "" => (n / unit).to_string(),
                rest => format!("{}.{rest}", n / unit),
            }
        };
        match nanoseconds {
            0 => f.write_str("0s"),
            n if n < 1_000 => write!(f, "{sign}{n}ns"),
            n if n < 1_000_000 => write!(f, "{sign}{}µs", fraction(n, 1_000)),
            n if n < 1_000_000_000 => write!(f, "{sign}{}ms", fraction(n, 1_000_000)),
            n => {
                let minutes = n / 60_000_000_000;
                let seconds = fraction(n % 60_000_000_000, 1_000_000_000);
                match (minutes / 60, minutes % 60) {
                    (0, 0) => write!(f, "{sign}{seconds}s"),
                    (0, minutes) => write!(f, "{sign}{minutes}m{seconds}s"),
                    (hours, minutes) => write!(f, "{sign}{hours}h{minutes}m{seconds}s"),
                }
            }
        }
    }
}

/// How long ago, as tables show it.
pub(crate) fn age(timestamp: &str) -> String {
    match timestamp.parse::<Timestamp>() {
        Ok(then) => short(Timestamp::now().as_second() - then.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// Seconds in at most two units.
pub(crate) fn short(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |large: i64, unit: &str, small: i64, rest: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{rest}"),
    };
    match seconds {
        // A second may be lost between two clocks.
        s if s < -1 => "<invalid>".to_owned(),
        s if s < 0 => "0s".to_owned(),
        s if s < 120 => format!("{s}s"),
        s if minutes < 10 => two(minutes, "m", s % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(hours / 24, "d", hours % 24, "h"),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => two(hours / 24 / 365, "y", (hours / 24) % 365, "d"),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// `Fri, 20 Nov 2026 18:53:38 +0000`, in the zone of this machine.
pub(crate) fn rfc1123(timestamp: &str) -> String {
    match timestamp.parse::<Timestamp>() {
        Ok(then) => then.to_zoned(TimeZone::system()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string(),
        Err(_) => timestamp.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_has_them() {
        let there_and_back = |text: &str| GoDuration::parse(text).map(|d| d.to_string());
        assert_eq!(there_and_back("90s").as_deref(), Some("1m30s"));
        assert_eq!(there_and_back("1h").as_deref(), Some("1h0m0s"));
        assert_eq!(there_and_back("1500ms").as_deref(), Some("1.5s"));
        assert_eq!(there_and_back("-1s").as_deref(), Some("-1s"));
        assert_eq!(there_and_back("0").as_deref(), Some("0s"));
        assert_eq!(there_and_back("5"), None);
        assert_eq!(there_and_back("soon"), None);
    }

    #[test]
    fn ages_in_two_units_at_most() {
        let cases = [
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (3600, "60m"),
            (3 * 3600, "3h"),
            (86400 * 2, "2d"),
            (86400 * 9, "9d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(short(seconds), text);
        }
    }
}
