//! The sockets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use crate::{
    Options,
    answer::{self, Answerer, Decision},
    forward::{ForwardError, Forwarder},
    health::{self, Counters},
    reflect::{self, SharedZone},
};

/// A TCP client that says nothing for this long is let go.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// After SIGTERM questions are still answered for a moment, until nobody sends any here.
const LAME_DUCK: Duration = Duration::from_millis(500);
const LARGEST_QUERY: usize = 4096;

/// Why the server could not be run.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{domain:?} is not a domain name")]
    Domain { domain: String },
    #[error("cannot connect to the API server")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot start")]
    Start(#[source] io::Error),
}

/// Runs the server on a runtime of its own, with one thread, until SIGTERM. `connect` makes the client
/// within that runtime.
pub fn main<E>(connect: impl FnOnce() -> Result<kube::Client, E>, options: Options) -> Result<(), DnsError>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DnsError::Start)?;
    runtime.block_on(async {
        let client = connect().map_err(|error| DnsError::Connect(error.into()))?;
        let mut stop =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(DnsError::Start)?;
        tokio::select! {
            result = run(client, options) => result,
            _ = async {
                stop.recv().await;
                tokio::time::sleep(LAME_DUCK).await;
            } => Ok(()),
        }
    })
}

/// Serves until a socket cannot be opened or the future is dropped.
pub async fn run(client: kube::Client, options: Options) -> Result<(), DnsError> {
    let answerer = Answerer::new(&options.domain).map_err(|_| DnsError::Domain { domain: options.domain.clone() })?;
    let listen = |address: SocketAddr| move |source| DnsError::Listen { address, source };
    let zone = SharedZone::default();
    let counters = Arc::new(Counters::default());
    let forwarder = Forwarder::from_resolv_conf(&options.resolv_conf);
    tracing::info!(domain = options.domain, upstreams = ?forwarder.upstreams(), "serving DNS on {}", options.listen);
    let server = Arc::new(Server { answerer, zone: zone.clone(), forwarder, counters: Arc::clone(&counters) });
    let udp = UdpSocket::bind(options.listen).await.map_err(listen(options.listen))?;
    let tcp = TcpListener::bind(options.listen).await.map_err(listen(options.listen))?;
    let ready = {
        let zone = zone.clone();
        move || zone.is_synced()
    };
    let sockets = async {
        tokio::join!(serve_udp(&server, Arc::new(udp)), serve_tcp(&server, tcp), reflect::run(client, zone));
        Ok::<(), DnsError>(())
    };
    let health = async { health::serve_health(options.health).await.map_err(listen(options.health)) };
    let ready = async { health::serve_ready(options.ready, ready).await.map_err(listen(options.ready)) };
    let metrics = async { health::serve_metrics(options.metrics, counters).await.map_err(listen(options.metrics)) };
    tokio::try_join!(sockets, health, ready, metrics)?;
    Ok(())
}

struct Server {
    answerer: Answerer,
    zone: SharedZone,
    forwarder: Forwarder,
    counters: Arc<Counters>,
}

async fn serve_udp(server: &Arc<Server>, socket: Arc<UdpSocket>) {
    let own = address_of(socket.local_addr().ok());
    let mut buffer = vec![0; LARGEST_QUERY];
    loop {
        let (len, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error for an earlier reply.
            Err(_) => continue,
        };
        Counters::add(&server.counters.udp_queries);
        let bytes = &buffer[..len];
        let Some(query) = parse(bytes) else {
            if let Some(reply) = format_error(bytes) {
                server.reply_udp(&socket, from, &reply).await;
            }
            continue;
        };
        match server.decide(&query, own) {
            // Names of the cluster are answered on the spot, without a task.
            Decision::Reply(reply) => {
                if let Ok(reply) = answer::encode_udp(&reply, &query) {
                    server.reply_udp(&socket, from, &reply).await;
                }
            }
            decision => {
                let (server, socket, bytes) = (Arc::clone(server), Arc::clone(&socket), bytes.to_vec());
                tokio::spawn(async move {
                    let reply = server.ask_outside(&query, &bytes, decision, false).await;
                    server.reply_udp(&socket, from, &reply).await;
                });
            }
        }
    }
}

