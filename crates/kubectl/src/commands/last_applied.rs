//! What was applied before: `kubectl apply view-last-applied`, and its taking over by the server's side.

use serde_json::{Value, json};
use skiff_api::apply::FieldSet;

use crate::{
    cli::{self, Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out,
    patch::LAST_APPLIED,
    print::{json as json_printer, yaml},
    rest::{Rest, query},
    targets::Target,
};

pub(crate) const VIEW: Command = Command {
    name: "view-last-applied",
    about: "View the latest last-applied-configuration annotations of a resource/object",
    usage: "(TYPE [NAME | -l label] | TYPE/NAME | -f FILENAME)",
    flags: &[FLAGS, cli::FILES, cli::SELECTOR, cli::ALL],
    subcommands: &[],
    run: Some(|cli| Box::pin(view(cli))),
};

const FLAGS: &[Flag] = &[Flag::text("output", "Output format. Must be one of (yaml, json)").short('o').or("yaml")];

async fn view(cli: &Cli) -> Result<()> {
    let items = cli.all_items(cli.args()).await?;
    let mut texts = Vec::new();
    for item in &items {
        let remembered = crate::patch::remembered(&item.object);
        if remembered.is_null() {
            return Err(Error::text(format!(
                "no last-applied-configuration annotation found on resource: {}",
                item.name()
            )));
        }
        texts.push(match cli.flags.text("output") {
            "json" => json_printer::to_string(&remembered),
            "yaml" => yaml::to_string(&remembered),
            other => {
                return Err(Error::text(format!(
                    "Unexpected -o output mode: {other}, the flag 'output' must be one of yaml|json"
                )));
            }
        });
    }
    out::text(&texts.join("---\n"));
    Ok(())
}

/// The manager that keeps the annotation of client-side apply alive.
const ANNOTATION_MANAGER: &str = "kubectl-last-applied";

/// Makes what the client's side owned the property of the server's, so that fields left out now go away. Whether
/// anything was to do, after which the manifest is applied again.
pub(crate) async fn take_over(rest: &Rest, target: &Target, mut applied: Value) -> Result<bool> {
    let Some(annotation) = applied["metadata"]["annotations"][LAST_APPLIED].as_str().map(str::to_owned) else {
        return Ok(false);
    };
    if !entries(&applied).iter().any(|entry| entry["operation"] == "Apply" && owns_annotation(entry)) {
        let mut alone = json!({
            "apiVersion": target.resource.api_version(), "kind": target.resource.kind,
            "metadata": {"name": target.name, "annotations": {LAST_APPLIED: annotation}},
        });
        if let Some(namespace) = &target.namespace {
            alone["metadata"]["namespace"] = namespace.clone().into();
        }
        let path = format!("{}{}", target.path(), query(&[("fieldManager", ANNOTATION_MANAGER)]));
        applied = rest.patch(&path, "apply", &alone).await?;
    }
    for _ in 0..super::apply::RETRIES {
        let Some(managed) = joined(&entries(&applied)) else { return Ok(false) };
        let patch = json!([
            {"op": "replace", "path": "/metadata/managedFields", "value": managed},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": applied["metadata"]["resourceVersion"]},
        ]);
        let path = format!("{}{}", target.path(), query(&[("fieldManager", "kubectl")]));
        match rest.patch(&path, "json", &patch).await {
            Ok(_) => return Ok(true),
            // A controller has come between.
            Err(error) if error.reason() == "Conflict" => applied = rest.get(&target.path()).await?,
            Err(error) => return Err(error),
        }
    }
    Err(Error::text("too many conflicts"))
}

fn entries(object: &Value) -> Vec<Value> {
    object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default()
}

fn owns_annotation(entry: &Value) -> bool {
    let annotations = &entry["fieldsV1"]["f:metadata"]["f:annotations"];
    !annotations[format!("f:{LAST_APPLIED}")].is_null()
}

/// The owners with those of the client's side within that of the server's; `None` if there are none of them.
fn joined(entries: &[Value]) -> Option<Vec<Value>> {
    let of_client = |entry: &&Value| entry["operation"] == "Update" && owns_annotation(entry);
    let managers: Vec<&Value> = entries.iter().filter(of_client).map(|entry| &entry["manager"]).collect();
    if managers.is_empty() {
        return None;
    }
    let is_old = |entry: &Value| {
        entry["operation"] == "Update" && entry["subresource"].is_null() && managers.contains(&&entry["manager"])
    };
    let mut fields = FieldSet::default();
    let mut kept = Vec::new();
    for entry in entries {
        if is_old(entry) {
            fields.add(&FieldSet::parse(&entry["fieldsV1"])?);
        } else {
            kept.push(entry.clone());
        }
    }
    let own = kept.iter_mut().find(|entry| {
        entry["manager"] == "kubectl" && entry["operation"] == "Apply" && entry["subresource"].is_null()
    })?;
    fields.add(&FieldSet::parse(&own["fieldsV1"])?);
    own["fieldsV1"] = fields.to_value();
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_fields_become_the_servers() {
        let entry = |manager: &str, operation: &str, fields: Value| json!({"manager": manager, "operation": operation, "fieldsV1": fields});
        let annotation =
            json!({"f:metadata": {"f:annotations": {format!("f:{LAST_APPLIED}"): {}}}, "f:spec": {"f:replicas": {}}});
        let before = [
            entry("kubectl", "Apply", json!({"f:spec": {"f:paused": {}}})),
            entry("kubectl-client-side-apply", "Update", annotation),
            entry("controller", "Update", json!({"f:status": {}})),
        ];
        let after = joined(&before).unwrap();
        assert_eq!(after.len(), 2);
        assert!(after[0]["fieldsV1"]["f:spec"]["f:replicas"].is_object(), "{after:?}");
        assert!(after[0]["fieldsV1"]["f:spec"]["f:paused"].is_object(), "{after:?}");
        assert_eq!(joined(&after[1..]), None);
    }
}
