//! Pods on nodes: what kubectl does with them, and what the kubelet owes them.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    panic::{catch_unwind, resume_unwind},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use skiff_e2e::{Kubectl, Version, cluster::curl, command, eventually, wait::check};

use crate::{shared, tests};

tests![
    a_rolling_update_fails_no_request,
    ten_replicas_roll_under_load,
    exec_without_a_terminal,
    exec_with_a_terminal,
    attaching,
    port_forwarding,
    run_and_remove,
    logs,
    deleting_with_grace_and_by_force,
    environment_and_volumes,
    init_containers_run_first,
    probes,
    resources_become_cgroups,
    what_is_described,
    exposing_and_copying_a_terminal_size,
];

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// kubectl in a new namespace of the shared cluster.
fn namespace(name: &str) -> Kubectl {
    shared::cluster().in_new(name)
}

fn both(test: &str) -> impl Iterator<Item = Kubectl> {
    Version::ALL
        .into_iter()
        .map(move |version| namespace(&format!("{test}-{}", version.text().replace('.', "-"))).version(version))
}

/// A pod that sleeps, and ends at once when it is told to.
pub(crate) fn sleeper(name: &str) -> String {
    pod(name, "command: [sh, -c, 'trap exit TERM; while :; do sleep 0.1; done']")
}

/// A pod of one busybox container with further fields of that container.
pub(crate) fn pod(name: &str, fields: &str) -> String {
    let fields = fields.trim_matches('\n').replace('\n', "\n    ");
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels:
    app: {name}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    {fields}
"
    )
}

#[track_caller]
pub(crate) fn ready(kubectl: &Kubectl, pod: &str) {
    let waited = kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
    if waited.code != Some(0) {
        panic!("{waited:?}\n{}", kubectl.run(&["describe", "pod", pod]).stdout);
    }
}

#[track_caller]
pub(crate) fn phase(kubectl: &Kubectl, pod: &str, wanted: &str) {
    eventually(PATIENCE, || {
        let phase = kubectl.path(&["pod", pod], "{.status.phase}")?;
        check(phase == wanted, || format!("{phase}: {}", kubectl.run(&["describe", "pod", pod]).stdout))
    });
}

/// Runs a command on a terminal, with `input` typed.
fn on_a_terminal(kubectl: &Kubectl, args: &[&str], input: &str) -> command::Output {
    let command = kubectl.command(args);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<_> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &quoted.join(" "), "/dev/null"]);
    script.env("KUBECONFIG", &kubectl.kubeconfig).env("HOME", &kubectl.home).env("TERM", "xterm");
    command::run(&mut script, input)
}

fn a_rolling_update_fails_no_request() {
    let kubectl = namespace("rolling");
    kubectl.run(&["create", "deployment", "web", "--image=nginx:1.25", "--replicas=3"]).ok();
    kubectl.run(&["expose", "deployment", "web", "--type=LoadBalancer", "--port=8088", "--target-port=80"]).ok();
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]).prints(&["successfully rolled out"]);
    let url = "http://localhost:8088";
    eventually(PATIENCE, || curl(&[url]).result());
    let (done, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    let failures = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut failures = Vec::new();
            while !done.load(Ordering::Relaxed) {
                if let Err(error) = curl(&[url]).result() {
                    failures.push(error);
                }
                asked.fetch_add(1, Ordering::Relaxed);
            }
            failures
        });
        kubectl.run(&["set", "image", "deployment/web", "nginx=nginx:1.27"]).ok();
        let status = kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"]);
        let from = asked.load(Ordering::Relaxed);
        // Also while the last old pods end.
        let settled = Instant::now() + PATIENCE;
        while asked.load(Ordering::Relaxed) < from + 30 && Instant::now() < settled {
            thread::sleep(Duration::from_millis(20));
        }
        done.store(true, Ordering::Relaxed);
        let failures = asking.join().unwrap();
        status.prints(&["successfully rolled out"]);
        failures
    });
    assert!(failures.is_empty(), "{} of {} requests: {failures:#?}", failures.len(), asked.into_inner());
    eventually(PATIENCE, || {
        let images = kubectl.path(&["pods", "-l", "app=web"], "{.items[*].spec.containers[0].image}")?;
        check(images == "nginx:1.27 nginx:1.27 nginx:1.27", || images)
    });
    // And back.
    kubectl.run(&["rollout", "undo", "deployment/web"]).ok();
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"]).ok();
    assert_eq!(
        kubectl.path(&["deployment", "web"], "{.spec.template.spec.containers[0].image}").unwrap(),
        "nginx:1.25"
    );
    let before = kubectl.path(&["pods", "-l", "app=web"], "{.items[*].metadata.uid}").unwrap();
    kubectl.run(&["rollout", "restart", "deployment/web"]).ok();
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"]).ok();
    // The new ones serve before the last old one has ended.
    eventually(PATIENCE, || {
        let after = kubectl.path(&["pods", "-l", "app=web"], "{.items[*].metadata.uid}")?;
        let replaced = after.split(' ').all(|uid| !before.contains(uid));
        check(replaced && after.split(' ').count() == 3, || format!("before {before}, after {after}"))
    });
}

