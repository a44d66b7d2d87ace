//! `kubectl create job` and `kubectl create cronjob`.

use serde_json::{Value, json};

use super::{MAKE, make, name, required};
use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
};

pub(super) const JOB: Command = Command {
    name: "job",
    about: "Create a job with the specified name",
    usage: "NAME --image=image [--from=cronjob/name] -- [COMMAND] [args...]",
    flags: &[
        &[
            Flag::text("image", "Image name to run."),
            Flag::text("from", "The name of the resource to create a Job from (only cronjob is supported)."),
        ],
        MAKE[0],
        MAKE[1],
        MAKE[2],
    ],
    subcommands: &[],
    run: Some(|cli| Box::pin(job(cli))),
};

pub(super) const CRON_JOB: Command = Command {
    name: "cronjob",
    about: "Create a cron job with the specified name",
    usage: "NAME --image=image --schedule='0/5 * * * ?' -- [COMMAND] [args...]",
    flags: &[
        &[
            Flag::text("image", "Image name to run."),
            Flag::text("schedule", "A schedule in the Cron format the job should be run with."),
            Flag::text("restart", "job's restart policy. supported values: OnFailure, Never"),
        ],
        MAKE[0],
        MAKE[1],
        MAKE[2],
    ],
    subcommands: &[],
    run: Some(|cli| Box::pin(cron_job(cli))),
};

fn template(cli: &Cli, name: &str, restart: &str) -> Value {
    let mut container = json!({"image": cli.flags.text("image"), "name": name, "resources": {}});
    if let Some(command) = cli.flags.dash.map(|at| &cli.args()[at..]).filter(|command| !command.is_empty()) {
        container["command"] = command.into();
    }
    json!({"metadata": {}, "spec": {"containers": [container], "restartPolicy": restart}})
}

async fn job(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    let (image, from) = (cli.flags.text("image"), cli.flags.text("from"));
    if image.is_empty() == from.is_empty() {
        return Err(Error::text("either --image or --from must be specified"));
    }
    if from.is_empty() {
        let spec = json!({"template": template(cli, &name, "Never")});
        let object =
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec, "status": {}});
        return make(cli, object).await;
    }
    if cli.flags.dash.is_some() {
        return Err(Error::text("cannot specify --from and command"));
    }
    let cron_jobs = cli.all_items(&[from.to_owned()]).await?;
    let [cron_job] = cron_jobs.as_slice() else { return Err(Error::text("from must be an existing cronjob")) };
    if cron_job.resource.kind != "CronJob" {
        return Err(Error::text(format!("unknown object type {}", cron_job.resource.kind)));
    }
    let template = &cron_job.object["spec"]["jobTemplate"];
    let mut annotations = template["metadata"]["annotations"].clone();
    annotations["cronjob.kubernetes.io/instantiate"] = "manual".into();
    let object = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "annotations": annotations,
            "labels": template["metadata"]["labels"],
            "ownerReferences": [{
                "apiVersion": "batch/v1", "kind": "CronJob", "name": cron_job.name(),
                "uid": cron_job.object["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": template["spec"],
    });
    let mut object = object;
    crate::patch::without_nulls(&mut object);
    make(cli, object).await
}

async fn cron_job(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    required(cli, &["image", "schedule"])?;
    let restart = match cli.flags.text("restart") {
        "" => "OnFailure",
        given => given,
    };
    let spec = json!({
        "jobTemplate": {"metadata": {"name": name}, "spec": {"template": template(cli, &name, restart)}},
        "schedule": cli.flags.text("schedule"),
    });
    make(
        cli,
        json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": spec, "status": {}}),
    )
    .await
}
