//! The store through etcd's own tool, and a cluster that is lost and restored.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use skiff_e2e::{Cluster, Output, command, eventually, host, kubectl::Background, wait::check};

use crate::{
    tests,
    workloads::{PATIENCE, ready, sleeper},
};

tests![etcdctl_reads_watches_and_backs_up, secrets_are_encrypted_at_rest, a_damaged_store_is_restored];

/// Debian's etcdctl with a cluster's certificates.
struct Etcdctl {
    pki: PathBuf,
    endpoint: String,
}

impl Etcdctl {
    fn of(cluster: &Cluster, port: u16) -> Self {
        let node = format!("{}-control-plane", cluster.name);
        cluster.home.skiff(&["cluster", "ports", &cluster.name, "--add", &format!("{port}:2379")]).ok();
        let pki = cluster.node_file(&node, "var/lib/skiff/pki/etcd");
        Self { pki, endpoint: format!("--endpoints=https://127.0.0.1:{port}") }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut etcdctl = Command::new(host::prepared("tools/etcdctl"));
        etcdctl.env("ETCDCTL_API", "3").arg(&self.endpoint);
        for (flag, file) in
            [("cacert", "ca.crt"), ("cert", "healthcheck-client.crt"), ("key", "healthcheck-client.key")]
        {
            etcdctl.arg(format!("--{flag}={}", self.pki.join(file).display()));
        }
        etcdctl.args(args);
        etcdctl
    }

    fn run(&self, args: &[&str]) -> Output {
        command::run(&mut self.command(args), "")
    }
}

fn etcdctl_reads_watches_and_backs_up() {
    let cluster = Cluster::create("keys", &[]);
    let kubectl = cluster.kubectl().within("default");
    let etcdctl = Etcdctl::of(&cluster, 23791);
    eventually(PATIENCE, || etcdctl.run(&["endpoint", "health"]).result());
    let health = etcdctl.run(&["endpoint", "health"]);
    assert!(format!("{}{}", health.stdout, health.stderr).contains("is healthy: successfully committed proposal"));
    etcdctl.run(&["endpoint", "status", "-w", "table"]).prints(&["ENDPOINT", "3.6.0", "true"]);
    etcdctl.run(&["member", "list"]).prints(&["started", "keys-control-plane", "https://127.0.0.1:2379"]);
    etcdctl.run(&["alarm", "list"]).ok();
    let keys = etcdctl.run(&["get", "/", "--prefix", "--keys-only"]).ok();
    for key in ["/registry/namespaces/default", "/registry/services/specs/default/kubernetes"] {
        assert!(keys.contains(key), "no {key} in\n{keys}");
    }
    etcdctl
        .run(&["get", "/registry/namespaces/", "--prefix", "--count-only", "-w", "fields"])
        .prints(&["\"Count\" : 4"]);
    etcdctl.run(&["get", "", "--prefix", "--limit=1", "-w", "fields"]).prints(&["\"More\" : true"]);

    // What the API server writes is seen, and what is written here is kept like anything else.
    let mut watch = Background::start(&mut etcdctl.command(&["watch", "/registry/configmaps/default/", "--prefix"]));
    // The watch says nothing when it begins, so there may have to be something new several times.
    let seen = eventually(PATIENCE, || {
        kubectl.run(&["create", "configmap", "seen"]).result()?;
        std::thread::sleep(Duration::from_millis(300));
        kubectl.run(&["delete", "configmap", "seen"]).result()?;
        Ok(watch.line(Duration::from_secs(5), |line| line.contains("/registry/configmaps/default/seen")))
    });
    assert!(seen.ends_with("seen"));
    drop(watch);
    etcdctl.run(&["put", "/mine/a", "1"]).prints(&["OK"]);
    etcdctl.run(&["put", "/mine/b", "2"]).ok();
    assert_eq!(etcdctl.run(&["get", "/mine/a"]).ok(), "/mine/a\n1\n");
    etcdctl
        .run(&["get", "/mine/", "--prefix", "--sort-by=KEY", "--order=DESCEND", "--print-value-only"])
        .prints(&["2\n1"]);
    let txn = "value(\"/mine/a\") = \"1\"\n\nput /mine/c 3\ndel /mine/b\n\nput /mine/d 4\n\n";
    command::run(&mut etcdctl.command(&["txn", "--interactive"]), txn).prints(&["SUCCESS"]);
    assert_eq!(etcdctl.run(&["get", "/mine/", "--prefix", "--keys-only"]).ok(), "/mine/a\n\n/mine/c\n\n");
    etcdctl.run(&["del", "/mine/", "--prefix"]).prints(&["2"]);
    let lease = etcdctl.run(&["lease", "grant", "100"]).ok();
    let id = lease.split_whitespace().nth(1).unwrap().to_owned();
    etcdctl.run(&["put", "/leased", "x", &format!("--lease={id}")]).ok();
    etcdctl.run(&["lease", "revoke", &id]).prints(&["revoked"]);
    assert_eq!(etcdctl.run(&["get", "/leased"]).ok(), "");

    // Who has no certificate of this authority is not let in.
    let authority = format!("--cacert={}", etcdctl.pki.join("ca.crt").display());
    let mut stranger = Command::new(host::prepared("tools/etcdctl"));
    stranger.env("ETCDCTL_API", "3").args([
        &etcdctl.endpoint,
        &authority,
        "--command-timeout=2s",
        "get",
        "/",
        "--prefix",
    ]);
    command::run(&mut stranger, "").fails();
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}

