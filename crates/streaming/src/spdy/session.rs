//! A connection and its streams.
//!
//! One task reads frames, another writes them. A stream's data waits in a bounded pipe until it is read;
//! when that is full the connection is not read further, so a client cannot make the server hold more.
//! Sending keeps to the window that the other side grants, from the moment on that it grants any:
//! kubectl's library never does and would otherwise hang after 64 KiB.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::{Notify, mpsc};

use super::frame::{ControlFrame, FrameHeader, SETTING_INITIAL_WINDOW};
use super::headers::{HeaderDecoder, HeaderEncoder};

/// Window of a stream and of the connection before anybody says otherwise.
const INITIAL_WINDOW: i64 = 64 * 1024;
/// Bytes of a stream that wait to be read.
const PIPE_BYTES: usize = 64 * 1024;
/// Longest piece sent in one frame.
const CHUNK: usize = 16 * 1024;
/// Received bytes after which the other side is told that there is room again.
const UPDATE_AFTER: u32 = 32 * 1024;
/// Streams open at once.
const MAX_STREAMS: usize = 1024;
/// Frames that wait to be written.
const OUTBOX: usize = 32;
/// How long the other side may take to hang up after the end.
const LINGER: Duration = Duration::from_secs(2);

const STATUS_PROTOCOL_ERROR: u32 = 1;
const STATUS_REFUSED: u32 = 3;

enum Out {
    Control(ControlFrame),
    Reply { stream: u32 },
    Data { stream: u32, fin: bool, data: Bytes },
    End,
}

/// What may be sent.
#[derive(Default)]
struct Window {
    sent: i64,
    granted: i64,
    /// Whether the other side takes part in flow control.
    enforced: bool,
    closed: bool,
}

impl Window {
    fn room(&self) -> usize {
        match self.enforced {
            true => usize::try_from(INITIAL_WINDOW + self.granted - self.sent).unwrap_or(0),
            false => usize::MAX,
        }
    }
}

#[derive(Default)]
struct SharedWindow {
    window: Mutex<Window>,
    changed: Notify,
}

impl SharedWindow {
    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grant(&self, bytes: i64) {
        let mut window = self.lock();
        window.enforced = true;
        window.granted += bytes;
        drop(window);
        self.changed.notify_waiters();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_waiters();
    }

    /// Waits for room and takes up to `wanted` of it.
    async fn take(&self, wanted: usize) -> io::Result<usize> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut window = self.lock();
                if window.closed {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                let taken = window.room().min(wanted);
                if taken > 0 {
                    window.sent += taken as i64;
                    return Ok(taken);
                }
            }
            changed.await;
        }
    }
}

/// A stream that the other side has opened.
pub struct IncomingStream {
    /// Its id.
    pub id: u32,
    headers: HashMap<String, String>,
    /// What comes.
    pub reader: StreamReader,
    /// What goes.
    pub writer: StreamWriter,
}

impl IncomingStream {
    /// A header of the stream; names are in lower case.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// The data that comes on a stream; ends when its sender says so.
pub struct StreamReader(DuplexStream);

impl AsyncRead for StreamReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

/// The way out on a stream. Dropping it without [`finish`](StreamWriter::finish) resets the stream.
pub struct StreamWriter {
    stream: u32,
    out: mpsc::Sender<Out>,
    window: Arc<SharedWindow>,
    session: Arc<SharedWindow>,
    finished: bool,
}

impl StreamWriter {
    /// Sends data, waiting for room.
    pub async fn write(&mut self, mut data: Bytes) -> io::Result<()> {
        while !data.is_empty() {
            let taken = self.window.take(data.len().min(CHUNK)).await?;
            let mut left = data.split_to(taken);
            while !left.is_empty() {
                let taken = self.session.take(left.len()).await?;
                let piece = left.split_to(taken);
                self.send(Out::Data { stream: self.stream, fin: false, data: piece }).await?;
            }
        }
        Ok(())
    }

    /// Tells that nothing more comes.
    pub async fn finish(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.finished, true) {
            self.send(Out::Data { stream: self.stream, fin: true, data: Bytes::new() }).await?;
        }
        Ok(())
    }

    /// Sends everything that is read, until the end of that or of the stream.
    pub async fn copy_from(&mut self, mut reader: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = reader.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            self.write(Bytes::copy_from_slice(&buffer[..n])).await?;
        }
    }

    async fn send(&self, out: Out) -> io::Result<()> {
        self.out.send(out).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        if !self.finished {
            let frame = ControlFrame::RstStream { stream: self.stream, status: 5 };
            // If even this has no room, the end of the connection will say it.
            let _ = self.out.try_send(Out::Control(frame));
        }
    }
}

