//! `kubectl auth`.

use serde_json::{Value, json};

use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::{self, say, tell},
    print::{Printer, tabs::Tabs},
};

pub(crate) const COMMAND: Command = Command {
    name: "auth",
    about: "Inspect authorization",
    usage: "SUBCOMMAND",
    flags: &[],
    subcommands: &[
        Command {
            name: "can-i",
            about: "Check whether an action is allowed",
            usage: "VERB [TYPE | TYPE/NAME | NONRESOURCEURL]",
            flags: &[&[
                Flag::bool("all-namespaces", "If true, check the specified action in all namespaces.").short('A'),
                Flag::bool("list", "If true, prints all allowed actions."),
                Flag::bool("no-headers", "If true, prints allowed actions without headers"),
                Flag::bool("quiet", "If true, suppress output and just return the exit code.").short('q'),
                Flag::text("subresource", "SubResource such as pod/log or deployment/scale"),
            ]],
            subcommands: &[],
            run: Some(|cli| Box::pin(can_i(cli))),
        },
        Command {
            name: "whoami",
            about: "Experimental: Check self subject attributes",
            usage: "",
            flags: &[crate::print::FLAGS],
            subcommands: &[],
            run: Some(|cli| Box::pin(whoami(cli))),
        },
    ],
    run: None,
};

async fn can_i(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    if flags.is("list") {
        return list(cli).await;
    }
    let (verb, what) = match cli.args() {
        [verb, what] => (verb, what.clone()),
        [verb, kind, name] => (verb, format!("{kind}/{name}")),
        _ => {
            return Err(Error::Usage(
                "you must specify two arguments: verb resource or verb resource/resourceName.\nSee 'kubectl auth can-i -h' for help and examples.".into(),
            ));
        }
    };
    let spec = if what.starts_with('/') {
        json!({"nonResourceAttributes": {"verb": verb, "path": what}})
    } else {
        let (kind, name) = what.split_once('/').unwrap_or((&what, ""));
        let (group, plural, namespaced) = match cli.resource(kind).await {
            Ok(resource) => (resource.group.clone(), resource.plural.clone(), resource.namespaced),
            Err(error @ Error::Unreachable { .. }) => return Err(error),
            Err(_) if kind == "*" => ("*".to_owned(), "*".to_owned(), true),
            Err(_) => {
                tell!("Warning: the server doesn't have a resource type '{kind}'\n");
                (String::new(), kind.to_owned(), true)
            }
        };
        if !namespaced && !flags.is("all-namespaces") {
            let full = if group.is_empty() { String::new() } else { format!(" in group '{group}'") };
            tell!("Warning: resource '{plural}' is not namespace scoped{full}\n");
        }
        let namespace = if flags.is("all-namespaces") { String::new() } else { cli.namespace()? };
        json!({"resourceAttributes": {
            "namespace": namespace, "verb": verb, "group": group, "resource": plural, "name": name,
            "subresource": flags.text("subresource"),
        }})
    };
    const VERBS: [&str; 17] = [
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
        "use",
        "bind",
        "impersonate",
        "*",
        "approve",
        "sign",
        "escalate",
        "attest",
        "proxy",
    ];
    if !VERBS.contains(&verb.as_str()) && !what.starts_with('/') {
        tell!("Warning: verb '{verb}' is not a known verb\n");
    }
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec});
    let answer = cli.rest()?.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await?;
    let status = &answer["status"];
    let allowed = status["allowed"] == true;
    if !flags.is("quiet") {
        let mut text = if allowed { "yes" } else { "no" }.to_owned();
        let part = |field: &str| status[field].as_str().filter(|text| !text.is_empty());
        if let Some(reason) = part("reason").filter(|_| !allowed) {
            text.push_str(&format!(" - {reason}"));
        }
        if let Some(error) = part("evaluationError").filter(|_| !allowed) {
            text.push_str(&format!(" - {error}"));
        }
        say!("{text}");
    }
    if allowed { Ok(()) } else { Err(Error::Exit(1)) }
}

async fn list(cli: &Cli) -> Result<()> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": cli.namespace()?},
    });
    let answer = cli.rest()?.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &review).await?;
    let mut rows = Vec::new();
    for rule in answer["status"]["resourceRules"].as_array().into_iter().flatten() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                let (name, sub) = resource.split_once('/').map_or((resource, ""), |(name, sub)| (name, sub));
                let mut full = name.to_owned();
                if !group.is_empty() {
                    full.push_str(&format!(".{group}"));
                }
                if !sub.is_empty() {
                    full.push_str(&format!("/{sub}"));
                }
                rows.push((full, String::new(), joined(&rule["resourceNames"]), joined(&rule["verbs"])));
            }
        }
    }
    for rule in answer["status"]["nonResourceRules"].as_array().into_iter().flatten() {
        for url in texts(&rule["nonResourceURLs"]) {
            rows.push((String::new(), url.to_owned(), String::new(), joined(&rule["verbs"])));
        }
    }
    // In the order of the text that Go makes of a rule.
    rows.sort_by_cached_key(|(resource, url, _, verbs)| {
        let (name, group) = resource.split_once('.').unwrap_or((resource, ""));
        format!("{verbs}],[{group}],[{name}],[{url}]")
    });
    let mut table = String::new();
    if !cli.flags.is("no-headers") {
        table.push_str("Resources\tNon-Resource URLs\tResource Names\tVerbs\n");
    }
    for (resource, url, names, verbs) in rows {
        table.push_str(&format!("{resource}\t[{url}]\t[{names}]\t[{verbs}]\n"));
    }
    out::text(&Tabs::of_tables().align(&table));
    Ok(())
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn joined(value: &Value) -> String {
    texts(value).join(" ")
}

async fn whoami(cli: &Cli) -> Result<()> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = cli.rest()?.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &review).await?;
    let printer = Printer::of(&cli.flags, false)?;
    if !printer.is_human() {
        return printer.print(&answer);
    }
    let user = &answer["status"]["userInfo"];
    let mut table = "ATTRIBUTE\tVALUE\n".to_owned();
    for (title, field) in [("Username", "username"), ("UID", "uid")] {
        if let Some(text) = user[field].as_str().filter(|text| !text.is_empty()) {
            table.push_str(&format!("{title}\t{text}\n"));
        }
    }
    if !texts(&user["groups"]).is_empty() {
        table.push_str(&format!("Groups\t[{}]\n", joined(&user["groups"])));
    }
    let extra = user["extra"].as_object();
    let mut keys: Vec<&String> = extra.into_iter().flat_map(|extra| extra.keys()).collect();
    keys.sort();
    for key in keys {
        table.push_str(&format!("Extra: {key}\t[{}]\n", joined(&user["extra"][key])));
    }
    out::text(&Tabs::of_tables().align(&table));
    Ok(())
}
