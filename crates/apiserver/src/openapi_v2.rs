//! OpenAPI v2, in JSON and in the protobuf form that kubectl and client-go ask for.
//!
//! It says what the documents of version 3 say, in one document of some megabytes. Clients ask for it rarely, so it
//! is made when asked for, definition by definition, and kept nowhere.

use std::io::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use serde_json::{Map, Value, json};

use crate::{
    http::{Body, respond},
    openapi::accepts_gzip,
};

const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// As it was misspelt once; clients still ask for it.
const PROTOBUF_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Protobuf,
}

/// The first form in `Accept` that is served.
fn negotiate(headers: &HeaderMap) -> Option<Form> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    accept.split(',').find_map(|entry| match entry.split(';').next().unwrap_or_default().trim() {
        "application/json" | "application/*" | "*/*" | "" => Some(Form::Json),
        PROTOBUF | PROTOBUF_OLD => Some(Form::Protobuf),
        _ => None,
    })
}

/// The answer to `/openapi/v2`: `paths` and `definitions` are those of version 3, by name.
pub fn answer(
    headers: &HeaderMap,
    paths: impl Iterator<Item = (String, Value)>,
    definitions: impl Iterator<Item = (String, Value)>,
) -> Response<Body> {
    let Some(form) = negotiate(headers) else { return respond(406, "text/plain; charset=utf-8", Bytes::new()) };
    let gzip = accepts_gzip(headers);
    let level = if gzip { flate2::Compression::fast() } else { flate2::Compression::none() };
    let mut out = Out { plain: Vec::new(), gzip: flate2::write::GzEncoder::new(Vec::new(), level), compress: gzip };
    match form {
        Form::Json => write_json(&mut out, paths, definitions),
        Form::Protobuf => write_protobuf(&mut out, paths, definitions),
    }
    let content_type = if form == Form::Json { "application/json" } else { PROTOBUF };
    let mut response = respond(200, content_type, out.finish());
    if gzip {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    response
}

/// The document as it grows, compressed on the way if the client takes that.
struct Out {
    plain: Vec<u8>,
    gzip: flate2::write::GzEncoder<Vec<u8>>,
    compress: bool,
}

impl Out {
    fn put(&mut self, bytes: &[u8]) {
        if self.compress {
            self.gzip.write_all(bytes).expect("writing into memory cannot fail");
        } else {
            self.plain.extend_from_slice(bytes);
        }
    }

    fn finish(self) -> Vec<u8> {
        if self.compress { self.gzip.finish().expect("writing into memory cannot fail") } else { self.plain }
    }
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": format!("v{}", crate::KUBERNETES_VERSION)})
}

fn write_json(
    out: &mut Out,
    paths: impl Iterator<Item = (String, Value)>,
    definitions: impl Iterator<Item = (String, Value)>,
) {
    let entries = |out: &mut Out, list: &mut dyn Iterator<Item = (String, Value)>| {
        for (i, (name, value)) in list.enumerate() {
            let comma = if i > 0 { "," } else { "" };
            out.put(format!("{comma}{}:{value}", Value::from(name)).as_bytes());
        }
    };
    out.put(format!("{{\"swagger\":\"2.0\",\"info\":{},\"paths\":{{", info()).as_bytes());
    entries(out, &mut paths.map(|(name, item)| (name, path_item(&item))));
    out.put(b"},\"definitions\":{");
    entries(out, &mut definitions.map(|(name, value)| (name, schema(&value))));
    out.put(b"}}");
}

/// A reference in the words of version 2.
fn reference(text: &Value) -> Value {
    text.as_str().unwrap_or_default().replace("#/components/schemas/", "#/definitions/").into()
}

/// A schema of version 3 in version 2, which knows no alternatives.
fn schema(v3: &Value) -> Value {
    let Some(map) = v3.as_object() else { return v3.clone() };
    let mut v2 = Map::new();
    for (key, value) in map {
        match key.as_str() {
            "$ref" => drop(v2.insert(key.clone(), reference(value))),
            // The only use in built-in types: a reference beside a description.
            "allOf" if value[0]["$ref"].is_string() => drop(v2.insert("$ref".into(), reference(&value[0]["$ref"]))),
            "allOf" | "anyOf" | "oneOf" | "not" | "nullable" => {}
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                v2.insert(key.clone(), properties.map(|(k, v)| (k.clone(), schema(v))).collect());
            }
            "items" | "additionalProperties" => drop(v2.insert(key.clone(), schema(value))),
            _ => drop(v2.insert(key.clone(), value.clone())),
        }
    }
    if map.get("format").is_some_and(|f| f == "int-or-string") {
        v2.insert("type".into(), "string".into());
    }
    // What may be null has no type that could be said.
    if map.get("nullable").is_some_and(|n| n == true) {
        for field in ["type", "items", "properties", "additionalProperties", "required"] {
            v2.shift_remove(field);
        }
    }
    // A client of version 2 would take other fields than those listed for a mistake.
    if map.get("x-kubernetes-preserve-unknown-fields").is_some_and(|p| p == true) {
        for field in ["items", "properties", "additionalProperties", "required"] {
            v2.shift_remove(field);
        }
    }
    Value::Object(v2)
}