/// A connection; dropping it ends it once what is on its way is written.
pub struct Session {
    incoming: mpsc::Receiver<IncomingStream>,
    out: mpsc::Sender<Out>,
    writer: tokio::task::JoinHandle<()>,
    reader: tokio::task::JoinHandle<()>,
}

impl Session {
    /// Starts to speak, as the server, on a connection that both sides have agreed to use so.
    pub fn server(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Session {
        let (read, write) = tokio::io::split(io);
        let (out, outbox) = mpsc::channel(OUTBOX);
        let (accept, incoming) = mpsc::channel(16);
        let writer = tokio::spawn(write_frames(write, outbox));
        let connection = Connection {
            out: out.clone(),
            accept,
            streams: HashMap::new(),
            session: Arc::default(),
            initial_window: INITIAL_WINDOW,
            peer_enforces: false,
            unacknowledged: 0,
            last: 0,
        };
        let reader = tokio::spawn(async move {
            let session = connection.session.clone();
            if let Err(e) = connection.read_frames(read).await {
                tracing::debug!(error = %e, "a SPDY connection ended");
            }
            session.close();
        });
        Session { incoming, out, writer, reader }
    }

    /// The next stream that the other side opens; `None` when it has left.
    pub async fn accept(&mut self) -> Option<IncomingStream> {
        self.incoming.recv().await
    }

    /// Waits until the other side has left.
    pub async fn closed(&mut self) {
        let _ = (&mut self.reader).await;
    }

    /// Ends the connection: what is on its way is written, then the other side has a moment to hang up
    /// itself, so that it can read all of it.
    pub async fn close(mut self) {
        let _ = self.out.send(Out::End).await;
        let _ = (&mut self.writer).await;
        let _ = tokio::time::timeout(LINGER, &mut self.reader).await;
        self.reader.abort();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.out.try_send(Out::End);
        if !self.writer.is_finished() {
            self.reader.abort();
        }
    }
}

async fn write_frames(mut io: impl AsyncWrite + Unpin, mut outbox: mpsc::Receiver<Out>) {
    let mut encoder = HeaderEncoder::default();
    let mut write = async || -> io::Result<()> {
        while let Some(out) = outbox.recv().await {
            match out {
                Out::Control(frame) => io.write_all(&frame.to_bytes()).await?,
                Out::Reply { stream } => {
                    let headers = encoder.encode(&[]).map_err(io::Error::other)?;
                    let frame = ControlFrame::SynReply { stream, fin: false, headers };
                    io.write_all(&frame.to_bytes()).await?;
                }
                Out::Data { stream, fin, data } => {
                    io.write_all(&FrameHeader::data(stream, fin, data.len())).await?;
                    io.write_all(&data).await?;
                }
                Out::End => break,
            }
            if outbox.is_empty() {
                io.flush().await?;
            }
        }
        io.flush().await?;
        io.shutdown().await
    };
    if let Err(e) = write().await {
        tracing::debug!(error = %e, "cannot write to a SPDY connection");
    }
}

/// One stream as the reading side knows it.
struct Stream {
    /// `None` once the sender has ended or nobody reads.
    pipe: Option<DuplexStream>,
    window: Arc<SharedWindow>,
    unacknowledged: u32,
}

struct Connection {
    out: mpsc::Sender<Out>,
    accept: mpsc::Sender<IncomingStream>,
    streams: HashMap<u32, Stream>,
    session: Arc<SharedWindow>,
    initial_window: i64,
    peer_enforces: bool,
    unacknowledged: u32,
    last: u32,
}

fn protocol(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Connection {
    async fn read_frames(mut self, mut io: impl AsyncRead + Unpin) -> io::Result<()> {
        let result = self.read_until_end(&mut io).await;
        for stream in self.streams.values() {
            stream.window.close();
        }
        result
    }

    async fn read_until_end(&mut self, io: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        let mut decoder = HeaderDecoder::default();
        let mut head = [0; 8];
        loop {
            match io.read_exact(&mut head).await {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                result => result?,
            };
            match FrameHeader::parse(head).map_err(io::Error::other)? {
                FrameHeader::Data { stream, fin, length } => self.data(io, stream, fin, length).await?,
                FrameHeader::Control { kind, flags, length } => {
                    let mut body = vec![0; length as usize];
                    io.read_exact(&mut body).await?;
                    let frame = ControlFrame::parse(kind, flags, &body).map_err(io::Error::other)?;
                    self.control(frame, &mut decoder).await?;
                }
            }
        }
    }

    async fn send(&self, frame: ControlFrame) -> io::Result<()> {
        self.out.send(Out::Control(frame)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    async fn data(&mut self, io: &mut (impl AsyncRead + Unpin), id: u32, fin: bool, length: u32) -> io::Result<()> {
        let mut left = length as usize;
        let mut buffer = vec![0; left.min(CHUNK)];
        while left > 0 {
            let piece = left.min(CHUNK);
            io.read_exact(&mut buffer[..piece]).await?;
            left -= piece;
            if let Some(stream) = self.streams.get_mut(&id)
                && let Some(pipe) = &mut stream.pipe
                && pipe.write_all(&buffer[..piece]).await.is_err()
            {
                // Nobody reads it any more; what comes is dropped.
                stream.pipe = None;
            }
        }
        self.unacknowledged += length;
        if self.unacknowledged >= UPDATE_AFTER {
            let delta = std::mem::take(&mut self.unacknowledged);
            self.send(ControlFrame::WindowUpdate { stream: 0, delta }).await?;
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        stream.unacknowledged += length;
        if fin {
            stream.pipe = None;
        } else if stream.unacknowledged >= UPDATE_AFTER {
            let delta = std::mem::take(&mut stream.unacknowledged);
            self.send(ControlFrame::WindowUpdate { stream: id, delta }).await?;
        }
        Ok(())
    }

    async fn control(&mut self, frame: ControlFrame, decoder: &mut HeaderDecoder) -> io::Result<()> {
        match frame {
            ControlFrame::SynStream { stream, fin, headers } => {
                let headers = decoder.decode(&headers).map_err(io::Error::other)?;
                self.open(stream, fin, headers.into_iter().collect()).await
            }
            ControlFrame::SynReply { headers, .. } => {
                decoder.decode(&headers).map_err(io::Error::other)?;
                Ok(())
            }
            ControlFrame::Headers { stream, fin, headers } => {
                decoder.decode(&headers).map_err(io::Error::other)?;
                if let Some(stream) = self.streams.get_mut(&stream).filter(|_| fin) {
                    stream.pipe = None;
                }
                Ok(())
            }
            ControlFrame::RstStream { stream, .. } => {
                if let Some(stream) = self.streams.remove(&stream) {
                    stream.window.close();
                }
                Ok(())
            }
            ControlFrame::Settings(settings) => {
                for (id, value) in settings {
                    if id == SETTING_INITIAL_WINDOW {
                        let new = i64::from(value & 0x7fff_ffff);
                        let change = new - self.initial_window;
                        self.initial_window = new;
                        self.peer_enforces = true;
                        self.streams.values().for_each(|stream| stream.window.grant(change));
                    }
                }
                Ok(())
            }
            // The client's are odd; an even one answers ours, of which there are none.
            ControlFrame::Ping(id) if id % 2 == 1 => self.send(ControlFrame::Ping(id)).await,
            ControlFrame::WindowUpdate { stream: 0, delta } => {
                self.session.grant(delta.into());
                Ok(())
            }
            ControlFrame::WindowUpdate { stream, delta } => {
                if let Some(stream) = self.streams.get(&stream) {
                    stream.window.grant(delta.into());
                }
                Ok(())
            }
            ControlFrame::Ping(_) | ControlFrame::GoAway { .. } | ControlFrame::Unknown(_) => Ok(()),
        }
    }

    async fn open(&mut self, id: u32, fin: bool, headers: HashMap<String, String>) -> io::Result<()> {
        if id.is_multiple_of(2) || id <= self.last {
            let frame = ControlFrame::GoAway { last: self.last, status: STATUS_PROTOCOL_ERROR };
            self.send(frame).await?;
            return Err(protocol("a stream id that was used before or is not the client's"));
        }
        self.last = id;
        // Streams that have ended both ways are only found now.
        self.streams.retain(|_, stream| stream.pipe.is_some() || Arc::strong_count(&stream.window) > 1);
        if self.streams.len() >= MAX_STREAMS {
            return self.send(ControlFrame::RstStream { stream: id, status: STATUS_REFUSED }).await;
        }
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let window = Arc::new(SharedWindow::default());
        if self.peer_enforces {
            window.grant(self.initial_window - INITIAL_WINDOW);
        }
        let stream = Stream { pipe: (!fin).then_some(ours), window: window.clone(), unacknowledged: 0 };
        self.streams.insert(id, stream);
        self.out.send(Out::Reply { stream: id }).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        let incoming = IncomingStream {
            id,
            headers,
            reader: StreamReader(theirs),
            writer: StreamWriter {
                stream: id,
                out: self.out.clone(),
                window,
                session: self.session.clone(),
                finished: false,
            },
        };
        self.accept.send(incoming).await.map_err(|_| protocol("no streams are taken any more"))
    }
}
