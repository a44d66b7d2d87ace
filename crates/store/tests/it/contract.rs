//! The contract suite on each implementation.

use std::sync::Arc;

use skiff_store::{
    Embedded, Options, Store,
    contract::{self, Case},
    embedded::sim::SimDisk,
    memory::MemoryStore,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    contract::run(|| async { Arc::new(MemoryStore::new()) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut number = 0;
    for case in contract::CASES {
        number += 1;
        let path = dir.path().join(number.to_string());
        run(case, Arc::new(Embedded::open(path, &Options::default()).unwrap())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_on_a_simulated_disk() {
    contract::run(|| async {
        let store = Embedded::open_on(Box::new(SimDisk::new()), &Options::default());
        Arc::new(store.unwrap()) as Arc<dyn Store>
    })
    .await;
}

async fn run((_, case): &Case, store: Arc<dyn Store>) {
    case(store).await;
}
