//! Subresources that are more than a part of their object.

use http::Response;
use serde_json::{Value, json};
use skiff_api::{
    Status, decode, patch,
    validation::{Faults, FieldError},
};

use crate::{
    auth::{Bound, ServiceAccountTokens, TokenRequest},
    custom::{Scale, columns, conversion},
    http::{Body, json as json_response},
    object::{meta_mut, meta_str},
    registry::engine::{Context, Engine, Part},
    render::encoded,
    request::FieldValidation,
    resources::{APPLY, Asked, applied, decode_bytes, patched},
};

/// The body as an object of a type that is no kind of the table.
fn body_of(asked: &Asked<'_>, type_name: &str) -> Result<Value, Status> {
    let mut value = decode_bytes(asked.media_type(), &asked.body)?.value;
    decode::conform(&mut value, type_name).map_err(|e| Status::bad_request(e.to_string()))?;
    Ok(value)
}

/// `metadata` of an object that stands for another one.
pub(crate) fn scale_of(object: &Value, of: Option<&Scale>) -> Value {
    let meta = &object["metadata"];
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !meta[field].is_null() {
            metadata[field] = meta[field].clone();
        }
    }
    if let Some(of) = of {
        let number = |path: &str| columns::at(path, object).and_then(Value::as_i64).unwrap_or(0);
        let mut status = json!({"replicas": number(&of.status_replicas)});
        if let Some(selector) = of.selector.as_deref().and_then(|path| columns::at(path, object)) {
            status["selector"] = selector.clone();
        }
        return json!({
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": metadata,
            "spec": {"replicas": number(&of.spec_replicas)},
            "status": status,
        });
    }
    let selector = &object["spec"]["selector"];
    let selector = if object["kind"] == "ReplicationController" {
        let labels = selector.as_object().into_iter().flatten();
        labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
    } else {
        skiff_api::selector::LabelSelector::from_value(selector).map(|s| s.to_string()).unwrap_or_default()
    };
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0), "selector": selector},
    })
}

/// Sets the field at a pointer such as `/spec/replicas`; what leads there is made.
fn set_at(value: &mut Value, pointer: &str, wanted: Value) {
    let mut at = value;
    for part in pointer.split('/').filter(|p| !p.is_empty()) {
        if !at[part].is_object() && !at[part].is_null() && !at[part].is_number() {
            return;
        }
        at = &mut at[part];
    }
    *at = wanted;
}

/// Sets the number of replicas of anything that has one.
pub(crate) fn set_replicas(object: &mut Value, of: Option<&Scale>, replicas: i64) {
    let path = of.map_or("/spec/replicas".to_owned(), |of| of.spec_replicas.replace('.', "/"));
    set_at(object, &path, replicas.into());
}

/// `scale`: the number of replicas of anything that has one.
pub async fn scale(engine: &Engine, asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    const SCALE: &str = "api.autoscaling.v1.Scale";
    let version = asked.version.clone();
    let of = version.as_ref().and_then(|v| v.scale.as_ref());
    if asked.info.verb == "get" {
        let object = engine.get(asked.resource, asked.namespace(), &asked.info.name).await?;
        let value = conversion::value_of(&engine.registry, asked.resource, asked.kind, &object).await?;
        return Ok(encoded(asked.accepted, 200, scale_of(&value, of).to_string().into()));
    }
    if asked.info.verb == "patch" && asked.media_type() == APPLY {
        return apply_scale(engine, asked, of).await;
    }
    let options = asked.write_options()?;
    let media_type = asked.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().to_owned();
    let is_patch = asked.info.verb == "patch";
    let body = if is_patch {
        decode::json(&asked.body).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?.value
    } else {
        body_of(asked, SCALE)?
    };
    let change = |old: &Value| {
        let mut scale = scale_of(old, of);
        if is_patch {
            let bad = |e: patch::PatchError| Status::bad_request(e.to_string());
            match media_type.as_str() {
                "application/json-patch+json" => patch::json(&mut scale, &body).map_err(bad)?,
                "application/merge-patch+json" => patch::merge(&mut scale, &body),
                "application/strategic-merge-patch+json" => patch::strategic(&mut scale, &body, SCALE).map_err(bad)?,
                _ => {
                    let types = [
                        "application/json-patch+json",
                        "application/merge-patch+json",
                        "application/strategic-merge-patch+json",
                    ];
                    return Err(Status::unsupported_media_type(&types));
                }
            }
            decode::conform(&mut scale, SCALE).map_err(|e| Status::bad_request(e.to_string()))?;
        } else {
            scale = body.clone();
            let name = meta_str(&scale, "name");
            if name != asked.info.name {
                return Err(Status::bad_request(format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    asked.info.name
                )));
            }
        }
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let e = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
            return Err(Status::invalid("autoscaling", "Scale", &asked.info.name, &[e]));
        }
        let mut new = old.clone();
        set_replicas(&mut new, of, replicas);
        let meta = meta_mut(&mut new);
        match scale["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty()) {
            Some(rv) => meta.insert("resourceVersion".into(), rv.into()),
            None => meta.shift_remove("resourceVersion"),
        };
        Ok(new)
    };
    let cx = Context { user: asked.user, options: &options };
    let written =
        engine.update(&cx, asked.resource, asked.namespace(), &asked.info.name, Part::Main, "scale", &change).await?;
    let value: Value = serde_json::from_slice(&asked.shown(engine, &written.bytes).await?).map_err(Status::internal)?;
    Ok(encoded(asked.accepted, 200, scale_of(&value, of).to_string().into()))
}

