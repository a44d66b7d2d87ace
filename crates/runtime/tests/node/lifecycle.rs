//! From making a pod to its end, across restarts and failures.

use skiff_cri::{Code, v1};

use crate::Test;
use crate::harness::{Node, block_on};

pub(crate) const TESTS: &[Test] = &[
    ("runs_logs_and_exits", || block_on(runs_logs_and_exits())),
    ("exec_sync", || block_on(exec_sync())),
    ("stop_with_grace", || block_on(stop_with_grace())),
    ("start_errors_have_the_known_texts", || block_on(start_errors_have_the_known_texts())),
    ("restart_adopts_everything", || block_on(restart_adopts_everything())),
    ("killed_supervisor_is_noticed", || block_on(killed_supervisor_is_noticed())),
    ("events_tell_everything", || block_on(events_tell_everything())),
    ("out_of_memory_is_told", || block_on(out_of_memory_is_told())),
    ("logs_are_rotated", || block_on(logs_are_rotated())),
    ("pod_shares_what_it_should", || block_on(pod_shares_what_it_should())),
    ("resources_change_while_running", || block_on(resources_change_while_running())),
];

async fn runs_logs_and_exits() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let (code, out, err) = node.output(&pod, &["sh", "-c", "echo hello world;echo -e oops;exit 3"], &|_| {}).await;
    assert_eq!((code, out.as_str(), err.as_str()), (3, "hello world", "oops"));
    let (code, out, _) = node.output(&pod, &[], &|_| {}).await;
    assert_eq!((code, out.as_str()), (0, "default"), "the image's own command");
    let (_, out, _) = node.output(&pod, &["flood", "20000"], &|_| {}).await;
    let lines: Vec<_> = out.lines().collect();
    assert_eq!((lines.len(), lines[19_999]), (20_000, "line 19999"));
    let env = node
        .output(&pod, &["env"], &|c| {
            c.envs = vec![v1::KeyValue { key: "OWN".into(), value: b"1".to_vec() }];
        })
        .await
        .1;
    for variable in ["HOSTNAME=pod1", "PATH=/bin", "FROM=image", "OWN=1", "HOME=/root"] {
        assert!(env.lines().any(|line| line == variable), "{variable} is not in {env}");
    }
    let in_dir = |c: &mut v1::ContainerConfig| c.working_dir = "/made/for/it".into();
    assert_eq!(node.output(&pod, &["pwd"], &in_dir).await.1, "/made/for/it");
    let status = node.cri.list_containers(v1::ListContainersRequest::default()).await;
    assert_eq!(status.expect("a list").into_inner().containers.len(), 5);
    node.finish().await;
}

async fn exec_sync() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node.run(&pod, "main", &["sleep", "600"], &|_| {}).await;
    let (code, out, err) = node.exec(&id, &["sh", "-c", "echo out;echo -e err;exit 5"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (5, "out", "err"));
    assert_eq!(node.exec(&id, &["read", "/etc/hostname"]).await.1, "pod1");
    // It sees the container's processes and is seen there.
    let (_, out, _) = node.exec(&id, &["ls", "/proc"]).await;
    assert!(out.split(' ').any(|name| name == "1"), "{out}");
    let timeout = node.try_exec(&id, &["sleep", "60"], 1).await.expect_err("too long");
    assert_eq!(timeout.code(), Code::DeadlineExceeded);
    assert!(timeout.message().contains("timeout 1s exceeded"), "{timeout:?}");
    let missing = node.try_exec(&id, &["nope"], 5).await.expect_err("not there");
    assert!(missing.message().contains("exec: \"nope\": executable file not found in $PATH"), "{missing:?}");
    node.stop(&id, 0).await;
    let gone = node.try_exec(&id, &["echo"], 5).await.expect_err("ended");
    assert!(gone.message().contains("container is in CONTAINER_EXITED state"), "{gone:?}");
    node.finish().await;
}

