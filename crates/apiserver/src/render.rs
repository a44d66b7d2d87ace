//! From objects to answers: what the client accepts decides the form and the encoding.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header};
use serde_json::{Value, json};
use skiff_api::{Kind, Status};
use skiff_store::Revision;

use crate::{
    convert,
    custom::{Version, columns},
    http::{Body, JSON, respond},
    registry::{Strategy, strategy::Column},
};

/// The shape in which objects are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Object,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `PartialObjectMetadata`.
    Metadata,
}

/// Result of content negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub form: Form,
    pub yaml: bool,
    pub pretty: bool,
}

const SUPPORTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// Chooses the first thing in `Accept` that can be served.
pub fn negotiate(headers: &HeaderMap, pretty: bool) -> Result<Accepted, Status> {
    let mut accepted = Accepted { form: Form::Object, yaml: false, pretty };
    let header = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if header.trim().is_empty() {
        return Ok(accepted);
    }
    for entry in header.split(',') {
        let mut parts = entry.split(';').map(str::trim);
        accepted.yaml = match parts.next().unwrap_or_default() {
            "application/json" | "application/*" | "*/*" => false,
            "application/yaml" => true,
            _ => continue,
        };
        let (mut shape, mut group, mut version) = ("", "", "");
        for (k, v) in parts.filter_map(|p| p.split_once('=')) {
            match k {
                "as" => shape = v,
                "g" => group = v,
                "v" => version = v,
                _ => {}
            }
        }
        accepted.form = match (shape, group, version) {
            ("", ..) => Form::Object,
            ("Table", "meta.k8s.io", "v1") => Form::Table,
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => Form::Metadata,
            _ => continue,
        };
        return Ok(accepted);
    }
    Err(Status::new(406, "NotAcceptable", format!("only the following media types are accepted: {SUPPORTED}")))
}

/// How objects of a kind are shown.
pub struct Renderer<'a> {
    /// The kind that was asked for, maybe another version of the stored one.
    pub kind: &'static Kind,
    pub strategy: &'static Strategy,
    /// For a custom kind: the version that was asked for.
    pub version: Option<&'a Version>,
    pub accepted: Accepted,
    /// `includeObject` of tables.
    pub include: &'a str,
}

