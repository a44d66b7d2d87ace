//! The verbs on resources: what was asked, decoded and checked, handed to the engine, and shown.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response, header};
use serde_json::{Value, json};
use skiff_api::{
    Kind, Status,
    decode::{self, Extent},
    patch, protobuf,
    validation::FieldError,
};
use skiff_store::Revision;

use crate::{
    admission::{Attributes, Operation},
    auth::User,
    cache::CacheError,
    convert,
    custom::{Version, conversion},
    http::Body,
    object::{Object, meta_str},
    owners::{Application, Tracking},
    rbac,
    registry::{
        Registry, Resource,
        engine::{Context, DeleteOptions, Deleted, Engine, Part, Propagation, Written, cache_status},
    },
    render::{Accepted, Form, Renderer, encoded, warn},
    request::{FieldValidation, ListOptions, Query, RequestInfo, Warnings, WriteOptions, check_manager},
};

/// A request for a resource after authentication and authorization.
pub struct Asked<'a> {
    pub info: &'a RequestInfo,
    pub query: &'a Query,
    pub headers: &'a HeaderMap,
    pub user: &'a User,
    pub kind: &'static Kind,
    pub resource: &'a Arc<Resource>,
    /// For a custom kind: the version that was asked for.
    pub version: Option<Arc<Version>>,
    pub accepted: Accepted,
    pub body: Bytes,
    /// What the client is told beside the answer, also beside a refusal.
    pub warnings: Warnings,
}

impl Asked<'_> {
    pub fn renderer(&self) -> Renderer<'_> {
        Renderer {
            kind: self.kind,
            strategy: self.resource.strategy,
            version: self.version.as_deref(),
            accepted: self.accepted,
            include: self.query.get("includeObject").unwrap_or_default(),
        }
    }

    /// A stored object in the version that was asked for, as far as a webhook is needed for that.
    pub async fn shown(&self, engine: &Engine, stored: &Bytes) -> Result<Bytes, Status> {
        // What all versions have in common needs no conversion.
        if self.accepted.form == Form::Metadata {
            return Ok(stored.clone());
        }
        conversion::shown_one(&engine.registry, self.resource, self.kind, self.version.as_deref(), stored).await
    }

    /// The same for a list of objects.
    pub async fn all_shown(&self, registry: &Registry, objects: &[Arc<Object>]) -> Result<Vec<Bytes>, Status> {
        let stored = objects.iter().map(|o| o.bytes.clone()).collect();
        if self.accepted.form == Form::Metadata {
            return Ok(stored);
        }
        conversion::shown(registry, self.resource, self.kind, self.version.as_deref(), stored).await
    }

    /// The namespace of the object; none for what is not in one.
    pub fn namespace(&self) -> &str {
        if self.kind.namespaced { &self.info.namespace } else { "" }
    }

    /// The object of the body, and the warnings that it deserves.
    pub fn decoded(&self, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
        decode_object(self.kind, self.media_type(), &self.body, validation, self.version.as_deref(), Extent::Whole)
    }

    /// The options of a write; what it changes belongs to whoever asks.
    pub fn write_options(&self) -> Result<WriteOptions, Status> {
        Ok(self.named(WriteOptions::tracked(self.query, self.headers)?))
    }

    /// The options of a write whose owners are kept otherwise, or not at all.
    pub fn plain_options(&self) -> Result<WriteOptions, Status> {
        Ok(self.named(WriteOptions::parse(self.query)?))
    }

    fn named(&self, mut options: WriteOptions) -> WriteOptions {
        options.requested = Some(self.kind);
        options.given.patch = self.info.verb == "patch";
        options.warnings = self.warnings.clone();
        options
    }

    /// Asks webhooks and policies about what is sent to a subresource; they may change it.
    pub async fn admitted(&self, engine: &Engine, options: &WriteOptions, sent: Value) -> Result<Value, Status> {
        let mut sent = sent;
        let subresource = if self.info.subresource.is_empty() { "binding" } else { self.info.subresource.as_str() };
        let attributes = Attributes {
            namespace: self.namespace().to_owned(),
            name: self.info.name.clone(),
            ..Attributes::new(self.user, Operation::Create, self.resource.kind, subresource, options)
        };
        engine.admission.ask(&attributes, &mut sent).await?;
        Ok(sent)
    }

    /// What users of a deprecated version are told.
    fn deprecation(&self) -> Vec<String> {
        self.version.as_ref().map(|v| v.warnings()).unwrap_or_default()
    }

    /// Media type of the body, without parameters.
    pub fn media_type(&self) -> &str {
        let value = self.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim()
    }
}