fn secrets_are_encrypted_at_rest() {
    const PASSWORD: &str = "correct-horse-battery-staple";
    let cluster = Cluster::create("sealed", &[]);
    let home = &cluster.home;
    let kubectl = cluster.kubectl().within("default");
    let etcdctl = Etcdctl::of(&cluster, 23793);
    eventually(PATIENCE, || etcdctl.run(&["endpoint", "health"]).result());
    kubectl.run(&["create", "secret", "generic", "db", &format!("--from-literal=password={PASSWORD}")]).ok();
    kubectl.run(&["create", "configmap", "db", "--from-literal=host=db.example.com"]).ok();
    let stored =
        |kind: &str| etcdctl.run(&["get", &format!("/registry/{kind}/default/db"), "--print-value-only"]).result();
    let password = || {
        let read = kubectl.path(&["secret", "db"], "{.data.password}")?;
        check(read == BASE64.encode(PASSWORD), || read)
    };
    let written_with = |key: &str| {
        let value = stored("secrets")?;
        check(value.starts_with(&format!("k8s:enc:aesgcm:v1:{key}:")), || {
            format!("{key} is not at the front of {value:?}")
        })
    };
    written_with("key1").unwrap();
    assert!(stored("configmaps").unwrap().contains("db.example.com"));
    password().unwrap();
    let state = cluster.node_file("sealed-control-plane", "var/lib/skiff/db/state.redb");
    let content = fs::read(&state).unwrap();
    for readable in [PASSWORD.to_owned(), BASE64.encode(PASSWORD)] {
        assert!(!content.windows(readable.len()).any(|part| part == readable.as_bytes()), "{readable} is in the file");
    }

    // A second key: what the first one wrote is written anew.
    let keys = cluster.node_file("sealed-control-plane", "var/lib/skiff/pki/encryption.yaml");
    assert_eq!(fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o600);
    let first = fs::read_to_string(&keys).unwrap();
    let secret = BASE64.encode([2; 32]);
    let restart = |configuration: &str| {
        home.skiff(&["cluster", "stop", "sealed"]).ok();
        fs::write(&keys, configuration).unwrap();
        home.skiff(&["cluster", "start", "sealed"])
    };
    restart(&first.replace("keys: [", &format!("keys: [{{name: key2, secret: {secret}}}, "))).ok();
    eventually(PATIENCE, password);
    // A port that was added is there until the cluster stops.
    home.skiff(&["cluster", "ports", "sealed", "--add", "23793:2379"]).ok();
    eventually(PATIENCE, || written_with("key2"));

    // Without it nothing is served, and the reason is said.
    restart(&first).fails_with("encrypted with a key that the configuration does not have");
    restart(
        &first
            .replace("name: key1", "name: gone")
            .replace("keys: [", &format!("keys: [{{name: key2, secret: {secret}}}, ")),
    )
    .ok();
    eventually(PATIENCE, password);
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}

fn a_damaged_store_is_restored() {
    let cluster = Cluster::create("saved", &[]);
    cluster.load(&["busybox"]);
    let home = &cluster.home;
    let kubectl = cluster.kubectl().within("default");
    let etcdctl = Etcdctl::of(&cluster, 23792);
    kubectl.apply(&sleeper("box"));
    ready(&kubectl, "box");
    kubectl.run(&["create", "configmap", "early", "--from-literal=key=value"]).ok();
    let backup = home.dir.join("backup.db");
    let backup = backup.to_str().unwrap();
    eventually(PATIENCE, || etcdctl.run(&["endpoint", "health"]).result());
    etcdctl.run(&["snapshot", "save", backup]).ok();
    etcdctl.run(&["snapshot", "status", backup, "-w", "json"]).prints(&["\"totalKey\":"]);
    kubectl.run(&["create", "configmap", "late"]).ok();
    let version = |name: &str| kubectl.path(&["configmap", name], "{.metadata.resourceVersion}");
    let late: u64 = version("late").unwrap().parse().unwrap();
    let uid = kubectl.path(&["pod", "box"], "{.metadata.uid}").unwrap();
    home.skiff(&["snapshot", "restore", backup, "--cluster", "saved"]).fails_with("stop");

    home.skiff(&["cluster", "stop", "saved"]).ok();
    let db = cluster.node_file("saved-control-plane", "var/lib/skiff/db/state.redb");
    let mut content = fs::read(&db).unwrap();
    content.iter_mut().skip(4096).step_by(7).for_each(|byte| *byte ^= 0x5a);
    fs::write(&db, content).unwrap();
    home.skiff(&["snapshot", "restore", backup, "--cluster", "saved"]).prints(&["Restored", "keys"]);
    home.skiff(&["cluster", "start", "saved"]).ok();
    eventually(PATIENCE, || kubectl.run(&["get", "configmap", "early"]).result());
    kubectl.run(&["get", "configmap", "late"]).fails_with("NotFound");
    ready(&kubectl, "box");
    assert_eq!(kubectl.path(&["pod", "box"], "{.metadata.uid}").unwrap(), uid);
    // Nothing that is written now can be taken for something that was seen before.
    kubectl.run(&["create", "configmap", "after"]).ok();
    assert!(version("after").unwrap().parse::<u64>().unwrap() > late);
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}
