//! The client's side, as kubectl has it: commands over WebSocket, ports over SPDY tunnelled through WebSocket.
//!
//! The caller sends the HTTP request that [`upgrade_request`] makes and hands over the connection that it becomes.

use std::io;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::{Request, header};
use http_body_util::Empty;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::TerminalSize;
use crate::command::{CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT};
use crate::websocket;

/// The protocol of exec and attach, whose clients can end their input.
pub const COMMAND_PROTOCOL: &str = "v5.channel.k8s.io";
/// The protocol of port-forward.
pub const PORT_FORWARD_PROTOCOL: &str = crate::port_forward::TUNNEL_PROTOCOL;

/// Most input in one message.
const CHUNK: usize = 32 * 1024;

/// A request to make a connection a WebSocket of a protocol.
pub fn upgrade_request(path: &str, protocol: &str) -> Result<Request<Empty<Bytes>>, http::Error> {
    let key: [u8; 16] = std::array::from_fn(|i| (i as u8).wrapping_mul(37) ^ std::process::id().to_le_bytes()[i % 4]);
    Request::get(path)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, BASE64_STANDARD.encode(key))
        .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
        .body(Empty::new())
}

/// Runs the client's side of a command on a connection that speaks [`COMMAND_PROTOCOL`], to the command's end.
///
/// Returns the `metav1.Status` that tells how it ended. Errors: the connection broke, or `stdout` or `stderr` did.
pub async fn run_command(
    io: impl AsyncRead + AsyncWrite + Unpin,
    stdin: Option<impl AsyncRead + Unpin>,
    mut stdout: impl AsyncWrite + Unpin,
    mut stderr: impl AsyncWrite + Unpin,
    mut sizes: mpsc::Receiver<TerminalSize>,
) -> io::Result<Value> {
    let socket: WebSocketStream<_> = websocket::open(io, Role::Client).await;
    let (mut sink, mut stream) = socket.split();
    let mut stdin = stdin;
    let mut buffer = vec![0; CHUNK];
    let mut sizes_end = false;
    loop {
        let read = async {
            match &mut stdin {
                Some(stdin) => stdin.read(&mut buffer).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = stream.next() => match message {
                Some(Ok(Message::Binary(data))) => match data.split_first() {
                    Some((&STDOUT, data)) => write(&mut stdout, data).await?,
                    Some((&STDERR, data)) => write(&mut stderr, data).await?,
                    Some((&ERROR, data)) => {
                        let status = serde_json::from_slice(data).map_err(io::Error::other)?;
                        // The other side waits for this, but not for long.
                        let _ = sink.close().await;
                        return Ok(status);
                    }
                    _ => {}
                },
                Some(Ok(Message::Close(_))) | None => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "unexpected EOF"));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(io::Error::other(error)),
            },
            read = read => {
                let message = match read? {
                    0 => {
                        stdin = None;
                        frame(CLOSE, &[STDIN])
                    }
                    length => frame(STDIN, &buffer[..length]),
                };
                sink.send(message).await.map_err(io::Error::other)?;
            }
            size = sizes.recv(), if !sizes_end => match size {
                Some(size) => {
                    let text = json!({"Width": size.width, "Height": size.height}).to_string();
                    sink.send(frame(RESIZE, text.as_bytes())).await.map_err(io::Error::other)?;
                }
                None => sizes_end = true,
            },
        }
    }
}

fn frame(channel: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(data.len() + 1);
    bytes.put_u8(channel);
    bytes.extend_from_slice(data);
    Message::Binary(bytes.freeze())
}

async fn write(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> io::Result<()> {
    to.write_all(data).await?;
    to.flush().await
}

/// The tunnel of port-forward on a connection that speaks [`PORT_FORWARD_PROTOCOL`].
pub async fn port_forward_tunnel(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> impl AsyncRead + AsyncWrite + Send + 'static {
    websocket::tunnel(websocket::open(io, Role::Client).await)
}
