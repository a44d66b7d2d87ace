//! From what the metrics ask for to what is done: limits, rates and stability over time.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::autoscaling::v2::{
        HPAScalingRules, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use skiff_api::quantity::Quantity;

use super::calculator::Tolerance;

/// How long a higher recommendation counts on the way down unless the autoscaler says otherwise.
const DOWNSCALE_STABILIZATION_S: i32 = 300;
/// How far from its target a metric may be unless the autoscaler says otherwise.
const TOLERANCE: f64 = 0.1;

/// What is remembered of an autoscaler between two looks; lost with the process, as upstream's is.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    recommendations: Vec<(Timestamp, i32)>,
    /// Pods that were added and taken away.
    added: Vec<(Timestamp, i32)>,
    removed: Vec<(Timestamp, i32)>,
}

impl Memory {
    /// The first look: what is there now was right until now.
    pub(super) fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
    }

    /// Remembers a change, as far as policies look back.
    pub(super) fn scaled(&mut self, from: i32, to: i32, now: Timestamp) {
        const LONGEST_PERIOD: SignedDuration = SignedDuration::from_secs(1800);
        for list in [&mut self.added, &mut self.removed] {
            list.retain(|(at, _)| *at + LONGEST_PERIOD > now);
        }
        if to > from { self.added.push((now, to - from)) } else { self.removed.push((now, from - to)) }
    }
}

