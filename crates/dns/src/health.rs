//! Probes and counters over HTTP, as CoreDNS serves them.

use std::{
    fmt::Write,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Longer requests are not from a probe.
const LONGEST_REQUEST: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Debug, Default)]
pub struct Counters {
    pub udp_queries: AtomicU64,
    pub tcp_queries: AtomicU64,
    pub forwarded: AtomicU64,
    pub forward_failures: AtomicU64,
    no_error: AtomicU64,
    nx_domain: AtomicU64,
    refused: AtomicU64,
    other: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a reply by its code, which is in the low bits of a message's fourth byte.
    pub(crate) fn count_reply(&self, reply: &[u8]) {
        Self::add(match reply.get(3).map(|byte| byte & 0x0f) {
            Some(0) => &self.no_error,
            Some(3) => &self.nx_domain,
            Some(5) => &self.refused,
            _ => &self.other,
        });
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let families: [(&str, &str, &str, &[(&str, &AtomicU64)]); 4] = [
            (
                "coredns_dns_requests_total",
                "Counter of DNS requests made.",
                "proto",
                &[("udp", &self.udp_queries), ("tcp", &self.tcp_queries)],
            ),
            (
                "coredns_dns_responses_total",
                "Counter of response status codes.",
                "rcode",
                &[
                    ("NOERROR", &self.no_error),
                    ("NXDOMAIN", &self.nx_domain),
                    ("REFUSED", &self.refused),
                    ("OTHER", &self.other),
                ],
            ),
            (
                "coredns_proxy_requests_total",
                "Counter of requests passed on.",
                "proxy_name",
                &[("forward", &self.forwarded)],
            ),
            (
                "coredns_proxy_failures_total",
                "Counter of requests that nobody answered.",
                "proxy_name",
                &[("forward", &self.forward_failures)],
            ),
        ];
        for (name, help, label, values) in families {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            for (value, counter) in values {
                let _ = writeln!(text, "{name}{{{label}=\"{value}\"}} {}", counter.load(Ordering::Relaxed));
            }
        }
        text
    }
}

/// What an endpoint answers: the status code and the text.
type Page = Arc<dyn Fn() -> (u16, String) + Send + Sync>;

/// `/health`: the process answers, so it is alive.
pub(crate) async fn serve_health(address: SocketAddr) -> io::Result<()> {
    serve(address, "/health", Arc::new(|| (200, "OK".to_owned()))).await
}

/// `/ready`: names can be answered.
pub(crate) async fn serve_ready(
    address: SocketAddr,
    ready: impl Fn() -> bool + Send + Sync + 'static,
) -> io::Result<()> {
    let page = move || match ready() {
        true => (200, "OK".to_owned()),
        false => (503, "kubernetes".to_owned()),
    };
    serve(address, "/ready", Arc::new(page)).await
}

/// `/metrics`.
pub(crate) async fn serve_metrics(address: SocketAddr, counters: Arc<Counters>) -> io::Result<()> {
    serve(address, "/metrics", Arc::new(move || (200, counters.text()))).await
}

async fn serve(address: SocketAddr, path: &'static str, page: Page) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let page = Arc::clone(&page);
                tokio::spawn(async move {
                    // A prober that goes away is no concern of ours.
                    let _ = timeout(PATIENCE, answer(stream, path, page)).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a probe");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, path: &str, page: Page) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 1024];
        let len = stream.read(&mut buffer).await?;
        if len == 0 || request.len() > LONGEST_REQUEST {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..len]);
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let target = line.split(' ').nth(1).unwrap_or_default();
    let (code, text) = match target.split('?').next() == Some(path) {
        true => page(),
        false => (404, "404 page not found\n".to_owned()),
    };
    let reason = match code {
        200 => "OK",
        404 => "Not Found",
        _ => "Service Unavailable",
    };
    let head = format!(
        "HTTP/1.1 {code} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}
