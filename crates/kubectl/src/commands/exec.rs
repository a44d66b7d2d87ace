//! `kubectl exec`.

use crate::{
    cli::{self, Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::tell,
    pods,
    rest::query,
    streams::{self, Streams},
    targets::Item,
};

pub(crate) const COMMAND: Command = Command {
    name: "exec",
    about: "Execute a command in a container",
    usage: "(POD | TYPE/NAME) [-c CONTAINER] [flags] -- COMMAND [args...]",
    flags: &[FLAGS, cli::FILES],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

/// Those of `attach` too.
pub(super) const FLAGS: &[Flag] = &[
    Flag::text("container", "Container name. If omitted, use the kubectl.kubernetes.io/default-container annotation or the first container.").short('c'),
    Flag::duration("pod-running-timeout", "The length of time to wait until at least one pod is running").or("1m0s"),
    Flag::bool("quiet", "Only print output from the remote session").short('q'),
    Flag::bool("stdin", "Pass stdin to the container").short('i'),
    Flag::bool("tty", "Stdin is a TTY").short('t'),
];

async fn run(cli: &Cli) -> Result<()> {
    let (flags, args) = (&cli.flags, cli.args());
    let files = cli.file_names()?;
    let name = args.first().filter(|_| flags.dash != Some(0));
    let command = match flags.dash {
        Some(at @ (0 | 1)) => &args[at..],
        _ if args.len() > 1 || !args.is_empty() && !files.is_empty() => {
            return Err(cli.usage("exec [POD] [COMMAND] is not supported anymore. Use exec [POD] -- [COMMAND] instead"));
        }
        _ => &[],
    };
    if name.is_none() && files.is_empty() {
        return Err(Error::text("pod, type/name or --filename must be specified"));
    }
    if command.is_empty() {
        return Err(Error::text("you must specify at least one command for the container"));
    }
    let item: Item = match name {
        Some(name) => cli.pod_or_owner(name).await?,
        None => {
            let mut items = cli.items(&cli.file_targets(&files).await?).await?.0;
            match items.len() {
                1 => items.remove(0),
                _ => return Err(Error::text("cannot exec into multiple objects at a time")),
            }
        }
    };
    let pods = cli.pods_to_reach(&item).await?;
    let pod = &pods[0];
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Error::text(format!("cannot exec into a container in a completed pod; current phase is {phase}")));
    }
    let container = pods::container(pod, flags.text("container"), flags.is("quiet"))?;
    let mut streams = Streams { stdin: flags.is("stdin"), tty: flags.is("tty") && flags.is("stdin") };
    if streams.tty && !is_terminal() {
        streams.tty = false;
        if !flags.is("quiet") {
            tell!("Unable to use a TTY - input is not a terminal or the right kind of file");
        }
    }
    let path = path(pod, &container, command, streams);
    streams::run(&*cli.rest()?, &path, streams).await
}

/// Whether keys can be read from standard input.
pub(super) fn is_terminal() -> bool {
    use std::io::IsTerminal as _;
    std::io::stdin().is_terminal()
}

/// Where a command in a container is asked for.
pub(super) fn path(pod: &serde_json::Value, container: &str, command: &[String], streams: Streams) -> String {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let mut parameters: Vec<(&str, &str)> = command.iter().map(|word| ("command", word.as_str())).collect();
    // An empty word is a word.
    let empty = parameters.iter().filter(|(_, word)| word.is_empty()).count();
    parameters.push(("container", container));
    parameters.extend(streams.parameters());
    let query = match empty {
        0 => query(&parameters),
        _ => {
            let all = parameters.iter().map(|(key, value)| format!("{key}={}", crate::rest::escape(value)));
            format!("?{}", all.collect::<Vec<_>>().join("&"))
        }
    };
    format!("/api/v1/namespaces/{}/pods/{}/exec{query}", text("namespace"), text("name"))
}
