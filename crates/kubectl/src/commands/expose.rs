//! `kubectl expose`.

use serde_json::{Map, Value, json};

use super::create;
use crate::{
    cli::{self, Cli, Command},
    error::{Error, Result},
    flags::Flag,
    targets::Item,
};

pub(crate) const COMMAND: Command = Command {
    name: "expose",
    about: "Take a replication controller, service, deployment or pod and expose it as a new Kubernetes service",
    usage: "(-f FILENAME | TYPE NAME) [--port=port] [--protocol=TCP|UDP|SCTP] [--target-port=number-or-name] [--name=name] [--external-ip=external-ip-of-service] [--type=type]",
    flags: &[FLAGS, crate::print::FLAGS, cli::FILES, cli::DRY_RUN],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::text("cluster-ip", "ClusterIP to be assigned to the service."),
    Flag::text("external-ip", "Additional external IP address to be accepted for the service."),
    Flag::text("field-manager", "Name of the manager used to track field ownership.").or("kubectl-expose"),
    Flag::text("labels", "Labels to apply to the service created by this call.").short('l'),
    Flag::text("load-balancer-ip", "IP to assign to the LoadBalancer."),
    Flag::text("name", "The name for the newly created object."),
    Flag::text(
        "port",
        "The port that the service should serve on. Copied from the resource being exposed, if unspecified",
    ),
    Flag::text("protocol", "The network protocol for the service to be created. Default is 'TCP'."),
    Flag::bool("save-config", "If true, the configuration of current object will be saved in its annotation."),
    Flag::text("selector", "A label selector to use for this service."),
    Flag::text(
        "session-affinity",
        "If non-empty, set the session affinity for the service to this; legal values: 'None', 'ClientIP'",
    ),
    Flag::text(
        "target-port",
        "Name or number for the port on the container that the service should direct traffic to.",
    ),
    Flag::text(
        "type",
        "Type for this service: ClusterIP, NodePort, LoadBalancer, or ExternalName. Default is 'ClusterIP'.",
    ),
    super::apply::VALIDATE,
];

async fn run(cli: &Cli) -> Result<()> {
    for item in cli.all_items(cli.args()).await? {
        let service = service(cli, &item)?;
        create::make_as(cli, service, "exposed", "").await?;
    }
    Ok(())
}

fn service(cli: &Cli, item: &Item) -> Result<Value> {
    let flags = &cli.flags;
    let kind = item.resource.kind.as_str();
    let name = match flags.text("name") {
        // Names of Services are shorter.
        "" => item.name().chars().take(63).collect::<String>(),
        name => name.to_owned(),
    };
    if name.is_empty() {
        return Err(Error::text("name must be specified"));
    }
    let mut ports = Vec::new();
    let target = |own: Value| -> Value {
        match flags.text("target-port") {
            "" => own,
            text => text.parse::<u16>().map_or_else(|_| text.into(), Into::into),
        }
    };
    let known = declared_ports(kind, &item.object);
    let given = flags.text("port");
    let chosen: Vec<(Value, Option<String>)> = match given {
        "" if known.is_empty() => {
            return Err(Error::text("couldn't find port via --port flag or introspection"));
        }
        "" => known.iter().map(|(port, protocol)| (port.clone(), Some(protocol.clone()))).collect(),
        text => {
            let mut all = Vec::new();
            for text in text.split(',') {
                let port: u16 =
                    text.parse().map_err(|_| Error::text(format!("strconv.Atoi: parsing {text:?}: invalid syntax")))?;
                let protocol = known.iter().find(|(known, _)| *known == port).map(|(_, protocol)| protocol.clone());
                all.push((port.into(), protocol));
            }
            all
        }
    };
    let several = chosen.len() > 1;
    for (i, (port, protocol)) in chosen.into_iter().enumerate() {
        let protocol = match flags.text("protocol") {
            "" => protocol.unwrap_or_else(|| "TCP".to_owned()),
            protocol => protocol.to_owned(),
        };
        let mut entry = json!({"port": port, "protocol": protocol, "targetPort": target(port.clone())});
        if several {
            entry["name"] = format!("port-{}", i + 1).into();
        }
        ports.push(entry);
    }
    let mut service = json!({"ports": ports, "selector": selector(cli, kind, item)?});
    for (flag, field) in [
        ("type", "type"),
        ("cluster-ip", "clusterIP"),
        ("session-affinity", "sessionAffinity"),
        ("load-balancer-ip", "loadBalancerIP"),
    ] {
        if !flags.text(flag).is_empty() {
            service[field] = flags.text(flag).into();
        }
    }
    if !flags.text("external-ip").is_empty() {
        service["externalIPs"] = json!([flags.text("external-ip")]);
    }
    let labels = match flags.text("labels") {
        "" => item.object["metadata"]["labels"].clone(),
        text => pairs(text)?,
    };
    let mut metadata = json!({"name": name});
    if !labels.is_null() {
        metadata["labels"] = labels;
    }
    Ok(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service, "status": {"loadBalancer": {}}}),
    )
}

fn pairs(text: &str) -> Result<Value> {
    let mut map = Map::new();
    for pair in text.split(',') {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Error::text(format!("unexpected label spec: {pair}")));
        };
        map.insert(key.to_owned(), value.into());
    }
    Ok(map.into())
}

fn selector(cli: &Cli, kind: &str, item: &Item) -> Result<Value> {
    if !cli.flags.text("selector").is_empty() {
        return pairs(cli.flags.text("selector"));
    }
    let object = &item.object;
    let labels = match kind {
        "ReplicationController" | "Service" => &object["spec"]["selector"],
        "Pod" => &object["metadata"]["labels"],
        "Deployment" | "ReplicaSet" => {
            if !object["spec"]["selector"]["matchExpressions"].is_null() {
                return Err(Error::text("couldn't convert expressions - selector has match expressions"));
            }
            &object["spec"]["selector"]["matchLabels"]
        }
        _ => {
            return Err(Error::text(format!("cannot expose a {}", item.resource.full_kind_name())));
        }
    };
    match labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        true => Ok(labels.clone()),
        false if kind == "Pod" => Err(Error::text(
            "couldn't retrieve selectors via --selector flag or introspection: the pod has no labels and cannot be exposed",
        )),
        false => Err(Error::text(
            "couldn't retrieve selectors via --selector flag or introspection: invalid deployment: no selectors, therefore cannot be exposed",
        )),
    }
}

/// The ports that an object says it has, with their protocols.
fn declared_ports(kind: &str, object: &Value) -> Vec<(Value, String)> {
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    if kind == "Service" {
        let ports = object["spec"]["ports"].as_array().into_iter().flatten();
        return ports.map(|port| (port["port"].clone(), protocol(port))).collect();
    }
    let spec = if kind == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
    let containers = spec["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    ports.map(|port| (port["containerPort"].clone(), protocol(port))).collect()
}
