//! `kubectl scale` and `kubectl autoscale`.

use serde_json::{Value, json};

use super::create;
use crate::{
    cli::{self, Cli, Command, DryRun},
    error::{Error, Result},
    flags::Flag,
    out::tell,
    print::Printer,
    rest::query,
    targets::Item,
    watching::{self, Change},
};

pub(crate) const COMMAND: Command = Command {
    name: "scale",
    about: "Set a new size for a deployment, replica set, or replication controller",
    usage: "[--resource-version=version] [--current-replicas=count] --replicas=COUNT (-f FILENAME | TYPE NAME)",
    flags: &[FLAGS, crate::print::FLAGS, cli::FILES, cli::SELECTOR, cli::ALL, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(scale(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::int("current-replicas", "Precondition for current size. Requires that the current size of the resource match this value in order to scale.").or("-1"),
    Flag::int("replicas", "The new desired number of replicas. Required."),
    Flag::text("resource-version", "Precondition for resource version."),
    Flag::duration("timeout", "The length of time to wait before giving up on a scale operation, zero means don't wait.").or("0s"),
];

pub(crate) const AUTOSCALE: Command = Command {
    name: "autoscale",
    about: "Auto-scale a deployment, replica set, stateful set, or replication controller",
    usage: "(-f FILENAME | TYPE NAME | TYPE/NAME) [--min=MINPODS] --max=MAXPODS [--cpu=CPU] [--memory=MEMORY]",
    flags: &[AUTOSCALE_FLAGS, crate::print::FLAGS, cli::FILES, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(autoscale(cli))),
};

const AUTOSCALE_FLAGS: &[Flag] = &[
    Flag::text("cpu", "Target CPU utilization over all the pods: a percentage (80%) or a quantity (500m)."),
    Flag::int("cpu-percent", "The target average CPU utilization over all the pods, in percent.").or("-1"),
    Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-autoscale"),
    Flag::int("max", "The upper limit for the number of pods that can be set by the autoscaler. Required.").or("-1"),
    Flag::text("memory", "Target memory utilization over all the pods: a percentage (60%) or a quantity (200Mi)."),
    Flag::int("min", "The lower limit for the number of pods that can be set by the autoscaler.").or("-1"),
    Flag::text(
        "name",
        "The name for the newly created object. If not specified, the name of the input resource will be used.",
    ),
    Flag::bool("save-config", "If true, the configuration of current object will be saved in its annotation."),
    super::apply::VALIDATE,
];

async fn scale(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    create::required(cli, &["replicas"])?;
    let (replicas, current) = (flags.int("replicas")?, flags.int("current-replicas")?);
    if replicas < 0 {
        return Err(Error::text("The --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0"));
    }
    if current < -1 {
        return Err(Error::text("The --current-replicas must specify an integer of -1 or greater"));
    }
    let dry_run = cli.dry_run()?;
    let printer = Printer::of(flags, false)?;
    let items = cli.all_items(cli.args()).await?;
    if items.is_empty() {
        return Err(Error::text("no objects passed to scale"));
    }
    for item in &items {
        if dry_run == DryRun::Client {
            printer.done(&item.object, "scaled (dry run)")?;
            continue;
        }
        resize(cli, item, replicas, dry_run).await?;
        printer.done(&item.object, &format!("scaled{}", dry_run.suffix()))?;
    }
    if let Some(limit) = flags.duration("timeout")?.positive() {
        let rest = cli.rest()?;
        for item in &items {
            let reached = watching::until(&rest, &item.resource, Some(item.namespace()), item.name(), |change| {
                Ok(match change {
                    Change::Is(object) => {
                        object["status"]["observedGeneration"].as_i64() >= object["metadata"]["generation"].as_i64()
                            && object["status"]["replicas"].as_i64().unwrap_or(0) == replicas
                    }
                    Change::Missing | Change::Gone => true,
                })
            });
            watching::within(Some(limit), reached, || Error::text("timed out waiting for the condition")).await?;
        }
    }
    Ok(())
}

async fn resize(cli: &Cli, item: &Item, replicas: i64, dry_run: DryRun) -> Result<()> {
    let (flags, rest) = (&cli.flags, cli.rest()?);
    let path = format!("{}/scale", item.path());
    let parameters = query(&[("dryRun", dry_run.parameter())]);
    let version = flags.text("resource-version");
    let current = flags.int("current-replicas")?;
    if version.is_empty() && current < 0 {
        let patch = json!({"spec": {"replicas": replicas}});
        return rest.patch(&format!("{path}{parameters}"), "merge", &patch).await.map(drop);
    }
    let mut scale = rest.get(&path).await?;
    let found = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if current >= 0 && found != current {
        return Err(Error::text(format!("Expected replicas to be {current}, was {found}")));
    }
    if !version.is_empty() && scale["metadata"]["resourceVersion"] != version {
        let found = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        return Err(Error::text(format!("Expected resource version to be {version}, was {found}")));
    }
    scale["spec"]["replicas"] = replicas.into();
    rest.put(&format!("{path}{parameters}"), &scale).await.map(drop)
}

async fn autoscale(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    create::required(cli, &["max"])?;
    let (minimum, maximum) = (flags.int("min")?, flags.int("max")?);
    if maximum < 1 {
        return Err(Error::text(
            "--max=MAXPODS is required and must be at least 1, max: ".to_owned() + &maximum.to_string(),
        ));
    }
    if maximum < minimum {
        return Err(Error::text(format!(
            "--max=MAXPODS must be larger or equal to --min=MINPODS, max: {maximum}, min: {minimum}"
        )));
    }
    let items = cli.all_items(cli.args()).await?;
    if items.is_empty() {
        return Err(Error::text("no objects passed to autoscale"));
    }
    if flags.given("cpu-percent") {
        tell!(
            "Flag --cpu-percent has been deprecated, Use --cpu with percentage or resource quantity format (e.g., '70%' for utilization or '500m' for milliCPU)."
        );
    }
    for item in &items {
        let name = match flags.text("name") {
            "" => item.name(),
            name => name,
        };
        let mut metrics = Vec::new();
        let percent = match flags.int("cpu-percent")? {
            percent if percent >= 0 => format!("{percent}%"),
            _ => flags.text("cpu").to_owned(),
        };
        for (resource, wanted) in [("cpu", percent.as_str()), ("memory", flags.text("memory"))] {
            if !wanted.is_empty() {
                metrics.push(metric(resource, wanted)?);
            }
        }
        let mut spec = json!({
            "scaleTargetRef": {"apiVersion": item.resource.api_version(), "kind": item.resource.kind, "name": item.name()},
            "maxReplicas": maximum,
        });
        if minimum > 0 {
            spec["minReplicas"] = minimum.into();
        }
        if !metrics.is_empty() {
            spec["metrics"] = metrics.into();
        }
        let object = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name}, "spec": spec,
            "status": {"currentMetrics": null, "desiredReplicas": 0},
        });
        create::make_as(cli, object, "autoscaled", "").await?;
    }
    Ok(())
}

fn metric(resource: &str, wanted: &str) -> Result<Value> {
    let target = match wanted.strip_suffix('%').or(wanted.parse::<i64>().ok().map(|_| wanted)) {
        Some(percent) => {
            let percent: i64 =
                percent.parse().map_err(|_| Error::text(format!("invalid {resource} value: {wanted:?}")))?;
            json!({"type": "Utilization", "averageUtilization": percent})
        }
        None => {
            wanted
                .parse::<skiff_api::quantity::Quantity>()
                .map_err(|_| Error::text(format!("invalid {resource} value: {wanted:?}")))?;
            json!({"type": "AverageValue", "averageValue": wanted})
        }
    };
    Ok(json!({"type": "Resource", "resource": {"name": resource, "target": target}}))
}