const YAML: &str = "application/yaml";
/// How often an apply is tried while others create and delete the object.
const MAX_APPLY_ATTEMPTS: usize = 5;

/// Media types of objects in requests.
const OBJECT_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const CUSTOM_PATCH_TYPES: &[&str] = &["application/json-patch+json", "application/merge-patch+json", APPLY];
/// Custom kinds have no protobuf form.
const CUSTOM_TYPES: &[&str] = &["application/json", "application/yaml"];
const PATCH_TYPES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", APPLY];
/// Server-side apply.
pub const APPLY: &str = "application/apply-patch+yaml";

/// Decodes bytes by their media type. None at all is JSON.
pub fn decode_bytes(media_type: &str, body: &[u8]) -> Result<decode::Decoded, Status> {
    let decoded = match media_type {
        "" | "application/json" | "*/*" | "application/x-www-form-urlencoded" => decode::json(body),
        "application/yaml" => {
            let text = std::str::from_utf8(body).map_err(|e| Status::bad_request(format!("yaml: {e}")))?;
            decode::yaml(text)
        }
        "application/vnd.kubernetes.protobuf" => {
            let value =
                protobuf::decode(body).map_err(|e| Status::bad_request(format!("error decoding request body: {e}")))?;
            return Ok(decode::Decoded { value, duplicates: Vec::new() });
        }
        _ => return Err(Status::unsupported_media_type(OBJECT_TYPES)),
    };
    decoded.map_err(|e| Status::bad_request(format!("error decoding request body: {e}")))
}

/// The beginning of a body for a message, as upstream shows it.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let head = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => head.iter().map(|b| format!("{b:02x}")).collect::<String>() + more,
    }
}

/// Decodes an object of `kind`, brings it into form, and returns it with the warnings that it deserves.
pub fn decode_object(
    kind: &Kind,
    media_type: &str,
    body: &[u8],
    validation: FieldValidation,
    version: Option<&Version>,
    extent: Extent,
) -> Result<(Value, Vec<String>), Status> {
    if version.is_some() && !["", "*/*"].contains(&media_type) && !CUSTOM_TYPES.contains(&media_type) {
        return Err(Status::unsupported_media_type(CUSTOM_TYPES));
    }
    let unrecognized = |why: &str| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {why} ({})",
            kind.kind,
            summary(body)
        ))
    };
    let decode::Decoded { mut value, duplicates } = match media_type {
        "" | "application/json" => decode::json(body).map_err(|e| unrecognized(&e.to_string()))?,
        _ => decode_bytes(media_type, body)?,
    };
    if !value.is_object() {
        return Err(unrecognized(&format!(
            "json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            if value.is_array() { "array" } else { "value" },
        )));
    }
    let api_version = kind.api_version();
    let given_version = value["apiVersion"].as_str().unwrap_or_default().to_owned();
    let given_kind = value["kind"].as_str().unwrap_or_default().to_owned();
    if !given_version.is_empty() && given_version != api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({api_version})"
        )));
    }
    if !given_kind.is_empty() && given_kind != kind.kind {
        return Err(Status::bad_request(format!(
            "{given_kind} in version {:?} cannot be handled as a {}: converting (v1.{given_kind}) to ({}): unknown conversion",
            kind.version, kind.kind, kind.kind
        )));
    }
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.kind.into();
    let unknown = conform(kind, &mut value, version, extent)?;
    let mut problems: Vec<String> = duplicates.iter().map(|d| format!("duplicate field {d:?}")).collect();
    problems.extend(unknown.iter().map(|u| format!("unknown field {u:?}")));
    match validation {
        FieldValidation::Strict if !problems.is_empty() => Err(Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
            kind.kind,
            kind.version,
            kind.kind,
            problems.join(", ")
        ))),
        FieldValidation::Ignore => Ok((value, Vec::new())),
        _ => Ok((value, problems)),
    }
}

