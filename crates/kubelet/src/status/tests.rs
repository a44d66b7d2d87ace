use serde_json::{Value, json};
use skiff_cri::v1::{self, ContainerState, PodSandboxState};

use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1}, "spec": spec,
    }))
    .unwrap()
}

fn run(name: &str, count: u32, exit: Option<i32>) -> ObservedContainer {
    let state = if exit.is_some() { ContainerState::Exited } else { ContainerState::Running };
    ObservedContainer {
        sandbox_id: "s".into(),
        name: name.into(),
        restart_count: count,
        hash: String::new(),
        status: v1::ContainerStatus {
            id: format!("{name}{count}"),
            state: state as i32,
            started_at: 1_000_000_000_000,
            finished_at: if exit.is_some() { 2_000_000_000_000 } else { 0 },
            exit_code: exit.unwrap_or(0),
            image_ref: "sha256:1".into(),
            ..Default::default()
        },
        last_words: String::new(),
    }
}

fn observed(containers: Vec<ObservedContainer>) -> Observed {
    let sandbox = v1::PodSandboxStatus {
        id: "s".into(),
        state: PodSandboxState::Ready as i32,
        network: Some(v1::PodSandboxNetworkStatus { ip: "10.0.0.2".into(), ..Default::default() }),
        ..Default::default()
    };
    Observed { sandboxes: vec![sandbox], containers }
}

struct Case {
    pod: Pod,
    observed: Observed,
    waiting: HashMap<String, Waiting>,
    ready: bool,
    ended: bool,
    old: PodStatus,
}

impl Case {
    fn new(spec: Value, containers: Vec<ObservedContainer>) -> Case {
        let observed = observed(containers);
        Case { pod: pod(spec), observed, waiting: HashMap::new(), ready: true, ended: false, old: PodStatus::default() }
    }

    fn compute(&self) -> PodStatus {
        self.at(100)
    }

    fn at(&self, second: i64) -> PodStatus {
        compute(&Inputs {
            pod: &self.pod,
            observed: &self.observed,
            waiting: &self.waiting,
            probes: &|_| (true, self.ready),
            failure: None,
            ended: self.ended,
            host_ips: &["10.0.0.1".to_owned(), "fc00::1".to_owned()],
            start_time: Timestamp::UNIX_EPOCH,
            old: &self.old,
            now: Timestamp::from_second(second).unwrap(),
        })
    }
}

fn condition(status: &PodStatus, kind: &str) -> (String, String, String) {
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    (condition.status.clone(), text(&condition.reason), text(&condition.message))
}

fn phase_of(case: &Case) -> String {
    case.compute().phase.unwrap()
}

#[test]
fn a_pod_that_starts_and_runs() {
    let mut case = Case::new(json!({"containers": [{"name": "b"}, {"name": "a"}]}), Vec::new());
    case.observed = Observed::default();
    let new = case.compute();
    assert_eq!(new.phase.as_deref(), Some("Pending"));
    assert_eq!(new.pod_ip, None);
    let state = serde_json::to_value(&new.container_statuses.as_ref().unwrap()[0]).unwrap();
    assert_eq!(state["state"], json!({"waiting": {"reason": "ContainerCreating"}}));
    assert_eq!((&state["name"], &state["lastState"], &state["started"]), (&json!("a"), &json!({}), &json!(false)));
    assert_eq!(
        condition(&new, "Ready"),
        ("False".into(), "ContainersNotReady".into(), "containers with unready status: [b a]".into())
    );
    assert_eq!(condition(&new, "Initialized").0, "True");

    case.observed = observed(vec![run("a", 0, None), run("b", 0, None)]);
    case.old = new;
    let ready = case.at(200);
    assert_eq!((ready.phase.as_deref(), ready.pod_ip.as_deref()), (Some("Running"), Some("10.0.0.2")));
    assert_eq!(condition(&ready, "Ready").0, "True");
    let since = |s: &PodStatus, kind: &str| {
        let condition = s.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
        condition.last_transition_time.as_ref().unwrap().0.as_second()
    };
    assert_eq!((since(&ready, "Ready"), since(&ready, "PodScheduled")), (200, 100));
    case.old = ready.clone();
    assert_eq!(case.at(300), ready, "nothing changes by time alone");
    assert_eq!(ready.container_statuses.unwrap()[0].container_id.as_deref(), Some("skiff://a0"));
}

