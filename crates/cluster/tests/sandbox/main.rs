//! Local clusters with a stand-in for the daemon, each on a "host" that is a network namespace of its
//! own, so that no address of a cluster ever exists outside of namespaces made here.
#![allow(clippy::print_stdout)]

mod standin;

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::Value;
use skiff_cluster::{
    Clusters, CreateOptions, Error, Home,
    control::{Answer, Request},
    init,
    progress::Silent,
    spec::ClusterSpec,
};
use skiff_network::NetNs;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_ref().and_then(|first| first.to_str()) {
        Some(init::SUBCOMMAND) => return init::node_init_main(arguments),
        Some(mode @ ("server" | "agent")) => return standin::run(mode),
        Some(standin::CONTAINER) => return standin::container(),
        _ => {}
    }
    let filter = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    let tests: [(&str, Test); 8] = [
        ("a_cluster_lives_and_dies", a_cluster_lives_and_dies),
        ("the_daemon_is_restarted_and_containers_live_on", the_daemon_is_restarted_and_containers_live_on),
        ("nodes_reach_each_other_and_nothing_else", nodes_reach_each_other_and_nothing_else),
        ("names_and_ports_that_are_taken_are_named", names_and_ports_that_are_taken_are_named),
        ("a_failed_creation_leaves_nothing_behind", a_failed_creation_leaves_nothing_behind),
        ("clusters_with_a_way_out_are_masqueraded", clusters_with_a_way_out_are_masqueraded),
        ("clusters_come_back_after_a_crash_and_a_reboot", clusters_come_back_after_a_crash_and_a_reboot),
        ("clusters_live_side_by_side", clusters_live_side_by_side),
    ];
    if std::env::args().any(|argument| argument == "--list") {
        for (name, _) in tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    for (name, test) in tests {
        if filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        let started = Instant::now();
        let fixture = Fixture::new(name);
        let result = catch_unwind(AssertUnwindSafe(|| test(&fixture)));
        let cleaned = catch_unwind(AssertUnwindSafe(|| fixture.clean_up()));
        let ok = result.is_ok() && cleaned.is_ok();
        println!("test {name} ... {} ({:?})", if ok { "ok" } else { "FAILED" }, started.elapsed());
        if !ok {
            failed.push(name);
        }
    }
    match failed.as_slice() {
        [] => ExitCode::SUCCESS,
        failed => {
            println!("failed: {failed:?}");
            ExitCode::FAILURE
        }
    }
}

type Test = fn(&Fixture);

/// A host of its own and a home for its clusters.
struct Fixture {
    host: NetNs,
    directory: PathBuf,
    clusters: Clusters,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("skiff-{}-{}", std::process::id(), &name[..8]));
        let program = std::env::current_exe().unwrap();
        let home = Home::below(&directory, program).unwrap();
        Self {
            host: NetNs::create().unwrap(),
            clusters: Clusters::new(home).with_api_patience(Duration::from_secs(20)),
            directory,
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    fn options(&self, name: &str, nodes: usize) -> CreateOptions {
        CreateOptions {
            name: Some(name.to_owned()),
            isolated: true,
            // The stand-in has no nodes to wait for.
            wait: None,
            kubeconfig: Some(self.kubeconfig()),
            ..CreateOptions::new(ClusterSpec::of_size(nodes))
        }
    }

    fn create(&self, options: &CreateOptions) -> Result<skiff_cluster::clusters::Created, Error> {
        self.host.run(|| self.clusters.create(options, &mut Silent)).unwrap()
    }

    fn start(&self, name: &str) {
        self.host.run(|| self.clusters.start(name, &mut Silent)).unwrap().unwrap();
    }

    fn stop(&self, name: &str) {
        self.host.run(|| self.clusters.stop(name, &mut Silent)).unwrap().unwrap();
    }

    fn delete(&self, name: &str) -> Result<(), Error> {
        self.host.run(|| self.clusters.delete(name, &mut Silent)).unwrap()
    }

    fn inside(&self, cluster: &str, node: &str, path: &str) -> PathBuf {
        self.clusters.home().inside(cluster, node, path)
    }

    /// What the stand-in of a node found out about its surroundings.
    fn facts(&self, cluster: &str, node: &str) -> Value {
        let path = self.inside(cluster, node, standin::FACTS);
        wait_for("the stand-in's facts", || fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()))
    }

    fn starts(&self, cluster: &str, node: &str) -> usize {
        fs::read_to_string(self.inside(cluster, node, standin::STARTS)).unwrap_or_default().lines().count()
    }

    fn ask_api(&self, port: u16) -> std::io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = self.host.run(|| TcpStream::connect(address)).unwrap()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Deletes what a failed test left, and checks that deleting leaves nothing behind.
    fn clean_up(&self) {
        for status in self.clusters.list().unwrap() {
            self.delete(&status.record.name).unwrap();
        }
        let clusters = self.directory.join("clusters");
        assert_eq!(fs::read_dir(&clusters).map_or(0, Iterator::count), 0, "files are left in {}", clusters.display());
        let run = self.directory.join("run/clusters");
        assert_eq!(fs::read_dir(&run).map_or(0, Iterator::count), 0, "files are left in {}", run.display());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.to_str().unwrap()), "mounts are left");
        assert_eq!(processes_with(&self.directory), Vec::<String>::new(), "processes are left");
        fs::remove_dir_all(&self.directory).unwrap();
    }
}

