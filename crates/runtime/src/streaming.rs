//! Where clients connect to stream: exec, attach and port-forward.
//!
//! A CRI call gives a URL on loopback with a ticket that is good once and not for long; whoever comes with
//! it, usually the kubelet for a client, gets what the call was about.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use skiff_cri::v1;
use skiff_streaming::{
    Body, CommandHandler, CommandOptions, CommandStreams, Outcome, PortForwardHandler, TerminalSize, serve_command,
    serve_port_forward,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::runtime::{Container, Inner, Runtime, lock};
use crate::service::{ExecProcess, input_pipe, output_pipe};
use crate::supervisor::set_size;

/// How long a ticket is good, as upstream.
const TICKET_LIFETIME: Duration = Duration::from_secs(60);
/// Tickets that wait to be used, as upstream.
const MAX_TICKETS: usize = 1000;
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long output may be held open by others after a process has ended.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(5);

/// What a client is allowed to do with a URL it was given.
#[derive(Clone, Debug)]
pub(crate) enum Ticket {
    Exec(v1::ExecRequest),
    Attach(v1::AttachRequest),
    PortForward(v1::PortForwardRequest),
}

/// The server on loopback.
pub(crate) struct StreamingServer {
    address: SocketAddr,
    tickets: Mutex<HashMap<String, (Ticket, Instant)>>,
    task: tokio::task::AbortHandle,
}

impl Drop for StreamingServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StreamingServer {
    pub(crate) async fn start(runtime: &Runtime) -> io::Result<StreamingServer> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(accept(listener, Arc::downgrade(&runtime.0))).abort_handle();
        Ok(StreamingServer { address, tickets: Mutex::default(), task })
    }
}

async fn accept(listener: TcpListener, inner: Weak<Inner>) {
    loop {
        let Ok((io, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        // Keystrokes are not to wait for more of them; without it they just come a little later.
        let _ = io.set_nodelay(true);
        let inner = inner.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| {
                let response = match inner.upgrade() {
                    Some(inner) => Runtime(inner).serve_ticket(request),
                    None => plain(StatusCode::SERVICE_UNAVAILABLE, "the runtime has ended"),
                };
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(io), service)
                .with_upgrades()
                .await;
            if let Err(e) = served {
                tracing::debug!(error = %e, "a streaming connection ended");
            }
        });
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

impl Runtime {
    /// A URL at which the ticket is good.
    pub(crate) fn streaming_url(&self, ticket: Ticket) -> Result<String> {
        let server =
            self.0.streaming.get().ok_or_else(|| Error::Precondition("the streaming server is not up".to_owned()))?;
        let kind = match &ticket {
            Ticket::Exec(request) => {
                check_streams(request.tty, [request.stdin, request.stdout, request.stderr])?;
                "exec"
            }
            Ticket::Attach(request) => {
                check_streams(request.tty, [request.stdin, request.stdout, request.stderr])?;
                "attach"
            }
            Ticket::PortForward(_) => "portforward",
        };
        let token = uuid::Uuid::new_v4().simple().to_string();
        let mut tickets = lock(&server.tickets);
        tickets.retain(|_, (_, since)| since.elapsed() < TICKET_LIFETIME);
        if tickets.len() >= MAX_TICKETS {
            return Err(Error::Precondition("maximum number of in-flight requests exceeded".to_owned()));
        }
        tickets.insert(token.clone(), (ticket, Instant::now()));
        Ok(format!("http://{}/{kind}/{token}", server.address))
    }

    fn serve_ticket(&self, request: Request<Incoming>) -> Response<Body> {
        let token = request.uri().path().rsplit('/').next().unwrap_or_default();
        let found = self.0.streaming.get().and_then(|server| lock(&server.tickets).remove(token));
        let Some((ticket, _)) = found.filter(|(_, since)| since.elapsed() < TICKET_LIFETIME) else {
            return plain(StatusCode::NOT_FOUND, "404 page not found");
        };
        let options = |tty: bool, [stdin, stdout, stderr]: [bool; 3]| CommandOptions {
            stdin,
            stdout,
            stderr: stderr && !tty,
            tty,
        };
        match ticket {
            Ticket::Exec(exec) => {
                let options = options(exec.tty, [exec.stdin, exec.stdout, exec.stderr]);
                serve_command(request, options, Exec { runtime: self.clone(), request: exec })
            }
            Ticket::Attach(attach) => {
                let options = options(attach.tty, [attach.stdin, attach.stdout, attach.stderr]);
                serve_command(request, options, Attach { runtime: self.clone(), request: attach })
            }
            Ticket::PortForward(forward) => {
                // Whoever asked for it has checked them; what is no port cannot be connected to.
                let ports = forward.port.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
                serve_port_forward(request, ports, Ports { runtime: self.clone(), sandbox: forward.pod_sandbox_id })
            }
        }
    }
}

fn check_streams(tty: bool, [stdin, stdout, stderr]: [bool; 3]) -> Result<()> {
    if tty && stderr {
        return Err(Error::Invalid("tty and stderr cannot both be true".to_owned()));
    }
    if !(stdin || stdout || stderr) {
        return Err(Error::Invalid("one of stdin, stdout, or stderr must be set".to_owned()));
    }
    Ok(())
}

fn text_of(error: Error) -> String {
    skiff_cri::Status::from(error).message().to_owned()
}

// --- exec ---

struct Exec {
    runtime: Runtime,
    request: v1::ExecRequest,
}

/// Kills the process when the client leaves before it has ended.
struct Running(Option<ExecProcess>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            tokio::spawn(async move { process.kill().await });
        }
    }
}

