//! Durable creates through the API, beside etcd's raw puts on the same disk in the same run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use skiff_e2e::{Home, Server};
use tokio::task::JoinSet;

use crate::{Figure, api::Api, etcd::Etcd, median};

const CLIENTS: [usize; 3] = [1, 16, 64];
const ROUND: Duration = Duration::from_secs(4);
const ROUNDS: usize = 3;
const VALUE: usize = 1024;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub(crate) fn measure() -> Vec<Figure> {
    let server = Server::start();
    let home = Home::new();
    let api = Api::new(&server.kubectl());
    let etcd = Arc::new(Etcd::start(&home.dir.join("etcd")));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let number = Arc::new(AtomicU64::new(0));
    let mut figures = Vec::new();
    for clients in CLIENTS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // In turns, so that what else the disk does meets both.
        for _ in 0..ROUNDS {
            ours.push(runtime.block_on(creates(&api, clients, &number)));
            theirs.push(runtime.block_on(puts(&etcd, clients, &number)));
        }
        let (ours, theirs) = (median(ours), median(theirs));
        figures.push(Figure::new(
            format!("durable creates a second, {clients} clients"),
            format!("{ours:.0}, etcd's raw puts {theirs:.0} ({:.2}×)", ours / theirs),
            "≥ 1×",
        ));
    }
    drop(runtime);
    figures
}

async fn creates(api: &Api, clients: usize, number: &Arc<AtomicU64>) -> f64 {
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(api.connect().await);
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        let number = number.clone();
        tasks.spawn(async move {
            let value = "x".repeat(VALUE);
            let mut done = 0_u64;
            while started.elapsed() < ROUND {
                let n = number.fetch_add(1, Ordering::Relaxed);
                let map = json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{n}")}, "data": {"v": value},
                });
                connection.create(MAPS, &map).await;
                done += 1;
            }
            done
        });
    }
    rate(tasks, started).await
}

async fn puts(etcd: &Arc<Etcd>, clients: usize, number: &Arc<AtomicU64>) -> f64 {
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(etcd.connect().await);
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        let number = number.clone();
        tasks.spawn(async move {
            let value = "x".repeat(VALUE);
            let mut done = 0_u64;
            while started.elapsed() < ROUND {
                let n = number.fetch_add(1, Ordering::Relaxed);
                connection.put(&format!("/registry/configmaps/default/c{n}"), value.as_bytes()).await;
                done += 1;
            }
            done
        });
    }
    rate(tasks, started).await
}

async fn rate(tasks: JoinSet<u64>, started: Instant) -> f64 {
    let total: u64 = tasks.join_all().await.into_iter().sum();
    total as f64 / started.elapsed().as_secs_f64()
}
