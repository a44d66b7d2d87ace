//! "Example 2: FastAPI Web Application with PostgreSQL".

use std::{fs, process::Command};

use skiff_e2e::{
    Home, Kubectl, Output, Version, browser::Browser, cluster::curl, command, eventually, host, kubectl::Background,
    wait::check,
};

use super::{PATIENCE, PODS, SERVICES, manifest, rows};
use crate::{shared, tests};

tests![example_2_fastapi_with_postgresql];

const DOCKERFILE: &str = "FROM python:3.11-slim

WORKDIR /app

# Install dependencies
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt

# Copy application code
COPY main.py .

# Expose port
EXPOSE 8000

# Run the application
CMD [\"uvicorn\", \"main:app\", \"--host\", \"0.0.0.0\", \"--port\", \"8000\"]
";
const REQUIREMENTS: &str = "fastapi==0.115.5\nuvicorn[standard]==0.32.1\npsycopg2-binary==2.9.10\npydantic==2.10.3\n";
const MAIN: &str = include_str!("../../../../../xtask/src/images/files/fastapi.py");

const LAPTOP: &str = r#"{"name": "Laptop", "description": "Dell XPS 13", "price": 1299.99}"#;

/// `curl -X METHOD URL`, with JSON.
pub(super) fn send(method: &str, url: &str, body: &str) -> Output {
    curl(&["-X", method, url, "-H", "Content-Type: application/json", "-d", body])
}

/// The guide's Dockerfile as printed, its `docker build`, and the image on the cluster's nodes. The base image's pip
/// finds the packages in the image, because there is no index to ask here.
fn build() {
    let home = Home::new();
    let python = host::prepared("images/python.tar");
    home.skiff(&["image", "import", python.to_str().expect("UTF-8")]).prints(&["python:3.11-slim"]);
    fs::create_dir(home.dir.join("fastapi-demo")).unwrap();
    for (name, content) in [("Dockerfile", DOCKERFILE), ("requirements.txt", REQUIREMENTS), ("main.py", MAIN)] {
        home.file(&format!("fastapi-demo/{name}"), content);
    }
    home.skiff(&["image", "build", "-t", "fastapi-demo:latest", "fastapi-demo"])
        .prints(&["library/fastapi-demo:latest"]);
    home.skiff(&["image", "save", "fastapi-demo:latest", "-o", "fastapi-demo.tar"]).ok();
    shared::load_archive(&home.dir.join("fastapi-demo.tar"));
}

fn example_2_fastapi_with_postgresql() {
    shared::load(&["postgres"]);
    build();
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
    in_a_browser(url);
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

/// `/docs` in a browser. The page wants Swagger UI from a server on the Internet, whose place a program here takes.
fn in_a_browser(url: &str) {
    const PORT: u16 = 18443;
    let home = Home::new();
    let files = home.dir.join("npm/swagger-ui-dist@5");
    fs::create_dir_all(&files).unwrap();
    let dist = host::prepared("tools/swagger-ui/flask_swagger_ui/dist");
    for name in ["swagger-ui-bundle.js", "swagger-ui.css"] {
        fs::copy(dist.join(name), files.join(name)).unwrap();
    }
    let mut certificate = Command::new("openssl");
    certificate.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=cdn.jsdelivr.net"]);
    certificate.args(["-keyout", "tls.key", "-out", "tls.crt"]).current_dir(&home.dir);
    command::run(&mut certificate, "").ok();
    let mut server = Command::new("openssl");
    server.args(["s_server", "-quiet", "-WWW", "-cert", "tls.crt", "-key", "tls.key"]);
    server.args(["-accept", &PORT.to_string()]).current_dir(&home.dir);
    let _server = Background::start(&mut server);

    let browser = Browser::start(&home, 19515, &format!("MAP cdn.jsdelivr.net:443 127.0.0.1:{PORT}"));
    browser.open(&format!("{url}/docs"));
    browser.shows(&["FastAPI Demo with PostgreSQL", "/items/", "/items/{item_id}", "/health"]);
    // What the reader is asked to do: open an operation and try it.
    browser.click(".opblock-summary-path", "/health");
    browser.click("button", "Try it out");
    browser.click("button", "Execute");
    browser.shows(&["\"status\": \"healthy\"", "\"database\": \"connected\""]);
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
