//! Commands: exec and attach, over WebSocket channels or SPDY streams.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::request::{self, Body, Transport};
use crate::spdy::{IncomingStream, Session, StreamReader, StreamWriter};
use crate::status::Outcome;
use crate::websocket::{self, Coding};

/// How long a client may take to open the streams it said it wants, as upstream.
const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes on their way between a connection and a command, per stream.
const PIPE_BYTES: usize = 32 * 1024;
/// Sizes that wait to be set.
const RESIZE_BACKLOG: usize = 8;

/// Versions of the protocol over SPDY, the empty one being that of clients that name none.
const SPDY_PROTOCOLS: [&str; 5] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", ""];
/// Versions of the protocol over WebSocket.
const WEBSOCKET_PROTOCOLS: [&str; 8] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "v5.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "v3.channel.k8s.io",
    "",
];

pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
pub(crate) const ERROR: u8 = 3;
pub(crate) const RESIZE: u8 = 4;
/// Version 5: the next byte names a channel that its sender has ended.
pub(crate) const CLOSE: u8 = 255;

/// Which streams a command has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandOptions {
    /// Input.
    pub stdin: bool,
    /// Output.
    pub stdout: bool,
    /// Error output; not with a terminal.
    pub stderr: bool,
    /// A terminal, whose size the client tells.
    pub tty: bool,
}

/// The size of a client's terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// The other end of a client's streams. Dropping an output ends it; the end of input is end of file.
#[derive(Debug)]
pub struct CommandStreams {
    /// What the client types.
    pub stdin: Option<DuplexStream>,
    /// Output.
    pub stdout: Option<DuplexStream>,
    /// Error output.
    pub stderr: Option<DuplexStream>,
    /// Sizes of the client's terminal as they come.
    pub resize: mpsc::Receiver<TerminalSize>,
}

/// Runs a command, or attaches to one.
pub trait CommandHandler: Send + 'static {
    /// Runs it to its end. Is dropped when the client leaves before.
    fn run(self, streams: CommandStreams) -> impl Future<Output = Outcome> + Send;
}

/// Our end of the streams of a command.
#[derive(Default)]
struct Pipes {
    stdin: Option<DuplexStream>,
    stdout: Option<DuplexStream>,
    stderr: Option<DuplexStream>,
    resize: Option<mpsc::Sender<TerminalSize>>,
}

fn pipes(options: CommandOptions) -> (Pipes, CommandStreams) {
    let pipe = |wanted: bool| wanted.then(|| tokio::io::duplex(PIPE_BYTES)).unzip();
    let (stdin, their_stdin) = pipe(options.stdin);
    let (stdout, their_stdout) = pipe(options.stdout);
    let (stderr, their_stderr) = pipe(options.stderr && !options.tty);
    let (resize, sizes) = mpsc::channel(RESIZE_BACKLOG);
    (
        Pipes { stdin, stdout, stderr, resize: Some(resize) },
        CommandStreams { stdin: their_stdin, stdout: their_stdout, stderr: their_stderr, resize: sizes },
    )
}

/// Answers an upgrade request for a command and, when the connection is ours, runs the handler on it in a
/// task of its own. Must be called within a tokio runtime.
///
/// What is not an upgrade, or in no protocol known, is refused with the codes and texts of upstream.
pub fn serve_command<B>(request: Request<B>, options: CommandOptions, handler: impl CommandHandler) -> Response<Body> {
    if !(options.stdin || options.stdout || options.stderr) {
        let text = "you must specify at least 1 of stdin, stdout, stderr";
        return request::refuse(StatusCode::BAD_REQUEST, text);
    }
    let Some(transport) = request::transport(request.headers()) else {
        return request::refuse(StatusCode::BAD_REQUEST, "Upgrade request required");
    };
    let known: &[&str] = match transport {
        Transport::WebSocket => &WEBSOCKET_PROTOCOLS,
        Transport::Spdy => &SPDY_PROTOCOLS,
    };
    let Some(protocol) = request::negotiate(request.headers(), transport, known) else {
        return request::refuse_protocols(transport, known);
    };
    let Some(response) = request::accept(request.headers(), transport, protocol) else {
        return request::refuse(StatusCode::BAD_REQUEST, "invalid upgrade request");
    };
    let protocol = protocol.to_owned();
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let io = match upgrade.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(e) => {
                tracing::debug!(error = %e, "a client left before the upgrade");
                return;
            }
        };
        match transport {
            Transport::WebSocket => over_websocket(io, &protocol, options, handler).await,
            Transport::Spdy => over_spdy(io, &protocol, options, handler).await,
        }
    });
    response
}

