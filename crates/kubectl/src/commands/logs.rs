//! `kubectl logs`.

use futures::StreamExt as _;
use serde_json::Value;

use crate::{
    cli::{self, Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::{self, say, tell},
    pods,
    rest::query,
    targets::Selectors,
};

pub(crate) const COMMAND: Command = Command {
    name: "logs",
    about: "Print the logs for a container in a pod",
    usage: "[-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]",
    flags: &[FLAGS, cli::SELECTOR],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::bool("all-containers", "Get all containers' logs in the pod(s)."),
    Flag::bool("all-pods", "Get logs from all pod(s). Sets prefix to true."),
    Flag::text("container", "Print the logs of this container").short('c'),
    Flag::bool("follow", "Specify if the logs should be streamed.").short('f'),
    Flag::bool("ignore-errors", "If watching / following pod logs, allow for any errors that occur to be non-fatal"),
    Flag::bool(
        "insecure-skip-tls-verify-backend",
        "Skip verifying the identity of the kubelet that logs are requested from.",
    ),
    Flag::int("limit-bytes", "Maximum bytes of logs to return.").or("0"),
    Flag::int("max-log-requests", "Specify maximum number of concurrent logs to follow when using by a selector.")
        .or("5"),
    Flag::duration("pod-running-timeout", "The length of time to wait until at least one pod is running").or("20s"),
    Flag::bool("prefix", "Prefix each log line with the log source (pod name and container name)"),
    Flag::bool("previous", "If true, print the logs for the previous instance of the container in a pod if it exists.")
        .short('p'),
    Flag::duration("since", "Only return logs newer than a relative duration like 5s, 2m, or 3h.").or("0s"),
    Flag::text("since-time", "Only return logs after a specific date (RFC3339)."),
    Flag::int(
        "tail",
        "Lines of recent log file to display. Defaults to -1 with no selector, showing all log lines otherwise 10.",
    )
    .or("-1"),
    Flag::bool("timestamps", "Include timestamps on each line in the log output"),
];

/// A log to print.
#[derive(Clone, Debug)]
struct Source {
    path: String,
    /// In front of each line.
    prefix: String,
}

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let selector = flags.text("selector");
    const EXPECTED: &str = "expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]'.\n";
    match (cli.args(), selector.is_empty()) {
        ([], true) => {
            let what = "POD or TYPE/NAME is a required argument for the logs command";
            return Err(cli.usage(format!("{EXPECTED}{what}")));
        }
        ([_, ..], false) => return Err(cli.usage("only a selector (-l) or a POD name is allowed")),
        ([_, _, _, ..], _) => {
            return Err(cli.usage(format!("{EXPECTED}POD or TYPE/NAME is a required argument for the logs command")));
        }
        ([_, _], _) if flags.given("container") => {
            return Err(Error::text("only one of -c or an inline [CONTAINER] arg is allowed"));
        }
        _ => {}
    }
    let container = cli.args().get(1).map_or(flags.text("container"), String::as_str);
    if flags.is("all-containers") && !container.is_empty() {
        return Err(Error::text(format!(
            "--all-containers=true should not be specified with container name {container}"
        )));
    }
    if flags.given("since-time") && flags.duration("since")?.0 != 0 {
        return Err(Error::text("at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    let pods = pods(cli).await?;
    let mut sources = Vec::new();
    for pod in &pods {
        let names = match flags.is("all-containers") {
            true => pods::containers(pod),
            false => vec![pods::container(pod, container, flags.is("all-pods"))?],
        };
        for name in names {
            sources.push(source(cli, pod, &name)?);
        }
    }
    let follow = flags.is("follow");
    let most = flags.int("max-log-requests")?;
    if follow && sources.len() > 1 && sources.len() as i64 > most {
        return Err(Error::text(format!(
            "you are attempting to follow {} log streams, but maximum allowed concurrency is {most}, use --max-log-requests to increase the limit",
            sources.len()
        )));
    }
    if follow && sources.len() > 1 {
        let printing = sources.iter().map(|source| print(cli, source));
        futures::future::try_join_all(printing).await?;
        return Ok(());
    }
    for source in &sources {
        print(cli, source).await?;
    }
    Ok(())
}

/// The pods that are meant; of a workload the first, unless all are wanted.
async fn pods(cli: &Cli) -> Result<Vec<Value>> {
    let namespace = cli.namespace()?;
    if let Some(name) = cli.args().first() {
        let item = cli.pod_or_owner(name).await.map_err(|error| match error.is_not_found() {
            true => Error::text(format!("error from server (NotFound): {error} in namespace {namespace:?}")),
            false => error,
        })?;
        let kind = format!("*v1.{}", item.resource.kind);
        let found = cli.pods_of(&item, cli.pod_patience()?).await;
        let mut found = found.map_err(|error| match error {
            Error::Text(text) if text.contains("not implemented") => {
                Error::text(format!("cannot get the logs from {kind}: {text}"))
            }
            other => other,
        })?;
        if found.len() > 1 && !cli.flags.is("all-pods") {
            let first = found[0]["metadata"]["name"].as_str().unwrap_or_default();
            tell!("Found {} pods, using pod/{first}", found.len());
            found.truncate(1);
        }
        return Ok(found);
    }
    let resource = cli.resource("pods").await?;
    let found = cli.list(resource, Some(&namespace), &Selectors::of(cli)).await?.1;
    if found.is_empty() {
        tell!("No resources found in {namespace} namespace.");
    }
    Ok(found)
}

fn source(cli: &Cli, pod: &Value, container: &str) -> Result<Source> {
    let flags = &cli.flags;
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let truth = |flag: &str| if flags.is(flag) { "true" } else { "" };
    let tail = match flags.int("tail")? {
        // With a selector there may be many.
        _ if !flags.given("tail") && flags.given("selector") => "10".to_owned(),
        lines if lines < -1 => return Err(Error::text("--tail must be greater than or equal to -1")),
        -1 => String::new(),
        lines => lines.to_string(),
    };
    let since = flags.duration("since")?;
    if since.is_negative() {
        return Err(Error::text("--since must be greater than 0"));
    }
    let since = if since.0 == 0 { String::new() } else { since.seconds_up().to_string() };
    let limit = match flags.int("limit-bytes")? {
        0 => String::new(),
        bytes if bytes < 0 => return Err(Error::text("--limit-bytes must be greater than 0")),
        bytes => bytes.to_string(),
    };
    let parameters = query(&[
        ("container", container),
        ("follow", truth("follow")),
        ("previous", truth("previous")),
        ("timestamps", truth("timestamps")),
        ("insecureSkipTLSVerifyBackend", truth("insecure-skip-tls-verify-backend")),
        ("tailLines", &tail),
        ("sinceSeconds", &since),
        ("sinceTime", flags.text("since-time")),
        ("limitBytes", &limit),
    ]);
    let prefix = match flags.is("prefix") || flags.is("all-pods") {
        true => format!("[pod/{}/{container}] ", text("name")),
        false => String::new(),
    };
    let path = format!("/api/v1/namespaces/{}/pods/{}/log{parameters}", text("namespace"), text("name"));
    Ok(Source { path, prefix })
}

async fn print(cli: &Cli, source: &Source) -> Result<()> {
    match copy(cli, source).await {
        Err(error) if cli.flags.is("ignore-errors") => {
            say!("error: {error}");
            Ok(())
        }
        other => other,
    }
}

async fn copy(cli: &Cli, source: &Source) -> Result<()> {
    let rest = cli.rest()?;
    let mut stream = Box::pin(rest.stream(&source.path, "*/*").await?);
    if source.prefix.is_empty() {
        while let Some(bytes) = stream.next().await {
            out::bytes(&bytes?);
        }
        return Ok(());
    }
    let mut line = Vec::new();
    while let Some(bytes) = stream.next().await {
        for byte in bytes? {
            line.push(byte);
            if byte == b'\n' {
                out::bytes(&[source.prefix.as_bytes(), &line].concat());
                line.clear();
            }
        }
    }
    if !line.is_empty() {
        out::bytes(&[source.prefix.as_bytes(), &line].concat());
    }
    Ok(())
}
