//! `kubectl run`.

use serde_json::{Value, json};

use super::{attach, create};
use crate::{
    cli::{self, Cli, Command, DryRun},
    error::{Error, Result},
    flags::Flag,
    out::{self, say, tell},
    pods,
    rest::query,
    streams::Streams,
    watching::{self, Change},
};

pub(crate) const COMMAND: Command = Command {
    name: "run",
    about: "Run a particular image on the cluster",
    usage: "NAME --image=image [--env=\"key=value\"] [--port=port] [--dry-run=server|client] [--overrides=inline-json] [--command] -- [COMMAND] [args...]",
    flags: &[FLAGS, crate::print::FLAGS, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::array("annotations", "Annotations to apply to the pod."),
    Flag::bool("attach", "If true, wait for the Pod to start running, and then attach to the Pod."),
    Flag::bool("command", "If true and extra arguments are present, use them as the 'command' field in the container."),
    Flag::array("env", "Environment variables to set in the container."),
    Flag::bool("expose", "If true, create a ClusterIP service associated with the pod.  Requires `--port`."),
    Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-run"),
    Flag::text("image", "The image for the container to run."),
    Flag::text("image-pull-policy", "The image pull policy for the container."),
    Flag::text("labels", "Comma separated labels to apply to the pod. Will override previous values.").short('l'),
    Flag::bool(
        "leave-stdin-open",
        "If the pod is started in interactive mode, leave stdin open after the first attach completes.",
    ),
    Flag::text("override-type", "The method used to override the generated object: json, merge, or strategic.")
        .or("merge"),
    Flag::text("overrides", "An inline JSON override for the generated object."),
    Flag::duration("pod-running-timeout", "The length of time to wait until at least one pod is running").or("1m0s"),
    Flag::text("port", "The port that this container exposes."),
    Flag::bool("privileged", "If true, run the container in privileged mode."),
    Flag::bool("quiet", "If true, suppress prompt messages.").short('q'),
    Flag::text("restart", "The restart policy for this Pod.  Legal values [Always, OnFailure, Never].").or("Always"),
    Flag::bool("rm", "If true, delete the pod after it exits.  Only valid when attaching to the container."),
    Flag::bool("save-config", "If true, the configuration of current object will be saved in its annotation."),
    Flag::bool("stdin", "Keep stdin open on the container in the pod, even if nothing is attached.").short('i'),
    Flag::bool("tty", "Allocate a TTY for the container in the pod.").short('t'),
    super::apply::VALIDATE,
];

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let dry_run = cli.dry_run()?;
    let attached = flags.is("attach") || flags.is("stdin") && !flags.given("attach");
    create::required(cli, &["image"])?;
    let Some(name) = cli.args().first().filter(|_| flags.dash != Some(0)) else {
        return Err(Error::text("NAME is required for run"));
    };
    let restart = flags.text("restart");
    if !matches!(restart, "Always" | "OnFailure" | "Never") {
        return Err(cli.usage(format!("invalid restart policy: {restart}")));
    }
    let image = flags.text("image");
    if image.is_empty() {
        return Err(Error::text("--image is required"));
    }
    if image.chars().any(|c| c.is_whitespace() || c.is_uppercase() && !image.contains([':', '/'])) {
        return Err(Error::text(format!("invalid image name {image:?}: invalid reference format")));
    }
    if flags.is("tty") && !flags.is("stdin") {
        return Err(cli.usage("-i/--stdin is required for containers with -t/--tty=true"));
    }
    if flags.is("expose") && !flags.given("port") {
        return Err(cli.usage("--port must be set when exposing a service"));
    }
    if flags.given("port") && flags.text("port").parse::<u16>().is_err() {
        return Err(Error::text("--port must be a number"));
    }
    if !attached && flags.is("rm") {
        return Err(cli.usage("--rm should only be used for attached containers"));
    }
    if attached && dry_run != DryRun::None {
        return Err(Error::text(
            "--dry-run=[server|client] can't be used with attached containers options (--attach, --stdin, or --tty)",
        ));
    }
    let labels = labels(flags.text("labels"), name)?;
    let pod = pod(cli, name, &labels, restart)?;
    if !attached {
        let pod = create::send(cli, pod).await?;
        if flags.is("expose") {
            create::make_as(cli, service(cli, name, &labels)?, "created", "").await?;
        }
        return create::tell(cli, &pod, "created");
    }
    let namespace = cli.namespace()?;
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let parameters = query(&[("fieldManager", flags.text("field-manager"))]);
    let rest = cli.rest()?;
    let pod = rest.post(&format!("{path}{parameters}"), &pod).await?;
    if flags.is("expose") {
        let services = format!("/api/v1/namespaces/{namespace}/services{parameters}");
        rest.post(&services, &service(cli, name, &labels)?).await?;
    }
    let ended = follow(cli, &pod, restart).await;
    if flags.is("rm") {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
        let mut made = vec![("pod", format!("{path}/{name}"))];
        if flags.is("expose") {
            made.push(("service", format!("/api/v1/namespaces/{namespace}/services/{name}")));
        }
        for (kind, path) in made {
            match rest.delete(&path, &options).await {
                Ok(_) if flags.is("quiet") => {}
                Ok(_) => say!("{kind} \"{name}\" deleted from {namespace} namespace"),
                Err(error) if error.is_not_found() => {}
                Err(error) => tell!("{}", error.message()),
            }
        }
    }
    ended
}

