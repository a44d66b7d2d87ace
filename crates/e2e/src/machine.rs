//! Real machines, as far as one machine can have several: each has its own network, mounts, processes, name and
//! cgroups, made with the tools of the system and nothing of skiff's, and `skiff server` and `skiff agent` are
//! started on it as an administrator does.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use skiff_network::{
    NetNs, Subnet,
    links::{Hop, Links, Route, VethEnd},
    sysctl,
};

use crate::{Home, Output, Version, command, host, leftovers};

/// The cable between machines: two segments, with a router between them that knows no way out.
#[derive(Debug)]
pub struct Wire {
    router: NetNs,
}

const EVERYTHING: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// The n-th segment's address with this last number.
fn address(segment: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 70 + segment, last)
}

impl Wire {
    #[expect(clippy::new_without_default, reason = "this makes a network namespace")]
    pub fn new() -> Self {
        let router = NetNs::create().expect("root may create network namespaces");
        router.run(|| sysctl::set("net/ipv4/ip_forward", "1")).expect("can be entered").expect("can be set");
        let mut links = Links::open_in(router.as_fd()).expect("netlink");
        for segment in [1, 2] {
            let bridge = links.ensure_bridge(&format!("segment{segment}"), None, None).expect("a bridge");
            links.ensure_address(bridge, address(segment, 1), 24).expect("an address");
        }
        let everything = Subnet::new(EVERYTHING, 0).expect("a constant");
        links.ensure_routes(&[Route { destination: everything, hop: Hop::Unreachable }]).expect("a route");
        Self { router }
    }

    /// A network namespace with one interface, `eth0`, in a segment, and the router as its way out.
    fn connect(&self, segment: u8, last: u8) -> NetNs {
        let namespace = NetNs::create().expect("root may create network namespaces");
        let mut router = Links::open_in(self.router.as_fd()).expect("netlink");
        let port = format!("port{segment}-{last}");
        let bridge = router.index(&format!("segment{segment}")).expect("the segment");
        let near = VethEnd { master: Some(bridge), ..VethEnd::new(&port) };
        let far = VethEnd { namespace: Some(namespace.as_fd()), ..VethEnd::new("eth0") };
        router.add_veth(near, far, None).expect("a cable");
        let mut links = Links::open_in(namespace.as_fd()).expect("netlink");
        links.set_up("eth0").expect("an interface");
        let link = links.index("eth0").expect("an interface");
        links.ensure_address(link, address(segment, last), 24).expect("an address");
        let way_out = Hop::Gateway { gateway: address(segment, 1).into(), link, onlink: false };
        let everything = Subnet::new(EVERYTHING, 0).expect("a constant");
        links.ensure_routes(&[Route { destination: everything, hop: way_out }]).expect("a route");
        namespace
    }
}

/// A load balancer for TCP at the router: each connection goes to the first server that takes it, another one each time.
/// Connections end with it.
#[derive(Debug)]
pub struct LoadBalancer {
    pub address: SocketAddr,
    over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Wire {
    /// Serves at the router's address in the first segment, at the port of the servers.
    pub fn balance(&self, servers: Vec<SocketAddr>) -> LoadBalancer {
        let listen = SocketAddr::from((address(1, 1), servers[0].port()));
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        // What a thread of the namespace starts is in the namespace too.
        let begin = || {
            let listener = TcpListener::bind(listen)?;
            std::io::Result::Ok(std::thread::spawn(move || balance(&listener, &servers, &stop)))
        };
        let accepting = self.router.run(begin).expect("can be entered").expect("a free port");
        LoadBalancer { address: listen, over, accepting: Some(accepting) }
    }
}

fn balance(listener: &TcpListener, servers: &[SocketAddr], over: &AtomicBool) {
    let mut turn = 0;
    while let Ok((client, _)) = listener.accept() {
        if over.load(Ordering::Acquire) {
            return;
        }
        turn += 1;
        let order: Vec<_> = (0..servers.len()).map(|n| servers[(turn + n) % servers.len()]).collect();
        std::thread::spawn(move || {
            let reached = order.iter().find_map(|to| TcpStream::connect_timeout(to, Duration::from_secs(2)).ok());
            let Some(server) = reached else { return };
            let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else { return };
            let back = std::thread::spawn(move || pump(from_server, client));
            pump(from_client, server);
            // It cannot fail.
            let _ = back.join();
        });
    }
}

/// Passes on what one side sends until it ends.
fn pump(mut from: TcpStream, mut to: TcpStream) {
    // Who ends it, and how, the other side sees by the end.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

impl LoadBalancer {
    /// Ends within the namespace of the wire.
    pub fn end(mut self, wire: &Wire) {
        self.over.store(true, Ordering::Release);
        // Wakes it.
        let woken = wire.router.run(|| TcpStream::connect(self.address)).expect("can be entered");
        drop(woken.expect("it listens"));
        self.accepting.take().expect("ends once").join().expect("it did not panic");
    }
}

/// One machine; switched off, with all that runs on it, when it is dropped.
#[derive(Debug)]
pub struct Machine {
    pub name: String,
    pub address: Ipv4Addr,
    directory: PathBuf,
    cgroup: String,
    /// The program that keeps its namespaces, and its first process.
    power: Child,
    first_process: String,
    daemon: Option<Child>,
}

impl Machine {
    /// Switches one on, in a segment (1 or 2) of the wire.
    #[track_caller]
    pub fn start(home: &Home, wire: &Wire, name: &str, segment: u8, last: u8) -> Self {
        let directory = home.dir.join(name);
        fs::create_dir_all(&directory).expect("a folder");
        let cgroup = format!("skiff-e2e-{}-{name}", std::process::id());
        let namespace = wire.connect(segment, last);
        let script = host::root().join("crates/e2e/src/machine.sh");
        // The cgroup is joined before its namespace is made: what is joined becomes the root.
        let join = format!(
            "for h in $(awk '/ - cgroup/ {{print $5}}' /proc/self/mountinfo); do
                mkdir $h/{cgroup}
                for f in cpuset.cpus cpuset.mems; do [ ! -e $h/$f ] || [ -e $h/cgroup.controllers ] || cat $h/$f > $h/{cgroup}/$f; done
                echo $$ > $h/{cgroup}/cgroup.procs
            done
            exec unshare --mount --uts --ipc --pid --cgroup --fork --kill-child --mount-proc sh {} {name} {}",
            script.display(),
            directory.display()
        );
        let spawn = || Command::new("sh").args(["-euc", &join]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut power = namespace.run(spawn).expect("can be entered").expect("sh runs");
        let mut line = String::new();
        let said = power.stdout.take().expect("piped");
        BufReader::new(said).read_line(&mut line).expect("a line");
        let children = format!("/proc/{0}/task/{0}/children", power.id());
        let first_process = fs::read_to_string(children).unwrap_or_default().trim().to_owned();
        let machine = Self {
            name: name.to_owned(),
            address: address(segment, last),
            directory,
            cgroup,
            power,
            first_process,
            daemon: None,
        };
        assert_eq!(line, "ready\n", "machine {name} did not start");
        machine
    }

    /// A command to be run on the machine.
    pub fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &self.first_process, "--all", "--"]).arg(program).args(args);
        enter
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root");
        enter
    }