fn parameter(v3: &Value) -> Value {
    let mut v2 = json!({"name": v3["name"], "in": v3["in"], "type": v3["schema"]["type"], "uniqueItems": true});
    if v3["required"] == true {
        v2["required"] = true.into();
    }
    v2
}

fn parameters(v3: &Value) -> Vec<Value> {
    v3["parameters"].as_array().into_iter().flatten().map(parameter).collect()
}

/// The first schema of a body or an answer.
fn content_schema(content: &Value) -> Option<Value> {
    content.as_object()?.values().next().map(|media| schema(&media["schema"]))
}

fn operation(v3: &Value) -> Value {
    let mut v2 = Map::new();
    let mut all = parameters(v3);
    if let Some(body) = content_schema(&v3["requestBody"]["content"]) {
        let types: Vec<&String> =
            v3["requestBody"]["content"].as_object().into_iter().flatten().map(|(k, _)| k).collect();
        v2.insert("consumes".into(), json!(types));
        all.insert(0, json!({"name": "body", "in": "body", "required": true, "schema": body}));
    }
    v2.insert("produces".into(), json!(["application/json", "application/yaml"]));
    if !all.is_empty() {
        v2.insert("parameters".into(), all.into());
    }
    let mut responses = Map::new();
    for (code, answer) in v3["responses"].as_object().into_iter().flatten() {
        let mut response = json!({"description": answer["description"]});
        if let Some(schema) = content_schema(&answer["content"]) {
            response["schema"] = schema;
        }
        responses.insert(code.clone(), response);
    }
    v2.insert("responses".into(), responses.into());
    for (key, value) in v3.as_object().into_iter().flatten().filter(|(k, _)| k.starts_with("x-")) {
        v2.insert(key.clone(), value.clone());
    }
    Value::Object(v2)
}

fn path_item(v3: &Value) -> Value {
    let mut v2 = Map::new();
    for (key, value) in v3.as_object().into_iter().flatten() {
        if key == "parameters" {
            v2.insert(key.clone(), parameters(v3).into());
        } else {
            v2.insert(key.clone(), operation(value));
        }
    }
    Value::Object(v2)
}

fn write_protobuf(
    out: &mut Out,
    paths: impl Iterator<Item = (String, Value)>,
    definitions: impl Iterator<Item = (String, Value)>,
) {
    let mut head = Message::default();
    head.text(1, "2.0");
    let info = info();
    head.message(2, |m| {
        m.text(1, info["title"].as_str().unwrap_or_default());
        m.text(2, info["version"].as_str().unwrap_or_default());
    });
    out.put(&head.0);
    // Parts of one message that come one after the other are merged by whoever reads them.
    for (name, item) in paths {
        let mut m = Message::default();
        m.message(8, |m| m.named(2, &name, |m| put_path_item(m, &path_item(&item))));
        out.put(&m.0);
    }
    for (name, value) in definitions {
        let mut m = Message::default();
        m.message(9, |m| m.named(1, &name, |m| put_schema(m, &schema(&value))));
        out.put(&m.0);
    }
}

/// A protobuf message as it is written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap_or_default());
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, field: u64, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    fn texts(&mut self, field: u64, list: &Value) {
        for text in list.as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.text(field, text);
        }
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// One entry of a map.
    fn named(&mut self, field: u64, name: &str, fill: impl FnOnce(&mut Message)) {
        self.message(field, |m| {
            m.text(1, name);
            m.message(2, fill);
        });
    }

    /// Any value, as YAML.
    fn any(&mut self, field: u64, value: &Value) {
        self.message(field, |m| m.text(2, &value.to_string()));
    }

    fn extensions(&mut self, field: u64, of: &Value) {
        for (key, value) in of.as_object().into_iter().flatten().filter(|(k, _)| k.starts_with("x-")) {
            self.message(field, |m| {
                m.text(1, key);
                m.any(2, value);
            });
        }
    }
}