fn labels(text: &str, name: &str) -> Result<Value> {
    if text.is_empty() {
        return Ok(json!({"run": name}));
    }
    let mut labels = json!({});
    for pair in text.split(',') {
        let Some((key, value)) = pair.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(Error::text(format!("unexpected label spec: {pair}")));
        };
        labels[key] = value.into();
    }
    Ok(labels)
}

fn pod(cli: &Cli, name: &str, labels: &Value, restart: &str) -> Result<Value> {
    let flags = &cli.flags;
    let mut container = json!({"image": flags.text("image"), "name": name, "resources": {}});
    let words = &cli.args()[1..];
    if !words.is_empty() {
        container[if flags.is("command") { "command" } else { "args" }] = words.into();
    }
    let mut variables = Vec::new();
    for pair in flags.list("env") {
        let Some((key, value)) = pair.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(Error::text(format!("invalid env: {pair}")));
        };
        variables.push(json!({"name": key, "value": value}));
    }
    if !variables.is_empty() {
        container["env"] = variables.into();
    }
    if let Ok(port) = flags.text("port").parse::<u16>() {
        container["ports"] = json!([{"containerPort": port}]);
    }
    match flags.text("image-pull-policy") {
        "" => {}
        policy @ ("Always" | "IfNotPresent" | "Never") => container["imagePullPolicy"] = policy.into(),
        other => return Err(Error::text(format!("invalid image pull policy: {other}"))),
    }
    if flags.is("stdin") {
        container["stdin"] = true.into();
        if !flags.is("leave-stdin-open") {
            container["stdinOnce"] = true.into();
        }
    }
    if flags.is("tty") {
        container["tty"] = true.into();
    }
    if flags.is("privileged") {
        container["securityContext"] = json!({"privileged": true});
    }
    let mut metadata = json!({"labels": labels, "name": name});
    for pair in flags.list("annotations") {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Error::text(format!("unexpected annotations spec: {pair}")));
        };
        metadata["annotations"][key] = value.into();
    }
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"containers": [container], "dnsPolicy": "ClusterFirst", "restartPolicy": restart},
        "status": {},
    });
    if flags.given("overrides") {
        let text = flags.text("overrides");
        let patch = match text.trim_start().starts_with(['{', '[']) {
            true => skiff_api::decode::json(text.as_bytes()),
            false => skiff_api::decode::yaml(text),
        };
        let patch = patch.map_err(|error| Error::text(format!("Invalid JSON Patch: {error}")))?.value;
        match flags.text("override-type") {
            "merge" => skiff_api::patch::merge(&mut pod, &patch),
            "strategic" => skiff_api::patch::strategic(&mut pod, &patch, "api.core.v1.Pod")
                .map_err(|error| Error::text(error.to_string()))?,
            "json" => skiff_api::patch::json(&mut pod, &patch).map_err(|error| Error::text(error.to_string()))?,
            other => return Err(Error::text(format!("invalid merge type: {other}"))),
        }
    }
    Ok(pod)
}

