//! From one version of a custom kind to another: by its name alone, or by a webhook that knows better.
//!
//! Objects are stored in one version and read in any. What a webhook answers may differ in everything but what the
//! object is: kind, name, UID, and all of its metadata but labels and annotations stay.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use skiff_api::{Kind, Status};

use super::Version;
use crate::{
    object::Object,
    registry::{Registry, Resource},
    webhook::Webhook,
};

/// How long a webhook may take for all objects of a request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer: a long list is converted in one.
const MAX_ANSWER_BYTES: usize = 64 << 20;
const GROUP: &str = "apiextensions.k8s.io";

/// Who converts the objects of a kind, for strategy `Webhook`.
pub(crate) struct Converter {
    webhook: Webhook,
    /// Those of `ConversionReview` that it takes.
    reviews: Vec<String>,
}

impl Converter {
    /// `None` for a definition that needs no webhook.
    pub(super) fn of(definition: &Value) -> Option<Converter> {
        let conversion = &definition["spec"]["conversion"];
        if conversion["strategy"] != "Webhook" {
            return None;
        }
        let webhook = &conversion["webhook"];
        let reviews = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
        let reviews = reviews.filter_map(|v| v.as_str().map(str::to_owned)).collect();
        Some(Converter { webhook: Webhook::read(&webhook["clientConfig"]), reviews })
    }
}

/// Group and version of a resource's version.
fn api_version(resource: &Resource, version: &str) -> String {
    format!("{}/{version}", resource.kind.group)
}

/// The object in this version of its kind.
pub(crate) async fn convert(
    registry: &Registry,
    resource: &Resource,
    value: Value,
    version: &str,
) -> Result<Value, Status> {
    let mut all = convert_all(registry, resource, vec![value], version).await?;
    all.pop().ok_or_else(|| Status::internal("conversion lost an object"))
}

/// The objects in this version of their kind, in one question to the webhook if there is one.
pub(crate) async fn convert_all(
    registry: &Registry,
    resource: &Resource,
    mut values: Vec<Value>,
    version: &str,
) -> Result<Vec<Value>, Status> {
    let wanted = api_version(resource, version);
    let Some(converter) = resource.custom.as_ref().and_then(|c| c.converter.as_ref()) else {
        for value in &mut values {
            value["apiVersion"] = wanted.as_str().into();
        }
        return Ok(values);
    };
    let other = |value: &Value| value["apiVersion"] != wanted.as_str();
    let objects: Vec<&Value> = values.iter().filter(|v| other(v)).collect();
    let Some(first) = objects.first() else { return Ok(values) };
    let name = format!("conversion webhook for {}, Kind={}", text(&first["apiVersion"]), text(&first["kind"]));
    let failed = |why: String| Status::internal(format!("{name} {why}"));
    let asked = ask(registry, converter, &wanted, &objects).await;
    let converted = asked.map_err(|why| failed(format!("failed: {why}")))?;
    if converted.len() != objects.len() {
        return Err(failed(format!("returned {} objects, expected {}", converted.len(), objects.len())));
    }
    let mut converted = converted.into_iter();
    for (i, value) in values.iter_mut().filter(|v| other(v)).enumerate() {
        let Some(new) = converted.next() else { break };
        *value = checked(value, new, &wanted)
            .map_err(|why| failed(format!("returned invalid converted object at index {i}: {why}")))?;
    }
    Ok(values)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

async fn ask(
    registry: &Registry,
    converter: &Converter,
    wanted: &str,
    objects: &[&Value],
) -> Result<Vec<Value>, String> {
    let review = converter.reviews.iter().find(|v| ["v1", "v1beta1"].contains(&v.as_str()));
    let review = review.ok_or("no supported conversion review versions")?;
    let uid = uuid::Uuid::new_v4().to_string();
    let request = json!({
        "kind": "ConversionReview", "apiVersion": format!("{GROUP}/{review}"),
        "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects},
    });
    let mut answer = converter.webhook.call(registry, &request, TIMEOUT, MAX_ANSWER_BYTES).await?;
    if review == "v1" && (answer["apiVersion"] != format!("{GROUP}/v1") || answer["kind"] != "ConversionReview") {
        let got = format!("{}, Kind={}", text(&answer["apiVersion"]), text(&answer["kind"]));
        return Err(format!("expected webhook response of {GROUP}/v1, Kind=ConversionReview, got {got}"));
    }
    let response = &mut answer["response"];
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    if review == "v1" && response["uid"] != uid.as_str() {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
    }
    let status = text(&response["result"]["status"]);
    if status != "Success" {
        return Err(match text(&response["result"]["message"]) {
            "" => format!("response.result.status was '{status}', not 'Success'"),
            message => message.to_owned(),
        });
    }
    match response["convertedObjects"].take() {
        Value::Array(list) => Ok(list),
        _ => Ok(Vec::new()),
    }
}

/// What a webhook made of an object, if it is still that object.
fn checked(original: &Value, mut converted: Value, wanted: &str) -> Result<Value, String> {
    if converted["apiVersion"] != wanted {
        let received = text(&converted["apiVersion"]);
        return Err(format!("invalid groupVersion (expected {wanted}, received {received})"));
    }
    if converted["kind"] != original["kind"] {
        let (expected, received) = (text(&original["kind"]), text(&converted["kind"]));
        return Err(format!("invalid kind (expected {expected}, received {received})"));
    }
    let (before, after) = (&original["metadata"], &converted["metadata"]);
    if !after.is_object() {
        return Err("missing metadata in converted object".to_owned());
    }
    for (field, name) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        if text(&before[field]) != text(&after[field]) {
            return Err(format!("must have the same {name}: {} != {}", text(&before[field]), text(&after[field])));
        }
    }
    let mut metadata = before.clone();
    for field in ["labels", "annotations"] {
        let new = &after[field];
        if let Some((key, _)) = new.as_object().into_iter().flatten().find(|(_, v)| !v.is_string()) {
            return Err(format!("metadata.{field}[{key}] must be a string in converted object"));
        }
        let Some(map) = metadata.as_object_mut() else { continue };
        match new.is_object() {
            true => drop(map.insert(field.to_owned(), new.clone())),
            false => drop(map.shift_remove(field)),
        }
    }
    converted["metadata"] = metadata;
    Ok(converted)
}