/// Whether the error stream carries a `Status` document rather than text.
fn tells_status(protocol: &str) -> bool {
    protocol.starts_with("v4.") || protocol.starts_with("v5.")
}

fn outcome_bytes(outcome: &Outcome, protocol: &str) -> Vec<u8> {
    if tells_status(protocol) { outcome.to_status() } else { outcome.to_text().into_bytes() }
}

// --- WebSocket ---

type Socket<T> = WebSocketStream<T>;

async fn over_websocket<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: T,
    protocol: &str,
    options: CommandOptions,
    handler: impl CommandHandler,
) {
    let coding = Coding::of(protocol);
    let (mut sink, stream) = websocket::open(io, Role::Server).await.split();
    let (mut ours, theirs) = pipes(options);
    let (stdout, stderr) = (ours.stdout.take(), ours.stderr.take());
    // As upstream: an empty message on the first channel written to tells the client that it is on.
    let first = if options.stdout {
        STDOUT
    } else if stderr.is_some() {
        STDERR
    } else {
        ERROR
    };
    if sink.send(coding.encode(first, b"")).await.is_err() {
        return;
    }
    let closes = protocol.starts_with("v5.");
    let input = receive(stream, coding, closes, ours);
    tokio::pin!(input);
    let outcome = {
        let run = handler.run(theirs);
        let output = send_output(&mut sink, coding, [stdout, stderr]);
        tokio::pin!(run, output);
        let (mut outcome, mut drained) = (None, false);
        loop {
            tokio::select! {
                result = &mut run, if outcome.is_none() => outcome = Some(result),
                sent = &mut output, if !drained => match sent {
                    Ok(()) => drained = true,
                    Err(_) => return,
                },
                // The client has left; dropping the handler ends what it runs.
                () = &mut input => return,
            }
            if drained && let Some(outcome) = outcome.take() {
                break outcome;
            }
        }
    };
    let error = outcome_bytes(&outcome, protocol);
    if tells_status(protocol) || !error.is_empty() {
        let _ = sink.send(coding.encode(ERROR, &error)).await;
    }
    websocket::close(&mut sink, input).await;
}

async fn send_output<T: AsyncRead + AsyncWrite + Unpin>(
    sink: &mut SplitSink<Socket<T>, Message>,
    coding: Coding,
    outputs: [Option<DuplexStream>; 2],
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let [mut stdout, mut stderr] = outputs;
    let (mut out, mut err) = (vec![0; PIPE_BYTES], vec![0; PIPE_BYTES]);
    async fn read(from: &mut Option<DuplexStream>, into: &mut [u8]) -> usize {
        match from {
            // An end is an end, however it came.
            Some(from) => from.read(into).await.unwrap_or(0),
            None => std::future::pending().await,
        }
    }
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            n = read(&mut stdout, &mut out) => match n {
                0 => stdout = None,
                n => sink.send(coding.encode(STDOUT, &out[..n])).await?,
            },
            n = read(&mut stderr, &mut err) => match n {
                0 => stderr = None,
                n => sink.send(coding.encode(STDERR, &err[..n])).await?,
            },
        }
    }
    Ok(())
}

/// Hands on what the client sends until it leaves.
async fn receive<T: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<Socket<T>>,
    coding: Coding,
    closes: bool,
    mut pipes: Pipes,
) {
    while let Some(Ok(message)) = stream.next().await {
        let (channel, data) = match coding.decode(message) {
            Ok(Some(message)) => message,
            Ok(None) => continue,
            Err(_) => return,
        };
        match channel {
            STDIN => {
                if let Some(stdin) = &mut pipes.stdin
                    && stdin.write_all(&data).await.is_err()
                {
                    pipes.stdin = None;
                }
            }
            RESIZE => resize(&pipes, &data),
            CLOSE if closes && data.first() == Some(&STDIN) => pipes.stdin = None,
            _ => {}
        }
    }
}

/// Passes on a size; one that is not understood or that nobody waits for is dropped.
fn resize(pipes: &Pipes, data: &[u8]) {
    if let (Some(resize), Ok(size)) = (&pipes.resize, serde_json::from_slice::<TerminalSize>(data)) {
        let _ = resize.try_send(size);
    }
}

