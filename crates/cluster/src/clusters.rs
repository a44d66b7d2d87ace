//! Creating, listing, starting, stopping and deleting clusters.

mod create;
mod images;
mod ready;

pub use create::{CreateOptions, Created, bootstrap_token};
pub use images::{Loaded, load_into_this_machine};

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use crate::{
    Error, Home, Result, cgroup,
    control::{self, Answer, PortStatus, Request},
    enter, fabric,
    interrupt::Interrupts,
    kubeconfig, node,
    node_config::{
        ADMIN_KUBECONFIG, AgentConfig, CA_CERTIFICATE, CONTROL_SOCKET, DATA_DIR, HostConfig, NodeConfig, NodeIpv6,
        Role, ServerConfig, Taint,
    },
    progress::Progress,
    record::{ClusterRecord, NodeRecord},
};

/// The port of the API server on the node's own address.
const FABRIC_API_PORT: u16 = 6443;
/// How long a daemon that was just started, or starts again, may take until it can be asked.
const CONTROL_PATIENCE: Duration = Duration::from_secs(10);
/// How long a daemon may take until its API answers, unless said otherwise.
const API_PATIENCE: Duration = Duration::from_secs(60);

/// A cluster and how much of it runs.
#[derive(Debug, Clone)]
pub struct ClusterStatus {
    pub record: ClusterRecord,
    /// Names of the nodes that run.
    pub running: Vec<String>,
}

impl ClusterStatus {
    /// `Running`, `Stopped`, or `Degraded` when only some nodes run.
    pub fn phase(&self) -> &'static str {
        match self.running.len() {
            0 => "Stopped",
            n if n == self.record.nodes.len() => "Running",
            _ => "Degraded",
        }
    }

    /// Where clients on the host reach the API server.
    pub fn server(&self) -> String {
        format!("https://{}:{}", self.record.api_address, self.record.api_port)
    }
}

/// The clusters of a [`Home`]. The network namespace of the calling thread is the host's.
#[derive(Debug, Clone)]
pub struct Clusters {
    home: Home,
    api_patience: Duration,
}

impl Clusters {
    pub fn new(home: Home) -> Self {
        Self { home, api_patience: API_PATIENCE }
    }

