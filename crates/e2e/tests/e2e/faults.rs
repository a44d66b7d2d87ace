//! Bad input, and faults that need no node: what is said, and that nothing is lost or half done.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use skiff_e2e::{Home, Server, command, eventually, kubectl::Version, wait::check};

use crate::{shared, tests};

tests![
    malformed_and_unknown_input,
    invalid_objects_name_every_fault,
    conflicting_writes,
    unknown_kinds_and_objects,
    the_server_killed_loses_nothing,
    a_port_that_is_taken_is_named,
    a_full_disk_fails_writes_and_recovers,
    a_damaged_state_is_refused,
    wrong_arguments,
];

const PATIENCE: Duration = Duration::from_secs(20);

fn malformed_and_unknown_input() {
    let kubectl = shared::server("malformed");
    kubectl.feed(&["apply", "-f", "-"], "kind: [").fails_with("error parsing STDIN");
    kubectl.feed(&["apply", "-f", "-"], "metadata: {name: x}").fails_with("apiVersion not set");
    let unknown = "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, dta: {a: b}}";
    kubectl.feed(&["apply", "-f", "-"], unknown).fails_with("unknown field \"dta\"");
    kubectl.run(&["get", "configmap", "c"]).fails_with("NotFound");
    // Without validation it is a warning or nothing, and the field is dropped.
    let warned = kubectl.feed(&["create", "--validate=warn", "-f", "-"], unknown);
    assert!(warned.stderr.contains("unknown field \"dta\""), "{warned:?}");
    warned.ok();
    let wrong = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {replicas: many}}";
    kubectl.feed(&["create", "--validate=false", "-f", "-"], wrong).fails_with("BadRequest");
    let twice = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"e"},"data":{"a":"b","a":"c"}}"#;
    let strict = "/api/v1/namespaces/malformed/configmaps?fieldValidation=Strict";
    kubectl.feed(&["create", "--raw", strict, "-f", "-"], twice).fails_with("duplicate field \"data.a\"");
    kubectl.run(&["get", "configmap", "e"]).fails_with("NotFound");
    kubectl.feed(&["create", "--raw", "/api/v1/namespaces/malformed/configmaps", "-f", "-"], "{\"kind\":").fails();
}

fn invalid_objects_name_every_fault() {
    let kubectl = shared::server("invalid");
    kubectl.run(&["create", "configmap", "Upper"]).fails_with("a lowercase RFC 1123 subdomain must consist of");
    kubectl.run(&["create", "namespace", "under_score"]).fails_with("a lowercase RFC 1123 label must consist of");
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {restartPolicy: Sometimes, containers: [{name: A, image: i, ports: [{containerPort: 70000}]}]}}";
    let said = kubectl.feed(&["create", "-f", "-"], pod).fails();
    for part in [
        "The Pod \"p\" is invalid",
        "spec.restartPolicy: Unsupported value: \"Sometimes\"",
        "spec.containers[0].name: Invalid value: \"A\"",
        "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    let selector = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: web, image: i}]}}}}";
    kubectl.feed(&["create", "-f", "-"], selector).fails_with("`selector` does not match template `labels`");
    kubectl
        .run(&["create", "service", "nodeport", "n", "--tcp=80", "--node-port=80"])
        .fails_with("provided port is not in the valid range");
    assert_eq!(kubectl.run(&["get", "pods,deployments,services", "-o", "name"]).ok(), "");
}