/// Brings a value into the form of its kind; the unknown fields are returned.
fn conform(kind: &Kind, value: &mut Value, version: Option<&Version>, extent: Extent) -> Result<Vec<String>, Status> {
    let conformed = match version {
        Some(version) => version.conform(value),
        None => decode::conform_as(value, &kind.type_name(), extent),
    };
    conformed.map_err(|e| {
        Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {e}",
            kind.kind, kind.version, kind.kind
        ))
    })
}

pub async fn get(engine: &Engine, asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    if let Some(rv) = asked.query.get("resourceVersion").filter(|v| !v.is_empty() && *v != "0") {
        let rv = rv.parse().map_err(|_| {
            Status::bad_request(format!(
                "resourceVersion: Invalid value: {rv:?}: strconv.ParseUint: parsing {rv:?}: invalid syntax"
            ))
        })?;
        asked.resource.cache.at_least(Revision(rv)).await.map_err(|e| cache_status(&e))?;
    }
    let object = engine.get(asked.resource, asked.namespace(), &asked.info.name).await?;
    Ok(asked.renderer().object(200, &asked.shown(engine, &object.bytes).await?))
}

const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// A list's place for its next page: the revision that all pages share and the last key.
#[derive(serde::Serialize, serde::Deserialize)]
struct Continue {
    /// -1: the rest of a list whose revision is gone, as it is now.
    rv: i64,
    start: String,
}

impl Continue {
    fn encode(&self) -> String {
        use base64::Engine as _;
        let json = serde_json::to_vec(self).expect("two plain fields");
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)
    }

    fn decode(token: &str, prefix: &str) -> Result<Continue, Status> {
        use base64::Engine as _;
        let bad = |why: &dyn std::fmt::Display| Status::bad_request(format!("continue key is not valid: {why}"));
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token).map_err(|e| bad(&e))?;
        let token: Continue = serde_json::from_slice(&bytes).map_err(|e| bad(&e))?;
        // A token of one resource must not read another.
        if !token.start.starts_with(prefix) {
            return Err(bad(&"it does not belong to this resource"));
        }
        Ok(token)
    }
}

/// 422 for options of a list or watch.
pub fn invalid_list_options(fault: FieldError) -> Status {
    Status::invalid("meta.k8s.io", "ListOptions", "", &[fault])
}

/// Checks that the field selector names only what can be selected.
pub fn check_fields(asked: &Asked<'_>, options: &ListOptions) -> Result<(), Status> {
    for (path, ..) in &options.filter.fields.terms {
        let known = path == "metadata.name"
            || (path == "metadata.namespace" && asked.kind.namespaced)
            || asked.resource.cache.selectable().contains(&path.as_str());
        if !known {
            return Err(Status::bad_request(format!("field label not supported: {path}")));
        }
    }
    Ok(())
}

