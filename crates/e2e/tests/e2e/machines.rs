//! `skiff server` and `skiff agent` on machines, without `skiff cluster`.

use std::time::Duration;

use skiff_e2e::{Home, Machine, Wire, eventually, host, wait::check};

use crate::{
    tests,
    workloads::{PATIENCE, pod, sleeper},
};

tests![machines_become_a_cluster];

/// They share the disk of the machine that runs the tests, which may be fuller than a node's should be.
const EVICTION: [&str; 2] = ["--eviction-hard", "memory.available<50Mi"];

/// Two machines on one segment, whose pods reach each other by plain routes, and one behind a router, to which packets
/// have to be wrapped.
fn machines_become_a_cluster() {
    let home = Home::new();
    let wire = Wire::new();
    let mut alpha = Machine::start(&home, &wire, "alpha", 1, 11);
    let mut beta = Machine::start(&home, &wire, "beta", 1, 12);
    let mut gamma = Machine::start(&home, &wire, "gamma", 2, 13);

    let address = alpha.address.to_string();
    let serve = ["server", "--node-ip", address.as_str(), EVICTION[0], EVICTION[1]];
    alpha.start_daemon(&serve);
    eventually(PATIENCE, || {
        let nodes = alpha.kubectl(&["wait", "--for=condition=Ready", "node/alpha", "--timeout=1s"]);
        nodes.result().map_err(|error| format!("{error}\n{}", alpha.log()))
    });
    let token = std::fs::read_to_string(alpha.file("var/lib/skiff/pki/bootstrap-token")).unwrap();
    let authority = alpha.file("var/lib/skiff/pki/ca.crt");
    let url = format!("https://{address}:6443");
    let join = |machine: &Machine| {
        let words = ["agent", "--server", &url, "--token", token.trim(), "--ca-file", authority.to_str().unwrap()];
        let own = ["--node-ip".to_owned(), machine.address.to_string()];
        words.into_iter().chain(EVICTION).map(str::to_owned).chain(own).collect::<Vec<_>>()
    };
    for machine in [&mut beta, &mut gamma] {
        let args = join(machine);
        machine.start_daemon(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }
    for machine in [&beta, &gamma] {
        let node = format!("node/{}", machine.name);
        eventually(PATIENCE, || {
            let nodes = alpha.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=1s"]);
            nodes.result().map_err(|error| format!("{error}\n{}", machine.log()))
        });
    }

    // A token of nobody joins nothing.
    let refused = gamma.skiff(&[
        "agent",
        "--server",
        &url,
        "--token",
        "abcdef.0123456789abcdef",
        "--ca-file",
        authority.to_str().unwrap(),
        "--node-ip",
        &gamma.address.to_string(),
        "--node-name",
        "intruder",
        "--data-dir",
        "/run/intruder",
    ]);
    refused.fails_with("Unauthorized");

    let archive = host::prepared("images/busybox.tar");
    for machine in [&alpha, &beta, &gamma] {
        machine.skiff(&["image", "load", "--machine", archive.to_str().unwrap()]).prints(&["this machine: "]);
        let name = format!("on-{}", machine.name);
        let pod = sleeper(&name).replace("spec:", &format!("spec:\n  nodeName: {}", machine.name));
        alpha.kubectl_fed(&["apply", "-f", "-"], &pod).ok();
    }
    alpha.kubectl_fed(&["apply", "-f", "-"], &pod("web", "command: [httpd, -f, -p, '8080', -h, /etc]")).ok();
    alpha.kubectl(&["expose", "pod", "web", "--port=80", "--target-port=8080"]).ok();
    alpha.kubectl(&["wait", "--for=condition=Ready", "pods", "--all", "--timeout=60s"]).ok();
    everyone_reaches_everyone(&alpha);

    // The daemons die; no container notices.
    let before = containers(&alpha);
    alpha.kill_daemon();
    gamma.kill_daemon();
    alpha.start_daemon(&serve);
    let args = join(&gamma);
    gamma.start_daemon(&args.iter().map(String::as_str).collect::<Vec<_>>());
    eventually(PATIENCE, || alpha.kubectl(&["get", "--raw", "/readyz"]).result());
    everyone_reaches_everyone(&alpha);
    assert_eq!(containers(&alpha), before);

    for machine in [&mut alpha, &mut beta, &mut gamma] {
        let left = machine.off();
        assert!(left.is_empty(), "{left:#?}");
    }
}

fn containers(alpha: &Machine) -> String {
    let what = "jsonpath={range .items[*].status.containerStatuses[*]}{.containerID} {.restartCount}{\"\\n\"}{end}";
    alpha.kubectl(&["get", "pods", "-A", "-o", what]).ok()
}

/// By address and by name, from each machine.
fn everyone_reaches_everyone(alpha: &Machine) {
    let names = ["on-alpha", "on-beta", "on-gamma"];
    let addresses = names.map(|pod| alpha.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]).ok());
    for from in names {
        for to in &addresses {
            eventually(Duration::from_secs(20), || {
                alpha.kubectl(&["exec", from, "--", "ping", "-c", "1", "-W", "1", to]).result()
            });
        }
        eventually(Duration::from_secs(20), || {
            let page = alpha
                .kubectl(&["exec", from, "--", "wget", "-q", "-T", "2", "-O", "-", "http://web/hostname"])
                .result()?;
            check(page == "web\n", || page)
        });
    }
}
