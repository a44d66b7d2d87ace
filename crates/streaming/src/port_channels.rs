//! Port-forward over WebSocket channels, which is what client libraries speak: the ports are named by the request, one
//! connection is made to each, and a port has two channels, for its data and for an error.

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::SplitStream;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::port_forward::PortForwardHandler;
use crate::websocket::{self, Coding};

/// Versions of the protocol, the empty one being that of clients that name none.
pub(crate) const PROTOCOLS: [&str; 3] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
/// Two channels for each, which are told by a byte.
pub(crate) const MAX_PORTS: usize = 127;
/// Bytes on their way to a port.
const PIPE_BYTES: usize = 32 * 1024;
/// Messages on their way to the client.
const BACKLOG: usize = 4;

/// Serves a connection until all ports have ended, or the client leaves.
pub(crate) async fn forward<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    protocol: &str,
    ports: &[u16],
    handler: &impl PortForwardHandler,
) {
    let coding = Coding::of(protocol);
    let (mut sink, stream) = websocket::open(io, Role::Server).await.split();
    // Each channel begins with its port, the lower byte first.
    for (channel, port) in ports.iter().flat_map(|port| [port, port]).enumerate() {
        if sink.send(coding.encode(channel as u8, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let (messages, mut outgoing) = mpsc::channel(BACKLOG);
    let (mut inputs, mut pairs) = (Vec::new(), Vec::new());
    for (index, port) in ports.iter().enumerate() {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        inputs.push(Some(ours));
        let channels = Channels { data: 2 * index as u8, coding, messages: messages.clone() };
        pairs.push(serve_port(*port, theirs, channels, handler));
    }
    // Only the ports' own are left, so the messages end with them.
    drop(messages);
    let input = receive(stream, coding, inputs);
    tokio::pin!(input);
    let output = async {
        while let Some(message) = outgoing.recv().await {
            if sink.send(message).await.is_err() {
                // The client has left, which ends the input.
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        ((), _) = async { tokio::join!(output, join_all(pairs)) } => {}
        () = &mut input => return,
    }
    websocket::close(&mut sink, input).await;
}

/// The two channels of a port, towards the client.
struct Channels {
    data: u8,
    coding: Coding,
    messages: mpsc::Sender<Message>,
}

impl Channels {
    /// False when the client has left.
    async fn data(&self, bytes: &[u8]) -> bool {
        self.messages.send(self.coding.encode(self.data, bytes)).await.is_ok()
    }

    async fn error(&self, text: &str) {
        // A client that has gone does not hear it.
        let _ = self.messages.send(self.coding.encode(self.data + 1, text.as_bytes())).await;
    }
}

/// Forwards one connection.
async fn serve_port(port: u16, mut input: DuplexStream, channels: Channels, handler: &impl PortForwardHandler) {
    let connection = match handler.connect(port).await {
        Ok(connection) => connection,
        Err(text) => return channels.error(&format!("error forwarding port {port}: {text}")).await,
    };
    let (mut from, mut to) = tokio::io::split(connection);
    let upstream = async {
        let _ = tokio::io::copy(&mut input, &mut to).await;
        let _ = to.shutdown().await;
    };
    let downstream = async {
        let mut buffer = vec![0; PIPE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer).await
            && channels.data(&buffer[..length]).await
        {}
    };
    // When the pod has said everything the connection is over, whatever the client still sends.
    tokio::pin!(upstream, downstream);
    tokio::select! {
        () = &mut downstream => {}
        () = &mut upstream => downstream.await,
    }
}

/// Hands on what the client sends until it leaves.
async fn receive<T: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<T>>,
    coding: Coding,
    mut inputs: Vec<Option<DuplexStream>>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let (channel, data): (u8, Bytes) = match coding.decode(message) {
            Ok(Some(message)) => message,
            Ok(None) => continue,
            Err(_) => return,
        };
        // What is sent on a channel for errors is nobody's.
        let input = inputs.get_mut(usize::from(channel / 2)).filter(|_| channel % 2 == 0);
        if let Some(input) = input
            && let Some(port) = input
            && port.write_all(&data).await.is_err()
        {
            *input = None;
        }
    }
}
