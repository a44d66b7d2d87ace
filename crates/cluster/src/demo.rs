//! hello-world: a page served by two replicas of this program, behind a LoadBalancer Service.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service};
use kube::api::{Api, PostParams};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use serde_json::json;

use crate::{Error, Result, host_ports::HostNet};

/// The subcommand that serves the page, in the containers.
pub const SUBCOMMAND: &str = "hello";
const NAME: &str = "hello-world";
const CONTAINER_PORT: u16 = 8080;
/// Where the page is looked for; further ones if it is taken.
const FIRST_PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Creates the Deployment and the Service and waits until the page is there.
pub(crate) fn deploy(kubeconfig: &Path, image: &str) -> Result<String> {
    let port = free_port()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let failed = |error: &dyn std::fmt::Display| Error::Demo(error.to_string());
    runtime.map_err(|e| failed(&e))?.block_on(async {
        let config = skiff_client::Config::from_kubeconfig(kubeconfig, None).map_err(|e| failed(&e))?;
        let client = skiff_client::https(&config).map_err(|e| failed(&e))?;
        create(&client, image, port).await.map_err(|e| failed(&e))
    })?;
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match get(address) {
            Ok(page) if page.starts_with("HTTP/1.1 200") => return Ok(format!("http://localhost:{port}")),
            _ if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Ok(page) => return Err(Error::Demo(format!("the page is {:?}", page.lines().next()))),
            Err(error) => return Err(Error::Demo(format!("the page does not appear: {error}"))),
        }
    }
}

fn free_port() -> Result<u16> {
    let host = HostNet::current().map_err(|error| Error::Demo(error.chain()))?;
    let is_free = |port: &u16| host.listen_tcp(SocketAddrV4::new(Ipv4Addr::LOCALHOST, *port)).is_ok();
    let free = (FIRST_PORT..FIRST_PORT + 100).find(is_free);
    free.ok_or_else(|| Error::Demo(format!("no port from {FIRST_PORT} on is free")))
}

async fn create(client: &kube::Client, image: &str, port: u16) -> Result<(), Box<dyn std::error::Error>> {
    let labels = json!({ "app": NAME });
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": { "name": NAME, "labels": labels },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{
                    "name": NAME, "image": image, "args": [SUBCOMMAND],
                    "ports": [{ "containerPort": CONTAINER_PORT }],
                }]},
            },
        },
    }))?;
    let service: Service = serde_json::from_value(json!({
        "metadata": { "name": NAME, "labels": labels },
        "spec": {
            "type": "LoadBalancer", "selector": labels,
            "ports": [{ "port": port, "targetPort": CONTAINER_PORT }],
        },
    }))?;
    let parameters = PostParams::default();
    Api::<Deployment>::default_namespaced(client.clone()).create(&parameters, &deployment).await?;
    Api::<Service>::default_namespaced(client.clone()).create(&parameters, &service).await?;
    Ok(())
}

fn get(address: SocketAddrV4) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

extern "C" fn end(_: i32) {
    // SAFETY: ends the process without running anything else, which is allowed in a signal handler.
    unsafe { libc::_exit(0) }
}

/// Serves the page until SIGTERM: what the containers run.
pub fn serve() -> io::Result<()> {
    // The first process of a container has no default reaction to signals.
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler only ends the process.
        unsafe { sigaction(signal, &action) }?;
    }
    serve_on(&TcpListener::bind((Ipv4Addr::UNSPECIFIED, CONTAINER_PORT))?)
}

fn serve_on(listener: &TcpListener) -> io::Result<()> {
    let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    loop {
        let (stream, peer) = listener.accept()?;
        // One after the other is enough here, and a slow client is let go.
        match answer(&stream, &host) {
            Ok(line) => {
                // The log is for `kubectl logs`; without it the page is still there.
                let _ = writeln!(io::stdout(), "{peer} {line}");
            }
            Err(error) => tracing::debug!(%peer, %error, "no answer"),
        }
    }
}

fn answer(stream: &TcpStream, host: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.take(16 << 10)).lines();
    let first = lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
    // To the end of the head, so that closing does not reset the connection.
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Hello from skiff</title></head>\n\
         <body>\n<h1>Hello, world!</h1>\n<p>This page comes from the pod <b>{host}</b>.</p>\n</body>\n</html>\n"
    );
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        page.len()
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    stream.write_all(page.as_bytes())?;
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_its_pod() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        std::thread::spawn(move || serve_on(&listener));
        for _ in 0..2 {
            let page = get(address).unwrap();
            assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
            assert!(page.contains(nix::unistd::gethostname().unwrap().to_str().unwrap()), "{page}");
        }
    }
}