/// Processes whose root or command line lies in the directory.
fn processes_with(directory: &Path) -> Vec<String> {
    let text = directory.to_str().unwrap();
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().into_string().ok());
    processes
        .filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()) && *pid != own)
        .filter(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let root = fs::read_link(format!("/proc/{pid}/root")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(text) || root.starts_with(directory)
        })
        .collect()
}

fn cgroups_of(cluster: &str) -> Vec<PathBuf> {
    let mounts = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    let roots = mounts.chain([PathBuf::from("/sys/fs/cgroup")]);
    let clusters = roots.filter_map(|root| fs::read_dir(root.join("skiff")).ok()).flatten().flatten();
    let is_of = |path: &PathBuf| {
        path.is_dir() && path.file_name().unwrap().to_string_lossy().starts_with(&format!("{cluster}-"))
    };
    clusters.map(|entry| entry.path()).filter(is_of).collect()
}

fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn a_cluster_lives_and_dies(fixture: &Fixture) {
    let created = fixture.create(&fixture.options("life", 1)).unwrap();
    let record = &created.status.record;
    println!("    created in {:?}", created.took);
    assert_eq!(created.status.phase(), "Running");
    assert_eq!(record.api_port, 6443);
    assert_eq!(fixture.ask_api(6443).unwrap(), "life-control-plane");
    let kubeconfig = fs::read_to_string(fixture.kubeconfig()).unwrap();
    assert!(kubeconfig.contains("current-context: skiff-life"), "{kubeconfig}");

    let facts = fixture.facts("life", "life-control-plane");
    assert_eq!(facts["hostname"], "life-control-plane");
    assert_eq!(facts["parent"], 1);
    assert_eq!(facts["mode"], "server");
    assert_eq!(facts["address"], "172.18.0.2");
    assert_eq!(facts["cgroupIsRoot"], true, "{facts}");
    assert_eq!(facts["limitedChild"], true, "{facts}");
    assert_eq!(facts["writableUsr"], false);
    assert_eq!(facts["wayOut"], "host unreachable", "{facts}");
    assert!(!cgroups_of("life").is_empty());
    assert!(!Path::new("/etc/cni/net.d/standin.conflist").exists(), "a node's /etc is its own");
    let answer = fixture.clusters.ask("life", "life-control-plane", &Request::ListPorts).unwrap();
    assert!(matches!(answer, Answer::Ports(_)));

    fixture.stop("life");
    assert_eq!(fixture.clusters.get("life").unwrap().phase(), "Stopped");
    assert!(fixture.ask_api(6443).is_err());
    assert_eq!(cgroups_of("life"), Vec::<PathBuf>::new());
    assert_eq!(processes_with(&fixture.directory), Vec::<String>::new());
    let log = fs::read_to_string(fixture.inside("life", "life-control-plane", "/var/log/skiff.log")).unwrap();
    assert!(log.contains("stand-in was told to stop"), "{log}");

    fixture.start("life");
    assert_eq!(fixture.ask_api(6443).unwrap(), "life-control-plane");
    assert_eq!(fixture.starts("life", "life-control-plane"), 2, "state survives a stop");
    fixture.start("life");
    assert_eq!(fixture.starts("life", "life-control-plane"), 2, "starting what runs changes nothing");

    fixture.delete("life").unwrap();
    let kubeconfig = fs::read_to_string(fixture.kubeconfig()).unwrap();
    assert!(!kubeconfig.contains("skiff-life"), "{kubeconfig}");
    assert_eq!(cgroups_of("life"), Vec::<PathBuf>::new());
    let error = fixture.delete("life").unwrap_err();
    assert_eq!(error.to_string(), "there is no cluster named \"life\"");
}

