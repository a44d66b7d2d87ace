//! exec, attach and port-forward from the client's side, and the terminal of the user.

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::termios::{self, OptionalActions, Termios};
use serde_json::Value;
use skiff_streaming::{TerminalSize, client};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::{
    error::{Error, Result},
    rest::{self, Rest},
};

/// Sizes of the terminal that wait to be told.
const SIZES: usize = 8;

/// The user's terminal, passing on every key as it is; as before when dropped.
pub(crate) struct RawTerminal(Termios);

impl RawTerminal {
    /// `None` if standard input is no terminal.
    pub(crate) fn enter() -> Option<RawTerminal> {
        let stdin = rustix::stdio::stdin();
        let before = termios::tcgetattr(stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        Some(RawTerminal(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// The terminal's size, now and whenever it changes.
fn sizes() -> mpsc::Receiver<TerminalSize> {
    let (send, receive) = mpsc::channel(SIZES);
    tokio::spawn(async move {
        let kind = tokio::signal::unix::SignalKind::window_change();
        let Ok(mut changes) = tokio::signal::unix::signal(kind) else { return };
        loop {
            if let Ok(size) = termios::tcgetwinsize(rustix::stdio::stdout()) {
                let size = TerminalSize { width: size.ws_col, height: size.ws_row };
                if send.send(size).await.is_err() {
                    return;
                }
            }
            if changes.recv().await.is_none() {
                return;
            }
        }
    });
    receive
}

/// Makes a connection of its own speak a protocol.
pub(crate) async fn connect(rest: &Rest, path: &str, protocol: &str) -> Result<TokioIo<Upgraded>> {
    let mut request = client::upgrade_request(path, protocol).map_err(|error| Error::text(error.to_string()))?;
    for (name, value) in rest.headers() {
        request.headers_mut().append(name, value.clone());
    }
    let response = skiff_client::upgrade(&rest.config, request).await.map_err(|error| rest.unreachable(&*error))?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        use http_body_util::BodyExt as _;
        let code = response.status();
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(match rest::refusal(code, &body) {
            error if body.starts_with(b"{") => error,
            _ => Error::text(format!("unable to upgrade connection: {}", String::from_utf8_lossy(&body).trim())),
        });
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| Error::text(rest::chain(&error)))?;
    Ok(TokioIo::new(upgraded))
}

/// What a command is connected with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
}

impl Streams {
    /// The parameters of the request.
    pub(crate) fn parameters(self) -> Vec<(&'static str, &'static str)> {
        let mut all = vec![("stdout", "true")];
        if self.stdin {
            all.push(("stdin", "true"));
        }
        match self.tty {
            true => all.push(("tty", "true")),
            false => all.push(("stderr", "true")),
        }
        all
    }
}

/// Runs a command, or attaches to one, until it ends; `path` has the parameters.
pub(crate) async fn run(rest: &Rest, path: &str, streams: Streams) -> Result<()> {
    let stdin = streams.stdin.then(tokio::io::stdin);
    run_with(rest, path, streams, stdin, tokio::io::stdout(), tokio::io::stderr()).await
}

/// With input and outputs of one's own.
pub(crate) async fn run_with(
    rest: &Rest,
    path: &str,
    streams: Streams,
    stdin: Option<impl AsyncRead + Unpin>,
    stdout: impl AsyncWrite + Unpin,
    stderr: impl AsyncWrite + Unpin,
) -> Result<()> {
    let io = connect(rest, path, client::COMMAND_PROTOCOL).await?;
    let terminal = if streams.tty { RawTerminal::enter() } else { None };
    let sizes = match streams.tty {
        true => sizes(),
        false => mpsc::channel(1).1,
    };
    let ended = client::run_command(io, stdin, stdout, stderr, sizes).await;
    drop(terminal);
    outcome(&ended?)
}

/// What the status at a command's end means.
fn outcome(status: &Value) -> Result<()> {
    if status["status"] == "Success" {
        return Ok(());
    }
    if status["reason"] != "NonZeroExitCode" {
        return Err(Error::text(status["message"].as_str().unwrap_or_default()));
    }
    let mut causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code = causes.find(|cause| cause["reason"] == "ExitCode").and_then(|cause| cause["message"].as_str());
    let code: i64 = code.and_then(|code| code.parse().ok()).unwrap_or(1);
    let text = format!("command terminated with exit code {code}");
    Err(Error::Code(code as u8, Box::new(Error::Plain(text))))
}
