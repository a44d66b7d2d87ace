//! Carrying the traffic of one host port.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// A UDP client that has been silent this long is forgotten, like conntrack does with an answered flow.
const UDP_IDLE: Duration = Duration::from_secs(120);
/// More clients than this at once, and the silent ones have to go first.
const UDP_CLIENTS: usize = 4096;
const LARGEST_DATAGRAM: usize = 65_535;
/// Accepting fails for lack of descriptors or memory; a moment later some may be free again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a target may refuse before the client is refused.
const CONNECT_FOR: Duration = Duration::from_secs(1);
pub(super) const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// Accepts connections and joins each with a new one to the target.
pub(super) async fn tcp(listener: TcpListener, target: watch::Receiver<SocketAddr>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let target = *target.borrow();
                // Not part of this task: established connections outlive the port.
                tokio::spawn(async move {
                    if let Err(error) = join(client, target).await {
                        tracing::debug!(%target, %error, "connection through a host port failed");
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept on a host port");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Connects to a Service's address. A pod that is just starting or ending refuses; another one, or the same one a
/// moment later, takes the connection. Load balancers of clouds see to that with their health checks.
async fn reach(target: SocketAddr) -> io::Result<TcpStream> {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let until = Instant::now() + CONNECT_FOR;
    loop {
        match TcpStream::connect(target).await {
            Err(error)
                if matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
                    && Instant::now() < until =>
            {
                sleep(CONNECT_PAUSE).await;
            }
            connected => return connected,
        }
    }
}

async fn join(mut client: TcpStream, target: SocketAddr) -> io::Result<()> {
    let mut server = match reach(target).await {
        Ok(server) => server,
        Err(error) => {
            // A reset tells the client what a refused connection would have told it.
            client.set_zero_linger()?;
            return Err(error);
        }
    };
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    // Each direction ends by itself: after a client's end of data the answer still arrives.
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

struct Client {
    upstream: Arc<UdpSocket>,
    /// Milliseconds after the port was opened, renewed by both directions.
    last_used: Arc<AtomicU64>,
    task: tokio::task::AbortHandle,
}

/// Gives every client a socket of its own towards the target, so that answers find their way back.
pub(super) async fn udp(socket: UdpSocket, target: watch::Receiver<SocketAddr>) {
    let socket = Arc::new(socket);
    let started = Instant::now();
    let mut clients: HashMap<SocketAddr, Client> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; LARGEST_DATAGRAM];
    let mut target = target;
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(ended) = answers.join_next() => {
                if let Ok(client) = ended {
                    clients.remove(&client);
                }
                continue;
            }
            Ok(()) = target.changed() => {
                // A flow is bound to its target; the next datagram makes a new one.
                for (_, client) in clients.drain() {
                    client.task.abort();
                }
                continue;
            }
        };
        let Ok((len, from)) = received else {
            // An ICMP error for an earlier answer; there is nobody to tell.
            continue;
        };
        if !clients.contains_key(&from) {
            if clients.len() >= UDP_CLIENTS {
                forget_oldest(&mut clients);
            }
            let destination = *target.borrow();
            match connect(destination).await {
                Ok(upstream) => {
                    let upstream = Arc::new(upstream);
                    let last_used = Arc::new(AtomicU64::new(0));
                    let answer = Answers {
                        client: from,
                        socket: Arc::clone(&socket),
                        upstream: Arc::clone(&upstream),
                        last_used: Arc::clone(&last_used),
                        started,
                    };
                    let task = answers.spawn(answer.run());
                    clients.insert(from, Client { upstream, last_used, task });
                }
                Err(error) => {
                    tracing::debug!(%destination, %error, "datagram through a host port failed");
                    continue;
                }
            }
        }
        if let Some(client) = clients.get(&from) {
            client.last_used.store(elapsed_ms(started), Ordering::Relaxed);
            // Datagrams may be lost; an error here is an ICMP answer to an earlier one.
            let _ = client.upstream.send(&buffer[..len]).await;
        }
    }
}

fn elapsed_ms(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn forget_oldest(clients: &mut HashMap<SocketAddr, Client>) {
    let oldest =
        clients.iter().min_by_key(|(_, client)| client.last_used.load(Ordering::Relaxed)).map(|(address, _)| *address);
    if let Some(client) = oldest.and_then(|address| clients.remove(&address)) {
        client.task.abort();
    }
}

async fn connect(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    Ok(socket)
}

struct Answers {
    client: SocketAddr,
    socket: Arc<UdpSocket>,
    upstream: Arc<UdpSocket>,
    last_used: Arc<AtomicU64>,
    started: Instant,
}

impl Answers {
    /// Carries answers back until nothing has moved for a while; returns whose they were.
    async fn run(self) -> SocketAddr {
        let mut buffer = vec![0; LARGEST_DATAGRAM];
        loop {
            match timeout(UDP_IDLE, self.upstream.recv(&mut buffer)).await {
                Ok(Ok(len)) => {
                    self.last_used.store(elapsed_ms(self.started), Ordering::Relaxed);
                    // The client may be gone, which is nothing to act on.
                    let _ = self.socket.send_to(&buffer[..len], self.client).await;
                }
                // Connection refused: nobody listens on the target just now.
                Ok(Err(_)) => {}
                Err(_) => {
                    let idle = elapsed_ms(self.started).saturating_sub(self.last_used.load(Ordering::Relaxed));
                    if u128::from(idle) >= UDP_IDLE.as_millis() {
                        return self.client;
                    }
                }
            }
        }
    }
}