impl CommandHandler for Exec {
    async fn run(self, streams: CommandStreams) -> Outcome {
        let command = self.request.cmd.clone();
        match self.start(streams).await {
            Ok(0) => Outcome::Success,
            Ok(code) => Outcome::Exit { code, command },
            Err(e) => Outcome::Error(format!("error executing command in container: {}", text_of(e))),
        }
    }
}

impl Exec {
    async fn start(self, streams: CommandStreams) -> Result<i32> {
        let container = self.runtime.running(&self.request.container_id)?;
        if self.request.tty {
            self.with_terminal(&container, streams).await
        } else {
            self.with_pipes(&container, streams).await
        }
    }

    async fn with_pipes(self, container: &Container, streams: CommandStreams) -> Result<i32> {
        let CommandStreams { stdin, stdout, stderr, resize: _ } = streams;
        let (stdin_end, stdin_writer) = stdin.is_some().then(input_pipe).transpose()?.unzip();
        let output = |wanted: bool| Ok::<_, Error>(wanted.then(output_pipe).transpose()?.unzip());
        let (stdout_reader, stdout_end) = output(stdout.is_some())?;
        let (stderr_reader, stderr_end) = output(stderr.is_some())?;
        let process =
            self.runtime.exec_process(container, self.request.cmd, false, [stdin_end, stdout_end, stderr_end]).await?;
        let mut running = Running(Some(process));
        let input = copy(stdin, stdin_writer);
        let outputs = async { tokio::join!(copy(stdout_reader, stdout), copy(stderr_reader, stderr)) };
        wait(&mut running, input, outputs).await
    }

    async fn with_terminal(self, container: &Container, streams: CommandStreams) -> Result<i32> {
        let CommandStreams { stdin, stdout, stderr: _, resize } = streams;
        let none = [None, None, None];
        let mut process = self.runtime.exec_process(container, self.request.cmd, true, none).await?;
        let terminal = process.terminal.take();
        let mut running = Running(Some(process));
        let terminal = terminal.ok_or_else(|| Error::Precondition("the supervisor gave no terminal".to_owned()))?;
        let duplicate = |fd: &OwnedFd| fd.try_clone().map_err(Error::io("use the terminal"));
        let sizes = duplicate(&terminal)?;
        let reader = Terminal::new(duplicate(&terminal)?)?;
        let writer = Terminal::new(terminal)?;
        let input = async {
            let resize = set_sizes(sizes, resize);
            tokio::join!(copy(stdin, Some(writer)), resize);
        };
        wait(&mut running, input, copy(Some(reader), stdout)).await
    }
}

/// Waits for the end of a process and of its output.
async fn wait(running: &mut Running, input: impl Future<Output = ()>, outputs: impl Future) -> Result<i32> {
    tokio::pin!(input, outputs);
    let (mut fed, mut drained) = (false, false);
    let code = loop {
        let Some(process) = &mut running.0 else { return Err(Error::Precondition("ended".to_owned())) };
        tokio::select! {
            code = process.wait() => break code,
            () = &mut input, if !fed => fed = true,
            _ = &mut outputs, if !drained => drained = true,
        }
    };
    running.0 = None;
    if !drained {
        // Who was left behind by the process may hold them for ever.
        let _ = tokio::time::timeout(OUTPUT_PATIENCE, outputs).await;
    }
    code
}