    /// How long to wait for the API server of a node that was started.
    #[must_use]
    pub fn with_api_patience(mut self, patience: Duration) -> Self {
        self.api_patience = patience;
        self
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    /// All clusters, by name.
    pub fn list(&self) -> Result<Vec<ClusterStatus>> {
        let records = ClusterRecord::all(&self.home)?;
        Ok(records.into_iter().map(|record| self.status_of(record)).collect())
    }

    /// One cluster.
    pub fn get(&self, name: &str) -> Result<ClusterStatus> {
        Ok(self.status_of(self.record(name)?))
    }

    fn status_of(&self, record: ClusterRecord) -> ClusterStatus {
        let nodes = record.nodes.iter().map(|node| &node.name);
        let running = nodes.filter(|node| node::running(&self.home, &record.name, node).is_some()).cloned().collect();
        ClusterStatus { record, running }
    }

    fn record(&self, name: &str) -> Result<ClusterRecord> {
        crate::spec::check_name(name)?;
        match ClusterRecord::read(&self.home, name)? {
            Some(record) => Ok(record),
            None => Err(self.not_found(name)?),
        }
    }

    fn not_found(&self, name: &str) -> Result<Error> {
        let all = ClusterRecord::all(&self.home)?;
        Ok(Error::NotFound { name: name.to_owned(), existing: all.into_iter().map(|record| record.name).collect() })
    }

    /// Keeps other commands from changing the cluster at the same time.
    fn lock(&self, name: &str) -> Result<File> {
        let directory = self.home.cluster(name);
        let lock = || {
            let file = File::open(&directory)?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(Error::io(format!("lock {}", directory.display())))
    }

    /// Starts the nodes that do not run and waits until the API server answers.
    pub fn start(&self, name: &str, progress: &mut dyn Progress) -> Result<ClusterStatus> {
        self.record(name)?;
        let _lock = self.lock(name)?;
        let record = self.record(name)?;
        self.launch(&record, progress, &Interrupts::catch())?;
        self.merge_kubeconfig(&record)?;
        Ok(self.status_of(record))
    }

    /// Stops the nodes, workers first. Their state stays.
    pub fn stop(&self, name: &str, progress: &mut dyn Progress) -> Result<ClusterStatus> {
        self.record(name)?;
        let _lock = self.lock(name)?;
        let record = self.record(name)?;
        self.halt(&record, progress)?;
        Ok(self.status_of(record))
    }

    /// Deletes a cluster with everything that belongs to it; also one whose creation was cut short.
    pub fn delete(&self, name: &str, progress: &mut dyn Progress) -> Result<()> {
        crate::spec::check_name(name)?;
        if !self.home.cluster(name).exists() {
            return Err(self.not_found(name)?);
        }
        let _lock = self.lock(name)?;
        match ClusterRecord::read(&self.home, name)? {
            Some(record) => self.erase(&record, progress),
            None => self.erase_directory(name),
        }
    }

    fn halt(&self, record: &ClusterRecord, progress: &mut dyn Progress) -> Result<()> {
        let mut result = Ok(());
        for node in record.nodes.iter().rev() {
            progress.begin(&format!("Stopping {}", node.name));
            // The others are to stop also when one is stuck.
            match node::stop(&self.home, record, node) {
                Ok(()) => progress.done(),
                Err(error) => {
                    progress.failed();
                    result = result.and(Err(error));
                }
            }
        }
        result?;
        fabric::remove(&self.home, record).map_err(Error::network(&record.name))?;
        cgroup::remove_parents(&cgroup::hierarchies()?, &self.home, &record.name);
        Ok(())
    }

    fn erase(&self, record: &ClusterRecord, progress: &mut dyn Progress) -> Result<()> {
        self.halt(record, progress)?;
        kubeconfig::remove(&record.kubeconfig, &record.context)?;
        self.erase_directory(&record.name)
    }

    fn erase_directory(&self, name: &str) -> Result<()> {
        for directory in [self.home.run_dir(name), self.home.cluster(name)] {
            unmount_below(&directory).map_err(Error::io(format!("unmount what is in {}", directory.display())))?;
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("remove {}", directory.display()))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Starts what does not run: the control plane, and when it serves, the workers.
    fn launch(&self, record: &ClusterRecord, progress: &mut dyn Progress, interrupts: &Interrupts) -> Result<()> {
        let run_dir = self.home.run_dir(&record.name);
        fs::create_dir_all(&run_dir).map_err(Error::io(format!("create {}", run_dir.display())))?;
        let fabric = fabric::ensure(&self.home, record).map_err(Error::network(&record.name))?;
        for node in &record.nodes {
            if node::running(&self.home, &record.name, &node.name).is_none() {
                progress.begin(&format!("Starting {}", node.name));
                let config = self.node_config(record, node)?;
                if node.role == Role::ControlPlane {
                    // Written again once the server serves, which is what is waited for below.
                    self.forget_kubeconfig(record, node)?;
                }
                node::start(&self.home, &fabric, record, node, &config)?;
            }
            if node.role == Role::ControlPlane {
                self.await_server(record, node, interrupts)?;
            }
            progress.done();
        }
        Ok(())
    }

    fn forget_kubeconfig(&self, record: &ClusterRecord, node: &NodeRecord) -> Result<()> {
        let path = self.home.inside(&record.name, &node.name, ADMIN_KUBECONFIG);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }

    fn await_server(&self, record: &ClusterRecord, node: &NodeRecord, interrupts: &Interrupts) -> Result<()> {
        let inside = |path| self.home.inside(&record.name, &node.name, path);
        let (kubeconfig, ca) = (inside(ADMIN_KUBECONFIG), inside(CA_CERTIFICATE));
        ready::wait(self.api_patience, interrupts, || kubeconfig.exists() && ca.exists())?
            .ok_or_else(|| self.not_ready(record, self.api_patience, "the API server does not serve".to_owned()))
    }

    fn not_ready(&self, record: &ClusterRecord, patience: Duration, missing: String) -> Error {
        Error::NotReady {
            cluster: record.name.clone(),
            seconds: patience.as_secs(),
            missing,
            log: self.log_tail(record),
        }
    }

    /// The last lines of the control plane's log, because the log is deleted with a failed cluster.
    fn log_tail(&self, record: &ClusterRecord) -> String {
        const LINES: usize = 15;
        let Some(node) = record.control_plane() else {
            return String::new();
        };
        let path = self.home.inside(&record.name, &node.name, crate::node_config::LOG_FILE);
        let text = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    fn node_config(&self, record: &ClusterRecord, node: &NodeRecord) -> Result<NodeConfig> {
        let is_server = node.role == Role::ControlPlane;
        let has_workers = record.nodes.len() > 1;
        let agent = match record.control_plane() {
            Some(server) if !is_server => {
                let path = self.home.inside(&record.name, &server.name, CA_CERTIFICATE);
                Some(AgentConfig {
                    server_url: format!("https://{}:{FABRIC_API_PORT}", server.address),
                    ca_certificate: fs::read_to_string(&path).map_err(Error::io(format!("read {}", path.display())))?,
                })
            }
            _ => None,
        };
        // As in kind: a control plane that has workers leaves the work to them.
        let taint = Taint {
            key: "node-role.kubernetes.io/control-plane".to_owned(),
            value: String::new(),
            effect: "NoSchedule".to_owned(),
        };
        Ok(NodeConfig {
            cluster_name: record.name.clone(),
            node_name: node.name.clone(),
            role: node.role,
            node_ip: node.address,
            interface: fabric::NODE_INTERFACE.to_owned(),
            segment: fabric::segment(),
            pod_subnet: record.pod_subnet,
            service_subnet: record.service_subnet,
            ipv6: record.ipv6.map(|ranges| NodeIpv6 {
                node: node.ipv6_address.map(|address| (address, fabric::ipv6_segment())),
                ranges,
            }),
            cluster_dns: fabric::ipv4_of(record.service_subnet, 10),
            data_dir: DATA_DIR.into(),
            labels: node.labels.clone(),
            taints: if is_server && has_workers { vec![taint] } else { Vec::new() },
            disable_default_cni: record.disable_default_cni,
            isolated: record.isolated,
            bootstrap_token: record.bootstrap_token.clone(),
            host: HostConfig { netns_fd: crate::init::HOST_NETNS_FD, proc_fd: crate::init::HOST_PROC_FD },
            server: is_server.then_some(ServerConfig {
                host_address: record.api_address,
                host_port: record.api_port,
                fabric_port: FABRIC_API_PORT,
            }),
            agent,
            extra_port_mappings: node.ports.clone(),
            settings: record.settings.clone(),
        })
    }

    fn merge_kubeconfig(&self, record: &ClusterRecord) -> Result<()> {
        match self.admin_kubeconfig(record)? {
            Some(content) => kubeconfig::merge(&record.kubeconfig, &record.context, &content),
            None => Ok(()),
        }
    }

    /// The administrator's kubeconfig, as the control plane wrote it. `None`: the cluster has no control plane.
    pub fn admin_kubeconfig(&self, record: &ClusterRecord) -> Result<Option<Vec<u8>>> {
        let Some(node) = record.control_plane() else {
            return Ok(None);
        };
        let source = self.home.inside(&record.name, &node.name, ADMIN_KUBECONFIG);
        fs::read(&source).map(Some).map_err(Error::io(format!("read {}", source.display())))
    }

    /// Copies what the nodes and their pods logged into a folder: `FOLDER/NODE/…`, as in the node's `/var/log`.
    pub fn export_logs(&self, name: &str, folder: &Path) -> Result<()> {
        for node in &self.get(name)?.record.nodes {
            let source = self.home.inside(name, &node.name, "/var/log");
            let target = folder.join(&node.name);
            copy_files(&source, &target).map_err(Error::io(format!("copy the logs to {}", target.display())))?;
        }
        Ok(())
    }

    /// Runs a command inside a node that runs, on this process's terminal, and waits for it.
    pub fn exec(&self, name: &str, node: &str, command: &mut Command) -> Result<ExitStatus> {
        let process = node::running(&self.home, name, node).ok_or(Error::NotRunning { name: name.to_owned() })?;
        let program = command.get_program().to_string_lossy().into_owned();
        enter::run(process.pid, command).map_err(Error::io(format!("run {program} in node {node}")))
    }

    /// The host ports of a running cluster, from all its nodes.
    pub fn ports(&self, name: &str) -> Result<Vec<PortStatus>> {
        let status = self.get(name)?;
        if status.running.is_empty() {
            return Err(Error::NotRunning { name: name.to_owned() });
        }
        let mut ports = Vec::new();
        for node in &status.running {
            match self.ask(name, node, &Request::ListPorts)? {
                Answer::Ports(of_node) => ports.extend(of_node),
                other => return Err(unexpected(node, &other)),
            }
        }
        Ok(ports)
    }

    /// A request to the daemon of a node.
    pub fn ask(&self, name: &str, node: &str, request: &Request) -> Result<Answer> {
        node::running(&self.home, name, node).ok_or(Error::NotRunning { name: name.to_owned() })?;
        ask(node, &self.home.inside(name, node, CONTROL_SOCKET), request, &mut io::empty(), CONTROL_PATIENCE)
    }
}

/// Asks a node's daemon by its control socket, which is there a moment after the API answers.
fn ask(node: &str, socket: &Path, request: &Request, body: &mut dyn io::Read, patience: Duration) -> Result<Answer> {
    let deadline = Instant::now() + patience;
    loop {
        // Nothing of the body is read before somebody listens.
        match control::ask(socket, request, body) {
            Ok(Answer::Error(message)) => return Err(Error::Daemon { node: node.to_owned(), message }),
            Ok(answer) => return Ok(answer),
            Err(error)
                if Instant::now() < deadline
                    && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(Error::io(format!("talk to node {node}"))(error)),
        }
    }
}

fn unexpected(node: &str, answer: &Answer) -> Error {
    Error::Daemon { node: node.to_owned(), message: format!("unexpected answer {answer:?}") }
}

/// Copies directories and plain files; pods' logs are also linked to, which would only repeat them.
fn copy_files(source: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_files(&entry.path(), &target.join(entry.file_name()))?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Detaches mounts below a directory that is about to be removed: removing must not reach into them.
/// Normally there are none, because a node's mounts are seen only by the node.
fn unmount_below(directory: &Path) -> io::Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    // Later mounts may lie on earlier ones.
    let below: Vec<String> = mounts.filter(|path| Path::new(path).starts_with(directory)).collect();
    for path in below.iter().rev() {
        match nix::mount::umount2(path.as_str(), nix::mount::MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// mountinfo writes blanks and backslashes as octal numbers.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (code, character)| path.replace(code, character))
}