/// One request over a connection of its own; what is wrong with the answer otherwise.
fn page(port: u16) -> Result<(), String> {
    let fetch = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = fetch().map_err(|error| error.to_string())?;
    check(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("</html>"), || format!("got {answer:?}"))
}

/// Four clients that ask all the time, at most 800 times a second together.
fn ten_replicas_roll_under_load() {
    const PORT: u16 = 8094;
    let kubectl = namespace("rolling-ten");
    kubectl.run(&["create", "deployment", "web", "--image=nginx:1.25", "--replicas=10"]).ok();
    kubectl.run(&["expose", "deployment", "web", "--type=LoadBalancer", "--port=8094", "--target-port=80"]).ok();
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=120s"]).ok();
    eventually(PATIENCE, || page(PORT));
    let (done, asked, failures) = (AtomicBool::new(false), AtomicU32::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if let Err(error) = page(PORT) {
                        failures.lock().unwrap().push(error);
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        let started = Instant::now();
        let rolled = catch_unwind(|| {
            kubectl.run(&["set", "image", "deployment/web", "nginx=nginx:1.27"]).ok();
            kubectl.run(&["rollout", "status", "deployment/web", "--timeout=120s"]).ok();
            // Until the last old pod has ended.
            eventually(PATIENCE, || {
                let pods = kubectl.path(&["pods", "-l", "app=web"], "{.items[*].metadata.name}")?;
                check(pods.split(' ').count() == 10, || pods)
            });
        });
        done.store(true, Ordering::Relaxed);
        println!("10 replicas rolled in {:.1} s", started.elapsed().as_secs_f64());
        rolled.unwrap_or_else(|panic| resume_unwind(panic));
    });
    let (asked, failures) = (asked.into_inner(), failures.into_inner().unwrap());
    println!("{asked} requests meanwhile");
    assert!(failures.is_empty(), "{} of {asked} requests: {failures:#?}", failures.len());
    assert!(asked > 100, "{asked} requests are no load");
}