/// Copies until either side ends, and then ends the other; does nothing if one is missing.
async fn copy(from: Option<impl AsyncRead + Unpin>, into: Option<impl AsyncWrite + Unpin>) {
    if let (Some(mut from), Some(mut into)) = (from, into) {
        // Whichever ends first; how does not matter.
        let _ = tokio::io::copy(&mut from, &mut into).await;
        let _ = into.shutdown().await;
    }
}

async fn set_sizes(terminal: OwnedFd, mut sizes: mpsc::Receiver<TerminalSize>) {
    while let Some(TerminalSize { width, height }) = sizes.recv().await {
        if let Err(e) = set_size(terminal.as_fd(), width, height) {
            tracing::debug!(error = %e, "cannot resize a terminal");
        }
    }
}

/// The other end of a terminal. Its end comes as an error, when the last process has closed it.
struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    fn new(fd: OwnedFd) -> Result<Terminal> {
        let what = "use the terminal";
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|e| Error::io(what)(e.into()))?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK).map_err(|e| Error::io(what)(e.into()))?;
        // SAFETY: an owned descriptor always gives the same number and is closed only with the wrapper.
        let fd = unsafe { AsyncFd::register(fd) };
        Ok(Terminal(fd.map_err(|e| Error::io(what)(e.into()))?))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read = guard.try_io(|fd| Ok(rustix::io::read(fd, buf.initialize_unfilled())?));
            match read {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) if e.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd, data)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Nothing: the end of what the client types is not the end of the terminal.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

// --- attach ---

struct Attach {
    runtime: Runtime,
    request: v1::AttachRequest,
}

impl CommandHandler for Attach {
    async fn run(self, streams: CommandStreams) -> Outcome {
        match self.start(streams).await {
            Ok(()) => Outcome::Success,
            Err(e) => Outcome::Error(format!("error attaching to container: {}", text_of(e))),
        }
    }
}

impl Attach {
    async fn start(self, streams: CommandStreams) -> Result<()> {
        let CommandStreams { stdin, stdout, stderr, mut resize } = streams;
        let container = self.runtime.running(&self.request.container_id)?;
        let has_stdin = lock(&container.record).config.stdin;
        let stdin = stdin.filter(|_| has_stdin);
        let (stdin_end, stdin_writer) = stdin.is_some().then(input_pipe).transpose()?.unzip();
        let output = |wanted: bool| Ok::<_, Error>(wanted.then(output_pipe).transpose()?.unzip());
        let (stdout_reader, stdout_end) = output(stdout.is_some())?;
        let (stderr_reader, stderr_end) = output(stderr.is_some())?;
        self.runtime.attach_streams(&container, [stdin_end, stdout_end, stderr_end]).await?;
        let sizes = async {
            while let Some(TerminalSize { width, height }) = resize.recv().await {
                if let Err(e) = self.runtime.resize(&container, width, height).await {
                    tracing::debug!(error = %e, "cannot resize a terminal");
                }
            }
            std::future::pending::<()>().await;
        };
        let has_output = stdout.is_some() || stderr.is_some();
        let outputs = async { tokio::join!(copy(stdout_reader, stdout), copy(stderr_reader, stderr)) };
        let input = async {
            copy(stdin, stdin_writer).await;
            // With output it goes on after the end of input.
            if has_output {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = outputs, if has_output => {}
            () = input => {}
            () = sizes => {}
        }
        Ok(())
    }
}

// --- port-forward ---

struct Ports {
    runtime: Runtime,
    sandbox: String,
}

impl PortForwardHandler for Ports {
    type Connection = tokio::net::TcpStream;

    async fn connect(&self, port: u16) -> std::result::Result<Self::Connection, String> {
        let fd = self.runtime.connect_port(&self.sandbox, port).await.map_err(text_of)?;
        let stream = std::net::TcpStream::from(fd);
        let connected = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream));
        connected.map_err(|e| e.to_string())
    }
}