fn the_daemon_is_restarted_and_containers_live_on(fixture: &Fixture) {
    fixture.create(&fixture.options("again", 1)).unwrap();
    let node = "again-control-plane";
    let heartbeat = fixture.inside("again", node, standin::HEARTBEAT);
    wait_for("the container", || heartbeat.exists().then_some(()));
    let daemon = |fixture: &Fixture| fixture.facts("again", node)["hostPid"].as_i64().unwrap();
    let first = daemon(fixture);
    let first = nix::unistd::Pid::from_raw(i32::try_from(first).unwrap());
    nix::sys::signal::kill(first, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("the second start", || (fixture.starts("again", node) == 2).then_some(()));
    wait_for("the API", || fixture.ask_api(6443).ok());
    let before = fs::read(&heartbeat).unwrap();
    wait_for("the container's heartbeat", || (fs::read(&heartbeat).unwrap() != before).then_some(()));
    let log = fs::read_to_string(fixture.inside("again", node, "/var/log/skiff.log")).unwrap();
    assert!(log.contains("the daemon was ended by SIGKILL"), "{log}");
}

fn nodes_reach_each_other_and_nothing_else(fixture: &Fixture) {
    let created = fixture.create(&fixture.options("pair", 3)).unwrap();
    assert_eq!(created.status.running, ["pair-control-plane", "pair-worker", "pair-worker2"]);
    for node in ["pair-worker", "pair-worker2"] {
        let facts = fixture.facts("pair", node);
        assert_eq!(facts["mode"], "agent");
        assert_eq!(facts["server"], "pair-control-plane", "{facts}");
        assert_eq!(facts["ca"], standin::CA);
        assert_eq!(facts["wayOut"], "host unreachable");
        assert_eq!(facts["service"], "host unreachable", "{facts}");
    }
    let facts = fixture.facts("pair", "pair-control-plane");
    assert_eq!(facts["taints"], "node-role.kubernetes.io/control-plane");
}

fn names_and_ports_that_are_taken_are_named(fixture: &Fixture) {
    fixture.create(&fixture.options("one", 1)).unwrap();
    let error = fixture.create(&fixture.options("one", 1)).unwrap_err();
    assert!(error.to_string().starts_with("there is already a cluster named \"one\""), "{error}");

    let _taken = fixture.host.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 7443)).unwrap()).unwrap();
    let mut options = fixture.options("two", 1);
    options.spec.api_port = Some(7443);
    let error = fixture.create(&options).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("port 7443 on 127.0.0.1 is already in use by "), "{text}");
    assert!(text.ends_with(&format!("(process {})", std::process::id())), "{text}");
    let names: Vec<_> = fixture.clusters.list().unwrap().into_iter().map(|status| status.record.name).collect();
    assert_eq!(names, ["one"]);

    let mut options = fixture.options("two", 1);
    options.name = Some("Two".to_owned());
    assert!(matches!(fixture.create(&options), Err(Error::InvalidName { .. })));
    let error = fixture.delete("other").unwrap_err();
    assert_eq!(error.to_string(), "there is no cluster named \"other\"; there is one");
}

fn a_failed_creation_leaves_nothing_behind(fixture: &Fixture) {
    let mut options = fixture.options("broken", 1);
    options.spec.nodes[0].mounts.push(skiff_cluster::spec::ExtraMount {
        host_path: PathBuf::from("/dev/null/nothing"),
        container_path: PathBuf::from("/data"),
        read_only: false,
    });
    let error = fixture.create(&options).unwrap_err();
    assert!(error.to_string().contains("cannot mount /dev/null/nothing"), "{error}");
    assert_eq!(fixture.clusters.list().unwrap().len(), 0);
    assert_eq!(cgroups_of("broken"), Vec::<PathBuf>::new());

    // A daemon that never gets there: the end of its log is in the error.
    let mut options = fixture.options("broken", 1);
    options.spec.nodes[0].labels.insert(standin::FAIL.to_owned(), "true".to_owned());
    let clusters = fixture.clusters.clone().with_api_patience(Duration::from_secs(1));
    let error = fixture.host.run(|| clusters.create(&options, &mut Silent)).unwrap().unwrap_err();
    assert!(error.to_string().contains("stand-in fails as told"), "{error}");
    assert_eq!(fixture.clusters.list().unwrap().len(), 0);
    // The name is free again.
    fixture.create(&fixture.options("broken", 1)).unwrap();
}