fn conflicting_writes() {
    let kubectl = shared::server("conflict");
    kubectl.run(&["create", "configmap", "c", "--from-literal=a=1"]).ok();
    let old = kubectl.run(&["get", "configmap", "c", "-o", "yaml"]).ok();
    kubectl.run(&["patch", "configmap", "c", "-p", r#"{"data":{"a":"2"}}"#]).ok();
    kubectl.feed(&["replace", "-f", "-"], &old).fails_with(
        "Error from server (Conflict): error when replacing \"STDIN\": Operation cannot be fulfilled on configmaps \"c\": \
         the object has been modified; please apply your changes to the latest version and try again",
    );
    assert_eq!(kubectl.path(&["configmap", "c"], "{.data.a}").unwrap(), "2");
    // What may not change.
    let service = "{apiVersion: v1, kind: ConfigMap, metadata: {name: fixed}, immutable: true, data: {a: b}}";
    kubectl.apply(service);
    kubectl
        .run(&["patch", "configmap", "fixed", "-p", r#"{"data":{"a":"2"}}"#])
        .fails_with("field is immutable when `immutable` is set");
}

fn unknown_kinds_and_objects() {
    let kubectl = shared::server("unknown");
    kubectl.run(&["get", "nothings"]).fails_with("the server doesn't have a resource type \"nothings\"");
    kubectl.run(&["get", "pod", "nobody"]).fails_with("Error from server (NotFound): pods \"nobody\" not found");
    kubectl.run(&["logs", "nobody"]).fails_with("pods \"nobody\" not found");
    for version in Version::ALL {
        let unknown = r#"{"apiVersion":"v9","kind":"Pod","metadata":{"name":"p"}}"#;
        let said = kubectl.version(version).feed(&["apply", "-f", "-"], unknown).fails();
        for part in ["no matches for kind \"Pod\" in version \"v9\"", "ensure CRDs are installed first"] {
            assert!(said.contains(part), "no {part:?} in\n{said}");
        }
    }
    kubectl
        .feed(&["apply", "--validate=false", "-f", "-"], "{apiVersion: v9, kind: Pod, metadata: {name: p}}")
        .fails_with("no matches for kind \"Pod\" in version \"v9\"");
    kubectl.run(&["get", "--raw", "/apis/nothing/v1"]).fails_with("NotFound");
    kubectl.run(&["get", "pods", "-n", "no-such-namespace"]).ok();
    kubectl
        .run(&["create", "configmap", "c", "-n", "no-such-namespace"])
        .fails_with("namespaces \"no-such-namespace\" not found");
}

fn the_server_killed_loses_nothing() {
    let mut server = Server::start();
    let kubectl = server.kubectl().within("default");
    let mut watch = kubectl.start(&["get", "configmaps", "-w", "-o", "name"]);
    for round in 0..5 {
        for n in 0..4 {
            kubectl.run(&["create", "configmap", &format!("c{round}-{n}")]).ok();
        }
        server.kill_and_restart();
        let names = kubectl.run(&["get", "configmaps", "-o", "name"]).ok();
        for past in 0..=round {
            for n in 0..4 {
                assert!(names.contains(&format!("configmap/c{past}-{n}\n")), "c{past}-{n} is lost: {names}");
            }
        }
    }
    watch.line(PATIENCE, |line| line == "configmap/c0-0");
    // Controllers go on where they were.
    kubectl.run(&["create", "deployment", "d", "--image=nginx", "--replicas=2"]).ok();
    eventually(PATIENCE, || {
        let pods = kubectl.run(&["get", "pods", "-o", "name"]).result()?;
        check(pods.lines().count() == 2, || pods)
    });
}

fn a_port_that_is_taken_is_named() {
    let server = Server::start();
    let home = Home::new();
    let data = home.dir.join("data");
    let port = server.port.to_string();
    let second =
        home.skiff(&["server", "--bind-address", "127.0.0.1", "--port", &port, "--data-dir", data.to_str().unwrap()]);
    second.fails_with(&format!("127.0.0.1:{port}"));
    assert!(!data.join("db").exists(), "it must not make a state before it can serve");
    // Two servers on one state would destroy it.
    let data = server.home.dir.join("data");
    home.skiff(&["server", "--bind-address", "127.0.0.1", "--port", "1", "--data-dir", data.to_str().unwrap()]).fails();
    server.kubectl().run(&["get", "namespaces"]).ok();
}

/// A file system of a few MiB, unmounted when it goes out of scope.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        command::run(mount.args(["-t", "tmpfs", "-o", "size=24m", "skiff-e2e"]).arg(at), "").ok();
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = command::run(Command::new("umount").arg("--lazy").arg(&self.0), "");
        if let Err(error) = unmounted.result() {
            eprintln!("{error}");
        }
    }
}

fn a_full_disk_fails_writes_and_recovers() {
    let home = Home::new();
    let disk = SmallDisk::new(&home.dir.join("data"));
    let mut server = Server::start_in(home);
    let kubectl = server.kubectl().within("default");
    let value = "x".repeat(500_000);
    let create = |n: usize| {
        let map = format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: big{n}}}, data: {{a: {value}}}}}");
        kubectl.feed(&["create", "-f", "-"], &map)
    };
    let mut acknowledged = 0;
    let refused = loop {
        let output = create(acknowledged);
        match output.code {
            Some(0) => acknowledged += 1,
            _ => break output.stderr,
        }
        assert!(acknowledged < 100, "24 MiB do not hold that");
    };
    assert!(refused.contains("no space left") || refused.contains("space"), "{refused}");
    // Reading goes on, nothing acknowledged is lost, also not by a restart with the disk full.
    let count = || kubectl.run(&["get", "configmaps", "-o", "name"]).ok().matches("configmap/big").count();
    assert_eq!(count(), acknowledged);
    let mut remount = Command::new("mount");
    command::run(remount.args(["-o", "remount,size=96m"]).arg(&disk.0), "").ok();
    eventually(PATIENCE, || create(1000).result());
    server.kill_and_restart();
    assert_eq!(count(), acknowledged + 1);
    server.stop();
    drop(disk);
}

