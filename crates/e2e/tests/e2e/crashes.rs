//! Containers that cannot start or do not stay, and the killing of what holds them.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use skiff_e2e::{Cluster, Kubectl, eventually, wait::check};

use crate::{
    shared, tests,
    workloads::{PATIENCE, pod, ready, sleeper},
};

tests![
    an_image_that_does_not_exist,
    a_command_that_is_not_in_the_image,
    a_container_that_exits_at_once_is_backed_off,
    a_killed_container_is_restarted,
    a_killed_supervisor_is_replaced,
    a_killed_daemon_restarts_no_healthy_container,
    pods_are_refused_what_nobody_has,
];

fn an_image_that_does_not_exist() {
    let kubectl = shared::cluster().in_new("no-image");
    kubectl.run(&["run", "box", "--image=registry.invalid/nothing:1"]).ok();
    let waiting = "{.status.containerStatuses[0].state.waiting.reason}";
    eventually(PATIENCE, || {
        let reason = kubectl.path(&["pod", "box"], waiting)?;
        check(reason == "ImagePullBackOff", || reason)
    });
    // Events are sent beside the status, not before it.
    eventually(PATIENCE, || {
        let events = kubectl.run(&["events", "--for", "pod/box"]).result()?;
        let missing = [
            "Pulling image \"registry.invalid/nothing:1\"",
            "Failed to pull image \"registry.invalid/nothing:1\"",
            "Error: ErrImagePull",
            "Back-off pulling image \"registry.invalid/nothing:1\"",
            "Error: ImagePullBackOff",
        ]
        .into_iter()
        .find(|part| !events.contains(part));
        check(missing.is_none(), || format!("no {missing:?} in\n{events}"))
    });
    kubectl.run(&["logs", "box"]).fails_with("is waiting to start: trying and failing to pull image");
    kubectl.run(&["run", "never", "--image=registry.invalid/nothing:1", "--image-pull-policy=Never"]).ok();
    eventually(PATIENCE, || {
        let reason = kubectl.path(&["pod", "never"], waiting)?;
        check(reason == "ErrImageNeverPull", || reason)
    });
    kubectl.apply(&pod("bad", "").replace("image: busybox", "image: Upper/Case"));
    eventually(PATIENCE, || {
        let reason = kubectl.path(&["pod", "bad"], waiting)?;
        check(reason == "InvalidImageName", || reason)
    });
    // A pod that never ran is deleted at once.
    kubectl.run(&["delete", "pods", "--all", "--timeout=20s"]).ok();
}

fn a_command_that_is_not_in_the_image() {
    let kubectl = shared::cluster().in_new("no-command");
    kubectl.apply(&pod("box", "command: [no-such-program]"));
    let state = |path: &str| kubectl.path(&["pod", "box"], &format!("{{.status.containerStatuses[0].{path}}}"));
    eventually(PATIENCE, || {
        let last = state("lastState.terminated.reason")?;
        check(last == "StartError", || format!("{last:?}: {}", kubectl.run(&["describe", "pod", "box"]).stdout))
    });
    assert_eq!(state("lastState.terminated.exitCode").unwrap(), "128");
    let message = state("lastState.terminated.message").unwrap();
    assert!(message.contains("exec: \"no-such-program\": executable file not found in $PATH"), "{message}");
    eventually(PATIENCE, || {
        let waiting = state("state.waiting.reason")?;
        check(["CrashLoopBackOff", "RunContainerError"].contains(&waiting.as_str()), || waiting)
    });
    kubectl.run(&["events", "--for", "pod/box"]).prints(&["Failed"]);
}

fn a_container_that_exits_at_once_is_backed_off() {
    let kubectl = shared::cluster().in_new("crash-loop");
    kubectl.apply(
        &pod("box", "command: [sh, -c, 'date +%s >> /d/runs; exit 1']\nvolumeMounts: [{name: d, mountPath: /d}]")
            .replace("spec:\n", "spec:\n  volumes: [{name: d, emptyDir: {}}]\n"),
    );
    let status = |path: &str| kubectl.path(&["pod", "box"], &format!("{{.status.containerStatuses[0].{path}}}"));
    let restarts = |wanted: u32| {
        eventually(PATIENCE, || {
            let count = status("restartCount")?;
            check(count.parse::<u32>().is_ok_and(|count| count >= wanted), || format!("{count:?} restarts"))
        });
        Instant::now()
    };
    // The first restart comes at once, the second 10 s after the end of that run.
    let first = restarts(1);
    eventually(PATIENCE, || {
        let reason = status("state.waiting.reason")?;
        check(reason == "CrashLoopBackOff", || reason)
    });
    let message = status("state.waiting.message").unwrap();
    assert!(message.starts_with("back-off 10s restarting failed container=main pod=box_crash-loop("), "{message}");
    kubectl.run(&["get", "pod", "box"]).prints(&["CrashLoopBackOff"]);
    let second = restarts(2);
    let pause = second.duration_since(first).as_secs_f64();
    assert!((8.0..14.0).contains(&pause), "{pause} s");
    eventually(PATIENCE, || {
        let message = status("state.waiting.message")?;
        check(message.starts_with("back-off 20s"), || message)
    });
    assert_eq!(status("lastState.terminated.exitCode").unwrap(), "1");
    kubectl
        .run(&["events", "--for", "pod/box"])
        .prints(&["BackOff", "Back-off restarting failed container main in pod box_crash-loop("]);
}

/// A pod whose process can be found on this machine.
fn marked(name: &str, mark: &str) -> String {
    pod(
        name,
        &format!(
            "command: [sh, -c, 'trap exit TERM; while :; do sleep 0.1; done']\nenv: [{{name: E2E_MARK, value: {mark}}}]"
        ),
    )
}