/// Whether objects of a resource have to be asked about before they can be shown in the version of `kind`.
pub(crate) fn needs_webhook(resource: &Resource) -> bool {
    resource.custom.as_ref().is_some_and(|c| c.converter.is_some())
}

/// Stored objects as they are in the version of `kind`: as they are stored unless a webhook has to be asked.
pub(crate) async fn shown(
    registry: &Registry,
    resource: &Resource,
    kind: &Kind,
    version: Option<&Version>,
    stored: Vec<Bytes>,
) -> Result<Vec<Bytes>, Status> {
    if !needs_webhook(resource) {
        return Ok(stored);
    }
    let values = stored.iter().map(|b| serde_json::from_slice(b)).collect::<Result<Vec<Value>, _>>();
    let values = convert_all(registry, resource, values.map_err(Status::internal)?, kind.version).await?;
    let shown = values.into_iter().map(|mut value| {
        fit(version, &mut value);
        value.to_string().into()
    });
    Ok(shown.collect())
}

/// What a version does not know is not shown, whoever said it.
fn fit(version: Option<&Version>, value: &mut Value) {
    if let Some(version) = version
        && let Err(error) = version.conform(value)
    {
        tracing::debug!(%error, "a converted object does not fit its version");
    }
}

/// [`shown`] for one object.
pub(crate) async fn shown_one(
    registry: &Registry,
    resource: &Resource,
    kind: &Kind,
    version: Option<&Version>,
    stored: &Bytes,
) -> Result<Bytes, Status> {
    let mut all = shown(registry, resource, kind, version, vec![stored.clone()]).await?;
    all.pop().ok_or_else(|| Status::internal("conversion lost an object"))
}

/// The value of a stored object in the version of `kind`, as far as a webhook is needed for that.
pub(crate) async fn value_of(
    registry: &Registry,
    resource: &Resource,
    kind: &Kind,
    object: &Object,
) -> Result<Value, Status> {
    if !needs_webhook(resource) {
        return Ok(object.value());
    }
    let mut value = convert(registry, resource, object.value(), kind.version).await?;
    fit(resource.version(kind.version).as_deref(), &mut value);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_stay_themselves() {
        let original = json!({"apiVersion": "a.b/v1", "kind": "A", "metadata": {"name": "n", "uid": "u", "finalizers": ["f"], "labels": {"a": "b"}}});
        let converted = |metadata: Value| json!({"apiVersion": "a.b/v2", "kind": "A", "metadata": metadata});
        let good =
            checked(&original, converted(json!({"name": "n", "uid": "u", "labels": {"c": "d"}})), "a.b/v2").unwrap();
        assert_eq!(good["metadata"], json!({"name": "n", "uid": "u", "finalizers": ["f"], "labels": {"c": "d"}}));
        let said = |metadata: Value, wanted: &str| checked(&original, converted(metadata), wanted).unwrap_err();
        assert_eq!(said(json!({"name": "m", "uid": "u"}), "a.b/v2"), "must have the same name: n != m");
        assert_eq!(said(json!({"name": "n"}), "a.b/v2"), "must have the same UID: u != ");
        assert_eq!(
            said(json!({"name": "n", "uid": "u"}), "a.b/v3"),
            "invalid groupVersion (expected a.b/v3, received a.b/v2)"
        );
    }
}
