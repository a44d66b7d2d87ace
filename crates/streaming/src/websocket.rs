//! WebSocket connections: as channels of a command, and as a tunnel of bytes.

use std::io;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

/// Longest message taken. kubectl sends at most 32 KiB at once.
const MAX_MESSAGE: usize = 1 << 20;

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
