//! "Example 2: FastAPI Web Application with PostgreSQL".

use skiff_e2e::{Kubectl, Output, Version, cluster::curl, eventually, wait::check};

use super::{PATIENCE, PODS, SERVICES, manifest, rows};
use crate::{shared, tests};

tests![example_2_fastapi_with_postgresql];

const LAPTOP: &str = r#"{"name": "Laptop", "description": "Dell XPS 13", "price": 1299.99}"#;

/// `curl -X METHOD URL`, with JSON.
pub(super) fn send(method: &str, url: &str, body: &str) -> Output {
    curl(&["-X", method, url, "-H", "Content-Type: application/json", "-d", body])
}

fn example_2_fastapi_with_postgresql() {
    shared::load(&["postgres", "fastapi-demo"]);
    let kubectl = shared::cluster().version(Version::V1_36).in_new("fastapi");
    let (database, application) = (manifest("postgres-deployment.yaml"), manifest("fastapi-deployment.yaml"));

    kubectl.run(&["apply", "-f", &database]).prints(&[
        "persistentvolumeclaim/postgres-pvc created",
        "deployment.apps/postgres created",
        "service/postgres-service created",
    ]);
    rows(&kubectl, &["pods"], PODS, &["postgres-", "1/1", "Running", "0"]);
    kubectl.run(&["get", "pvc"]).prints(&["postgres-pvc   Bound", "1Gi        RWO", "standard"]);
    serves(&kubectl);

    kubectl
        .run(&["apply", "-f", &application])
        .prints(&["deployment.apps/fastapi-app created", "service/fastapi-service created"]);
    rows(&kubectl, &["deployments"], &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"], &["fastapi-app", "2/2"]);
    rows(&kubectl, &["services"], SERVICES, &["fastapi-service", "LoadBalancer", "10.", "localhost", "8000:3"]);
    rows(&kubectl, &["services"], SERVICES, &["postgres-service", "ClusterIP", "10.", "<none>", "5432/TCP"]);
    kubectl.run(&["get", "all"]).prints(&["pod/fastapi-app-", "pod/postgres-", "service/fastapi-service"]);

    listening(&kubectl);
    let url = "http://localhost:8000";
    let root = eventually(PATIENCE, || curl(&[url]).result());
    assert_eq!(root, r#"{"message":"FastAPI + PostgreSQL Demo","status":"running","database":"postgres-service"}"#);
    let health = eventually(PATIENCE, || curl(&[&format!("{url}/health")]).result());
    assert_eq!(health, r#"{"status":"healthy","database":"connected"}"#);
    let items = format!("{url}/items/");
    let laptop = r#"{"id":1,"name":"Laptop","description":"Dell XPS 13","price":1299.99}"#;
    assert_eq!(send("POST", &items, LAPTOP).ok(), laptop);
    assert_eq!(curl(&[&items]).ok(), format!("[{laptop}]"));
    assert_eq!(curl(&[&format!("{items}1")]).ok(), laptop);
    assert!(curl(&[&format!("{url}/docs")]).ok().contains("swagger-ui"));
    assert!(curl(&[&format!("{url}/redoc")]).ok().contains("redoc"));

    inspect(&kubectl);

    // The database's pod goes; its data is there when the next one comes.
    kubectl.run(&["delete", "pod", "-l", "app=postgres"]).ok();
    rows(&kubectl, &["pods", "-l", "app=postgres"], PODS, &["postgres-", "1/1", "Running", "0"]);
    serves(&kubectl);
    let kept = eventually(PATIENCE, || curl(&[&items]).result());
    assert_eq!(kept, format!("[{laptop}]"));

    kubectl.run(&["scale", "deployment", "fastapi-app", "--replicas=3"]).ok();
    rows(&kubectl, &["deployments"], &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"], &["fastapi-app", "3/3"]);
    listening(&kubectl);
    let deleted = curl(&["-X", "DELETE", &format!("{items}1")]).ok();
    assert_eq!(deleted, r#"{"message":"Item 1 deleted successfully"}"#);
    assert_eq!(curl(&[&items]).ok(), "[]");

    kubectl.run(&["delete", "-f", &application]).prints(&["\"fastapi-app\" deleted", "\"fastapi-service\" deleted"]);
    kubectl.run(&["delete", "-f", &database]).prints(&["\"postgres-pvc\" deleted", "\"postgres\" deleted"]);
    eventually(PATIENCE, || {
        let left = kubectl.run(&["get", "pods,pvc", "-o", "name"]).result()?;
        let volumes = kubectl.run(&["get", "pv"]).result()?;
        check(left.is_empty() && !volumes.contains("fastapi/postgres-pvc"), || format!("{left}{volumes}"))
    });
}

/// A new database answers some time after its pod runs, which the image's own client sees.
fn serves(kubectl: &Kubectl) {
    let ask = ["psql", "-h", "127.0.0.1", "-U", "demouser", "-d", "demodb", "-c", "select 1"];
    let exec = ["exec", "deploy/postgres", "--", "env", "PGPASSWORD=demopass"];
    eventually(PATIENCE, || kubectl.run(&[&exec[..], &ask].concat()).result());
}

/// Until the application serves in each of its pods: without a probe one counts as ready before.
pub(super) fn listening(kubectl: &Kubectl) {
    eventually(PATIENCE, || {
        let pods = kubectl.path(&["pods", "-l", "app=fastapi-app"], "{.items[*].metadata.name}")?;
        pods.split(' ').try_for_each(|pod| {
            let log = kubectl.run(&["logs", pod]).result()?;
            check(log.contains("Uvicorn running on http://0.0.0.0:8000"), || format!("{pod}: {log}"))
        })
    });
}

fn inspect(kubectl: &Kubectl) {
    let pods = kubectl.path(&["pods", "-l", "app=fastapi-app"], "{.items[*].metadata.name}").unwrap();
    let pod = pods.split(' ').next().unwrap();
    kubectl.run(&["describe", "pod", pod]).prints(&[
        "Image:          fastapi-demo:latest",
        "DB_HOST:      postgres-service",
        "Container image \"fastapi-demo:latest\" already present on machine",
        "Container started",
    ]);
    kubectl.run(&["logs", "-l", "app=fastapi-app", "--tail=50"]).prints(&["Uvicorn running on http://0.0.0.0:8000"]);
    kubectl.run(&["logs", pod]).prints(&["Database initialized successfully"]);
    let mut follow = kubectl.start(&["logs", "-f", pod]);
    follow.line(PATIENCE, |line| line.contains("Application startup complete"));
    let endpoints = kubectl.run(&["get", "endpoints"]).ok();
    assert!(endpoints.contains(":8000,10.") && endpoints.contains(":5432"), "{endpoints}");
    let shell = kubectl
        .feed(&["exec", "-i", pod, "--", "/bin/bash"], "echo $DB_HOST; hostname 2>/dev/null || cat /etc/hostname\n")
        .ok();
    assert!(shell.starts_with("postgres-service\n"), "{shell}");
    // It is no web server, which is what the guide's command shows: the name leads to something that listens.
    let refused = kubectl.run(&["exec", pod, "--", "curl", "-sS", "http://postgres-service:5432"]).fails();
    assert!(refused.contains("Empty reply from server"), "{refused}");
}