async fn serve_tcp(server: &Arc<Server>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = Arc::clone(server);
                tokio::spawn(async move {
                    // Clients end connections in any way they like.
                    let _ = server.talk(stream).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// For the zone's NS record. A wildcard address is better than none.
fn address_of(address: Option<SocketAddr>) -> IpAddr {
    match address.map(|address| address.ip().to_canonical()) {
        Some(address) if !address.is_unspecified() => address,
        _ => own_address().unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
    }
}

/// The address that packets to the rest of the world leave from; nothing is sent to find it out.
fn own_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 53)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// A query; everything else is not answered, or two servers could keep each other busy.
fn parse(bytes: &[u8]) -> Option<Message> {
    let query = Message::from_vec(bytes).ok()?;
    (query.metadata.message_type == MessageType::Query).then_some(query)
}

/// For bytes that have at least a query's header.
fn format_error(bytes: &[u8]) -> Option<Vec<u8>> {
    const QUERY_OR_RESPONSE: u8 = 0x80;
    let header = bytes.get(..12)?;
    if header[2] & QUERY_OR_RESPONSE != 0 {
        return None;
    }
    let mut reply = vec![0; 12];
    reply[..2].copy_from_slice(&header[..2]);
    reply[2] = QUERY_OR_RESPONSE | (header[2] & 0x79);
    reply[3] = 1;
    Some(reply)
}

impl Server {
    fn decide(&self, query: &Message, own: IpAddr) -> Decision {
        self.zone.with(|zone| self.answerer.decide(query, zone, own))
    }

    async fn reply_udp(&self, socket: &UdpSocket, to: SocketAddr, reply: &[u8]) {
        self.counters.count_reply(reply);
        if let Err(error) = socket.send_to(reply, to).await {
            tracing::debug!(%to, %error, "cannot reply");
        }
    }

    /// One TCP connection: any number of queries, each behind its length.
    async fn talk(&self, mut stream: TcpStream) -> io::Result<()> {
        let own = address_of(stream.local_addr().ok());
        loop {
            let Ok(len) = timeout(TCP_IDLE, stream.read_u16()).await else {
                return Ok(());
            };
            let mut bytes = vec![0; usize::from(len?)];
            let Ok(read) = timeout(TCP_IDLE, stream.read_exact(&mut bytes)).await else {
                return Ok(());
            };
            read?;
            Counters::add(&self.counters.tcp_queries);
            let reply = match parse(&bytes) {
                None => match format_error(&bytes) {
                    Some(reply) => reply,
                    None => return Ok(()),
                },
                Some(query) => match self.decide(&query, own) {
                    Decision::Reply(reply) => reply.to_vec().map_err(io::Error::other)?,
                    decision => self.ask_outside(&query, &bytes, decision, true).await,
                },
            };
            self.counters.count_reply(&reply);
            let len = u16::try_from(reply.len()).map_err(io::Error::other)?;
            stream.write_all(&[&len.to_be_bytes(), reply.as_slice()].concat()).await?;
        }
    }

    /// The reply to a query that the cluster's zone does not answer, or not wholly.
    async fn ask_outside(&self, query: &Message, bytes: &[u8], decision: Decision, over_tcp: bool) -> Vec<u8> {
        let reply = match decision {
            Decision::Reply(reply) => *reply,
            Decision::Forward => match self.forward(bytes, over_tcp).await {
                Ok(answer) => return answer,
                Err(error) => failure(query, &error),
            },
            Decision::Chase { so_far, target } => self.chase(query, *so_far, target, over_tcp).await,
        };
        let encoded = match over_tcp {
            true => reply.to_vec(),
            false => answer::encode_udp(&reply, query),
        };
        encoded.unwrap_or_default()
    }

    async fn forward(&self, bytes: &[u8], over_tcp: bool) -> Result<Vec<u8>, ForwardError> {
        Counters::add(&self.counters.forwarded);
        self.forwarder.ask(bytes, over_tcp).await.inspect_err(|error| {
            Counters::add(&self.counters.forward_failures);
            tracing::debug!(%error, "not answered");
        })
    }

    /// Stub resolvers do not follow aliases by themselves, so the records behind one belong into the
    /// answer. The alias alone is still worth more than an error.
    async fn chase(
        &self,
        query: &Message,
        so_far: Message,
        target: hickory_proto::rr::Name,
        over_tcp: bool,
    ) -> Message {
        let mut reply = so_far;
        let Ok(question) = answer::chase_query(query, target).to_vec() else {
            return reply;
        };
        if let Ok(answer) = self.forward(&question, over_tcp).await
            && let Ok(answer) = Message::from_vec(&answer)
        {
            reply.metadata.response_code = answer.metadata.response_code;
            reply.metadata.truncation |= answer.metadata.truncation;
            reply.add_answers(answer.answers);
        }
        reply
    }
}

/// REFUSED says at once, and for good, that there is nobody to ask; SERVFAIL that it may work later.
fn failure(query: &Message, error: &ForwardError) -> Message {
    let mut reply = answer::reply_to(query);
    reply.metadata.response_code = match error {
        ForwardError::NoUpstream => ResponseCode::Refused,
        ForwardError::TooMany | ForwardError::NoAnswer(_) => ResponseCode::ServFail,
    };
    reply
}

#[cfg(test)]
mod tests;