    /// Runs `skiff` there to its end.
    pub fn skiff(&self, args: &[&str]) -> Output {
        command::run(&mut self.command(&host::skiff(), args), "")
    }

    /// Runs kubectl there, as the control plane's administrator.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        self.kubectl_fed(args, "")
    }

    /// The same with a manifest on its standard input.
    pub fn kubectl_fed(&self, args: &[&str], input: &str) -> Output {
        let kubectl = host::prepared(&format!("tools/kubectl-{}", Version::V1_36.text()));
        let mut command = self.command(&kubectl, args);
        command.env("KUBECONFIG", "/var/lib/skiff/admin.conf").env("HOME", "/run");
        command::run(&mut command, input)
    }

    /// A file of the machine.
    pub fn file(&self, path: &str) -> PathBuf {
        self.directory.join(path)
    }

    /// Starts `skiff server` or `skiff agent` as a service manager does.
    pub fn start_daemon(&mut self, args: &[&str]) {
        let log = File::options().create(true).append(true).open(self.file("skiff.log")).expect("a file");
        let start = "for h in $(awk '/ - cgroup/ {print $5}' /proc/self/mountinfo); do
                [ ! -d $h/init ] || h=$h/init
                echo $$ > $h/cgroup.procs
            done
            echo $$ > /run/daemon.pid
            exec \"$@\"";
        let program = host::skiff();
        let words = [&["-euc", start, "sh", program.to_str().expect("UTF-8")], args].concat();
        let mut command = self.command(Path::new("/bin/sh"), &words);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        self.daemon = Some(command.spawn().expect("nsenter runs"));
    }

    /// `kill -9` of the daemon alone.
    #[track_caller]
    pub fn kill_daemon(&mut self) {
        self.strike_daemon();
        self.bury_daemon();
    }

    /// `kill -9` of the daemon alone, whose end is not waited for: see [`bury_daemon`](Machine::bury_daemon).
    #[track_caller]
    pub fn strike_daemon(&self) {
        let kill = ["-euc", "kill -9 $(cat /run/daemon.pid)"];
        command::run(&mut self.command(Path::new("/bin/sh"), &kill), "").ok();
    }

    /// Waits for the end of the daemon.
    #[track_caller]
    pub fn bury_daemon(&mut self) {
        self.daemon.take().expect("it was started").wait().expect("a child of ours");
    }

    /// The end of the daemon's log, for messages.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.file("skiff.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Switches it off, and tells what is left of it.
    pub fn off(&mut self) -> Vec<String> {
        // With the first process everything in its PID namespace ends, and with the last process its namespaces.
        let _ = self.power.kill();
        let _ = self.power.wait();
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
        for _ in 0..200 {
            let mut left = leftovers::cgroups(&self.cgroup);
            left.sort_by_key(|path| std::cmp::Reverse(path.len()));
            for path in left {
                leftovers::remove_cgroups(Path::new(&path));
            }
            if leftovers::cgroups(&self.cgroup).is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        leftovers::cgroups(&self.cgroup)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.off();
    }
}
