//! Times as the API has them: whole seconds.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A time of the API: fractions of a second are cut off, as Kubernetes writes none.
pub(crate) fn api_time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// A time of the API from CRI's nanoseconds since the epoch; `None` for zero.
pub(crate) fn api_nanos(nanos: i64) -> Option<Time> {
    crate::pod::timestamp(nanos).map(api_time)
}

/// A duration as Go prints it: `1.2s`, `313ms`, `1m3.5s`, rounded to milliseconds.
pub(crate) fn go_duration(duration: std::time::Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fraction = |millis: u64| {
        let text = format!("{}.{:03}", millis / 1000, millis % 1000);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match millis {
        0 => "0s".to_owned(),
        m if m < 1000 => format!("{m}ms"),
        m if m < 60_000 => format!("{}s", fraction(m)),
        m if m < 3_600_000 => format!("{}m{}s", m / 60_000, fraction(m % 60_000)),
        m => format!("{}h{}m{}s", m / 3_600_000, m % 3_600_000 / 60_000, fraction(m % 60_000)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn durations_as_go_prints_them() {
        let printed: Vec<String> =
            [0, 313, 1200, 7264, 63_500, 3_600_000].map(|ms| go_duration(Duration::from_millis(ms))).to_vec();
        assert_eq!(printed, ["0s", "313ms", "1.2s", "7.264s", "1m3.5s", "1h0m0s"]);
    }
}