async fn stop_with_grace() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let polite = node.run(&pod, "polite", &["trap", "exit"], &|_| {}).await;
    node.wait_log(&pod, "polite", "ready").await;
    let start = std::time::Instant::now();
    node.stop(&polite, 30).await;
    assert!(start.elapsed().as_secs() < 10);
    let status = node.status(&polite).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    assert!(status.finished_at >= status.started_at && status.started_at >= status.created_at);
    assert!(node.log(&pod, "polite").iter().any(|(_, line)| line == "got SIGTERM"));

    let stubborn = node.run(&pod, "stubborn", &["trap", "ignore"], &|_| {}).await;
    node.wait_log(&pod, "stubborn", "ready").await;
    node.stop(&stubborn, 1).await;
    assert_eq!(node.status(&stubborn).await.exit_code, 137);

    let own_signal = node.run(&pod, "signal", &["trap", "exit"], &|c| c.stop_signal = v1::Signal::Sigusr1 as i32).await;
    node.wait_log(&pod, "signal", "ready").await;
    node.stop(&own_signal, 30).await;
    assert!(node.log(&pod, "signal").iter().any(|(_, line)| line == "got SIGUSR1"));
    node.finish().await;
}

async fn start_errors_have_the_known_texts() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let cases: [(&[&str], &str); 4] = [
        (&["nope"], "exec: \"nope\": executable file not found in $PATH: unknown"),
        (&["/nope"], "exec: \"/nope\": stat /nope: no such file or directory: unknown"),
        (&["/etc"], "exec: \"/etc\": is a directory: unknown"),
        (&["/etc/not-a-program"], "exec: \"/etc/not-a-program\": permission denied: unknown"),
    ];
    for (n, (command, text)) in cases.into_iter().enumerate() {
        let config = Node::container_config(&format!("c{n}"), command);
        let id = node.create(&pod, config).await.expect("creates");
        let error = node.start(&id).await.expect_err("cannot start");
        let whole = format!(
            "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: {text}"
        );
        assert_eq!(error.message(), whole);
        let status = node.status(&id).await;
        assert_eq!(status.state, v1::ContainerState::Exited as i32);
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
        assert_eq!(status.message, whole);
    }
    // What only the kernel finds out is in the log.
    let (code, _, err) = node.output(&pod, &["/bin/garbage"], &|_| {}).await;
    assert_eq!((code, err.as_str()), (255, "exec /bin/garbage: exec format error"));

    let mut config = Node::container_config("noimage", &["echo"]);
    config.image = Some(v1::ImageSpec { image: "nope".into(), ..Default::default() });
    assert_eq!(node.create(&pod, config).await.expect_err("no image").code(), Code::NotFound);
    let mut config = Node::container_config("nosource", &["echo"]);
    config.mounts =
        vec![v1::Mount { container_path: "/x".into(), host_path: "/does/not/exist".into(), ..Default::default() }];
    let error = node.create(&pod, config).await.expect_err("no source");
    assert!(error.message().contains("stat \"/does/not/exist\""), "{error:?}");
    let again = node.run_pod_with(&pod.1.clone()).await.expect_err("taken");
    assert!(again.message().contains("is reserved for"), "{again:?}");
    let missing = node.start("0123").await.expect_err("missing");
    assert_eq!(missing.code(), Code::NotFound);
    node.finish().await;
}

async fn restart_adopts_everything() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let running = node.run(&pod, "running", &["trap", "exit"], &|_| {}).await;
    let ended = node.run(&pod, "ended", &["exit", "4"], &|_| {}).await;
    let short = node.run(&pod, "short", &["sh", "-c", "sleep 0.3;echo late;exit 9"], &|_| {}).await;
    let created = node.create(&pod, Node::container_config("created", &["echo", "x"])).await;
    let created = created.expect("creates");
    node.wait_exited(&ended).await;
    let before = node.status(&running).await;
    let pid = node.pid(&running).await;
    node.restart().await;

    let after = node.status(&running).await;
    assert_eq!(after, before);
    assert_eq!(node.pid(&running).await, pid, "the same process");
    assert_eq!(node.status(&ended).await.exit_code, 4);
    let late = node.wait_exited(&short).await;
    assert_eq!(late.exit_code, 9);
    node.wait_log(&pod, "short", "late").await;
    let status = node.status(&created).await;
    assert_eq!(status.state, v1::ContainerState::Created as i32);
    node.start(&created).await.expect("starts");
    node.wait_exited(&created).await;
    assert_eq!(node.exec(&running, &["echo", "still"]).await.1, "still");
    node.stop(&running, 10).await;
    assert_eq!(node.status(&running).await.exit_code, 7);
    node.finish().await;
}