/// A condition that is to be set: type, whether it holds, reason, message.
pub(super) type Condition = (&'static str, bool, String, String);

/// What becomes of the number that the metrics ask for.
#[derive(Debug, PartialEq)]
pub(super) struct Normalized {
    pub(super) replicas: i32,
    pub(super) conditions: Vec<Condition>,
}

fn changed_within(events: &[(Timestamp, i32)], seconds: i32, now: Timestamp) -> i32 {
    let since = now - SignedDuration::from_secs(seconds.into());
    events.iter().filter(|(at, _)| *at > since).map(|(_, change)| change).sum()
}

/// The tolerance of an autoscaler in both directions.
pub(super) fn tolerance(spec: &HorizontalPodAutoscalerSpec) -> Tolerance {
    let of = |rules: Option<&HPAScalingRules>| {
        let quantity = rules.and_then(|r| r.tolerance.as_ref()?.0.parse::<Quantity>().ok());
        quantity.map_or(TOLERANCE, |q| q.millis() as f64 / 1000.0)
    };
    let behavior = spec.behavior.as_ref();
    Tolerance {
        down: of(behavior.and_then(|b| b.scale_down.as_ref())),
        up: of(behavior.and_then(|b| b.scale_up.as_ref())),
    }
}

/// The most pods that the policies allow now, or the fewest.
fn limit(rules: &HPAScalingRules, up: bool, current: i32, memory: &Memory, now: Timestamp) -> i32 {
    let select = rules.select_policy.as_deref().unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    let limits = rules.policies.iter().flatten().map(|policy| {
        let added = changed_within(&memory.added, policy.period_seconds, now);
        let removed = changed_within(&memory.removed, policy.period_seconds, now);
        let at_start = current - added + removed;
        let part = f64::from(at_start) * f64::from(policy.value) / 100.0;
        match (policy.type_.as_str(), up) {
            ("Pods", true) => at_start.saturating_add(policy.value),
            ("Pods", false) => at_start.saturating_sub(policy.value),
            (_, true) => (f64::from(at_start) + part).ceil() as i32,
            (_, false) => (f64::from(at_start) - part) as i32,
        }
    });
    // The policy that changes most, or least.
    let limit = if (select == "Min") == up { limits.min() } else { limits.max() };
    limit.unwrap_or(current)
}

/// The number that is to be, from the one that the metrics ask for.
pub(super) fn normalize(
    spec: &HorizontalPodAutoscalerSpec,
    current: i32,
    wanted: i32,
    memory: &mut Memory,
    now: Timestamp,
) -> Normalized {
    let (min, max) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
    let up = spec.behavior.as_ref().and_then(|b| b.scale_up.as_ref());
    let down = spec.behavior.as_ref().and_then(|b| b.scale_down.as_ref());
    let up_window = up.and_then(|r| r.stabilization_window_seconds).unwrap_or(0);
    let down_window = down.and_then(|r| r.stabilization_window_seconds).unwrap_or(DOWNSCALE_STABILIZATION_S);
    let within = |seconds: i32| now - SignedDuration::from_secs(seconds.into());

    let recent = |seconds: i32| memory.recommendations.iter().filter(move |(at, _)| *at > within(seconds)).map(|r| r.1);
    let lowest = recent(up_window).fold(wanted, i32::min);
    let highest = recent(down_window).fold(wanted, i32::max);
    let stable = if spec.behavior.is_some() { current.max(lowest).min(highest) } else { highest };
    memory.recommendations.retain(|(at, _)| *at >= within(up_window.max(down_window)));
    memory.recommendations.push((now, wanted));

    let able = match (stable == wanted, wanted >= current && spec.behavior.is_some()) {
        (true, _) => ("ReadyForNewScale", "recommended size matches current size"),
        (false, true) => (
            "ScaleUpStabilized",
            "recent recommendations were lower than current one, applying the lowest recent recommendation",
        ),
        (false, false) => (
            "ScaleDownStabilized",
            "recent recommendations were higher than current one, applying the highest recent recommendation",
        ),
    };
    const FAST_UP: (&str, &str) =
        ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
    const FAST_DOWN: (&str, &str) =
        ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
    const TOO_MANY: (&str, &str) =
        ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
    const TOO_FEW: (&str, &str) =
        ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
    let highest_now = match (spec.behavior.is_some(), up) {
        (true, Some(rules)) => limit(rules, true, current, memory, now).max(current),
        (true, None) => i32::MAX,
        // Without rules: twice as many at a time, or four.
        (false, _) => current.saturating_mul(2).max(4),
    };
    let lowest_now = match down {
        Some(rules) => limit(rules, false, current, memory, now).min(current),
        None => 0,
    };
    let (replicas, limited) = if stable > current || spec.behavior.is_none() {
        let (most, why) = if max > highest_now { (highest_now, FAST_UP) } else { (max, TOO_MANY) };
        if stable < min {
            (min, Some(TOO_FEW))
        } else if stable > most {
            (most, Some(why))
        } else {
            (stable, None)
        }
    } else {
        let (least, why) = if min < lowest_now { (lowest_now, FAST_DOWN) } else { (min, TOO_FEW) };
        if stable < current && stable < least { (least, Some(why)) } else { (stable, None) }
    };
    let (reason, message) =
        limited.unwrap_or(("DesiredWithinRange", "the desired count is within the acceptable range"));
    let conditions = vec![
        ("AbleToScale", true, able.0.to_owned(), able.1.to_owned()),
        ("ScalingLimited", limited.is_some(), reason.to_owned(), message.to_owned()),
    ];
    Normalized { replicas, conditions }
}

/// Sets a condition; its time changes with its status alone.
pub(super) fn set_condition(
    status: &mut HorizontalPodAutoscalerStatus,
    (type_, holds, reason, message): Condition,
    now: Timestamp,
) {
    let value = if holds { "True" } else { "False" };
    let list = status.conditions.get_or_insert_default();
    let mut new = HorizontalPodAutoscalerCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason),
        message: Some(message),
        last_transition_time: Some(Time(now)),
    };
    match list.iter_mut().find(|c| c.type_ == type_) {
        Some(old) => {
            if old.status == value {
                new.last_transition_time = old.last_transition_time.take();
            }
            *old = new;
        }
        None => list.push(new),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(behavior: Value) -> HorizontalPodAutoscalerSpec {
        let mut spec = json!({"minReplicas": 2, "maxReplicas": 20, "scaleTargetRef": {"kind": "D", "name": "d"}});
        if !behavior.is_null() {
            spec["behavior"] = behavior;
        }
        serde_json::from_value(spec).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(10_000 + second).unwrap()
    }

    fn reasons(n: &Normalized) -> (i32, &str, &str) {
        (n.replicas, n.conditions[0].2.as_str(), n.conditions[1].2.as_str())
    }

    #[test]
    fn without_behavior() {
        let (spec, mut memory) = (spec(Value::Null), Memory::default());
        let mut decide = |second, current, wanted| {
            let n = normalize(&spec, current, wanted, &mut memory, at(second));
            let (replicas, able, limited) = reasons(&n);
            (replicas, able.to_owned(), limited.to_owned())
        };
        let is = |replicas, able: &str, limited: &str| (replicas, able.to_owned(), limited.to_owned());
        assert_eq!(decide(0, 3, 10), is(6, "ReadyForNewScale", "ScaleUpLimit"));
        assert_eq!(decide(15, 6, 10), is(10, "ReadyForNewScale", "DesiredWithinRange"));
        assert_eq!(decide(30, 10, 30), is(20, "ReadyForNewScale", "TooManyReplicas"));
        // Five minutes of patience before anything is taken away.
        assert_eq!(decide(45, 20, 1), is(20, "ScaleDownStabilized", "TooManyReplicas"));
        assert_eq!(decide(340, 20, 1), is(2, "ReadyForNewScale", "TooFewReplicas"));
    }

    #[test]
    fn policies_and_windows() {
        let down = json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]});
        let up = json!({"stabilizationWindowSeconds": 30, "selectPolicy": "Min", "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 50, "periodSeconds": 15}]});
        let spec = spec(json!({"scaleUp": up, "scaleDown": down}));
        let mut memory = Memory::default();
        memory.begin(10, at(0));
        // Two at a time on the way down, none until a minute is over.
        let n = normalize(&spec, 10, 1, &mut memory, at(10));
        assert_eq!(reasons(&n), (8, "ReadyForNewScale", "ScaleDownLimit"));
        memory.scaled(10, 8, at(10));
        assert_eq!(normalize(&spec, 8, 1, &mut memory, at(25)).replicas, 8);
        assert_eq!(normalize(&spec, 8, 1, &mut memory, at(75)).replicas, 6);
        // On the way up the lowest of half a minute counts, then the smaller of the policies.
        assert_eq!(reasons(&normalize(&spec, 6, 20, &mut memory, at(90))).1, "ScaleUpStabilized");
        let n = normalize(&spec, 6, 20, &mut memory, at(110));
        assert_eq!(reasons(&n), (9, "ReadyForNewScale", "ScaleUpLimit"));
    }

    #[test]
    fn tolerances() {
        let own = tolerance(&spec(json!({"scaleUp": {"tolerance": "50m"}})));
        assert_eq!(own, Tolerance { down: 0.1, up: 0.05 });
    }

    #[test]
    fn times_of_conditions_change_with_their_status() {
        let mut status = HorizontalPodAutoscalerStatus::default();
        let condition = |holds, reason: &str| ("AbleToScale", holds, reason.to_owned(), String::new());
        set_condition(&mut status, condition(true, "a"), at(0));
        set_condition(&mut status, condition(true, "b"), at(9));
        let list = status.conditions.clone().unwrap();
        assert_eq!((list[0].reason.as_deref(), list[0].last_transition_time.as_ref().unwrap().0), (Some("b"), at(0)));
        set_condition(&mut status, condition(false, "c"), at(9));
        assert_eq!(status.conditions.unwrap()[0].last_transition_time.as_ref().unwrap().0, at(9));
    }
}
