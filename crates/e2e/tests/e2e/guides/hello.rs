//! The guide's "Example 1: Hello World with Nginx", as written there.

use std::time::Duration;

use skiff_e2e::{Kubectl, Version, cluster::curl, eventually, wait::check};

use super::{PODS, SERVICES, rows};
use crate::{shared, tests};

tests![example_1_hello_world_with_nginx];

const PATIENCE: Duration = Duration::from_secs(60);

fn example_1_hello_world_with_nginx() {
    let _port = shared::port_80();
    for version in Version::ALL {
        example_1(&shared::cluster().version(version));
    }
}

fn example_1(kubectl: &Kubectl) {
    let created = kubectl.run(&["create", "deployment", "hello-world", "--image=nginx:latest"]).ok();
    assert_eq!(created, "deployment.apps/hello-world created\n");
    let exposed = kubectl.run(&["expose", "deployment", "hello-world", "--type=LoadBalancer", "--port=80"]).ok();
    assert_eq!(exposed, "service/hello-world exposed\n");

    rows(
        kubectl,
        &["deployments"],
        &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"],
        &["hello-world", "1/1", "1", "1"],
    );
    rows(kubectl, &["pods"], PODS, &["hello-world-", "1/1", "Running", "0"]);
    rows(kubectl, &["services"], SERVICES, &["hello-world", "LoadBalancer", "10.", "localhost", "80:3"]);
    let page = eventually(PATIENCE, || curl(&["http://localhost"]).result());
    assert!(page.contains("Welcome to nginx!"), "{page}");
    kubectl.run(&["get", "all"]).prints(&[
        "pod/hello-world-",
        "service/hello-world",
        "localhost",
        "deployment.apps/hello-world   1/1     1            1",
        "replicaset.apps/hello-world-",
    ]);

    kubectl
        .run(&["scale", "deployment", "hello-world", "--replicas=3"])
        .prints(&["deployment.apps/hello-world scaled"]);
    let pods = eventually(PATIENCE, || {
        let pods = kubectl.run(&["get", "pods", "--no-headers"]).result()?;
        let is_running = |line: &&str| line.split_whitespace().skip(1).take(3).eq(["1/1", "Running", "0"]);
        let running = pods.lines().filter(|line| line.starts_with("hello-world-")).filter(is_running);
        check(running.count() == 3, || pods.clone())?;
        Ok(pods)
    });
    let pod = pods.split_whitespace().next().unwrap();

    let mut follow = kubectl.start(&["logs", "-f", pod]);
    // Requests go to one of three pods, until one has come to this one.
    eventually(PATIENCE, || {
        curl(&["http://localhost"]).result()?;
        let logs = kubectl.run(&["logs", pod]).result()?;
        check(logs.contains("\"GET / HTTP/1.1\" 200"), || logs)
    });
    follow.line(PATIENCE, |line| line.contains("\"GET / HTTP/1.1\" 200"));

    kubectl.run(&["delete", "deployment", "hello-world"]).prints(&["deployment.apps \"hello-world\" deleted"]);
    kubectl.run(&["delete", "service", "hello-world"]).prints(&["service \"hello-world\" deleted"]);
    eventually(PATIENCE, || {
        let left = kubectl.run(&["get", "pods", "-l", "app=hello-world", "-o", "name"]).result()?;
        check(left.is_empty(), || left)?;
        check(curl(&["http://localhost"]).code != Some(0), || "port 80 still answers".to_owned())
    });
    assert_eq!(follow.end(PATIENCE), Some(0), "the logs end with the container");
}
