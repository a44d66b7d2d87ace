//! Durable creates per second through the whole chain of the API server, in process, on the embedded store.
//!
//! ```text
//! cargo run --release -p skiff-apiserver --example creates [DIRECTORY] [SECONDS] [CLIENTS,…]
//! ```
//!
//! The directory (default: the current one) decides which disk is measured. Each line is one kind of object and number
//! of clients: creates a second, latencies, and CPU per create. `raw` is the store alone, with values of 1 KiB.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use skiff_apiserver::{ApiServer, Config, MASTERS, ServiceAccountTokens, ServiceRange, User};
use skiff_store::{Embedded, Store, Txn};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().unwrap_or_else(|| ".".into());
    let seconds: f64 = arguments.next().map_or(Ok(3.0), |s| s.parse())?;
    let clients = arguments.next().unwrap_or_else(|| "1,16,64".into());
    let clients: Vec<usize> = clients.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let directory = tempfile::tempdir_in(directory)?;

    println!("resident at start: {} KiB", resident_kib());
    let store: Arc<dyn Store> =
        Arc::new(Embedded::open(directory.path().join("state.redb"), &skiff_store::Options::default())?);
    println!("with the store:    {} KiB", resident_kib());
    let server = start(store.clone()).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("with the server:   {} KiB", resident_kib());
    let cpu = cpu_time();
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("idle CPU:          {:.2} %", (cpu_time() - cpu).as_secs_f64() / 2.0 * 100.0);

    for &n in &clients {
        let store = store.clone();
        measure("raw", n, seconds, move |_, id| {
            let store = store.clone();
            async move {
                let value = Bytes::from(vec![b'x'; 1024]);
                store.txn(Txn::create(format!("/raw/{n}/{id}"), value)).await.is_ok_and(|r| r.succeeded())
            }
        })
        .await;
    }
    for kind in ["configmaps", "pods"] {
        for &n in &clients {
            let server = server.clone();
            measure(kind, n, seconds, move |_, id| {
                let body = if kind == "pods" { pod(n, id) } else { config_map(n, id) };
                create(server.clone(), kind, body)
            })
            .await;
        }
    }
    println!("resident at end:   {} KiB", resident_kib());
    Ok(())
}

async fn start(store: Arc<dyn Store>) -> Result<Arc<ApiServer>, Box<dyn std::error::Error>> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (private, public) = skiff_pki::signing_key()?;
    let tls =
        rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let server = ApiServer::start(Config {
        store,
        service_ranges: ServiceRange::parse_list("10.96.0.0/16").ok_or("no range")?,
        tokens: ServiceAccountTokens::new(&private, &public)?,
        kubelet_client: Arc::new(tls),
        front_proxy: None,
        advertise: SocketAddr::from(([127, 0, 0, 1], 6443)),
        shared: false,
    })
    .await?;
    let account = r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}"#;
    create(server.clone(), "serviceaccounts", account.to_owned()).await;
    Ok(server)
}

fn config_map(clients: usize, id: u64) -> String {
    let data = "x".repeat(800);
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"c{clients}-{id}","labels":{{"app":"bench"}}}},"data":{{"a":"{data}","b":"two"}}}}"#
    )
}

fn pod(clients: usize, id: u64) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p{clients}-{id}","labels":{{"app":"bench"}}}},"spec":{{"containers":[{{"name":"c","image":"nginx:1.29","ports":[{{"containerPort":80}}],"resources":{{"requests":{{"cpu":"100m","memory":"64Mi"}}}}}}]}}}}"#
    )
}

async fn create(server: Arc<ApiServer>, plural: &str, body: String) -> bool {
    // What a known user costs: an administrator needs no roles.
    let user = Arc::new(User::known("bench", &[MASTERS]));
    let request = Request::post(format!("/api/v1/namespaces/default/{plural}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync());
    let Ok(request) = request else { return false };
    let response = server.handle(Some(user), request).await;
    let created = response.status() == 201;
    response.into_body().collect().await.is_ok() && created
}

/// Lets `clients` tasks do `work` one after the other for a while, and prints how that went.
async fn measure<F, W>(what: &str, clients: usize, seconds: f64, work: F)
where
    F: Fn(usize, u64) -> W + Clone + Send + 'static,
    W: Future<Output = bool> + Send,
{
    let (ids, cpu, started) = (Arc::new(AtomicU64::new(0)), cpu_time(), Instant::now());
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (work, ids) = (work.clone(), ids.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while started.elapsed().as_secs_f64() < seconds {
                    let begun = Instant::now();
                    let done = work(client, ids.fetch_add(1, Ordering::Relaxed)).await;
                    assert!(done, "a create failed");
                    latencies.push(begun.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap_or_default());
    }
    let (took, cpu) = (started.elapsed(), cpu_time() - cpu);
    latencies.sort();
    let n = latencies.len().max(1);
    let at = |share: f64| latencies.get((n as f64 * share) as usize).copied().unwrap_or_default().as_micros();
    println!(
        "{what:<12} {clients:>4} clients {:>8.0}/s   p50 {:>6} µs   p99 {:>6} µs   CPU {:>4} µs each",
        n as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        cpu.as_micros() / n as u128,
    );
}

/// CPU time that this process has used.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Resident memory of this process.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}