/// The container's own process: the one with this mark in its environment whose parent has none. Its children may have
/// smaller numbers, when those begin again.
fn marked_process(mark: &str) -> Option<u32> {
    let wanted = format!("E2E_MARK={mark}");
    let is_marked = |pid: u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    let mut processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    processes.find(|pid| is_marked(*pid) && !parent_of(*pid).is_some_and(is_marked))
}

/// The same, which may be seen a moment after its pod is ready.
fn the_marked_process(mark: &str) -> u32 {
    eventually(PATIENCE, || marked_process(mark).ok_or_else(|| format!("no process is marked {mark}")))
}

fn parent(pid: u32) -> u32 {
    parent_of(pid).expect("the process is there")
}

/// `None` if the process is gone.
fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

pub(crate) fn end(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
}

fn restarted_once(kubectl: &Kubectl, name: &str) {
    eventually(PATIENCE, || {
        let status = kubectl
            .path(&["pod", name], "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}")?;
        check(status == "1 true", || status)
    });
}

fn a_killed_container_is_restarted() {
    let kubectl = shared::cluster().in_new("killed");
    kubectl.apply(&marked("box", "killed-container"));
    ready(&kubectl, "box");
    let ip = kubectl.path(&["pod", "box"], "{.status.podIP}").unwrap();
    end(the_marked_process("killed-container"));
    restarted_once(&kubectl, "box");
    let last = "{.status.containerStatuses[0].lastState.terminated.reason} {.status.containerStatuses[0].lastState.terminated.exitCode}";
    assert_eq!(kubectl.path(&["pod", "box"], last).unwrap(), "Error 137");
    assert_eq!(kubectl.path(&["pod", "box"], "{.status.podIP}").unwrap(), ip, "the sandbox stays");
    assert_eq!(kubectl.run(&["exec", "box", "--", "echo", "alive"]).ok(), "alive\n");
}

fn a_killed_supervisor_is_replaced() {
    let kubectl = shared::cluster().in_new("supervisor");
    kubectl.apply(&marked("box", "killed-supervisor"));
    ready(&kubectl, "box");
    let container = the_marked_process("killed-supervisor");
    end(parent(container));
    restarted_once(&kubectl, "box");
    assert_ne!(marked_process("killed-supervisor"), Some(container), "the old one must not live on");
    assert_eq!(kubectl.run(&["exec", "box", "--", "echo", "alive"]).ok(), "alive\n");
    kubectl.run(&["delete", "pod", "box", "--timeout=30s"]).ok();
}

fn a_killed_daemon_restarts_no_healthy_container() {
    let cluster = Cluster::create("killed", &[]);
    cluster.load(&["busybox"]);
    let kubectl = cluster.kubectl().within("default");
    eventually(PATIENCE, || kubectl.run(&["get", "serviceaccount", "default"]).result());
    for name in ["one", "two"] {
        kubectl.apply(&marked(name, &format!("daemon-{name}")));
        ready(&kubectl, name);
    }
    let states = || {
        let path = "{range .items[*]}{.metadata.name} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount} {.status.containerStatuses[*].state.running.startedAt} {.status.podIP}\n{end}";
        kubectl.run(&["get", "pods", "-A", "--sort-by=.metadata.name", "-o", &format!("jsonpath={path}")])
    };
    let before = states().ok();
    let processes = || ["daemon-one", "daemon-two"].map(|mark| marked_process(mark).unwrap());
    let running = processes();
    for _ in 0..3 {
        let daemons = skiff_e2e::leftovers::processes(&cluster.home.dir);
        let daemon = daemons.iter().find(|(_, command)| command.contains("skiff server")).expect("a daemon");
        end(daemon.0.cast_unsigned());
        // Another process serves the API again.
        eventually(PATIENCE, || {
            let again = skiff_e2e::leftovers::processes(&cluster.home.dir);
            let other = again.iter().any(|(pid, command)| command.contains("skiff server") && *pid != daemon.0);
            check(other, || "no new daemon".to_owned())?;
            kubectl.run(&["get", "--raw", "/readyz"]).result().map(drop)
        });
        assert_eq!(processes(), running);
        // It manages them: exec, logs and changes work.
        eventually(PATIENCE, || kubectl.run(&["exec", "one", "--", "true"]).result());
        eventually(PATIENCE, || {
            let after = states().result()?;
            check(after == before, || format!("before\n{before}after\n{after}"))
        });
    }
    kubectl.apply(&sleeper("three"));
    ready(&kubectl, "three");
    kubectl.run(&["delete", "pod", "one", "--timeout=30s"]).ok();
    eventually(Duration::from_secs(10), || {
        check(marked_process("daemon-one").is_none(), || "it still runs".to_owned())
    });
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}

fn pods_are_refused_what_nobody_has() {
    let kubectl = shared::cluster().in_new("refused");
    kubectl.apply(&pod("box", "command: ['true']").replace("spec:\n", "spec:\n  nodeSelector: {disk: none}\n"));
    eventually(PATIENCE, || {
        let events = kubectl.run(&["events", "--for", "pod/box"]).result()?;
        check(
            events.contains("0/2 nodes are available: ")
                && events.contains("didn't match Pod's node affinity/selector"),
            || events,
        )
    });
    kubectl.run(&["label", "node", shared::WORKER, "disk=none"]).ok();
    eventually(PATIENCE, || {
        let node = kubectl.path(&["pod", "box"], "{.spec.nodeName}")?;
        check(node == shared::WORKER, || node)
    });
    kubectl.run(&["label", "node", shared::WORKER, "disk-"]).ok();
}