pub async fn list(engine: &Engine, asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let mut options = ListOptions::parse(asked.query, asked.namespace())?;
    check_fields(asked, &options)?;
    let cache = &asked.resource.cache;
    let status = |e: CacheError| cache_status(&e);
    if let Some(how) = &options.resource_version_match {
        if options.resource_version.is_none() {
            return Err(invalid_list_options(FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            )));
        }
        if !["Exact", "NotOlderThan"].contains(&how.as_str()) {
            return Err(invalid_list_options(FieldError::not_supported(
                "resourceVersionMatch",
                how.as_str(),
                &["Exact", "NotOlderThan"],
            )));
        }
        if how == "Exact" && options.resource_version == Some(0) {
            return Err(invalid_list_options(FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            )));
        }
    }
    let listed = match options.continue_token.take() {
        Some(token) => {
            if options.resource_version.is_some_and(|rv| rv > 0) {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            let token = Continue::decode(&token, cache.prefix())?;
            let (filter, limit, start) = (&options.filter, options.limit, Some(token.start.as_str()));
            match u64::try_from(token.rv) {
                Err(_) => cache.list(filter, limit, start).await.map_err(status)?,
                Ok(rv) => match cache.list_at(filter, limit, start, Revision(rv)).await.map_err(status) {
                    Err(mut expired) if expired.reason == "Expired" => {
                        expired.message = CONTINUE_EXPIRED.to_owned();
                        let mut answer = expired.to_value();
                        answer["metadata"]["continue"] = Continue { rv: -1, start: token.start }.encode().into();
                        return Ok(crate::http::json(expired.code, &answer));
                    }
                    other => other?,
                },
            }
        }
        None => match (options.resource_version, options.resource_version_match.as_deref()) {
            (Some(rv), Some("Exact")) => {
                cache.at_least(Revision(rv)).await.map_err(status)?;
                cache.list_at(&options.filter, options.limit, None, Revision(rv)).await.map_err(status)?
            }
            (rv, _) => {
                if let Some(rv) = rv.filter(|rv| *rv > 0) {
                    cache.at_least(Revision(rv)).await.map_err(status)?;
                }
                cache.list(&options.filter, options.limit, None).await.map_err(status)?
            }
        },
    };
    let more = listed.more.map(|(key, remaining)| {
        let rv = i64::try_from(listed.revision.0).unwrap_or(i64::MAX);
        (Continue { rv, start: key.to_string() }.encode(), remaining)
    });
    let shown = asked.all_shown(&engine.registry, &listed.objects).await?;
    Ok(asked.renderer().list(&shown, listed.revision, more))
}

/// A request for a certificate is that of whoever sent it.
fn name_requester(asked: &Asked<'_>, value: &mut Value) {
    if asked.kind.kind != "CertificateSigningRequest" {
        return;
    }
    let user = asked.user;
    value["spec"]["username"] = user.name.clone().into();
    value["spec"]["groups"] = json!(user.groups);
    if !user.uid.is_empty() {
        value["spec"]["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        value["spec"]["extra"] = json!(user.extra);
    }
}

pub async fn create(engine: &Engine, asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let options = asked.write_options()?;
    let (value, mut warnings) = asked.decoded(options.field_validation)?;
    let mut value = convert::to_stored(asked.kind, value);
    warnings.extend((asked.resource.strategy.warnings)(&value));
    name_requester(asked, &mut value);
    let cx = Context { user: asked.user, options: &options };
    let written = engine.create(&cx, asked.resource, asked.namespace(), value).await?;
    let mut response = asked.renderer().object(201, &asked.shown(engine, &written.bytes).await?);
    warn(&mut response, &warnings);
    warn(&mut response, &asked.deprecation());
    Ok(response)
}

/// An update of the object or of a subresource that has the object's own kind.
pub async fn update(engine: &Engine, asked: &Asked<'_>, part: Part) -> Result<Response<Body>, Status> {
    let options = asked.write_options()?;
    let (value, warnings) = asked.decoded(options.field_validation)?;
    let name = &asked.info.name;
    let given = meta_str(&value, "name");
    if given.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    if given != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let namespace = meta_str(&value, "namespace");
    if !namespace.is_empty() && namespace != asked.namespace() {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let value = convert::to_stored(asked.kind, value);
    let cx = Context { user: asked.user, options: &options };
    let sub = asked.info.subresource.as_str();
    let done = engine.update(&cx, asked.resource, asked.namespace(), name, part, sub, &|_| Ok(value.clone())).await;
    let (written, code) = match done {
        Err(e)
            if e.code == 404
                && e.reason == "NotFound"
                && asked.resource.strategy.create_on_update
                && part == Part::Main =>
        {
            let mut value = value.clone();
            crate::object::take_revision(&mut value);
            (engine.create(&cx, asked.resource, asked.namespace(), value).await?, 201)
        }
        other => (other?, 200),
    };
    let mut response = asked.renderer().object(code, &asked.shown(engine, &written.bytes).await?);
    warn(&mut response, &warnings);
    warn(&mut response, &asked.deprecation());
    Ok(response)
}

/// 422 for a patch whose result is no object of its kind.
fn bad_patch(patch: &Value, why: &str) -> Status {
    let fault = skiff_api::validation::FieldError::invalid("patch", go_text(patch), why);
    Status::invalid("", "", "", &[fault])
}

/// A value as Go prints it with `%+v`.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(s) => s.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut parts: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_text(v))).collect();
            parts.sort();
            format!("map[{}]", parts.join(" "))
        }
        other => other.to_string(),
    }
}

