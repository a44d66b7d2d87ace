//! Durable puts a second at 1, 16 and 64 clients, with 1 KiB values on new keys; writing during compaction; opening:
//! `cargo run --release -p skiff-store --example bench [FILE]`. The file is made and deleted.
#![allow(clippy::print_stdout, reason = "printing figures is what it is for")]

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use skiff_store::{Embedded, Options, Store, Txn};

const RUN: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).map_or_else(|| PathBuf::from("bench.skiff"), PathBuf::from);
    println!("{:>8} {:>10} {:>10} {:>10} {:>10}", "clients", "puts/s", "p50 µs", "p99 µs", "max µs");
    for clients in [1, 16, 64] {
        remove(&path);
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&path, &Options::default())?);
        let mut watch = store.watch("/registry/", None);
        let watcher = tokio::spawn(async move { while let Ok(Some(_)) = watch.recv().await {} });
        let end = Instant::now() + RUN;
        let tasks: Vec<_> = (0..clients).map(|client| tokio::spawn(put(store.clone(), client, end))).collect();
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await??);
        }
        latencies.sort_unstable();
        let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
        println!(
            "{clients:>8} {:>10.0} {:>10} {:>10} {:>10}",
            latencies.len() as f64 / RUN.as_secs_f64(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
        drop(store);
        watcher.await?;
    }
    compaction(&path).await?;
    let started = Instant::now();
    let size = std::fs::metadata(&path)?.len();
    drop(Embedded::open(&path, &Options::default())?);
    println!("opened {} MB in {} ms", size / 1_000_000, started.elapsed().as_millis());
    remove(&path);
    let started = Instant::now();
    let store = Embedded::open(&path, &Options::default())?;
    println!("made a new one in {} ms", started.elapsed().as_millis());
    drop(store);
    remove(&path);
    Ok(())
}

/// What writers notice of the compaction of all that was written.
async fn compaction(path: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let store: Arc<dyn Store> = Arc::new(Embedded::open(path, &Options::default())?);
    let value = vec![b'x'; 1024];
    for number in 0..20_000_u32 {
        store.txn(Txn::put(format!("/registry/again/{}", number % 100), value.clone())).await?;
    }
    store.compact(store.revision()).await?;
    let mut latencies = put(store.clone(), 1000, Instant::now() + RUN).await?;
    latencies.sort_unstable();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    println!("while compacting, 1 client: p50 {} µs, p99 {} µs, max {} µs", at(0.5), at(0.99), at(1.0));
    Ok(())
}

/// Latencies in microseconds.
async fn put(store: Arc<dyn Store>, client: usize, end: Instant) -> Result<Vec<u128>, skiff_store::Error> {
    let value = vec![b'x'; 1024];
    let mut latencies = Vec::new();
    for number in 0.. {
        let started = Instant::now();
        if started >= end {
            break;
        }
        store.txn(Txn::create(format!("/registry/bench/{client}/{number}"), value.clone())).await?;
        latencies.push(started.elapsed().as_micros());
    }
    Ok(latencies)
}

fn remove(path: &std::path::Path) {
    for extension in ["", ".lock", ".mark"] {
        let mut name = path.as_os_str().to_owned();
        name.push(extension);
        let _ = std::fs::remove_file(name);
    }
}