/// Applies a scale: the number of replicas gets its owner.
async fn apply_scale(engine: &Engine, asked: &Asked<'_>, of: Option<&Scale>) -> Result<Response<Body>, Status> {
    let mut scale = decode_bytes("application/yaml", &asked.body)?.value;
    decode::conform(&mut scale, "api.autoscaling.v1.Scale").map_err(|e| Status::bad_request(e.to_string()))?;
    let kind = asked.resource.kind;
    let api_version = if of.is_some() { asked.kind.api_version() } else { kind.api_version() };
    let mut config = json!({"apiVersion": api_version, "kind": kind.kind, "metadata": {"name": asked.info.name}});
    if let Some(rv) = scale["metadata"]["resourceVersion"].as_str() {
        config["metadata"]["resourceVersion"] = rv.into();
    }
    if let Some(replicas) = scale["spec"]["replicas"].as_i64() {
        set_replicas(&mut config, of, replicas);
    }
    let options = asked.plain_options()?;
    let (written, _) = applied(engine, asked, Part::Main, options, config).await?;
    let value: Value = serde_json::from_slice(&asked.shown(engine, &written.bytes).await?).map_err(Status::internal)?;
    Ok(encoded(asked.accepted, 200, scale_of(&value, of).to_string().into()))
}

/// `pods/binding`: a pod gets its node, once.
pub async fn bind(engine: &Engine, asked: &Asked<'_>, pod: &str) -> Result<Response<Body>, Status> {
    let mut options = asked.plain_options()?;
    let mut binding = body_of(asked, "api.core.v1.Binding")?;
    binding["kind"] = "Binding".into();
    binding["apiVersion"] = "v1".into();
    let binding = asked.admitted(engine, &options, binding).await?;
    options.past_hooks = true;
    let target = &binding["target"];
    let mut faults = Faults::default();
    if !matches!(target["kind"].as_str().unwrap_or_default(), "" | "Node") {
        faults.push(FieldError::not_supported("target.kind", target["kind"].clone(), &["Node", "<empty>"]));
    }
    let node = target["name"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() {
        faults.required("target.name", "");
    }
    if !faults.0.is_empty() {
        return Err(Status::invalid("", "Binding", pod, &faults.0));
    }
    let uid = meta_str(&binding, "uid").to_owned();
    let change = |old: &Value| {
        let conflict = |why: String| Err(Status::conflict("", "pods/binding", pod, why));
        if !uid.is_empty() && meta_str(old, "uid") != uid {
            return conflict(format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                meta_str(old, "uid")
            ));
        }
        if old["metadata"]["deletionTimestamp"].is_string() {
            return conflict(format!("pod {pod} is being deleted, cannot be assigned to a host"));
        }
        if let Some(assigned) = old["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
            return conflict(format!("pod {pod} is already assigned to node {assigned:?}"));
        }
        if old["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
            return conflict(format!("pod {pod} has non-empty .spec.schedulingGates"));
        }
        let mut new = old.clone();
        new["spec"]["nodeName"] = node.clone().into();
        for (k, v) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
            new["metadata"]["annotations"][k] = v.clone();
        }
        set_condition(
            &mut new,
            json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now()}),
        );
        Ok(new)
    };
    let cx = Context { user: asked.user, options: &options };
    engine.update(&cx, asked.resource, asked.namespace(), pod, Part::Whole, "binding", &change).await?;
    Ok(json_response(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

pub(crate) fn now() -> Value {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

/// Puts a condition in the place of the one of its type.
pub(crate) fn set_condition(object: &mut Value, condition: Value) {
    let list = &mut object["status"]["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(found) => *found = condition,
        None => list.push(condition),
    }
}

/// `serviceaccounts/token`: a token for the account, bound to a pod if the request says so.
pub async fn token(
    engine: &Engine,
    tokens: &ServiceAccountTokens,
    asked: &Asked<'_>,
) -> Result<Response<Body>, Status> {
    let mut request = body_of(asked, "api.authentication.v1.TokenRequest")?;
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    let mut request = asked.admitted(engine, &asked.plain_options()?, request).await?;
    let account = engine.get(asked.resource, asked.namespace(), &asked.info.name).await?;
    let spec = &request["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(3600);
    let mut faults = Faults::default();
    if seconds < 600 {
        faults.invalid("spec.expirationSeconds", seconds, "may not specify a duration less than 10 minutes");
    } else if seconds > 1 << 32 {
        faults.invalid("spec.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds");
    }
    if !faults.0.is_empty() {
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &faults.0));
    }
    let mut wanted = TokenRequest {
        namespace: account.namespace.to_string(),
        service_account: Bound { name: account.name.to_string(), uid: account.uid.to_string() },
        audiences: spec["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect(),
        lifetime_s: seconds,
        ..TokenRequest::default()
    };
    let reference = &spec["boundObjectRef"];
    if reference.is_object() {
        let (kind, name) =
            (reference["kind"].as_str().unwrap_or_default(), reference["name"].as_str().unwrap_or_default());
        let plural = match kind {
            "Pod" => "pods",
            "Secret" => "secrets",
            other => return Err(Status::bad_request(format!("cannot bind token to object of type v1, Kind={other}"))),
        };
        let resource = engine.registry.builtin("", plural);
        let object = engine.get(resource, asked.namespace(), name).await?;
        let uid = reference["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() && uid != &*object.uid {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Status::conflict("", plural, name, why));
        }
        let bound = Bound { name: name.to_owned(), uid: object.uid.to_string() };
        if kind == "Pod" {
            let pod = object.value();
            if pod["spec"]["serviceAccountName"] != *account.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    &*account.name
                )));
            }
            if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                let nodes = engine.registry.builtin("", "nodes");
                let uid = nodes.cache.peek(&nodes.key("", node)).map(|n| n.uid.to_string()).unwrap_or_default();
                wanted.node = Some(Bound { name: node.to_owned(), uid });
            }
            wanted.pod = Some(bound);
        } else {
            wanted.secret = Some(bound);
        }
    }
    let (token, ends) = tokens.issue(&wanted).map_err(Status::internal)?;
    request["metadata"] = json!({"name": &*account.name, "namespace": &*account.namespace, "creationTimestamp": now()});
    request["spec"]["expirationSeconds"] = seconds.into();
    request["status"] = json!({"token": token, "expirationTimestamp": ends.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
    Ok(json_response(201, &request))
}

/// `namespaces/finalize`: changes the finalizers of the spec; without any left, a deleted namespace goes.
pub async fn finalize(engine: &Engine, asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let options = asked.write_options()?;
    let (value, _) = asked.decoded(options.field_validation)?;
    let change = |old: &Value| {
        let mut new = old.clone();
        new["spec"]["finalizers"] = value["spec"]["finalizers"].clone();
        if new["spec"]["finalizers"].is_null() {
            new["spec"]["finalizers"] = json!([]);
        }
        match value["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty()) {
            Some(rv) => new["metadata"]["resourceVersion"] = rv.into(),
            None => {
                meta_mut(&mut new).shift_remove("resourceVersion");
            }
        }
        Ok(new)
    };
    let cx = Context { user: asked.user, options: &options };
    let written = engine.update(&cx, asked.resource, "", &asked.info.name, Part::Whole, "finalize", &change).await?;
    Ok(asked.renderer().object(200, &written.bytes))
}

/// `pods/ephemeralcontainers` and `pods/resize`: only this part of the spec is taken from what the client sent.
pub async fn pod_part(engine: &Engine, asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let sub = asked.info.subresource.as_str();
    if asked.info.verb == "get" {
        let object = engine.get(asked.resource, asked.namespace(), &asked.info.name).await?;
        return Ok(asked.renderer().object(200, &object.bytes));
    }
    let options = asked.write_options()?;
    let media_type = asked.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default();
    type Change = Box<dyn Fn(&Value) -> Result<Value, Status> + Sync + Send>;
    let wanted: Change = if asked.info.verb == "patch" {
        let change = patched(asked.kind, media_type, &asked.body, FieldValidation::Ignore, None)?;
        Box::new(move |old| change(old).map(|(v, _)| v))
    } else {
        let (value, _) = asked.decoded(options.field_validation)?;
        Box::new(move |_| Ok(value.clone()))
    };
    let change = |old: &Value| {
        let sent = wanted(old)?;
        let mut new = old.clone();
        if let Some(rv) = sent["metadata"]["resourceVersion"].as_str() {
            new["metadata"]["resourceVersion"] = rv.into();
        }
        if sub == "ephemeralcontainers" {
            new["spec"]["ephemeralContainers"] = sent["spec"]["ephemeralContainers"].clone();
            let before = old["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
            let now = new["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
            if before.iter().any(|c| !now.iter().any(|n| n["name"] == c["name"])) {
                let e = FieldError::forbidden(
                    "spec.ephemeralContainers",
                    "existing ephemeral containers may not be removed",
                );
                return Err(Status::invalid("", "Pod", &asked.info.name, &[e]));
            }
        } else {
            for list in ["containers", "initContainers"] {
                for c in new["spec"][list].as_array_mut().into_iter().flatten() {
                    let sent = sent["spec"][list].as_array().into_iter().flatten().find(|s| s["name"] == c["name"]);
                    if let Some(sent) = sent {
                        c["resources"] = sent["resources"].clone();
                    }
                }
            }
        }
        Ok(new)
    };
    let cx = Context { user: asked.user, options: &options };
    let written =
        engine.update(&cx, asked.resource, asked.namespace(), &asked.info.name, Part::Whole, sub, &change).await?;
    Ok(asked.renderer().object(200, &written.bytes))
}
