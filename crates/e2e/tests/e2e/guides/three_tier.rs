//! "Three-Tier Application": a database with a disk of its own, an API and a web page, from files into a namespace.

use skiff_e2e::{eventually, wait::check};

use super::{PATIENCE, PODS, SERVICES, manifest, rows};
use crate::{shared, tests};

tests![three_tiers_in_a_namespace];

fn three_tiers_in_a_namespace() {
    let _port = shared::port_80();
    shared::load(&["postgres", "myapi", "myfrontend"]);
    let cluster = shared::cluster();
    cluster.run(&["create", "namespace", "myapp"]).prints(&["namespace/myapp created"]);
    for (file, created) in [
        ("secrets", "secret/db-credentials created"),
        ("configmap", "configmap/app-config created"),
        ("database", "statefulset.apps/postgres created"),
        ("api", "deployment.apps/api created"),
        ("frontend", "service/frontend created"),
    ] {
        cluster.run(&["apply", "-f", &manifest(&format!("myapp/{file}.yaml")), "-n", "myapp"]).prints(&[created]);
    }
    let kubectl = cluster.within("myapp");
    rows(&kubectl, &["pods"], PODS, &["postgres-0", "1/1", "Running", "0"]);
    rows(&kubectl, &["statefulsets"], &["NAME", "READY", "AGE"], &["postgres", "1/1"]);
    let deployments = ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"];
    rows(&kubectl, &["deployments"], &deployments, &["api", "3/3", "3", "3"]);
    rows(&kubectl, &["deployments"], &deployments, &["frontend", "2/2", "2", "2"]);
    kubectl.run(&["get", "pvc"]).prints(&["data-postgres-0   Bound", "10Gi       RWO", "standard"]);
    kubectl.run(&["get", "all"]).prints(&[
        "pod/postgres-0",
        "statefulset.apps/postgres",
        "service/frontend",
        "replicaset.apps/api-",
    ]);
    rows(&kubectl, &["svc", "frontend"], SERVICES, &["frontend", "LoadBalancer", "10.", "localhost"]);

    // Its own port of this machine may be another service's; from inside it is always there.
    let pod = kubectl.path(&["pods", "-l", "app=frontend"], "{.items[0].metadata.name}").unwrap();
    kubectl.run(&["exec", &pod, "--", "sh", "-c", "wget -qO- $API_URL/health"]).prints(&["ok"]);
    eventually(PATIENCE, || {
        let page = kubectl.run(&["exec", &pod, "--", "wget", "-qO-", "http://frontend.myapp"]).result()?;
        check(page == "<h1>myfrontend</h1>\n", || page)
    });
    let environment = kubectl.run(&["exec", "deploy/api", "--", "sh", "-c", "echo $NODE_ENV $DATABASE_URL"]).ok();
    assert_eq!(environment, "production postgresql://postgres:5432/myapp\n");
    // The probes' requests.
    eventually(PATIENCE, || {
        let logs = kubectl.run(&["logs", "-l", "app=api"]).result()?;
        check(logs.contains("response:200"), || logs)
    });

    // The name of the pod, the name in DNS and the disk stay when the pod goes.
    let table = ["exec", "postgres-0", "--", "psql", "-U", "postgres", "-c"];
    let sql = |text: &'static str| kubectl.run(&[&table[..], &[text]].concat()).result();
    eventually(PATIENCE, || sql("create table if not exists kept as select 42 as answer"));
    let before = kubectl.path(&["pod", "postgres-0"], "{.metadata.uid}").unwrap();
    kubectl.run(&["delete", "pod", "postgres-0"]).ok();
    eventually(PATIENCE, || {
        let uid = kubectl.path(&["pod", "postgres-0"], "{.metadata.uid}")?;
        check(uid != before, || uid.clone())?;
        let rows = sql("select answer from kept")?;
        check(rows.contains("42"), || rows)
    });
    eventually(PATIENCE, || {
        let found =
            kubectl.run(&["exec", &pod, "--", "nslookup", "postgres-0.postgres.myapp.svc.cluster.local"]).result()?;
        let address = kubectl.path(&["pod", "postgres-0"], "{.status.podIP}")?;
        check(found.contains(&address), || found)
    });

    cluster.run(&["delete", "namespace", "myapp"]).ok();
    eventually(PATIENCE, || {
        let volumes = cluster.run(&["get", "pv"]).result()?;
        check(!volumes.contains("myapp/"), || volumes)
    });
}