fn put_schema(m: &mut Message, schema: &Value) {
    for (key, value) in schema.as_object().into_iter().flatten() {
        let number = value.as_f64().unwrap_or_default();
        let count = value.as_u64().unwrap_or_default();
        match key.as_str() {
            "$ref" => m.text(1, value.as_str().unwrap_or_default()),
            "format" => m.text(2, value.as_str().unwrap_or_default()),
            "title" => m.text(3, value.as_str().unwrap_or_default()),
            "description" => m.text(4, value.as_str().unwrap_or_default()),
            "default" => m.any(5, value),
            "multipleOf" => m.double(6, number),
            "maximum" => m.double(7, number),
            "exclusiveMaximum" => m.number(8, u64::from(*value == true)),
            "minimum" => m.double(9, number),
            "exclusiveMinimum" => m.number(10, u64::from(*value == true)),
            "maxLength" => m.number(11, count),
            "minLength" => m.number(12, count),
            "pattern" => m.text(13, value.as_str().unwrap_or_default()),
            "maxItems" => m.number(14, count),
            "minItems" => m.number(15, count),
            "uniqueItems" => m.number(16, u64::from(*value == true)),
            "maxProperties" => m.number(17, count),
            "minProperties" => m.number(18, count),
            "required" => m.texts(19, value),
            "enum" => value.as_array().into_iter().flatten().for_each(|v| m.any(20, v)),
            "additionalProperties" => m.message(21, |m| match value.as_bool() {
                Some(all) => m.number(2, u64::from(all)),
                None => m.message(1, |m| put_schema(m, value)),
            }),
            "type" => m.message(22, |m| m.text(1, value.as_str().unwrap_or_default())),
            "items" => m.message(23, |m| m.message(1, |m| put_schema(m, value))),
            "properties" => m.message(25, |m| {
                for (name, property) in value.as_object().into_iter().flatten() {
                    m.named(1, name, |m| put_schema(m, property));
                }
            }),
            "example" => m.any(30, value),
            _ => {}
        }
    }
    m.extensions(31, schema);
}

fn put_parameter(m: &mut Message, parameter: &Value) {
    let text = |field: &str| parameter[field].as_str().unwrap_or_default();
    let required = u64::from(parameter["required"] == true);
    m.message(1, |m| match text("in") {
        "body" => m.message(1, |m| {
            m.text(2, text("name"));
            m.text(3, "body");
            m.number(4, required);
            m.message(5, |m| put_schema(m, &parameter["schema"]));
        }),
        place => m.message(2, |m| {
            let (kind, ty, unique) = if place == "path" { (4, 5, 19) } else { (3, 6, 20) };
            m.message(kind, |m| {
                m.number(1, required);
                m.text(2, place);
                m.text(4, text("name"));
                m.text(ty, text("type"));
                m.number(unique, 1);
            });
        }),
    });
}

fn put_operation(m: &mut Message, operation: &Value) {
    m.texts(6, &operation["produces"]);
    m.texts(7, &operation["consumes"]);
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        m.message(8, |m| put_parameter(m, parameter));
    }
    m.message(9, |m| {
        for (code, response) in operation["responses"].as_object().into_iter().flatten() {
            m.named(1, code, |m| {
                m.message(1, |m| {
                    m.text(1, response["description"].as_str().unwrap_or_default());
                    if response["schema"].is_object() {
                        m.message(2, |m| m.message(1, |m| put_schema(m, &response["schema"])));
                    }
                });
            });
        }
    });
    m.extensions(13, operation);
}

fn put_path_item(m: &mut Message, item: &Value) {
    for (key, value) in item.as_object().into_iter().flatten() {
        let field = match key.as_str() {
            "get" => 2,
            "put" => 3,
            "post" => 4,
            "delete" => 5,
            "patch" => 8,
            "parameters" => {
                value.as_array().into_iter().flatten().for_each(|p| m.message(9, |m| put_parameter(m, p)));
                continue;
            }
            _ => continue,
        };
        m.message(field, |m| put_operation(m, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_negotiated() {
        let accept = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(text));
            negotiate(&headers)
        };
        assert_eq!(negotiate(&HeaderMap::new()), Some(Form::Json));
        assert_eq!(accept(PROTOBUF_OLD), Some(Form::Protobuf));
        assert_eq!(accept("text/html, application/json;q=0.9"), Some(Form::Json));
        assert_eq!(accept("text/html"), None);
    }

    #[test]
    fn schemas_lose_what_version_2_does_not_know() {
        let v3 = json!({"type": "object", "properties": {
            "a": {"allOf": [{"$ref": "#/components/schemas/x"}], "description": "d"},
            "b": {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
            "c": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"d": {"type": "string"}}},
        }});
        assert_eq!(
            schema(&v3)["properties"],
            json!({
                "a": {"$ref": "#/definitions/x", "description": "d"},
                "b": {"format": "int-or-string", "type": "string"},
                "c": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            })
        );
    }

    #[test]
    fn messages_have_their_lengths() {
        let mut m = Message::default();
        m.message(9, |m| m.named(1, "x", |m| put_schema(m, &json!({"type": "object", "minimum": 1.0}))));
        let schema = [0xb2, 1, 8, 0x0a, 6, b'o', b'b', b'j', b'e', b'c', b't', 0x49, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f];
        let mut want = vec![0x4a, 27, 0x0a, 25, 0x0a, 1, b'x', 0x12, 20];
        want.extend(schema);
        assert_eq!(m.0, want);
    }
}
