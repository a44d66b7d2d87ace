//! `kubectl attach`.

use serde_json::Value;

use super::exec;
use crate::{
    cli::{self, Cli, Command},
    error::{Error, Result},
    out::tell,
    pods,
    rest::query,
    streams::{self, Streams},
};

pub(crate) const COMMAND: Command = Command {
    name: "attach",
    about: "Attach to a running container",
    usage: "(POD | TYPE/NAME) -c CONTAINER",
    flags: &[exec::FLAGS, cli::FILES],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let name = match cli.args() {
        [] if cli.file_names()?.is_empty() => {
            return Err(Error::text("at least 1 argument is required for attach"));
        }
        [name] => name,
        [kind, name] => &format!("{kind}/{name}"),
        _ => return Err(Error::text("expected POD, TYPE/NAME, or TYPE NAME, (at most 2 arguments) saw 3")),
    };
    let item = cli.pod_or_owner(name).await?;
    let pods = cli.pods_of(&item, cli.pod_patience()?).await?;
    let pod = &pods[0];
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Error::text(format!("cannot attach a container in a completed pod; current phase is {phase}")));
    }
    let container = pods::container(pod, flags.text("container"), flags.is("quiet"))?;
    let wanted = Streams { stdin: flags.is("stdin"), tty: flags.is("tty") && flags.is("stdin") };
    attach(cli, pod, &container, wanted, flags.is("quiet")).await
}

/// Attaches to a container of a pod until it ends.
pub(super) async fn attach(cli: &Cli, pod: &Value, container: &str, wanted: Streams, quiet: bool) -> Result<()> {
    let mut streams = wanted;
    let spec = pod["spec"]["containers"].as_array().into_iter().flatten().find(|c| c["name"] == container);
    if streams.tty && spec.is_some_and(|spec| spec["tty"] != true) {
        streams.tty = false;
        if !quiet {
            tell!("error: Unable to use a TTY - container {container} did not allocate one");
        }
    } else if streams.tty && !super::exec::is_terminal() {
        streams.tty = false;
        if !quiet {
            tell!("Unable to use a TTY - input is not a terminal or the right kind of file");
        }
    }
    if !quiet {
        tell!(
            "All commands and output from this session will be recorded in container logs, including credentials and sensitive information passed through the command prompt."
        );
        if streams.stdin {
            tell!("If you don't see a command prompt, try pressing enter.");
        }
    }
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let mut parameters = vec![("container", container)];
    parameters.extend(streams.parameters());
    let path = format!("/api/v1/namespaces/{}/pods/{}/attach{}", text("namespace"), text("name"), query(&parameters));
    streams::run(&*cli.rest()?, &path, streams).await
}