fn service(cli: &Cli, name: &str, labels: &Value) -> Result<Value> {
    let port: u16 = cli.flags.text("port").parse().map_err(|_| Error::text("--port must be a number"))?;
    Ok(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": port, "protocol": "TCP", "targetPort": port}], "selector": labels},
        "status": {"loadBalancer": {}},
    }))
}

/// Attaches to the pod once it runs, and takes its end for ours.
async fn follow(cli: &Cli, pod: &Value, restart: &str) -> Result<()> {
    let flags = &cli.flags;
    let pod = wait(cli, pod, |phase, ready| ready || matches!(phase, "Succeeded" | "Failed")).await?;
    let container = pods::container(&pod, "", flags.is("quiet"))?;
    if matches!(phase(&pod), "Succeeded" | "Failed") {
        logs(cli, &pod, &container).await?;
    } else {
        let streams = Streams { stdin: flags.is("stdin"), tty: flags.is("tty") };
        if let Err(error) = attach::attach(cli, &pod, &container, streams, flags.is("quiet")).await {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            tell!("warning: couldn't attach to pod/{name}, falling back to streaming logs: {error}");
            logs(cli, &pod, &container).await?;
        }
    }
    if flags.is("leave-stdin-open") || restart == "Always" {
        return Ok(());
    }
    let pod = wait(cli, &pod, |phase, _| match restart {
        "OnFailure" => phase == "Succeeded",
        _ => matches!(phase, "Succeeded" | "Failed"),
    })
    .await?;
    if phase(&pod) == "Succeeded" {
        return Ok(());
    }
    let place = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let pod_name = format!("pod {}/{}", place("namespace"), place("name"));
    let terminated = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    match terminated["exitCode"].as_i64().filter(|code| *code != 0) {
        Some(code) => {
            let text = |field: &str| terminated[field].as_str().unwrap_or_default();
            let message = format!("{pod_name} terminated ({})\n{}", text("reason"), text("message"));
            Err(Error::Code(code as u8, Box::new(Error::Plain(message.trim_end_matches('\n').to_owned()))))
        }
        None => Err(Error::text(format!("{pod_name} failed with unknown exit code"))),
    }
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

/// Waits for a phase, or for a pod that runs and is ready.
async fn wait(cli: &Cli, pod: &Value, wanted: impl Fn(&str, bool) -> bool) -> Result<Value> {
    let rest = cli.rest()?;
    let resource = cli.resource("pods").await?;
    let place = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let mut last = Value::Null;
    let waiting = watching::until(&rest, resource, Some(place("namespace")), place("name"), |change| match change {
        Change::Is(pod) => {
            let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let ready = conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            last = pod.clone();
            Ok(wanted(phase(pod), phase(pod) == "Running" && ready))
        }
        Change::Missing | Change::Gone => Err(Error::text(format!("pods {:?} not found", place("name")))),
    });
    let late = || Error::text("timed out waiting for the condition");
    watching::within(Some(cli.pod_patience()?), waiting, late).await?;
    Ok(last)
}

async fn logs(cli: &Cli, pod: &Value, container: &str) -> Result<()> {
    let place = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let path = format!("/api/v1/namespaces/{}/pods/{}/log", place("namespace"), place("name"));
    out::bytes(&cli.rest()?.bytes(&format!("{path}{}", query(&[("container", container)]))).await?);
    Ok(())
}