async fn killed_supervisor_is_noticed() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node.run(&pod, "main", &["sh", "-c", "fork 600;sleep 600"], &|_| {}).await;
    let pid = node.pid(&id).await;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("runs");
    let supervisor: i32 =
        stat.rsplit(") ").next().and_then(|r| r.split(' ').nth(1)).expect("a parent").parse().expect("a number");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), nix::sys::signal::Signal::SIGKILL).expect("killed");
    let status = node.wait_exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.0.clone(), verbose: false };
    let state = node.cri.pod_sandbox_status(request).await.expect("known").into_inner().status;
    assert_eq!(state.expect("a status").state, v1::PodSandboxState::NotReady as i32);
    let gone = std::path::PathBuf::from(format!("/proc/{pid}"));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while gone.exists() {
        assert!(std::time::Instant::now() < deadline, "the container outlived its supervisor");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let config = Node::container_config("late", &["echo"]);
    let refused = node.create(&pod, config).await.expect_err("not running");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    // It stays so after a restart, and can be removed.
    node.restart().await;
    assert_eq!(node.status(&id).await.exit_code, 137);
    node.finish().await;
}

async fn events_tell_everything() {
    use futures::StreamExt;
    let mut node = Node::new().await;
    let mut events = node.cri.get_container_events(v1::GetEventsRequest {}).await.expect("events").into_inner();
    let pod = node.run_pod().await;
    let id = node.run(&pod, "main", &["exit", "1"], &|_| {}).await;
    node.wait_exited(&id).await;
    let request = v1::RemoveContainerRequest { container_id: id.clone() };
    node.cri.remove_container(request).await.expect("removes");
    use v1::ContainerEventType::{Created, Deleted, Started, Stopped};
    let expected =
        [(&pod.0, Created), (&pod.0, Started), (&id, Created), (&id, Started), (&id, Stopped), (&id, Deleted)];
    let mut seen = Vec::new();
    for _ in 0..expected.len() {
        let event = tokio::time::timeout(std::time::Duration::from_secs(10), events.next()).await;
        let event = event.expect("in time").expect("more").expect("an event");
        let status = event.pod_sandbox_status.clone().expect("the pod's status");
        assert_eq!(status.id, pod.0);
        if event.container_event_type == Stopped as i32 {
            assert_eq!(event.containers_statuses[0].exit_code, 1);
        }
        seen.push((event.container_id, event.container_event_type));
    }
    // A container may end before its start has been told.
    seen[2..].sort_by_key(|(_, kind)| *kind);
    let expected: Vec<_> = expected.iter().map(|(id, kind)| ((*id).clone(), *kind as i32)).collect();
    assert_eq!(seen, expected);
    node.finish().await;
}

async fn out_of_memory_is_told() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node
        .run(&pod, "main", &["eat", "200"], &|c| {
            let linux = c.linux.get_or_insert_default();
            linux.resources =
                Some(v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() });
        })
        .await;
    let status = node.wait_exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    node.finish().await;
}

async fn logs_are_rotated() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node.run(&pod, "main", &["sh", "-c", "echo one;trap ignore"], &|_| {}).await;
    node.wait_log(&pod, "main", "ready").await;
    let path = std::path::Path::new(&pod.1.log_directory).join("main.log");
    std::fs::rename(&path, path.with_extension("old")).expect("renames");
    let request = v1::ReopenContainerLogRequest { container_id: id.clone() };
    node.cri.reopen_container_log(request).await.expect("reopens");
    node.stop(&id, 1).await;
    assert_eq!(node.log(&pod, "main"), [("stdout".to_owned(), "got SIGTERM".to_owned())]);
    node.finish().await;
}

