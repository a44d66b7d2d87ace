//! Stands in for `skiff server` and `skiff agent`: looks around, serves its node's name, and starts one
//! "container" that outlives it.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    path::Path,
    pin::Pin,
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use skiff_cluster::{
    NodeConfig,
    control::{self, Answer, Handler, Request},
    host_ports::HostNet,
    node_config::{ADMIN_KUBECONFIG, CA_CERTIFICATE, CONTROL_SOCKET, NODE_CONFIG, Role},
};
use tokio::io::AsyncRead;

pub(crate) const FACTS: &str = "/var/lib/skiff/facts.json";
pub(crate) const STARTS: &str = "/var/lib/skiff/starts";
pub(crate) const HEARTBEAT: &str = "/var/lib/skiff/heartbeat";
pub(crate) const CONTAINER: &str = "stand-in-container";
pub(crate) const CA: &str = "the authority's certificate";
/// A label that makes the stand-in fail.
pub(crate) const FAIL: &str = "fail";
pub(crate) const OUTSIDE_PORT: u16 = 9999;

pub(crate) fn run(mode: &str) -> ExitCode {
    match serve(mode) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "stand-in failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(mode: &str) -> io::Result<()> {
    let config = NodeConfig::read(Path::new(NODE_CONFIG))?;
    if config.labels.contains_key(FAIL) {
        return Err(io::Error::other("stand-in fails as told"));
    }
    fs::File::options().create(true).append(true).open(STARTS)?.write_all(b"started\n")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let control = tokio::spawn(control::serve(Path::new(CONTROL_SOCKET), Arc::new(Ports)));
        while !Path::new(CONTROL_SOCKET).exists() {
            tokio::task::yield_now().await;
        }
        if config.role == Role::ControlPlane {
            serve_name(&config)?;
        }
        let facts = look_around(mode, &config);
        fs::write("/var/lib/skiff/facts.draft", serde_json::to_vec(&facts)?)?;
        fs::rename("/var/lib/skiff/facts.draft", FACTS)?;
        if !Path::new(HEARTBEAT).exists() {
            Command::new(std::env::current_exe()?).arg(CONTAINER).stdin(Stdio::null()).spawn()?;
        }
        stop.recv().await;
        control.abort();
        writeln!(io::stderr(), "stand-in was told to stop")
    })
}

struct Ports;

impl Handler for Ports {
    fn handle<'a>(
        &'a self,
        _: Request,
        _: Pin<Box<dyn AsyncRead + Send + 'a>>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + 'a>> {
        Box::pin(async { Answer::Ports(Vec::new()) })
    }
}

/// As the server does it: the certificate, the API on the host and on the node, then the kubeconfig.
fn serve_name(config: &NodeConfig) -> io::Result<()> {
    let Some(server) = &config.server else {
        return Err(io::Error::other("no server section"));
    };
    fs::create_dir_all("/var/lib/skiff/pki")?;
    fs::write(CA_CERTIFICATE, CA)?;
    let host = HostNet::inherited(&config.host)?;
    let address = SocketAddrV4::new(server.host_address, server.host_port);
    let on_host = host.listen_tcp(address).map_err(io::Error::other)?;
    let on_node = TcpListener::bind((config.node_ip, server.fabric_port))?;
    for listener in [on_host, on_node] {
        listener.set_nonblocking(false)?;
        let name = config.node_name.clone();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(name.as_bytes());
            }
        });
    }
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{ "name": "x", "cluster": { "server": format!("https://{address}") } }],
        "users": [{ "name": "x", "user": { "token": "secret" } }],
    });
    fs::write("/var/lib/skiff/admin.draft", kubeconfig.to_string())?;
    fs::rename("/var/lib/skiff/admin.draft", ADMIN_KUBECONFIG)
}

fn look_around(mode: &str, config: &NodeConfig) -> serde_json::Value {
    let _ = fs::write("/etc/cni/net.d/standin.conflist", "{}");
    let server = config.agent.as_ref().map(|agent| {
        let address = agent.server_url.trim_start_matches("https://").parse().unwrap();
        ask(address)
    });
    // Another process's view of our number, through the host's /proc.
    let host_pid = fs::read_link(format!("/proc/self/fd/{}/self", config.host.proc_fd)).unwrap_or_default();
    json!({
        "mode": mode,
        "hostname": fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim(),
        "parent": std::os::unix::process::parent_id(),
        "hostPid": host_pid.to_str().and_then(|pid| pid.parse::<u32>().ok()),
        "address": config.node_ip,
        "cgroupIsRoot": cgroup_is_root(),
        "limitedChild": make_limited_child(),
        "writableUsr": fs::write("/usr/skiff-test", "").is_ok(),
        "wayOut": attempt(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 80))),
        "service": attempt(SocketAddr::from((Ipv4Addr::new(10, 96, 0, 1), 443))),
        "outside": match config.isolated {
            true => None,
            false => Some(ask(SocketAddr::from((Ipv4Addr::new(169, 254, 200, 1), OUTSIDE_PORT)))),
        },
        "server": server,
        "ca": config.agent.as_ref().map(|agent| &agent.ca_certificate),
        "taints": config.taints.iter().map(|taint| taint.key.as_str()).collect::<Vec<_>>().join(","),
    })
}

/// Every hierarchy shows the process at its root, or in the leaf that v2 needs.
fn cgroup_is_root() -> bool {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    text.lines().all(|line| matches!(line.rsplit(':').next(), Some("/" | "/init")))
}

/// Makes a cgroup with a limit, as the runtime does for pods.
fn make_limited_child() -> bool {
    let v1 = Path::new("/sys/fs/cgroup/pids");
    let root = if v1.exists() { v1 } else { Path::new("/sys/fs/cgroup") };
    let child = root.join("pod-test");
    let limited = fs::create_dir_all(&child).and_then(|()| fs::write(child.join("pids.max"), "7"));
    limited.is_ok() && fs::read_to_string(child.join("pids.max")).is_ok_and(|text| text.trim() == "7")
}

fn attempt(address: SocketAddr) -> String {
    match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
        Ok(_) => "connected".to_owned(),
        Err(error) => error.kind().to_string(),
    }
}

fn ask(address: SocketAddr) -> String {
    let connect = || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, io::Error>(answer)
    };
    // As an agent does: again, until there is an answer.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match connect() {
            Ok(answer) => return answer,
            Err(error) if Instant::now() >= deadline => return error.to_string(),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Writes a new number again and again until it is ended.
pub(crate) fn container() -> ExitCode {
    for n in 0u64.. {
        if fs::write(HEARTBEAT, n.to_string()).is_err() {
            return ExitCode::FAILURE;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ExitCode::SUCCESS
}
