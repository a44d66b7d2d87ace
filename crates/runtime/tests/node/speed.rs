//! How long a pod takes. Prints; fails only when it is far off, as other work runs beside.
#![allow(clippy::print_stderr)]

use std::time::{Duration, Instant};

use skiff_cri::v1;

use crate::Test;
use crate::harness::{Node, block_on};

pub(crate) const TESTS: &[Test] =
    &[("one_after_the_other", || block_on(one_after_the_other())), ("fifty_at_once", || block_on(fifty_at_once()))];

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Resident memory of a process, its own and shared, in KiB.
fn memory(pid: &str) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let key = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    };
    (key("RssAnon:"), key("VmRSS:"))
}

async fn one_after_the_other() {
    let mut node = Node::new().await;
    let mut parts = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    let mut last = None;
    for _ in 0..20 {
        let config = node.pod_config();
        let start = Instant::now();
        let id = node.run_pod_with(&config).await.expect("runs");
        let made = Instant::now();
        let pod = (id, config);
        let id = node.create(&pod, Node::container_config("main", &["sleep", "600"])).await.expect("creates");
        let created = Instant::now();
        node.start(&id).await.expect("starts");
        let times = [made - start, created - made, created.elapsed(), start.elapsed()];
        parts.iter_mut().zip(times).for_each(|(part, time)| part.push(time));
        last = Some(id);
    }
    let [sandbox, create, start, total] = parts.map(median);
    let pid = node.pid(&last.expect("one")).await;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("runs");
    let parent = stat.rsplit(") ").next().and_then(|r| r.split(' ').nth(1)).expect("a parent").to_owned();
    // It lets go of what it no longer needs after a moment of quiet.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (own, resident) = memory(&parent);
    eprintln!(
        "  median of 20: sandbox {sandbox:?}, create {create:?}, start {start:?}, total {total:?}; supervisor {own} KiB of its own, {resident} KiB resident"
    );
    assert!(total < Duration::from_millis(250), "{total:?}");
    assert!(own < 1536, "{own} KiB");
    node.finish().await;
}

async fn fifty_at_once() {
    let mut node = Node::new().await;
    let configs: Vec<_> = (0..50).map(|_| node.pod_config()).collect();
    let start = Instant::now();
    let tasks: Vec<_> = configs
        .into_iter()
        .map(|config| {
            let mut cri = node.cri.clone();
            tokio::spawn(async move {
                let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
                let pod_sandbox_id = cri.run_pod_sandbox(request).await.expect("runs").into_inner().pod_sandbox_id;
                let request = v1::CreateContainerRequest {
                    pod_sandbox_id,
                    config: Some(Node::container_config("main", &["sleep", "600"])),
                    sandbox_config: Some(config),
                };
                let container_id = cri.create_container(request).await.expect("creates").into_inner().container_id;
                cri.start_container(v1::StartContainerRequest { container_id }).await.expect("starts");
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let all = start.elapsed();
    let filter = v1::ContainerFilter {
        state: Some(v1::ContainerStateValue { state: v1::ContainerState::Running as i32 }),
        ..Default::default()
    };
    let request = v1::ListContainersRequest { filter: Some(filter) };
    let running = node.cri.list_containers(request).await.expect("a list").into_inner().containers;
    assert_eq!(running.len(), 50);
    let start = Instant::now();
    node.finish().await;
    eprintln!("  50 pods at once: {all:?}; gone one after the other: {:?}", start.elapsed());
    assert!(all < Duration::from_secs(10), "{all:?}");
}