impl Renderer<'_> {
    fn in_version(&self, bytes: &Bytes) -> Bytes {
        let converted = convert::from_stored(self.kind, bytes);
        match (converted, self.version.filter(|v| v.completes())) {
            (None, None) => bytes.clone(),
            (Some(value), None) => value.to_string().into(),
            (converted, Some(version)) => {
                let mut value = converted.unwrap_or_else(|| parse(bytes));
                version.defaults(&mut value);
                value.to_string().into()
            }
        }
    }

    /// One object.
    pub fn object(&self, code: u16, bytes: &Bytes) -> Response<Body> {
        let bytes = self.in_version(bytes);
        match self.accepted.form {
            Form::Object => self.encoded(code, bytes),
            Form::Table => {
                let value = parse(&bytes);
                let revision = value["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                self.encoded(code, self.table(&[value], json!({"resourceVersion": revision}), true).to_string().into())
            }
            Form::Metadata => self.encoded(code, partial(&parse(&bytes)).to_string().into()),
        }
    }

    /// A list: stored bytes put side by side when they are shown as they are.
    pub fn list(&self, objects: &[Bytes], revision: Revision, more: Option<(String, u64)>) -> Response<Body> {
        let mut meta = json!({"resourceVersion": revision.0.to_string()});
        if let Some((token, remaining)) = more {
            meta["continue"] = token.into();
            meta["remainingItemCount"] = remaining.into();
        }
        let body: Bytes = match self.accepted.form {
            Form::Object => {
                let head = format!(
                    "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{meta},\"items\":[",
                    self.kind.list_kind(),
                    self.kind.api_version()
                );
                let size: usize = objects.iter().map(|o| o.len() + 1).sum();
                let mut out = BytesMut::with_capacity(head.len() + size + 2);
                out.put_slice(head.as_bytes());
                for (i, object) in objects.iter().enumerate() {
                    if i > 0 {
                        out.put_u8(b',');
                    }
                    out.put_slice(&self.in_version(object));
                }
                out.put_slice(b"]}");
                out.freeze()
            }
            Form::Table => {
                let values: Vec<Value> = objects.iter().map(|o| parse(&self.in_version(o))).collect();
                self.table(&values, meta, true).to_string().into()
            }
            Form::Metadata => {
                let items: Vec<Value> = objects.iter().map(|o| partial(&parse(o))).collect();
                json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items})
                    .to_string()
                    .into()
            }
        };
        self.encoded(200, body)
    }

    /// The object of a watch event; `first` tables describe their columns.
    pub fn event_object(&self, bytes: &Bytes, first: bool) -> Bytes {
        let bytes = self.in_version(bytes);
        match self.accepted.form {
            Form::Object => bytes,
            Form::Table => {
                let value = parse(&bytes);
                let revision = value["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                self.table(&[value], json!({"resourceVersion": revision}), first).to_string().into()
            }
            Form::Metadata => partial(&parse(&bytes)).to_string().into(),
        }
    }

    /// The object of a bookmark: nothing but kind and resourceVersion.
    pub fn bookmark(&self, revision: Revision, initial_events_end: bool) -> Bytes {
        let mut meta = json!({"resourceVersion": revision.0.to_string(), "creationTimestamp": null});
        if initial_events_end {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.accepted.form {
            Form::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision.0.to_string()},
                "columnDefinitions": [], "rows": [{"cells": [], "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta}}],
            }),
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta})
            }
            Form::Object => {
                let mut object =
                    json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": meta});
                // Typed clients decode bookmarks as objects of the kind; these fields are no pointers there.
                for field in ["spec", "status"] {
                    object[field] = json!({});
                }
                object
            }
        };
        object.to_string().into()
    }

    fn table(&self, objects: &[Value], meta: Value, describe: bool) -> Value {
        let column = |c: &Column| json!({"name": c.name, "type": c.ty, "format": c.format, "description": c.name, "priority": c.priority});
        let columns: Option<Vec<Value>> = describe.then(|| match self.version {
            Some(version) => columns::definitions(&version.columns),
            None => self.strategy.columns.iter().map(column).collect(),
        });
        let row = |o: &Value| match self.version {
            Some(version) => columns::cells(&version.columns, o),
            None => (self.strategy.row)(o).into_iter().map(|c| if c.is_null() { "".into() } else { c }).collect(),
        };
        let rows: Vec<Value> = objects
            .iter()
            .map(|o| {
                let object = match self.include {
                    "None" => Value::Null,
                    "Object" => o.clone(),
                    _ => partial(o),
                };
                let cells: Vec<Value> = row(o);
                json!({"cells": cells, "object": object})
            })
            .collect();
        json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "columnDefinitions": columns, "rows": rows})
    }

    fn encoded(&self, code: u16, bytes: Bytes) -> Response<Body> {
        encoded(self.accepted, code, bytes)
    }
}

/// JSON bytes in the accepted encoding.
pub fn encoded(accepted: Accepted, code: u16, bytes: Bytes) -> Response<Body> {
    if accepted.yaml {
        return match serde_saphyr::to_string(&parse(&bytes)) {
            Ok(text) => respond(code, "application/yaml", text),
            Err(e) => crate::http::failure(&Status::internal(e)),
        };
    }
    if accepted.pretty {
        return match serde_json::to_string_pretty(&parse(&bytes)) {
            Ok(text) => respond(code, JSON, text),
            Err(e) => crate::http::failure(&Status::internal(e)),
        };
    }
    respond(code, JSON, bytes)
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("bytes that this server encoded")
}

fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// Adds `Warning` headers.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for text in warnings {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &str) -> Result<Accepted, Status> {
        let mut h = HeaderMap::new();
        h.insert("accept", text.parse().unwrap());
        negotiate(&h, false)
    }

    #[test]
    fn the_first_that_can_be_served_is_chosen() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(table).unwrap().form, Form::Table);
        assert_eq!(accept("application/vnd.kubernetes.protobuf,application/json").unwrap().form, Form::Object);
        assert!(accept("application/yaml").unwrap().yaml);
        assert_eq!(accept("application/vnd.kubernetes.protobuf").unwrap_err().code, 406);
    }
}