/// The function from the old object to the patched one, in the version of `kind`.
pub fn patched(
    kind: &'static Kind,
    media_type: &str,
    body: &[u8],
    validation: FieldValidation,
    version: Option<Arc<Version>>,
) -> Result<impl Fn(&Value) -> Result<(Value, Vec<String>), Status> + Sync + use<>, Status> {
    // What a strategic merge would go by is known of built-in kinds alone.
    let types = if version.is_some() { CUSTOM_PATCH_TYPES } else { PATCH_TYPES };
    if media_type == APPLY || !types.contains(&media_type) {
        return Err(Status::unsupported_media_type(types));
    }
    let decoded = match decode::json(body) {
        Ok(decoded) => decoded,
        // kubectl sends patches written in YAML as JSON; other clients may not.
        Err(e) => {
            match std::str::from_utf8(body).ok().and_then(|t| decode::yaml(t).ok()).filter(|d| d.value.is_object()) {
                Some(decoded) => decoded,
                None => return Err(Status::bad_request(format!("error decoding patch: {e}"))),
            }
        }
    };
    let patch = decoded.value.clone();
    let media_type = media_type.to_owned();
    let type_name = kind.type_name();
    Ok(move |old: &Value| {
        let mut value = old.clone();
        let bad = |e: patch::PatchError| match e {
            patch::PatchError::Malformed(m) => Status::bad_request(m),
            patch::PatchError::DoesNotApply(m) | patch::PatchError::TestFailed(m) => Status::new(422, "Invalid", m),
        };
        match media_type.as_str() {
            "application/json-patch+json" => patch::json(&mut value, &patch).map_err(bad)?,
            "application/merge-patch+json" => {
                if !patch.is_object() {
                    return Err(Status::bad_request(
                        "error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}",
                    ));
                }
                patch::merge(&mut value, &patch);
            }
            _ => patch::strategic(&mut value, &patch, &type_name).map_err(bad)?,
        }
        if !value.is_object() {
            return Err(Status::bad_request("the patch makes no object"));
        }
        // A patch cannot turn an object into another kind of object.
        for (field, want) in [("kind", kind.kind.to_owned()), ("apiVersion", kind.api_version())] {
            if value[field] != want.as_str() {
                return Err(Status::bad_request(format!(
                    "the {field} of the patched object ({}) does not match the expected one ({want})",
                    value[field]
                )));
            }
        }
        let unknown =
            conform(kind, &mut value, version.as_deref(), Extent::Whole).map_err(|e| bad_patch(&patch, &e.message))?;
        let mut problems: Vec<String> = decoded.duplicates.iter().map(|d| format!("duplicate field {d:?}")).collect();
        problems.extend(unknown.iter().map(|u| format!("unknown field {u:?}")));
        if validation == FieldValidation::Strict && !problems.is_empty() {
            return Err(bad_patch(&patch, &format!("strict decoding error: {}", problems.join(", "))));
        }
        Ok((value, if validation == FieldValidation::Ignore { Vec::new() } else { problems }))
    })
}