fn exec_without_a_terminal() {
    for kubectl in both("exec") {
        kubectl.apply(&sleeper("box"));
        ready(&kubectl, "box");
        assert_eq!(kubectl.run(&["exec", "box", "--", "hostname"]).ok(), "box\n");
        let both = kubectl.run(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
        assert_eq!((both.stdout.as_str(), both.code), ("out\n", Some(3)), "{both:?}");
        assert!(both.stderr.starts_with("err\n") && both.stderr.contains("exit code 3"), "{both:?}");
        assert_eq!(kubectl.feed(&["exec", "-i", "box", "--", "wc", "-c"], &"x".repeat(300_000)).ok().trim(), "300000");
        let large = kubectl.run(&["exec", "box", "--", "sh", "-c", "yes | head -c 3000000"]).ok();
        assert_eq!(large.len(), 3_000_000);
        let missing = kubectl.run(&["exec", "box", "--", "no-such-program"]).fails();
        assert!(missing.contains("no-such-program") && missing.contains("not found"), "{missing}");
        kubectl.run(&["exec", "nobody", "--", "true"]).fails_with("pods \"nobody\" not found");
        kubectl.run(&["exec", "box", "-c", "other", "--", "true"]).fails_with("container other");
        assert!(kubectl.run(&["exec", "deploy/none", "--", "true"]).fails().contains("not found"));
    }
}

fn exec_with_a_terminal() {
    for kubectl in both("tty") {
        kubectl.apply(&sleeper("box"));
        ready(&kubectl, "box");
        let said = on_a_terminal(&kubectl, &["exec", "-it", "box", "--", "sh", "-c", "tty && echo on a terminal"], "");
        let said = said.prints(&["on a terminal"]);
        assert!(said.contains("/dev/"), "{said}");
        // Typed, echoed, and executed.
        let said = on_a_terminal(&kubectl, &["exec", "-it", "box", "--", "sh"], "echo $((6 * 7))-typed\nexit\n");
        said.prints(&["42-typed"]);
    }
}

fn attaching() {
    for kubectl in both("attach") {
        kubectl.apply(&pod("box", "stdin: true\ncommand: [sh, -c, 'while read line; do echo \"got $line\"; done']"));
        ready(&kubectl, "box");
        let said = command::run_for(&mut kubectl.command(&["attach", "-i", "box"]), "hello\n", Duration::from_secs(5));
        assert!(said.stdout.contains("got hello"), "{said:?}");
        kubectl.run(&["logs", "box"]).prints(&["got hello"]);
    }
}

fn port_forwarding() {
    for (kubectl, port) in both("forward").zip([18_080, 18_090]) {
        kubectl.run(&["create", "deployment", "web", "--image=nginx:1.25"]).ok();
        kubectl.run(&["expose", "deployment", "web", "--port=81", "--target-port=80"]).ok();
        kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
        for (target, remote, local) in [("deployment/web", 80, port), ("service/web", 81, port + 1)] {
            let mut forward = kubectl.start(&["port-forward", target, &format!("{local}:{remote}")]);
            forward.line(PATIENCE, |line| line.starts_with(&format!("Forwarding from 127.0.0.1:{local}")));
            for _ in 0..3 {
                curl(&[&format!("http://127.0.0.1:{local}/")]).prints(&["Welcome to nginx!"]);
            }
        }
        let mut nobody = kubectl.start(&["port-forward", "deployment/web", &format!("{}:81", port + 2)]);
        nobody.line(PATIENCE, |line| line.starts_with("Forwarding from"));
        curl(&[&format!("http://127.0.0.1:{}/", port + 2)]).fails();
        nobody.line(PATIENCE, |line| line.contains("refused"));
    }
}

fn run_and_remove() {
    for kubectl in both("run") {
        let args = ["run", "once", "--image=busybox", "--image-pull-policy=IfNotPresent", "--restart=Never"];
        let said = kubectl.feed(&[&args[..], &["-i", "--rm", "--", "cat"]].concat(), "through the pod\n").ok();
        assert!(said.contains("through the pod\n") && said.contains("pod \"once\" deleted"), "{said}");
        kubectl.run(&["get", "pod", "once"]).fails_with("NotFound");
        let said = on_a_terminal(
            &kubectl,
            &[&args[..], &["-it", "--rm", "--", "sh"]].concat(),
            "echo $((6 * 7))-typed\nexit\n",
        );
        assert!(said.stdout.contains("42-typed"), "{said:?}");
        eventually(PATIENCE, || match kubectl.run(&["get", "pod", "once"]) {
            gone if gone.stderr.contains("NotFound") => Ok(()),
            still => Err(still.stdout),
        });
        kubectl.run(&[&args[..], &["--", "sh", "-c", "exit 4"]].concat()).prints(&["pod/once created"]);
        phase(&kubectl, "once", "Failed");
        assert_eq!(
            kubectl.path(&["pod", "once"], "{.status.containerStatuses[0].state.terminated.exitCode}").unwrap(),
            "4"
        );
        assert_eq!(
            kubectl.path(&["pod", "once"], "{.status.containerStatuses[0].state.terminated.reason}").unwrap(),
            "Error"
        );
    }
}

fn logs() {
    let kubectl = namespace("logs");
    kubectl.apply(&pod(
        "box",
        "command: [sh, -c, 'for i in $(seq 1 50); do echo line $i; done; echo last >&2; sleep 1000']",
    ));
    ready(&kubectl, "box");
    eventually(PATIENCE, || {
        let all = kubectl.run(&["logs", "box"]).result()?;
        check(all.lines().count() == 51, || all)
    });
    assert_eq!(kubectl.run(&["logs", "box", "--tail=2"]).ok(), "line 50\nlast\n");
    assert_eq!(kubectl.run(&["logs", "box", "--limit-bytes=6"]).ok(), "line 1");
    let stamped = kubectl.run(&["logs", "box", "--timestamps", "--tail=1"]).ok();
    assert!(stamped.starts_with("20") && stamped.ends_with("Z last\n"), "{stamped}");
    assert_eq!(kubectl.run(&["logs", "-l", "app=box", "--tail=1"]).ok(), "last\n");
    assert_eq!(kubectl.run(&["logs", "box", "--since=1h"]).ok().lines().count(), 51);
    kubectl.run(&["logs", "box", "-c", "other"]).fails_with("container other is not valid for pod box");
    kubectl
        .run(&["logs", "box", "--previous"])
        .fails_with("previous terminated container \"main\" in pod \"box\" not found");
    kubectl.apply(&pod("twice", "command: [sh, -c, 'echo \"run of $(hostname)\"; sleep 1; exit 1']"));
    eventually(PATIENCE, || {
        let count = kubectl.path(&["pod", "twice"], "{.status.containerStatuses[0].restartCount}")?;
        check(count != "0" && !count.is_empty(), || count)
    });
    assert_eq!(kubectl.run(&["logs", "twice", "--previous"]).ok(), "run of twice\n");
}

fn deleting_with_grace_and_by_force() {
    let kubectl = namespace("deleting");
    // It notes the signal, and goes on.
    let stubborn = "command: [sh, -c, 'trap \"echo told\" TERM; echo ready; while :; do sleep 0.1; done']";
    kubectl.apply(&pod("stubborn", stubborn));
    ready(&kubectl, "stubborn");
    let mut follow = kubectl.start(&["logs", "-f", "stubborn"]);
    follow.line(PATIENCE, |line| line == "ready");
    let started = Instant::now();
    kubectl.run(&["delete", "pod", "stubborn", "--grace-period=2"]).prints(&["pod \"stubborn\" deleted"]);
    let took = started.elapsed();
    assert!((2.0..8.0).contains(&took.as_secs_f64()), "{took:?}");
    follow.line(PATIENCE, |line| line == "told");
    kubectl.run(&["get", "pod", "stubborn"]).fails_with("NotFound");

    kubectl.apply(&pod("stubborn", stubborn));
    ready(&kubectl, "stubborn");
    let forced = kubectl.run(&["delete", "pod", "stubborn", "--force", "--grace-period=0"]);
    assert!(forced.stderr.contains("Immediate deletion does not wait for confirmation"), "{forced:?}");
    forced.prints(&["pod \"stubborn\" force deleted"]);
    kubectl.run(&["get", "pod", "stubborn"]).fails_with("NotFound");
    // One that obeys does not use up its time.
    kubectl.apply(&sleeper("obedient"));
    ready(&kubectl, "obedient");
    let started = Instant::now();
    kubectl.run(&["delete", "pod", "obedient"]).ok();
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

fn environment_and_volumes() {
    let kubectl = namespace("volumes");
    kubectl
        .run(&["create", "configmap", "settings", "--from-literal=colour=blue", "--from-literal=file.txt=content"])
        .ok();
    kubectl.run(&["create", "secret", "generic", "password", "--from-literal=word=hidden"]).ok();
    kubectl.apply(
        "apiVersion: v1
kind: Pod
metadata:
  name: box
  labels: {app: box}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, '1000']
    env:
    - {name: PLAIN, value: 'a b'}
    - {name: DERIVED, value: '$(PLAIN)-c $$(PLAIN)'}
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: WORD, valueFrom: {secretKeyRef: {name: password, key: word}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    volumeMounts:
    - {name: settings, mountPath: /settings}
    - {name: password, mountPath: /password, readOnly: true}
    - {name: shared, mountPath: /shared}
    - {name: host, mountPath: /host}
  - name: other
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo from other > /shared/file; sleep 1000']
    envFrom: [{configMapRef: {name: settings}, prefix: SET_}]
    volumeMounts:
    - {name: shared, mountPath: /shared}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: password, secret: {secretName: password, defaultMode: 256}}
  - {name: shared, emptyDir: {}}
  - {name: host, hostPath: {path: /var/tmp/e2e, type: DirectoryOrCreate}}
",
    );
    ready(&kubectl, "box");
    let sh = |script: &str| kubectl.run(&["exec", "box", "-c", "main", "--", "sh", "-c", script]).ok();
    assert_eq!(sh("echo $PLAIN,$DERIVED,$COLOUR,$WORD,$POD"), "a b,a b-c $(PLAIN),blue,hidden,box\n");
    let placed = kubectl.path(&["pod", "box"], "{.status.podIP} {.spec.nodeName}").unwrap();
    assert_eq!(sh("echo $IP $NODE").trim(), placed);
    assert_eq!(sh("cat /settings/colour /settings/file.txt /password/word"), "bluecontenthidden");
    assert_eq!(sh("stat -L -c %a /password/word").trim(), "400");
    assert_eq!(
        eventually(PATIENCE, || kubectl.run(&["exec", "box", "--", "cat", "/shared/file"]).result()),
        "from other\n"
    );
    sh("echo kept > /host/file");
    assert_eq!(sh("head -c 3 /var/run/secrets/kubernetes.io/serviceaccount/token"), "eyJ");
    assert_eq!(sh("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace"), "volumes");
    assert_eq!(
        sh("head -1 /var/run/secrets/kubernetes.io/serviceaccount/ca.crt").trim(),
        "-----BEGIN CERTIFICATE-----"
    );
    let other = kubectl
        .run(&["exec", "box", "-c", "other", "--", "sh", "-c", "echo $SET_colour $KUBERNETES_SERVICE_HOST"])
        .ok();
    assert_eq!(other, "blue 10.96.0.1\n");
    // A changed ConfigMap arrives in the running pod.
    kubectl.run(&["patch", "configmap", "settings", "-p", r#"{"data":{"colour":"green"}}"#]).ok();
    eventually(Duration::from_secs(100), || {
        let colour = kubectl.run(&["exec", "box", "-c", "main", "--", "cat", "/settings/colour"]).result()?;
        check(colour == "green", || colour)
    });
    // What is missing is said, and waited for.
    kubectl.apply(&pod(
        "waits",
        "command: [sleep, '1000']\nenv: [{name: A, valueFrom: {configMapKeyRef: {name: later, key: a}}}]",
    ));
    eventually(PATIENCE, || {
        let reason = kubectl.path(&["pod", "waits"], "{.status.containerStatuses[0].state.waiting.reason}")?;
        check(reason == "CreateContainerConfigError", || reason)
    });
    kubectl.run(&["create", "configmap", "later", "--from-literal=a=1"]).ok();
    ready(&kubectl, "waits");
}

fn init_containers_run_first() {
    let kubectl = namespace("init");
    let manifest = |command: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: box}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  initContainers:
  - {{name: first, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo one > /d/f'], volumeMounts: [{{name: d, mountPath: /d}}]}}
  - {{name: second, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, '{command}'], volumeMounts: [{{name: d, mountPath: /d}}]}}
  containers:
  - {{name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [cat, /d/f], volumeMounts: [{{name: d, mountPath: /d}}]}}
  volumes:
  - {{name: d, emptyDir: {{}}}}
"
        )
    };
    kubectl.apply(&manifest("echo two >> /d/f"));
    phase(&kubectl, "box", "Succeeded");
    assert_eq!(kubectl.run(&["logs", "box"]).ok(), "one\ntwo\n");
    kubectl.run(&["get", "pod", "box"]).prints(&["0/1", "Completed"]);
    kubectl.run(&["delete", "pod", "box"]).ok();
    kubectl.apply(&manifest("exit 1"));
    phase(&kubectl, "box", "Failed");
    kubectl.run(&["get", "pod", "box"]).prints(&["Init:Error"]);
}

fn probes() {
    let kubectl = namespace("probes");
    let ready_when = "command: [sh, -c, 'trap exit TERM; while :; do sleep 0.1; done']
readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}";
    kubectl.apply(&pod("ready", ready_when));
    phase(&kubectl, "ready", "Running");
    kubectl.run(&["expose", "pod", "ready", "--port=80"]).ok();
    let addresses = || kubectl.path(&["endpoints", "ready"], "{.subsets[*].addresses[*].ip}");
    kubectl.run(&["get", "pod", "ready"]).prints(&["0/1     Running"]);
    assert_eq!(addresses().unwrap(), "");
    kubectl.run(&["exec", "ready", "--", "touch", "/tmp/ready"]).ok();
    ready(&kubectl, "ready");
    eventually(PATIENCE, || check(!addresses()?.is_empty(), || "no address".to_owned()));
    kubectl.run(&["exec", "ready", "--", "rm", "/tmp/ready"]).ok();
    eventually(PATIENCE, || check(addresses()?.is_empty(), || "still an address".to_owned()));
    kubectl.run(&["events", "--for", "pod/ready"]).prints(&["Unhealthy", "Readiness probe failed"]);

    let alive_while = "command: [sh, -c, 'trap exit TERM; touch /tmp/alive; while :; do sleep 0.1; done']
livenessProbe: {exec: {command: [test, -e, /tmp/alive]}, periodSeconds: 1, failureThreshold: 2, initialDelaySeconds: 1}";
    kubectl.apply(&pod("alive", alive_while));
    ready(&kubectl, "alive");
    kubectl.run(&["exec", "alive", "--", "rm", "/tmp/alive"]).ok();
    eventually(PATIENCE, || {
        let count = kubectl.path(&["pod", "alive"], "{.status.containerStatuses[0].restartCount}")?;
        check(count == "1", || count)
    });
    kubectl
        .run(&["events", "--for", "pod/alive"])
        .prints(&["Liveness probe failed", "Container main failed liveness probe, will be restarted"]);

    kubectl.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: nginx
    image: nginx:1.25
    readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
    startupProbe: {httpGet: {path: /index.html, port: 80}, periodSeconds: 1, failureThreshold: 30}
",
    );
    ready(&kubectl, "web");
}