async fn pod_shares_what_it_should() {
    let mut node = Node::new().await;
    let mut config = node.pod_config();
    let options = v1::NamespaceOption { pid: v1::NamespaceMode::Pod as i32, ..Default::default() };
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options.clone());
    linux.sysctls = [("net.core.somaxconn".to_owned(), "777".to_owned())].into();
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["192.0.2.1".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:5".into()],
    });
    let id = node.run_pod_with(&config).await.expect("runs");
    let pod = (id, config);
    let share = |c: &mut v1::ContainerConfig| {
        let linux = c.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options = Some(options.clone());
    };
    let server = node.run(&pod, "server", &["serve", "8080", "hello"], &share).await;
    node.wait_log(&pod, "server", "serving").await;
    let (_, processes, _) = node.output(&pod, &["ls", "/proc"], &share).await;
    let numbers = processes.split(' ').filter(|name| name.parse::<u32>().is_ok()).count();
    assert!(numbers >= 3, "pause, the server and ls itself: {processes}");
    let (_, out, _) = node.output(&pod, &["write", "/dev/shm/x", "shared"], &share).await;
    assert_eq!(out, "");
    assert_eq!(node.exec(&server, &["read", "/dev/shm/x"]).await.1, "shared");
    let resolv = node.exec(&server, &["read", "/etc/resolv.conf"]).await.1;
    assert_eq!(resolv, "search a.example b.example\nnameserver 192.0.2.1\noptions ndots:5");
    assert_eq!(node.exec(&server, &["read", "/proc/sys/net/core/somaxconn"]).await.1, "777");
    // Its processes end with it although the namespace goes on.
    let forker = node.run(&pod, "forker", &["sh", "-c", "fork 600;exit 0"], &share).await;
    node.wait_exited(&forker).await;
    let (_, after, _) = node.output(&pod, &["ls", "/proc"], &share).await;
    let count = after.split(' ').filter(|name| name.parse::<u32>().is_ok()).count();
    assert_eq!(count, numbers, "{after}");
    let bad = v1::PodSandboxConfig {
        linux: Some(v1::LinuxPodSandboxConfig {
            sysctls: [("kernel.panic".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        }),
        ..node.pod_config()
    };
    let refused = node.run_pod_with(&bad).await.expect_err("the node's");
    assert!(refused.message().contains("is not in a separate kernel namespace"), "{refused:?}");
    node.finish().await;
}

async fn resources_change_while_running() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node
        .run(&pod, "main", &["sleep", "600"], &|c| {
            let linux = c.linux.get_or_insert_default();
            linux.resources = Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                cpu_shares: 512,
                ..Default::default()
            });
        })
        .await;
    let stats = |node: &mut Node| {
        let request = v1::ContainerStatsRequest { container_id: id.clone() };
        let mut cri = node.cri.clone();
        async move { cri.container_stats(request).await.expect("stats").into_inner().stats.expect("stats") }
    };
    let memory = stats(&mut node).await.memory.expect("memory");
    let available = memory.available_bytes.expect("a limit").value;
    assert!(available <= 64 << 20 && memory.working_set_bytes.expect("measured").value > 0);
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(v1::LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..Default::default() }),
        ..Default::default()
    };
    node.cri.update_container_resources(request).await.expect("updates");
    let memory = stats(&mut node).await.memory.expect("memory");
    assert!(memory.available_bytes.expect("a limit").value <= 48 << 20);
    let linux = node.status(&id).await.resources.and_then(|r| r.linux).expect("resources");
    assert_eq!((linux.memory_limit_in_bytes, linux.cpu_shares), (48 << 20, 512));
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.0.clone() };
    let stats = node.cri.pod_sandbox_stats(request).await.expect("stats").into_inner().stats;
    assert_eq!(stats.expect("stats").linux.expect("linux").containers.len(), 1);
    node.finish().await;
}