#[test]
fn phases() {
    let with = |policy: &str, containers| {
        Case::new(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}), containers)
    };
    let both = |a, b| vec![run("a", 0, a), run("b", 0, b)];
    assert_eq!(phase_of(&with("Never", both(Some(0), Some(0)))), "Succeeded");
    assert_eq!(phase_of(&with("Never", both(Some(0), Some(1)))), "Failed");
    assert_eq!(phase_of(&with("Never", both(Some(1), None))), "Running");
    assert_eq!(phase_of(&with("OnFailure", both(Some(0), Some(1)))), "Running");
    assert_eq!(phase_of(&with("OnFailure", both(Some(0), Some(0)))), "Succeeded");
    assert_eq!(phase_of(&with("Always", both(Some(0), Some(0)))), "Running");
    let ended = |containers| Case { ended: true, ..with("Always", containers) };
    assert_eq!(phase_of(&ended(both(Some(0), Some(0)))), "Succeeded");
    assert_eq!(phase_of(&ended(both(Some(0), Some(137)))), "Failed");
    assert_eq!(phase_of(&ended(vec![])), "Failed");
}

#[test]
fn a_crashing_container_waits_and_shows_its_last_end() {
    let mut case = Case::new(json!({"containers": [{"name": "a"}]}), vec![run("a", 2, Some(1)), run("a", 1, Some(7))]);
    let crash = Waiting { reason: "CrashLoopBackOff".into(), message: "back-off".into() };
    case.waiting.insert("a".into(), crash);
    let status = case.compute();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let container = serde_json::to_value(&status.container_statuses.unwrap()[0]).unwrap();
    assert_eq!(container["state"], json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}));
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(container["lastState"]["terminated"]["reason"], "Error");
    assert_eq!(container["restartCount"], 2);
}

#[test]
fn init_containers() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let running = Case::new(spec.clone(), vec![run("i", 0, None)]).compute();
    assert_eq!(running.phase.as_deref(), Some("Pending"));
    assert_eq!(
        condition(&running, "Initialized"),
        ("False".into(), "ContainersNotInitialized".into(), "containers with incomplete status: [i]".into())
    );
    let waiting = serde_json::to_value(&running.container_statuses.unwrap()[0]).unwrap();
    assert_eq!(waiting["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(phase_of(&Case::new(spec.clone(), vec![run("i", 0, Some(1))])), "Failed");
    let done = Case::new(spec, vec![run("a", 0, None), run("i", 0, Some(0))]).compute();
    assert_eq!((done.phase.as_deref(), condition(&done, "Initialized").0.as_str()), (Some("Running"), "True"));
    assert!(done.init_container_statuses.unwrap()[0].ready);
}

#[test]
fn completed_pods_and_gates() {
    let done = Case::new(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}), vec![run("a", 0, Some(0))])
        .compute();
    assert_eq!(condition(&done, "Ready"), ("False".into(), "PodCompleted".into(), String::new()));
    assert_eq!(condition(&done, "Initialized").1, "PodCompleted");
    let spec = json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x.io/g"}]});
    let mut case = Case::new(spec, vec![run("a", 0, None)]);
    let gated = case.compute();
    assert_eq!(condition(&gated, "Ready").1, "ReadinessGatesNotReady");
    assert_eq!(condition(&gated, "ContainersReady").0, "True");
    let gate = serde_json::from_value(json!({"type": "x.io/g", "status": "True"})).unwrap();
    case.pod.status = Some(PodStatus { conditions: Some(vec![gate]), ..PodStatus::default() });
    let open = case.compute();
    assert_eq!(condition(&open, "Ready").0, "True");
    assert_eq!(condition(&open, "x.io/g").0, "True");
}

#[test]
fn a_container_that_was_lost_is_told_so() {
    let mut case = Case::new(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}), vec![run("a", 0, None)]);
    case.old = case.compute();
    case.observed = Observed::default();
    let lost = case.compute();
    let state = serde_json::to_value(&lost.container_statuses.unwrap()[0]).unwrap();
    assert_eq!(state["state"]["terminated"]["reason"], "ContainerStatusUnknown");
    assert_eq!(state["state"]["terminated"]["exitCode"], 137);
}
