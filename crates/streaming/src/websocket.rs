//! WebSocket connections: as channels, and as a tunnel of bytes.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

/// Longest message taken, as upstream. kubectl sends at most 32 KiB at once; libraries send what they are given, whole.
const MAX_MESSAGE: usize = 32 << 20;
/// How long a client may take to hang up after the end.
const LINGER: Duration = Duration::from_secs(2);

/// Speaks WebSocket on a connection whose upgrade has been answered.
pub(crate) async fn open<T: AsyncRead + AsyncWrite + Unpin>(io: T, role: Role) -> WebSocketStream<T> {
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(MAX_MESSAGE);
    config.max_frame_size = Some(MAX_MESSAGE);
    config.read_buffer_size = 32 * 1024;
    config.write_buffer_size = 0;
    WebSocketStream::from_raw_socket(io, role, Some(config)).await
}

/// The binary messages of a connection as one stream of bytes each way.
pub(crate) fn tunnel<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    socket: WebSocketStream<T>,
) -> impl AsyncRead + AsyncWrite + Send + 'static {
    let (sink, stream) = socket.split();
    let bytes = stream.filter_map(|message| async {
        match message {
            Ok(Message::Binary(data)) => Some(Ok(data)),
            Ok(Message::Text(_)) => Some(Err(io::Error::other("a text message in a tunnel"))),
            // Answered by the library.
            Ok(_) => None,
            Err(e) => Some(Err(io::Error::other(e))),
        }
    });
    let sink = sink
        .with(|data: Bytes| async { Ok::<_, tokio_tungstenite::tungstenite::Error>(Message::Binary(data)) })
        .sink_map_err(io::Error::other);
    tokio::io::join(StreamReader::new(Box::pin(bytes)), Box::pin(SinkWriter::new(CopyToBytes::new(Box::pin(sink)))))
}

/// Ends a connection as one that is complete; `input` reads what the client still sends until it leaves.
pub(crate) async fn close<T: AsyncRead + AsyncWrite + Unpin>(
    sink: &mut SplitSink<WebSocketStream<T>, Message>,
    input: impl Future<Output = ()>,
) {
    // Clients take an end without this code for a failure.
    let close = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
    let _ = sink.send(Message::Close(Some(close))).await;
    // What is not read would make the system drop what the client has yet to read.
    let _ = tokio::time::timeout(LINGER, input).await;
}

/// How messages look on a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coding {
    base64: bool,
}

impl Coding {
    pub(crate) fn of(protocol: &str) -> Self {
        Self { base64: protocol.contains("base64") }
    }

    pub(crate) fn encode(self, channel: u8, data: &[u8]) -> Message {
        use base64::Engine;
        if self.base64 {
            let mut text = String::from(char::from(b'0' + channel));
            base64::engine::general_purpose::STANDARD.encode_string(data, &mut text);
            return Message::Text(text.into());
        }
        let mut bytes = Vec::with_capacity(data.len() + 1);
        bytes.push(channel);
        bytes.extend_from_slice(data);
        Message::Binary(bytes.into())
    }

    /// Channel and data; `None` for what is not ours to handle.
    pub(crate) fn decode(self, message: Message) -> io::Result<Option<(u8, Bytes)>> {
        use base64::Engine;
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "invalid message");
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            _ => return Ok(None),
        };
        let (channel, data) = bytes.split_first().ok_or_else(invalid)?;
        if !self.base64 {
            return Ok(Some((*channel, bytes.slice(1..))));
        }
        let data = base64::engine::general_purpose::STANDARD.decode(data).map_err(|_| invalid())?;
        let channel = channel.checked_sub(b'0').filter(|c| *c <= 9).ok_or_else(invalid)?;
        Ok(Some((channel, data.into())))
    }
}