fn a_damaged_state_is_refused() {
    let mut server = Server::start();
    let kubectl = server.kubectl().within("default");
    for n in 0..20 {
        kubectl.run(&["create", "configmap", &format!("c{n}"), "--from-literal=key=precious-value"]).ok();
    }
    server.stop();
    let path = server.home.dir.join("data/db/state.redb");
    let content = fs::read(&path).unwrap();
    let needle = b"precious-value";
    let places: Vec<_> = (0..content.len() - needle.len()).filter(|&at| content[at..].starts_with(needle)).collect();
    assert!(places.len() >= 20, "the values are stored as they are");
    let file = fs::File::options().write(true).open(&path).unwrap();
    for at in places {
        file.write_all_at(b"X", at as u64).unwrap();
    }
    drop(file);
    let data = server.home.dir.join("data");
    let port = server.port.to_string();
    let mut again = server.home.command(&["server", "--bind-address", "127.0.0.1", "--port", &port, "--data-dir"]);
    let refused = command::run_for(again.arg(data), "", PATIENCE);
    assert!(refused.code.is_some_and(|code| code != 0), "it must refuse by itself: {refused:?}");
    assert!(refused.stderr.contains("state.redb") && refused.stderr.contains("damage"), "{}", refused.stderr);
    assert!(refused.stderr.contains("restore"), "it must say what to do: {}", refused.stderr);
}

fn wrong_arguments() {
    let home = Home::new();
    home.skiff(&["cluster", "frobnicate"]).fails_with("unrecognized subcommand 'frobnicate'");
    home.skiff(&["cluster", "create", "--nodes", "0"]).fails_with("0");
    home.skiff(&["cluster", "create", "Not_Valid", "--isolated"]).fails_with("Not_Valid");
    home.skiff(&["cluster", "delete", "no-such-cluster"]).fails_with("no-such-cluster");
    home.skiff(&["cluster", "start", "no-such-cluster"]).fails_with("no-such-cluster");
    home.skiff(&["image", "load", "/no/such/file", "--cluster", "c"]).fails();
    let config = home.file("kind.yaml", "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodez: []\n");
    home.skiff(&["cluster", "create", "c", "--isolated", "--config", &config]).fails_with("nodez");
    home.skiff(&["--help"]).prints(&["server", "cluster", "image"]);
}