pub async fn patch(engine: &Engine, asked: &Asked<'_>, part: Part) -> Result<Response<Body>, Status> {
    if asked.media_type() == APPLY {
        return apply(engine, asked, part).await;
    }
    if asked.query.get("force").is_some() {
        let fault = FieldError::forbidden("force", "may not be specified for non-apply patch");
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[fault]));
    }
    let options = asked.write_options()?;
    let version = asked.version.clone();
    let change = patched(asked.kind, asked.media_type(), &asked.body, options.field_validation, version)?;
    let warnings = parking_lot::Mutex::new(Vec::new());
    let kind = asked.kind;
    let apply = |old: &Value| {
        let shown = convert::from_stored(kind, old.to_string().as_bytes()).unwrap_or_else(|| old.clone());
        let (value, problems) = change(&shown)?;
        *warnings.lock() = problems;
        if meta_str(&value, "name") != meta_str(old, "name") {
            return Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                meta_str(&value, "name"),
                meta_str(old, "name")
            )));
        }
        Ok(convert::to_stored(kind, value))
    };
    let cx = Context { user: asked.user, options: &options };
    let sub = asked.info.subresource.as_str();
    let written = engine.update(&cx, asked.resource, asked.namespace(), &asked.info.name, part, sub, &apply).await?;
    let mut response = asked.renderer().object(200, &asked.shown(engine, &written.bytes).await?);
    warn(&mut response, &warnings.into_inner());
    Ok(response)
}

/// Server-side apply: the body is the configuration of one manager.
async fn apply(engine: &Engine, asked: &Asked<'_>, part: Part) -> Result<Response<Body>, Status> {
    let name = &asked.info.name;
    let options = asked.plain_options()?;
    let (mut config, mut warnings) = decode_object(
        asked.kind,
        YAML,
        &asked.body,
        options.field_validation,
        asked.version.as_deref(),
        Extent::Applied,
    )?;
    let given = meta_str(&config, "name");
    if !given.is_empty() && given != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    crate::object::meta_mut(&mut config).insert("name".into(), name.as_str().into());
    let config = convert::to_stored(asked.kind, config);
    warnings.extend((asked.resource.strategy.warnings)(&config));
    let (written, created) = applied(engine, asked, part, options.clone(), config).await?;
    let shown = asked.shown(engine, &written.bytes).await?;
    let mut response = asked.renderer().object(if created { 201 } else { 200 }, &shown);
    warn(&mut response, &warnings);
    warn(&mut response, &asked.deprecation());
    Ok(response)
}

/// Applies a configuration in the stored version; whether that made the object is returned with it.
pub async fn applied(
    engine: &Engine,
    asked: &Asked<'_>,
    part: Part,
    options: WriteOptions,
    config: Value,
) -> Result<(Written, bool), Status> {
    let manager = asked.query.get("fieldManager").unwrap_or_default();
    let fault = if manager.is_empty() {
        Some(FieldError::required("fieldManager", "is required for apply patch"))
    } else {
        check_manager(manager)
    };
    if let Some(fault) = fault {
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[fault]));
    }
    let (name, sub) = (asked.info.name.as_str(), asked.info.subresource.as_str());
    let kind = asked.resource.kind;
    let application =
        Application::new(kind, asked.version.as_deref(), manager, sub, asked.query.flag("force"), config)?;
    let options = WriteOptions { tracking: Tracking::Applied, ..options };
    let cx = Context { user: asked.user, options: &options };
    for _ in 0..MAX_APPLY_ATTEMPTS {
        let change = |old: &Value| application.apply(old);
        match engine.update(&cx, asked.resource, asked.namespace(), name, part, sub, &change).await {
            Err(e) if e.code == 404 && e.reason == "NotFound" && part == Part::Main && sub.is_empty() => {}
            other => return other.map(|written| (written, false)),
        }
        may_create(engine, asked)?;
        let mut value = application.apply(&Value::Null)?;
        let uid = meta_str(&value, "uid");
        if !uid.is_empty() {
            let why =
                format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            return Err(Status::conflict(kind.group, kind.plural, name, why));
        }
        name_requester(asked, &mut value);
        match engine.create(&cx, asked.resource, asked.namespace(), value).await {
            // Somebody else was first: it is applied to what is there now.
            Err(e) if e.reason == "AlreadyExists" => {}
            other => return other.map(|written| (written, true)),
        }
    }
    Err(Status::modified(kind.group, kind.plural, name))
}

