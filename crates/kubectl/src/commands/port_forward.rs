//! `kubectl port-forward`.

use std::rc::Rc;

use bytes::Bytes;
use serde_json::Value;
use skiff_streaming::{client, spdy::ClientSession};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::{say, tell},
    streams,
    targets::Item,
};

pub(crate) const COMMAND: Command = Command {
    name: "port-forward",
    about: "Forward one or more local ports to a pod",
    usage: "TYPE/NAME [options] [LOCAL_PORT:]REMOTE_PORT [...[LOCAL_PORT_N:]REMOTE_PORT_N]",
    flags: &[FLAGS],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::list(
        "address",
        "Addresses to listen on (comma separated). Only accepts IP addresses or localhost as a value.",
    ),
    Flag::duration("pod-running-timeout", "The length of time to wait until at least one pod is running").or("1m0s"),
];

/// Most that is read at once.
const CHUNK: usize = 32 * 1024;

async fn run(cli: &Cli) -> Result<()> {
    let Some((name, ports)) = cli.args().split_first().filter(|(_, ports)| !ports.is_empty()) else {
        return Err(cli.usage("TYPE/NAME and list of ports are required for port-forward"));
    };
    let item = cli.pod_or_owner(name).await?;
    let pods = cli.pods_to_reach(&item).await?;
    let pod = &pods[0];
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if phase != "Running" {
        return Err(Error::text(format!("unable to forward port because pod is not running. Current status={phase}")));
    }
    let mut pairs = Vec::new();
    for text in ports {
        pairs.push(pair(text, &item, pod)?);
    }
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let path = format!("/api/v1/namespaces/{}/pods/{}/portforward", text("namespace"), text("name"));
    let rest = cli.rest()?;
    let io = streams::connect(&rest, &path, client::PORT_FORWARD_PROTOCOL).await?;
    let (session, mut ended) = ClientSession::start(client::port_forward_tunnel(io).await);
    let forwarder = Rc::new(Forwarder { session, next: std::cell::Cell::new(0) });
    let listeners = listen(cli, &pairs).await?;
    let local = tokio::task::LocalSet::new();
    let serving = async {
        for (listener, remote) in listeners {
            let forwarder = forwarder.clone();
            tokio::task::spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let port = listener.local_addr().map_or(0, |address| address.port());
                    say!("Handling connection for {port}");
                    let forwarder = forwarder.clone();
                    tokio::task::spawn_local(async move {
                        if let Err(text) = forwarder.forward(stream, remote).await {
                            tell!("error: an error occurred forwarding {port} -> {remote}: {text}");
                        }
                    });
                }
            });
        }
        ended.recv().await;
    };
    local.run_until(serving).await;
    Err(Error::text("lost connection to pod"))
}

/// Listens on each address and port, and says so.
async fn listen(cli: &Cli, pairs: &[(u16, u16)]) -> Result<Vec<(TcpListener, u16)>> {
    let given = cli.flags.list("address");
    let names: Vec<&str> =
        if given.is_empty() { vec!["localhost"] } else { given.iter().map(String::as_str).collect() };
    let mut listeners = Vec::new();
    for (local, remote) in pairs {
        let mut failures = Vec::new();
        let before = listeners.len();
        for name in &names {
            let addresses: &[&str] = if *name == "localhost" { &["127.0.0.1", "::1"] } else { &[name] };
            for address in addresses {
                let shown = if address.contains(':') { format!("[{address}]") } else { (*address).to_owned() };
                // The second address of localhost takes the port that the first one got.
                let port = match (listeners.len() > before, listeners.last()) {
                    (true, Some((first, _))) => TcpListener::local_addr(first)?.port(),
                    _ => *local,
                };
                match TcpListener::bind(format!("{shown}:{port}")).await {
                    Ok(listener) => {
                        say!("Forwarding from {shown}:{} -> {remote}", listener.local_addr()?.port());
                        listeners.push((listener, *remote));
                    }
                    Err(error) => failures.push((shown, error)),
                }
            }
        }
        if listeners.len() == before {
            let texts: Vec<String> = failures
                .iter()
                .map(|(address, error)| {
                    let what = match error.kind() {
                        std::io::ErrorKind::AddrInUse => "bind: address already in use".to_owned(),
                        std::io::ErrorKind::PermissionDenied => "bind: permission denied".to_owned(),
                        _ => format!("bind: {error}"),
                    };
                    let family = if address.starts_with('[') { "tcp6" } else { "tcp4" };
                    format!("unable to create listener: Error listen {family} {address}:{local}: {what}")
                })
                .collect();
            tell!(
                "Unable to listen on port {local}: Listeners failed to create with the following errors: [{}]",
                texts.join(" ")
            );
            return Err(Error::text(format!("unable to listen on any of the requested ports: [{{{local} {remote}}}]")));
        }
    }
    Ok(listeners)
}

