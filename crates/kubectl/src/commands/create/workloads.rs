//! `kubectl create deployment` and `kubectl create service`.

use serde_json::{Value, json};

use super::{MAKE, make, name, required};
use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
};

pub(super) const DEPLOYMENT: Command = Command {
    name: "deployment",
    about: "Create a deployment with the specified name",
    usage: "NAME --image=image -- [COMMAND] [args...]",
    flags: &[DEPLOYMENT_FLAGS, MAKE[0], MAKE[1], MAKE[2]],
    subcommands: &[],
    run: Some(|cli| Box::pin(deployment(cli))),
};

const DEPLOYMENT_FLAGS: &[Flag] = &[
    Flag::array("image", "Image names to run. A deployment can have multiple images set for multi-container pod."),
    Flag::int("port", "The containerPort that this deployment exposes.").or("-1"),
    Flag::int("replicas", "Number of replicas to create.").or("1").short('r'),
];

pub(super) const SERVICE: Command = Command {
    name: "service",
    about: "Create a service using a specified subcommand",
    usage: "(clusterip | externalname | loadbalancer | nodeport)",
    flags: &[],
    subcommands: SERVICES,
    run: None,
};

const SERVICES: &[Command] = &[
    Command {
        name: "clusterip",
        about: "Create a ClusterIP service",
        usage: "NAME [--tcp=<port>:<targetPort>] [--dry-run=server|client|none]",
        flags: &[
            TCP,
            &[Flag::text("clusterip", "Assign your own ClusterIP or set to 'None' for a 'headless' service.")],
            MAKE[0],
            MAKE[1],
            MAKE[2],
        ],
        subcommands: &[],
        run: Some(|cli| Box::pin(make_service(cli, "ClusterIP"))),
    },
    Command {
        name: "externalname",
        about: "Create an ExternalName service",
        usage: "NAME --external-name external.name",
        flags: &[TCP, &[Flag::text("external-name", "External name of service")], MAKE[0], MAKE[1], MAKE[2]],
        subcommands: &[],
        run: Some(|cli| Box::pin(make_service(cli, "ExternalName"))),
    },
    Command {
        name: "loadbalancer",
        about: "Create a LoadBalancer service",
        usage: "NAME [--tcp=port:targetPort]",
        flags: &[TCP, MAKE[0], MAKE[1], MAKE[2]],
        subcommands: &[],
        run: Some(|cli| Box::pin(make_service(cli, "LoadBalancer"))),
    },
    Command {
        name: "nodeport",
        about: "Create a NodePort service",
        usage: "NAME [--tcp=port:targetPort]",
        flags: &[
            TCP,
            &[Flag::int("node-port", "Port used to expose the service on each node in a cluster.").or("0")],
            MAKE[0],
            MAKE[1],
            MAKE[2],
        ],
        subcommands: &[],
        run: Some(|cli| Box::pin(make_service(cli, "NodePort"))),
    },
];
const TCP: &[Flag] = &[Flag::list("tcp", "Port pairs can be specified as '<port>:<targetPort>'.")];

async fn deployment(cli: &Cli) -> Result<()> {
    required(cli, &["image"])?;
    let name = name(cli)?;
    let images = cli.flags.list("image");
    let command = cli.flags.dash.map_or(&[][..], |at| &cli.args()[at..]);
    if images.len() > 1 && !command.is_empty() {
        return Err(Error::text("cannot specify multiple --image options and command"));
    }
    let port = cli.flags.int("port")?;
    let mut containers: Vec<Value> = images
        .iter()
        .map(|image| {
            let mut container = json!({"image": image, "name": container_name(image), "resources": {}});
            if !command.is_empty() {
                container["command"] = command.into();
            }
            container
        })
        .collect();
    if let Some(first) = containers.first_mut().filter(|_| port >= 0) {
        first["ports"] = json!([{"containerPort": port}]);
    }
    let labels = json!({"app": name});
    make(
        cli,
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "replicas": cli.flags.int("replicas")?,
                "selector": {"matchLabels": labels},
                "strategy": {},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
            },
            "status": {},
        }),
    )
    .await
}

/// `registry/team/web:1.2@sha256:…` makes `web`.
fn container_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    let last = last.split('@').next().unwrap_or_default();
    let name = last.split(':').next().unwrap_or_default();
    name.to_lowercase().replace(['_', '.'], "-").trim_matches('-').to_owned()
}

async fn make_service(cli: &Cli, kind: &str) -> Result<()> {
    let name = name(cli)?;
    let flags = &cli.flags;
    let cluster_ip = flags.text("clusterip");
    let ports = flags.list("tcp");
    if ports.is_empty() && kind != "ExternalName" && !(kind == "ClusterIP" && cluster_ip == "None") {
        return Err(Error::text("at least one tcp port specifier must be provided"));
    }
    let mut list = Vec::new();
    for pair in ports {
        let (port, target) = pair.split_once(':').unwrap_or((pair, pair));
        let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0);
        let port = number(port).ok_or_else(|| {
            Error::text(format!("invalid port specification: strconv.Atoi: parsing {port:?}: invalid syntax"))
        })?;
        let target_port: Value = number(target).map_or_else(|| target.into(), Into::into);
        let mut entry =
            json!({"name": pair.replace(':', "-"), "port": port, "protocol": "TCP", "targetPort": target_port});
        if kind == "NodePort" && flags.int("node-port")? > 0 {
            entry["nodePort"] = flags.int("node-port")?.into();
        }
        list.push(entry);
    }
    let labels = json!({"app": name});
    let mut spec = json!({"selector": labels, "type": kind});
    if !list.is_empty() {
        spec["ports"] = list.into();
    }
    if !cluster_ip.is_empty() {
        spec["clusterIP"] = cluster_ip.into();
    }
    if kind == "ExternalName" {
        required(cli, &["external-name"])?;
        spec["externalName"] = flags.text("external-name").into();
    }
    make(
        cli,
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": spec,
            "status": {"loadBalancer": {}},
        }),
    )
    .await
}

#[cfg(test)]
mod tests {
    #[test]
    fn containers_are_named_after_their_image() {
        assert_eq!(super::container_name("nginx:1.21"), "nginx");
        assert_eq!(super::container_name("localhost:5000/team/my_app@sha256:ab"), "my-app");
    }
}
