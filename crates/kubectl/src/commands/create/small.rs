//! The kinds of which `kubectl create` makes an object of a few fields.

use serde_json::{Map, Value, json};

use super::{MAKE, make, name, required};
use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::say,
    print::Printer,
};

pub(super) const NAMESPACE: Command = Command {
    name: "namespace",
    about: "Create a namespace with the specified name",
    usage: "NAME [--dry-run=server|client|none]",
    flags: &[MAKE[0], MAKE[1], MAKE[2]],
    subcommands: &[],
    run: Some(|cli| Box::pin(namespace(cli))),
};

pub(super) const SERVICE_ACCOUNT: Command = Command {
    name: "serviceaccount",
    about: "Create a service account with the specified name",
    usage: "NAME [--dry-run=server|client|none]",
    flags: &[MAKE[0], MAKE[1], MAKE[2]],
    subcommands: &[],
    run: Some(|cli| Box::pin(service_account(cli))),
};

pub(super) const QUOTA: Command = Command {
    name: "quota",
    about: "Create a quota with the specified name",
    usage: "NAME [--hard=key1=value1,key2=value2] [--scopes=Scope1,Scope2]",
    flags: &[
        &[
            Flag::text("hard", "A comma-delimited set of resource=quantity pairs that define a hard limit."),
            Flag::text(
                "scopes",
                "A comma-delimited set of quota scopes that must all match each object tracked by the quota.",
            ),
        ],
        MAKE[0],
        MAKE[1],
        MAKE[2],
    ],
    subcommands: &[],
    run: Some(|cli| Box::pin(quota(cli))),
};

pub(super) const PDB: Command = Command {
    name: "poddisruptionbudget",
    about: "Create a pod disruption budget with the specified name",
    usage: "NAME --selector=SELECTOR --min-available=N",
    flags: &[
        &[
            Flag::text("selector", "A label selector to use for this budget."),
            Flag::text("min-available", "The minimum number or percentage of available pods this budget requires."),
            Flag::text("max-unavailable", "The maximum number or percentage of unavailable pods this budget requires."),
        ],
        MAKE[0],
        MAKE[1],
        MAKE[2],
    ],
    subcommands: &[],
    run: Some(|cli| Box::pin(disruption_budget(cli))),
};

pub(super) const PRIORITY_CLASS: Command = Command {
    name: "priorityclass",
    about: "Create a priority class with the specified name",
    usage: "NAME --value=VALUE --global-default=BOOL",
    flags: &[
        &[
            Flag::int("value", "the value of this priority class.").or("0"),
            Flag::bool(
                "global-default",
                "specifies whether this PriorityClass should be considered as the default priority.",
            ),
            Flag::text("description", "description is an arbitrary string that usually provides guidelines."),
            Flag::text("preemption-policy", "preemption-policy is the policy for preempting pods with lower priority.")
                .or("PreemptLowerPriority"),
        ],
        MAKE[0],
        MAKE[1],
        MAKE[2],
    ],
    subcommands: &[],
    run: Some(|cli| Box::pin(priority_class(cli))),
};

pub(super) const TOKEN: Command = Command {
    name: "token",
    about: "Request a service account token",
    usage: "SERVICE_ACCOUNT_NAME",
    flags: &[
        &[
            Flag::array("audience", "Audience of the requested token."),
            Flag::duration("duration", "Requested lifetime of the issued token.").or("0s"),
            Flag::text(
                "bound-object-kind",
                "Kind of an object to bind the token to. Supported kinds are Node, Pod, Secret.",
            ),
            Flag::text("bound-object-name", "Name of an object to bind the token to."),
            Flag::text("bound-object-uid", "UID of an object to bind the token to."),
        ],
        crate::print::FLAGS,
    ],
    subcommands: &[],
    run: Some(|cli| Box::pin(token(cli))),
};

async fn namespace(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    make(cli, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {}, "status": {}}))
        .await
}

async fn service_account(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    make(cli, json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})).await
}

async fn quota(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    let mut spec = json!({});
    let mut hard = Map::new();
    for pair in cli.flags.text("hard").split(',').filter(|pair| !pair.is_empty()) {
        let Some((resource, quantity)) = pair.split_once('=') else {
            return Err(Error::text(format!("invalid argument syntax {pair}, expected <resource>=<value>")));
        };
        hard.insert(resource.to_owned(), quantity.into());
    }
    if !hard.is_empty() {
        spec["hard"] = hard.into();
    }
    let scopes: Vec<&str> = cli.flags.text("scopes").split(',').filter(|scope| !scope.is_empty()).collect();
    if !scopes.is_empty() {
        spec["scopes"] = json!(scopes);
    }
    make(
        cli,
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": spec, "status": {}}),
    )
    .await
}

async fn disruption_budget(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    let flags = &cli.flags;
    if flags.text("selector").is_empty() {
        return Err(Error::text("a selector must be specified"));
    }
    let (minimum, maximum) = (flags.text("min-available"), flags.text("max-unavailable"));
    if minimum.is_empty() && maximum.is_empty() {
        return Err(Error::text("one of min-available or max-unavailable must be specified"));
    }
    if !minimum.is_empty() && !maximum.is_empty() {
        return Err(Error::text("min-available and max-unavailable cannot be both specified"));
    }
    let labels: Map<String, Value> = flags
        .text("selector")
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.trim_start_matches('=').into()))
        .collect();
    let number = |text: &str| text.parse::<i64>().map_or_else(|_| Value::from(text), Value::from);
    let mut spec = json!({"selector": {"matchLabels": labels}});
    match minimum {
        "" => spec["maxUnavailable"] = number(maximum),
        minimum => spec["minAvailable"] = number(minimum),
    }
    let status = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
    let object = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}, "spec": spec, "status": status});
    make(cli, object).await
}

async fn priority_class(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    required(cli, &["value"])?;
    let mut object = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
        "preemptionPolicy": cli.flags.text("preemption-policy"), "value": cli.flags.int("value")?,
    });
    if cli.flags.is("global-default") {
        object["globalDefault"] = true.into();
    }
    if !cli.flags.text("description").is_empty() {
        object["description"] = cli.flags.text("description").into();
    }
    make(cli, object).await
}

async fn token(cli: &Cli) -> Result<()> {
    let name = name(cli)?;
    let flags = &cli.flags;
    let mut spec = json!({});
    if flags.given("audience") {
        spec["audiences"] = flags.list("audience").into();
    }
    let duration = flags.duration("duration")?;
    if duration.is_negative() {
        return Err(Error::text("--duration must be greater than or equal to 0"));
    }
    if duration.0 > 0 {
        spec["expirationSeconds"] = duration.seconds_up().into();
    }
    let kind = flags.text("bound-object-kind");
    if !kind.is_empty() {
        let version = "v1";
        spec["boundObjectRef"] = json!({"kind": kind, "apiVersion": version, "name": flags.text("bound-object-name")});
        if flags.given("bound-object-uid") {
            spec["boundObjectRef"]["uid"] = flags.text("bound-object-uid").into();
        }
    } else if flags.given("bound-object-name") {
        return Err(Error::text("--bound-object-name can only be set if --bound-object-kind is provided"));
    }
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/{name}/token", cli.namespace()?);
    let answer = cli.rest()?.post(&path, &request).await.map_err(|error| match error {
        error @ Error::Status(_) => Error::text(format!("failed to create token: {error}")),
        other => other,
    })?;
    let printer = Printer::of(flags, false)?;
    match printer.is_human() {
        true => say!("{}", answer["status"]["token"].as_str().unwrap_or_default()),
        false => printer.print(&answer)?,
    }
    Ok(())
}