// --- SPDY ---

async fn over_spdy<T: AsyncRead + AsyncWrite + Send + 'static>(
    io: T,
    protocol: &str,
    options: CommandOptions,
    handler: impl CommandHandler,
) {
    let mut session = Session::server(io);
    let opened = tokio::time::timeout(STREAM_CREATION_TIMEOUT, open_streams(&mut session, protocol, options));
    let Ok(Some(mut streams)) = opened.await else {
        tracing::debug!("a client did not open the streams it wanted");
        return session.close().await;
    };
    let Some(mut error) = streams.remove("error") else { return session.close().await };
    let (ours, theirs) = pipes(options);
    let resize = ours.resize.clone();
    let mut take = |name: &str| streams.remove(name).map(|stream| (stream.reader, stream.writer));
    let (stdin, stdout, stderr, sizes) = (take("stdin"), take("stdout"), take("stderr"), take("resize"));
    let outcome = {
        let run = handler.run(theirs);
        let input = async {
            tokio::join!(copy_input(stdin, ours.stdin), read_sizes(sizes, resize));
            std::future::pending::<()>().await;
        };
        let output = async {
            tokio::join!(copy_output(stdout, ours.stdout), copy_output(stderr, ours.stderr));
        };
        tokio::pin!(run, input, output);
        let (mut outcome, mut drained) = (None, false);
        loop {
            tokio::select! {
                result = &mut run, if outcome.is_none() => outcome = Some(result),
                () = &mut output, if !drained => drained = true,
                () = &mut input => {}
                // The client has left; dropping the handler ends what it runs.
                () = session.closed() => return,
            }
            if drained && let Some(outcome) = outcome.take() {
                break outcome;
            }
        }
    };
    let bytes = outcome_bytes(&outcome, protocol);
    // A client that has gone does not hear it.
    let _ = error.writer.write(bytes.into()).await;
    let _ = error.writer.finish().await;
    session.close().await;
}

/// Takes the streams that the options call for, by their type.
async fn open_streams(
    session: &mut Session,
    protocol: &str,
    options: CommandOptions,
) -> Option<HashMap<String, IncomingStream>> {
    let has_resize = tells_status(protocol) || protocol.starts_with("v3.");
    let wanted = 1
        + usize::from(options.stdin)
        + usize::from(options.stdout)
        + usize::from(options.stderr && !options.tty)
        + usize::from(options.tty && has_resize);
    let mut streams = HashMap::new();
    while streams.len() < wanted {
        let stream = session.accept().await?;
        let kind = stream.header("streamtype").to_owned();
        if matches!(kind.as_str(), "error" | "stdin" | "stdout" | "stderr" | "resize") {
            streams.insert(kind, stream);
        } else {
            tracing::debug!(%kind, "a stream of an unknown type");
        }
    }
    Some(streams)
}

async fn copy_input(from: Option<(StreamReader, StreamWriter)>, into: Option<DuplexStream>) {
    if let (Some((mut reader, mut writer)), Some(mut into)) = (from, into) {
        // Whichever side ends first.
        let _ = tokio::io::copy(&mut reader, &mut into).await;
        let _ = into.shutdown().await;
        let _ = writer.finish().await;
    }
}

async fn copy_output(into: Option<(StreamReader, StreamWriter)>, from: Option<DuplexStream>) {
    if let (Some((_reader, mut writer)), Some(from)) = (into, from) {
        // A client that has gone is noticed by the session.
        let _ = writer.copy_from(from).await;
        let _ = writer.finish().await;
    }
}

/// Reads sizes, JSON documents one after the other.
async fn read_sizes(from: Option<(StreamReader, StreamWriter)>, into: Option<mpsc::Sender<TerminalSize>>) {
    let (Some((mut reader, _writer)), Some(into)) = (from, into) else { return };
    let mut pending = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(n) = reader.read(&mut buffer).await
        && n > 0
    {
        pending.extend_from_slice(&buffer[..n]);
        let mut documents = serde_json::Deserializer::from_slice(&pending).into_iter::<TerminalSize>();
        while let Some(Ok(size)) = documents.next() {
            let _ = into.try_send(size);
        }
        let consumed = documents.byte_offset();
        pending.drain(..consumed);
        if pending.len() > buffer.len() {
            return;
        }
    }
}