fn resources_become_cgroups() {
    let kubectl = namespace("resources");
    let limits =
        "command: [sleep, '1000']\nresources: {limits: {memory: 32Mi, cpu: 250m}, requests: {memory: 16Mi, cpu: 100m}}";
    kubectl.apply(&pod("limited", limits));
    ready(&kubectl, "limited");
    let cat = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(kubectl.run(&["exec", "limited", "--", "sh", "-c", cat]).ok().trim(), "33554432");
    assert_eq!(kubectl.path(&["pod", "limited"], "{.status.qosClass}").unwrap(), "Burstable");
    let eats = "command: [sh, -c, 'tail /dev/zero']\nresources: {limits: {memory: 16Mi}}";
    kubectl.apply(&pod("eats", eats));
    eventually(PATIENCE, || {
        let state = kubectl.path(&["pod", "eats"], "{.status.containerStatuses[0].state.terminated.reason}{.status.containerStatuses[0].lastState.terminated.reason}")?;
        check(state.contains("OOMKilled"), || state)
    });
    kubectl.apply(&pod("huge", "command: ['true']\nresources: {requests: {cpu: '1000'}}"));
    eventually(PATIENCE, || {
        let events = kubectl.run(&["events", "--for", "pod/huge"]).result()?;
        check(events.contains("0/2 nodes are available: ") && events.contains("Insufficient cpu"), || events)
    });
}

