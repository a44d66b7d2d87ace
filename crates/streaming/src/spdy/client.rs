//! A connection on which we open the streams: the client's side of port-forward.
//!
//! Windows are not granted and not kept to, as in kubectl: a stream whose reader is slow holds up the connection.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::frame::{ControlFrame, FrameHeader};
use super::headers::{HeaderDecoder, HeaderEncoder};

/// Frames that wait: to be written, or of a stream to be read.
const BACKLOG: usize = 32;

enum Out {
    Open { stream: u32, fin: bool, headers: Vec<(&'static str, String)> },
    Data { stream: u32, fin: bool, data: Bytes },
    Ping(u32),
    Reset(u32),
}

type Streams = Arc<Mutex<HashMap<u32, mpsc::Sender<Bytes>>>>;

/// The connection; it ends when this and all of its streams are dropped, or when the other side ends it.
pub struct ClientSession {
    out: mpsc::Sender<Out>,
    streams: Streams,
    next: AtomicU32,
}

/// A stream that we have opened. Dropping it resets it.
pub struct ClientStream {
    id: u32,
    out: mpsc::Sender<Out>,
    incoming: mpsc::Receiver<Bytes>,
    streams: Streams,
}

impl ClientSession {
    /// Starts to speak, as the client. The receiver ends when the connection does.
    pub fn start(io: impl AsyncRead + AsyncWrite + Send + 'static) -> (ClientSession, mpsc::Receiver<()>) {
        let (read, write) = tokio::io::split(io);
        let (out, outbox) = mpsc::channel(BACKLOG);
        let (alive, ended) = mpsc::channel(1);
        let streams = Streams::default();
        tokio::spawn(async move {
            if let Err(error) = write_frames(write, outbox).await {
                tracing::debug!(%error, "cannot write to a SPDY connection");
            }
        });
        let (known, pings) = (streams.clone(), out.downgrade());
        tokio::spawn(async move {
            if let Err(error) = read_frames(read, &known, &pings).await {
                tracing::debug!(%error, "a SPDY connection ended");
            }
            known.lock().unwrap_or_else(PoisonError::into_inner).clear();
            drop(alive);
        });
        (ClientSession { out, streams, next: AtomicU32::new(1) }, ended)
    }

    /// Opens a stream; `fin`: nothing will be sent on it.
    pub async fn open(&self, headers: Vec<(&'static str, String)>, fin: bool) -> io::Result<ClientStream> {
        // A client's streams have odd numbers.
        let id = self.next.fetch_add(2, Ordering::Relaxed);
        let (sender, incoming) = mpsc::channel(BACKLOG);
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let stream = ClientStream { id, out: self.out.clone(), incoming, streams: self.streams.clone() };
        self.out.send(Out::Open { stream: id, fin, headers }).await.map_err(|_| closed())?;
        Ok(stream)
    }
}

impl ClientStream {
    /// The next piece of data; `None` at its end.
    pub async fn read(&mut self) -> Option<Bytes> {
        self.incoming.recv().await
    }

    /// The way out alone, for a task of its own.
    pub fn writer(&self) -> ClientWriter {
        ClientWriter { id: self.id, out: self.out.clone() }
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        // If even this has no room, the end of the connection will say it.
        let _ = self.out.try_send(Out::Reset(self.id));
    }
}

/// Sends on a stream.
pub struct ClientWriter {
    id: u32,
    out: mpsc::Sender<Out>,
}

impl ClientWriter {
    /// Sends data; `fin`: the last.
    pub async fn write(&self, data: Bytes, fin: bool) -> io::Result<()> {
        self.out.send(Out::Data { stream: self.id, fin, data }).await.map_err(|_| closed())
    }
}

fn closed() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

async fn write_frames(mut io: impl AsyncWrite + Unpin, mut outbox: mpsc::Receiver<Out>) -> io::Result<()> {
    let mut encoder = HeaderEncoder::default();
    while let Some(out) = outbox.recv().await {
        let bytes = match out {
            Out::Open { stream, fin, headers } => {
                let pairs: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                let headers = encoder.encode(&pairs).map_err(io::Error::other)?;
                ControlFrame::SynStream { stream, fin, headers }.to_bytes()
            }
            Out::Data { stream, fin, data } => {
                io.write_all(&FrameHeader::data(stream, fin, data.len())).await?;
                data.to_vec()
            }
            Out::Ping(id) => ControlFrame::Ping(id).to_bytes(),
            Out::Reset(stream) => ControlFrame::RstStream { stream, status: 5 }.to_bytes(),
        };
        io.write_all(&bytes).await?;
        if outbox.is_empty() {
            io.flush().await?;
        }
    }
    io.shutdown().await
}

async fn read_frames(mut io: impl AsyncRead + Unpin, streams: &Streams, out: &mpsc::WeakSender<Out>) -> io::Result<()> {
    let mut decoder = HeaderDecoder::default();
    let find = |id: u32| streams.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
    let end = |id: u32| streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    let mut head = [0; 8];
    loop {
        match io.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        };
        match FrameHeader::parse(head).map_err(io::Error::other)? {
            FrameHeader::Data { stream, fin, length } => {
                let mut data = vec![0; length as usize];
                io.read_exact(&mut data).await?;
                if let Some(sender) = find(stream).filter(|_| length > 0) {
                    // Nobody may read it any more.
                    let _ = sender.send(data.into()).await;
                }
                if fin {
                    end(stream);
                }
            }
            FrameHeader::Control { kind, flags, length } => {
                let mut body = vec![0; length as usize];
                io.read_exact(&mut body).await?;
                match ControlFrame::parse(kind, flags, &body).map_err(io::Error::other)? {
                    ControlFrame::SynReply { stream, fin, headers }
                    | ControlFrame::Headers { stream, fin, headers } => {
                        decoder.decode(&headers).map_err(io::Error::other)?;
                        if fin {
                            end(stream);
                        }
                    }
                    ControlFrame::SynStream { headers, .. } => {
                        decoder.decode(&headers).map_err(io::Error::other)?;
                    }
                    ControlFrame::RstStream { stream, .. } => drop(end(stream)),
                    // The server's pings are even.
                    ControlFrame::Ping(id) if id.is_multiple_of(2) => {
                        if let Some(out) = out.upgrade() {
                            out.send(Out::Ping(id)).await.map_err(|_| closed())?;
                        }
                    }
                    ControlFrame::GoAway { .. } => return Ok(()),
                    ControlFrame::Ping(_)
                    | ControlFrame::Settings(_)
                    | ControlFrame::WindowUpdate { .. }
                    | ControlFrame::Unknown(_) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spdy::Session;

    #[tokio::test]
    async fn a_server_answers_on_streams_that_a_client_opens() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let server = tokio::spawn(async move {
            let mut session = Session::server(theirs);
            let mut stream = session.accept().await.unwrap();
            assert_eq!(stream.header("port"), "80");
            let mut text = String::new();
            stream.reader.read_to_string(&mut text).await.unwrap();
            stream.writer.write(format!("got {text}").into()).await.unwrap();
            stream.writer.finish().await.unwrap();
            session.close().await;
        });
        let (session, mut ended) = ClientSession::start(ours);
        let mut stream = session.open(vec![("port", "80".into())], false).await.unwrap();
        stream.writer().write("hello".into(), true).await.unwrap();
        assert_eq!(stream.read().await.unwrap(), "got hello");
        assert_eq!(stream.read().await, None);
        drop((stream, session));
        assert_eq!(ended.recv().await, None);
        server.await.unwrap();
    }
}
