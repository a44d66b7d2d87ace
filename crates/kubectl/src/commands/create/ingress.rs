//! `kubectl create ingress`.

use serde_json::{Value, json};

use super::{MAKE, make, name};
use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
};

pub(super) const INGRESS: Command = Command {
    name: "ingress",
    about: "Create an ingress with the specified name",
    usage: "NAME --rule=host/path=service:port[,tls[=secret]]",
    flags: &[
        &[
            Flag::text("class", "Ingress Class to be used"),
            Flag::array("rule", "Rule in format host/path=service:port[,tls=secretname]."),
            Flag::array("annotation", "Annotation to insert in the ingress object, in the format annotation=value"),
            Flag::text("default-backend", "Default service for backend, in format of svcname:port"),
        ],
        MAKE[0],
        MAKE[1],
        MAKE[2],
    ],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

async fn run(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    let flags = &cli.flags;
    if flags.list("rule").is_empty() && !flags.given("default-backend") {
        return Err(Error::text(
            "not enough information provided: every ingress has to either specify a default-backend (which catches all traffic) or a list of rules (which catch specific paths)",
        ));
    }
    let mut spec = json!({});
    if flags.given("class") {
        spec["ingressClassName"] = flags.text("class").into();
    }
    if flags.given("default-backend") {
        spec["defaultBackend"] = backend(flags.text("default-backend"))
            .ok_or_else(|| Error::text("default-backend should be in format servicename:serviceport"))?;
    }
    let mut rules: Vec<Value> = Vec::new();
    let mut tls: Vec<Value> = Vec::new();
    for text in flags.list("rule") {
        let wrong = || {
            Error::text(format!(
                "rule {text} is invalid and should be in format host/path=svcname:svcport[,tls[=secret]]"
            ))
        };
        let (rule, secret) = match text.split_once(',') {
            Some((rule, tls)) => (rule, Some(tls.strip_prefix("tls").ok_or_else(wrong)?.trim_start_matches('='))),
            None => (text.as_str(), None),
        };
        let (place, service) = rule.split_once('=').ok_or_else(wrong)?;
        let (host, path) = place.split_once('/').ok_or_else(wrong)?;
        let exact = !path.ends_with('*');
        let path = format!("/{}", path.trim_end_matches('*'));
        let entry = json!({
            "backend": backend(service).ok_or_else(wrong)?,
            "path": path,
            "pathType": if exact { "Exact" } else { "Prefix" },
        });
        let same_host = |rule: &&mut Value| rule["host"].as_str().unwrap_or_default() == host;
        match rules.iter_mut().find(same_host).and_then(|rule| rule["http"]["paths"].as_array_mut()) {
            Some(paths) => paths.push(entry),
            None => {
                let mut rule = json!({"http": {"paths": [entry]}});
                if !host.is_empty() {
                    rule["host"] = host.into();
                }
                rules.push(rule);
            }
        }
        if let Some(secret) = secret {
            let mut entry = json!({"hosts": if host.is_empty() { vec![] } else { vec![host] }});
            if !secret.is_empty() {
                entry["secretName"] = secret.into();
            }
            tls.push(entry);
        }
    }
    if !rules.is_empty() {
        spec["rules"] = rules.into();
    }
    if !tls.is_empty() {
        spec["tls"] = tls.into();
    }
    let mut metadata = json!({"name": name});
    for pair in flags.list("annotation") {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Error::text(format!("annotation {pair} is invalid and should be in format key=[value]")));
        };
        metadata["annotations"][key] = value.into();
    }
    make(
        cli,
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec,
            "status": {"loadBalancer": {}},
        }),
    )
    .await
}

fn backend(text: &str) -> Option<Value> {
    let (service, port) = text.split_once(':').filter(|(service, port)| !service.is_empty() && !port.is_empty())?;
    let port = match port.parse::<u16>() {
        Ok(number) => json!({"number": number}),
        Err(_) => json!({"name": port}),
    };
    Some(json!({"service": {"name": service, "port": port}}))
}