fn clusters_with_a_way_out_are_masqueraded(fixture: &Fixture) {
    // The "host" answers on every address of its own with the peer's address.
    let listener =
        fixture.host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, standin::OUTSIDE_PORT)).unwrap()).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        write!(stream, "{}", peer.ip()).unwrap();
    });
    let options = CreateOptions { isolated: false, ..fixture.options("open", 1) };
    fixture.create(&options).unwrap();
    let facts = fixture.facts("open", "open-control-plane");
    assert_eq!(facts["outside"], "169.254.200.2", "{facts}");
    server.join().unwrap();
    fixture.delete("open").unwrap();
    let links = fixture.host.run(|| skiff_network::links::Links::open().unwrap().list().unwrap()).unwrap();
    let names: Vec<_> = links.into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo"]);
    let mut socket = skiff_network::nft::socket_in(std::os::fd::AsFd::as_fd(&fixture.host)).unwrap();
    let tables = skiff_network::nft::tables(&mut socket, skiff_network::nft::Family::Ip).unwrap();
    assert_eq!(tables, Vec::<String>::new());
}

fn clusters_come_back_after_a_crash_and_a_reboot(fixture: &Fixture) {
    fixture.create(&fixture.options("crash", 2)).unwrap();
    let node = "crash-control-plane";
    for node in [node, "crash-worker"] {
        fixture.facts("crash", node);
    }
    let run = fixture.directory.join("run/clusters/crash");
    let kill_first_process = |node: &str| {
        let process: Value = serde_json::from_slice(&fs::read(run.join(format!("{node}.json"))).unwrap()).unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(process["pid"].as_i64().unwrap()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        let gone = || !fixture.clusters.get("crash").unwrap().running.contains(&node.to_owned());
        wait_for("the node's end", || gone().then_some(()));
    };
    kill_first_process(node);
    assert_eq!(fixture.clusters.get("crash").unwrap().phase(), "Degraded");
    fixture.start("crash");
    assert_eq!(fixture.clusters.get("crash").unwrap().phase(), "Running");
    assert_eq!(fixture.starts("crash", node), 2);
    assert_eq!(fixture.ask_api(6443).unwrap(), node);

    // After a reboot there are no processes, no namespace, and files where it was pinned; or no files at all.
    for keep_files in [true, false] {
        for node in [node, "crash-worker"] {
            kill_first_process(node);
        }
        skiff_network::netns::unpin(&run.join("fabric")).unwrap();
        match keep_files {
            true => fs::write(run.join("fabric"), "").unwrap(),
            false => fs::remove_dir_all(&run).unwrap(),
        }
        assert_eq!(fixture.clusters.get("crash").unwrap().phase(), "Stopped");
        // Those of the run before, which may have ended while it asked the server.
        fs::remove_file(fixture.inside("crash", "crash-worker", standin::FACTS)).unwrap();
        fixture.start("crash");
        assert_eq!(fixture.ask_api(6443).unwrap(), node);
        let facts = fixture.facts("crash", "crash-worker");
        assert_eq!(facts["server"], node);
    }
}

fn clusters_live_side_by_side(fixture: &Fixture) {
    let first = fixture.create(&fixture.options("left", 1)).unwrap();
    let second = fixture.create(&fixture.options("right", 1)).unwrap();
    let port = second.status.record.api_port;
    assert_eq!(first.status.record.api_port, 6443);
    assert_ne!(port, 6443);
    assert_eq!(fixture.ask_api(6443).unwrap(), "left-control-plane");
    assert_eq!(fixture.ask_api(port).unwrap(), "right-control-plane");
    fixture.delete("left").unwrap();
    assert_eq!(fixture.ask_api(port).unwrap(), "right-control-plane");
}
