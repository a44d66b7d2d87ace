//! Further processes in containers, and joining a container's own streams.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use skiff_cri::v1;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::client::{CallError, Client};
use crate::error::{Error, Result};
use crate::runtime::{Container, Runtime, lock};
use crate::spec::Call;

/// Bytes of each stream that ExecSync returns; the rest is read and dropped. Both must fit a message.
const MAX_OUTPUT: usize = 7 << 20;
/// How long output may be held open by others after the process has ended.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(5);

/// A process in a container.
pub(crate) struct ExecProcess {
    exec: u64,
    client: Client,
    ended: oneshot::Receiver<i32>,
    /// The other end of its terminal, if it has one.
    pub(crate) terminal: Option<OwnedFd>,
}

impl ExecProcess {
    /// Waits for its end and returns its exit code.
    pub(crate) async fn wait(&mut self) -> Result<i32> {
        (&mut self.ended).await.map_err(|_| Error::Precondition("the container ended while the process ran".to_owned()))
    }

    /// Kills it.
    pub(crate) async fn kill(&self) {
        let call = Call::SignalExec { exec: self.exec, signal: libc::SIGKILL };
        // It may have ended meanwhile.
        let _ = self.client.call(call, Vec::new()).await;
    }
}

/// A pipe whose reading end belongs to this process.
pub(crate) fn output_pipe() -> Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = new_pipe()?;
    let read = pipe::Receiver::from_owned_fd(read).map_err(Error::io("make a pipe"))?;
    Ok((read, write))
}

/// A pipe whose writing end belongs to this process.
pub(crate) fn input_pipe() -> Result<(OwnedFd, pipe::Sender)> {
    let (read, write) = new_pipe()?;
    let write = pipe::Sender::from_owned_fd(write).map_err(Error::io("make a pipe"))?;
    Ok((read, write))
}

fn new_pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| Error::io("make a pipe")(e.into()))
}

/// Reads everything but keeps no more than the limit.
async fn read_limited(mut reader: pipe::Receiver, into: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = vec![0; 32 * 1024];
    loop {
        let n = reader.read(&mut chunk).await?;
        if n == 0 {
            return Ok(());
        }
        let room = MAX_OUTPUT - into.len();
        into.extend_from_slice(&chunk[..n.min(room)]);
    }
}

impl Runtime {
    /// A container that is running.
    pub(crate) fn running(&self, id: &str) -> Result<Arc<Container>> {
        let container = self.container(id)?;
        if container.is_running() {
            return Ok(container);
        }
        let state = super::container::state_of(&container.state.borrow());
        let name = format!("CONTAINER_{}", format!("{state:?}").to_uppercase());
        Err(Error::Precondition(format!("container is in {name} state")))
    }

    /// Starts a process in a container. Without a terminal it gets these streams (input, output, error
    /// output), of which none is needed; with one it has only that.
    pub(crate) async fn exec_process(
        &self,
        container: &Container,
        command: Vec<String>,
        tty: bool,
        streams: [Option<OwnedFd>; 3],
    ) -> Result<ExecProcess> {
        if command.is_empty() {
            return Err(Error::Invalid("exec needs a command".to_owned()));
        }
        let sandbox = self.sandbox_of(container)?;
        let client = sandbox.client()?;
        let record = lock(&container.record).clone();
        let image = Self::image_config(container)?;
        let hostname = lock(&sandbox.record).config.hostname.clone();
        let mut process = self.process_spec(&record.config, &image, &hostname, Some(command))?;
        if tty && !process.env.iter().any(|variable| variable.starts_with("TERM=")) {
            process.env.push("TERM=xterm".to_owned());
        }
        let exec = self.next_exec();
        let (sender, ended) = oneshot::channel();
        lock(&sandbox.execs).insert(exec, sender);
        let given = [0, 1, 2].map(|n| streams[n].is_some());
        let call = Call::Exec { exec, id: container.id.clone(), process: Box::new(process), tty, streams: given };
        match client.call(call, streams.into_iter().flatten().collect()).await {
            Ok((_, fds)) => Ok(ExecProcess { exec, client, ended, terminal: fds.into_iter().next() }),
            Err(e) => {
                lock(&sandbox.execs).remove(&exec);
                Err(match e {
                    CallError::Refused(text) => Error::Invalid(format!(
                        "failed to exec in container: failed to start exec: OCI runtime exec failed: exec failed: unable to start container process: {text}: unknown"
                    )),
                    e => Error::supervisor("exec in container")(e),
                })
            }
        }
    }

    pub(crate) async fn exec_sync(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse> {
        let container = self.running(&request.container_id)?;
        let (stdout, stdout_end) = output_pipe()?;
        let (stderr, stderr_end) = output_pipe()?;
        let streams = [None, Some(stdout_end), Some(stderr_end)];
        let mut process = self.exec_process(&container, request.cmd, false, streams).await?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit_code = {
            let outputs = async { tokio::try_join!(read_limited(stdout, &mut out), read_limited(stderr, &mut err)) };
            tokio::pin!(outputs);
            let timeout = match request.timeout {
                seconds if seconds > 0 => Duration::from_secs(seconds.unsigned_abs()),
                _ => Duration::MAX,
            };
            let deadline = tokio::time::sleep(timeout.min(Duration::from_secs(86_400 * 365)));
            tokio::pin!(deadline);
            let mut drained = false;
            let code = loop {
                tokio::select! {
                    code = process.wait() => break code?,
                    read = &mut outputs, if !drained => {
                        read.map_err(Error::io("read the output"))?;
                        drained = true;
                    }
                    () = &mut deadline => {
                        process.kill().await;
                        return Err(Error::Deadline(format!(
                            "failed to exec in container: timeout {}s exceeded: context deadline exceeded",
                            request.timeout
                        )));
                    }
                }
            };
            if !drained {
                // Who was left behind by the process may hold the streams for ever.
                let _ = tokio::time::timeout(OUTPUT_PATIENCE, &mut outputs).await;
            }
            code
        };
        Ok(v1::ExecSyncResponse { stdout: out, stderr: err, exit_code })
    }

    /// Joins a container's streams; each ends when its other side is closed.
    pub(crate) async fn attach_streams(&self, container: &Container, streams: [Option<OwnedFd>; 3]) -> Result<()> {
        let client = self.sandbox_of(container)?.client()?;
        let given = [0, 1, 2].map(|n| streams[n].is_some());
        let call = Call::Attach { id: container.id.clone(), streams: given };
        client
            .call(call, streams.into_iter().flatten().collect())
            .await
            .map_err(Error::supervisor("attach to the container"))?;
        Ok(())
    }

    /// Sets the size of a container's own terminal.
    pub(crate) async fn resize(&self, container: &Container, width: u16, height: u16) -> Result<()> {
        let client = self.sandbox_of(container)?.client()?;
        let call = Call::Resize { id: container.id.clone(), width, height };
        client.call(call, Vec::new()).await.map_err(Error::supervisor("resize the terminal"))?;
        Ok(())
    }

    /// Connects to a port of a pod.
    pub(crate) async fn connect_port(&self, sandbox: &str, port: u16) -> Result<OwnedFd> {
        let client = self.sandbox(sandbox)?.client()?;
        let (_, fds) = client.call(Call::Connect(port), Vec::new()).await.map_err(Error::supervisor("port forward"))?;
        fds.into_iter().next().ok_or_else(|| Error::Precondition("the supervisor gave no connection".to_owned()))
    }
}