/// Who applies what is not there needs the right to create it.
fn may_create(engine: &Engine, asked: &Asked<'_>) -> Result<(), Status> {
    let (info, authorizer) = (asked.info, &engine.admission.authorizer);
    let wanted = rbac::Attributes {
        verb: "create",
        group: &info.group,
        resource: &info.resource,
        name: &info.name,
        namespace: &info.namespace,
        path: "",
        is_resource: true,
    };
    match authorizer.allows(asked.user, &wanted) {
        Some(_) => Ok(()),
        None => Err(Status::forbidden(&info.group, &info.resource, &info.name, rbac::refusal(asked.user, &wanted))),
    }
}

/// The body of a deletion; nothing is no options.
fn delete_body(asked: &Asked<'_>) -> Result<Value, Status> {
    if asked.body.is_empty() {
        return Ok(json!({}));
    }
    let mut value = decode_bytes(asked.media_type(), &asked.body)?.value;
    decode::conform(&mut value, "apimachinery.pkg.apis.meta.v1.DeleteOptions")
        .map_err(|e| Status::bad_request(format!("error decoding DeleteOptions: {e}")))?;
    Ok(value)
}

/// Options of a deletion, from the body or, as old clients do it, the query.
pub fn delete_options(asked: &Asked<'_>, body: &Value) -> Result<DeleteOptions, Status> {
    let write = WriteOptions::parse(asked.query)?;
    let grace_s = match body["gracePeriodSeconds"].as_i64() {
        Some(s) => Some(s),
        None => asked.query.int("gracePeriodSeconds")?,
    };
    let policy = body["propagationPolicy"].as_str().or_else(|| asked.query.get("propagationPolicy"));
    let orphan =
        body["orphanDependents"].as_bool().or_else(|| asked.query.get("orphanDependents").map(|v| v == "true"));
    let propagation = match (policy, orphan) {
        (Some(_), Some(_)) => {
            return Err(Status::invalid(
                "meta.k8s.io",
                "DeleteOptions",
                "",
                &[skiff_api::validation::FieldError::invalid(
                    "propagationPolicy",
                    policy.unwrap_or_default(),
                    "orphanDependents and deletionPropagation cannot be both set",
                )],
            ));
        }
        (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
        (Some("Foreground"), _) => Some(Propagation::Foreground),
        (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
        (Some(""), None) | (None, None) => None,
        (Some(other), None) => {
            return Err(Status::invalid(
                "meta.k8s.io",
                "DeleteOptions",
                "",
                &[skiff_api::validation::FieldError::not_supported(
                    "propagationPolicy",
                    other,
                    &["Foreground", "Background", "Orphan", "nil"],
                )],
            ));
        }
    };
    let dry_run = write.dry_run || body["dryRun"].as_array().is_some_and(|d| !d.is_empty());
    let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
    Ok(DeleteOptions {
        grace_s,
        uid: text(&body["preconditions"]["uid"]),
        resource_version: text(&body["preconditions"]["resourceVersion"]),
        propagation,
        dry_run,
    })
}

pub async fn delete(engine: &Engine, asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let options = delete_options(asked, &delete_body(asked)?)?;
    let write = asked.plain_options()?;
    let cx = Context { user: asked.user, options: &write };
    let deleted = engine.delete(&cx, asked.resource, asked.namespace(), &asked.info.name, &options).await?;
    let response = match deleted {
        Deleted::Gone(status) => encoded(asked.accepted, 200, status.to_string().into()),
        Deleted::Last(bytes) | Deleted::Pending(bytes) => {
            asked.renderer().object(200, &asked.shown(engine, &bytes).await?)
        }
    };
    Ok(response)
}

pub async fn delete_collection(engine: &Engine, asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let options = delete_options(asked, &delete_body(asked)?)?;
    let list = ListOptions::parse(asked.query, asked.namespace())?;
    check_fields(asked, &list)?;
    let write = asked.plain_options()?;
    let cx = Context { user: asked.user, options: &write };
    let deleted = engine.delete_collection(&cx, asked.resource, &list, &options).await?;
    let revision = engine.store.revision();
    let shown = asked.all_shown(&engine.registry, &deleted).await?;
    Ok(asked.renderer().list(&shown, revision, None))
}
