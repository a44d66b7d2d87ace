//! Cells of tables: how `kubectl get` shows ages, lists and counts.

use serde_json::Value;

/// Age of a time in the API's form, as upstream shows it; `<unknown>` without one.
pub(crate) fn age(time: &Value) -> Value {
    match time.as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok()) {
        Some(then) => human_duration(jiff::Timestamp::now().duration_since(then).as_secs()).into(),
        None => "<unknown>".into(),
    }
}

/// Age of the object.
pub(crate) fn created(object: &Value) -> Value {
    age(&object["metadata"]["creationTimestamp"])
}

/// A duration in about three digits: `95s`, `5m30s`, `3h10m`, `2d`.
pub(crate) fn human_duration(seconds: i64) -> String {
    // A second or two of clock skew is no age.
    if seconds < -1 {
        return "<invalid>".into();
    }
    let s = seconds.max(0);
    let (minutes, hours, days) = (s / 60, s / 3600, s / 86400);
    match s {
        0..120 => format!("{s}s"),
        _ if minutes < 10 => match s % 60 {
            0 => format!("{minutes}m"),
            rest => format!("{minutes}m{rest}s"),
        },
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => match minutes % 60 {
            0 => format!("{hours}h"),
            rest => format!("{hours}h{rest}m"),
        },
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => match hours % 24 {
            0 => format!("{days}d"),
            rest => format!("{days}d{rest}h"),
        },
        _ if days < 365 * 2 => format!("{days}d"),
        _ if days < 365 * 8 => match days % 365 {
            0 => format!("{}y", days / 365),
            rest => format!("{}y{rest}d", days / 365),
        },
        _ => format!("{}y", days / 365),
    }
}

/// The text or this instead of nothing.
pub(crate) fn text_or(value: &Value, other: &str) -> Value {
    match value.as_str() {
        Some(s) if !s.is_empty() => s.into(),
        _ => other.into(),
    }
}

/// A whole number; 0 instead of nothing.
pub(crate) fn int(value: &Value) -> Value {
    value.as_i64().unwrap_or(0).into()
}

/// The entries of a map as `a=b,c=d` in order; `<none>` without any.
pub(crate) fn pairs(map: &Value) -> Value {
    let mut list: Vec<String> =
        map.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    list.sort();
    if list.is_empty() { "<none>".into() } else { list.join(",").into() }
}

/// A label selector as text; `<none>` without one.
pub(crate) fn selector(selector: &Value) -> Value {
    match skiff_api::selector::LabelSelector::from_value(selector) {
        Ok(s) if !s.is_empty() => {
            let mut s = s;
            s.requirements.sort_by(|a, b| a.key.cmp(&b.key));
            s.to_string().into()
        }
        _ => "<none>".into(),
    }
}

/// Names and images of a pod template's containers.
pub(crate) fn containers(template: &Value) -> (Value, Value) {
    let list = |field: &str| -> Value {
        template["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| c[field].as_str().unwrap_or_default())
            .collect::<Vec<_>>()
            .join(",")
            .into()
    };
    (list("name"), list("image"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (s, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (330, "5m30s"),
            (600, "10m"),
            (3600, "60m"),
            (10800, "3h"),
            (11400, "3h10m"),
            (86400, "24h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (1_000_000, "11d"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(human_duration(s), want, "{s}");
        }
    }
}