/// `8080:80`, `80`, `:80`, with names of ports; those of a Service lead to its target port.
fn pair(text: &str, item: &Item, pod: &Value) -> Result<(u16, u16)> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let invalid = || Error::text(format!("invalid port format '{text}'"));
    let remote_number = match item.resource.kind.as_str() {
        "Service" => service_port(remote, item, pod)?,
        _ => match remote.parse::<u16>() {
            Ok(number) => number,
            Err(_) => container_port(pod, remote).ok_or_else(|| {
                Error::text(format!(
                    "Pod '{}' does not have a named port '{remote}'",
                    pod["metadata"]["name"].as_str().unwrap_or_default()
                ))
            })?,
        },
    };
    if remote_number == 0 {
        return Err(Error::text("remote port must be > 0"));
    }
    let local = match local {
        "" => 0,
        local if local == remote && !text.contains(':') => match local.parse::<u16>() {
            Ok(number) => number,
            Err(_) => remote_number,
        },
        local => local.parse().map_err(|_| {
            Error::text(format!(
                "error parsing local port '{local}': strconv.ParseUint: parsing {local:?}: invalid syntax"
            ))
        })?,
    };
    if text.matches(':').count() > 1 {
        return Err(invalid());
    }
    Ok((local, remote_number))
}

fn container_port(pod: &Value, name: &str) -> Option<u16> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    ports.find(|port| port["name"] == name)?["containerPort"].as_u64()?.try_into().ok()
}

fn service_port(remote: &str, item: &Item, pod: &Value) -> Result<u16> {
    let number = remote.parse::<u64>().ok();
    let ports = item.object["spec"]["ports"].as_array().into_iter().flatten();
    let found = ports.clone().find(|port| match number {
        Some(number) => port["port"].as_u64() == Some(number),
        None => port["name"] == remote,
    });
    let Some(port) = found else {
        let name = item.name();
        return Err(Error::text(match number {
            Some(number) => format!("Service {name} does not have a service port {number}"),
            None => format!("Service '{name}' does not have a named port '{remote}'"),
        }));
    };
    if item.object["spec"]["clusterIP"] == "None" && number.is_some() {
        return Ok(number.and_then(|number| number.try_into().ok()).unwrap_or(0));
    }
    let target = match &port["targetPort"] {
        Value::Number(target) => target.as_u64().and_then(|target| target.try_into().ok()),
        Value::String(name) => container_port(pod, name),
        _ => port["port"].as_u64().and_then(|port| port.try_into().ok()),
    };
    target.ok_or_else(|| {
        Error::text(format!("no port of the pod is what port {remote} of service {} leads to", item.name()))
    })
}

/// Carries connections.
struct Forwarder {
    session: ClientSession,
    next: std::cell::Cell<u32>,
}

impl Forwarder {
    async fn forward(&self, stream: TcpStream, port: u16) -> Result<(), String> {
        let id = self.next.replace(self.next.get() + 1);
        let headers = |kind: &str| {
            vec![("streamtype", kind.to_owned()), ("port", port.to_string()), ("requestid", id.to_string())]
        };
        let mut error = self.session.open(headers("error"), true).await.map_err(|e| e.to_string())?;
        let mut data = self.session.open(headers("data"), false).await.map_err(|e| e.to_string())?;
        let (mut from, mut to) = stream.into_split();
        let writer = data.writer();
        let upload = async move {
            let mut buffer = vec![0; CHUNK];
            loop {
                let read = from.read(&mut buffer).await.unwrap_or(0);
                let piece = Bytes::copy_from_slice(&buffer[..read]);
                if writer.write(piece, read == 0).await.is_err() || read == 0 {
                    return;
                }
            }
        };
        let download = async {
            while let Some(bytes) = data.read().await {
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            // Nothing is lost if the other side has gone already.
            let _ = to.shutdown().await;
        };
        tokio::pin!(upload);
        tokio::select! {
            () = download => {}
            () = async { upload.await; std::future::pending().await } => {}
        }
        let mut said = Vec::new();
        while let Some(bytes) = error.read().await {
            said.extend_from_slice(&bytes);
        }
        match String::from_utf8_lossy(&said).trim() {
            "" => Ok(()),
            text => Err(text.to_owned()),
        }
    }
}