fn what_is_described() {
    for kubectl in both("described") {
        kubectl.apply(&sleeper("box"));
        ready(&kubectl, "box");
        eventually(PATIENCE, || {
            let text = kubectl.run(&["describe", "pod", "box"]).result()?;
            let wanted = [
                "Status:           Running",
                "Container ID:",
                "Successfully assigned",
                "Pulled",
                "Created",
                "Started",
                "ContainersReady",
            ];
            wanted.iter().try_for_each(|part| check(text.contains(part), || format!("no {part:?} in\n{text}")))
        });
        kubectl.run(&["describe", "node", shared::WORKER]).prints(&[
            "Ready",
            "KubeletReady",
            "Capacity:",
            "Allocatable:",
            "box",
        ]);
        kubectl.run(&["get", "pods", "-o", "wide"]).prints(&["NODE", "10.244.", "shared-"]);
        kubectl.run(&["get", "nodes", "-o", "wide"]).prints(&["Ready", "control-plane", "v1.36", shared::WORKER]);
        kubectl.run(&["get", "events"]).prints(&["LAST SEEN", "Started"]);
        kubectl.run(&["get", "pods", "-n", "kube-system", "-l", "k8s-app=kube-dns"]).prints(&["1/1     Running"]);
        let everywhere = Kubectl { namespace: None, ..kubectl };
        everywhere.run(&["cluster-info"]).prints(&["Kubernetes control plane", "CoreDNS is running at"]);
    }
}

fn exposing_and_copying_a_terminal_size() {
    let kubectl = namespace("size");
    kubectl.apply(&sleeper("box"));
    ready(&kubectl, "box");
    let mut script = Command::new("script");
    let command = format!(
        "stty rows 33 cols 101; '{}' -n size exec -it box -- sh -c 'sleep 1; stty size'",
        kubectl.program().display()
    );
    script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
    script.env("KUBECONFIG", &kubectl.kubeconfig).env("HOME", &kubectl.home).env("TERM", "xterm");
    command::run(&mut script, "").prints(&["33 101"]);
    // Copying is exec with tar.
    let file = kubectl.home.join("copied.txt");
    std::fs::write(&file, "copied").unwrap();
    kubectl.run(&["cp", file.to_str().unwrap(), "box:/tmp/copied.txt"]).ok();
    assert_eq!(kubectl.run(&["exec", "box", "--", "cat", "/tmp/copied.txt"]).ok(), "copied");
}
