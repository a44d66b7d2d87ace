//! A small API server in memory, for tests of controllers and of this crate.
//!
//! It knows no kinds: whatever is created under a path is listed, watched, updated, patched and deleted
//! there, with resource versions, UIDs, conflicts, label and field selectors (equality), pages,
//! bookmarks and 410. It has no validation, defaults, subresource rules or finalizers: PUT and PATCH of
//! `…/status` write the object. Faults can be asked for.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::Service;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// See the [module](self). Cloning gives another handle on the same server.
#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    /// Wakes watches: the last version, and how often all watches were cut.
    version: watch::Sender<(u64, u64)>,
}

struct State {
    /// By collection (`/api/v1/pods`), namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    log: Vec<Logged>,
    compacted: u64,
    version: u64,
    failures: VecDeque<(Option<Method>, u16)>,
    requests: Vec<String>,
}

struct Logged {
    version: u64,
    kind: &'static str,
    collection: String,
    /// As it was before, to tell selectors from deletions.
    old: Option<Value>,
    object: Value,
}

impl Default for FakeApi {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeApi {
    /// An empty server.
    pub fn new() -> FakeApi {
        let state = State {
            objects: BTreeMap::new(),
            log: Vec::new(),
            compacted: 0,
            version: 1,
            failures: VecDeque::new(),
            requests: Vec::new(),
        };
        FakeApi { state: Arc::new(Mutex::new(state)), version: watch::Sender::new((1, 0)) }
    }

    /// A client of it.
    pub fn client(&self) -> kube::Client {
        crate::in_process(self.clone(), "test", "default")
    }

    /// Answers the next request, or the next one of a method, with this status code; adds up.
    pub fn fail_next(&self, method: Option<Method>, code: u16) {
        self.state.lock().failures.push_back((method, code));
    }

    /// Ends all running watches without an error.
    pub fn cut_watches(&self) {
        self.version.send_modify(|(_, cuts)| *cuts += 1);
    }

    /// Forgets the history: watches from now older versions are answered with 410.
    pub fn compact(&self) {
        let mut state = self.state.lock();
        state.compacted = state.version;
        state.log.clear();
    }

    /// All requests so far, as `METHOD path?query`.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().requests.clone()
    }

    fn handle(&self, method: &Method, uri: &http::Uri, body: &[u8], headers: &http::HeaderMap) -> Answer {
        let Some(path) = ObjectPath::parse(uri.path()) else {
            return status(404, "NotFound", "no such path");
        };
        let query = parse_query(uri.query().unwrap_or(""));
        {
            let mut state = self.state.lock();
            state.requests.push(format!("{method} {uri}"));
            let failing = |(of, _): &(Option<Method>, u16)| of.as_ref().is_none_or(|of| of == method);
            if let Some(at) = state.failures.iter().position(failing)
                && let Some((_, code)) = state.failures.remove(at)
            {
                let reason = if code == 410 { "Expired" } else { "InternalError" };
                return status(code, reason, "failing as asked");
            }
        }
        match (method, path.name.is_some()) {
            (&Method::GET, false) if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") => {
                self.watch(path, query)
            }
            (&Method::GET, false) => self.state.lock().list(&path, &query),
            (&Method::GET, true) => match self.state.lock().objects.get(&path.key()) {
                Some(object) => answer(200, object),
                None => not_found(&path),
            },
            (&Method::POST, false) => self.write(|state| state.create(&path, body)),
            (&Method::PUT, true) => self.write(|state| state.replace(&path, body)),
            (&Method::PATCH, true) => self.write(|state| state.patch(&path, body, headers)),
            (&Method::DELETE, true) => self.write(|state| state.delete(&path)),
            _ => status(405, "MethodNotAllowed", "not done by the fake"),
        }
    }

    fn write(&self, change: impl FnOnce(&mut State) -> Answer) -> Answer {
        let mut state = self.state.lock();
        let answer = change(&mut state);
        let version = state.version;
        drop(state);
        self.version.send_modify(|(known, _)| *known = version);
        answer
    }

    fn watch(&self, path: ObjectPath, query: HashMap<String, String>) -> Answer {
        let from = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        if from < self.state.lock().compacted {
            return status(410, "Expired", "too old resource version");
        }
        let changed = self.version.subscribe();
        let cuts = changed.borrow().1;
        let state = self.state.clone();
        let lines = stream::unfold((from, changed), move |(from, mut changed)| {
            let (path, query, state) = (path.clone(), query.clone(), state.clone());
            async move {
                loop {
                    if changed.borrow_and_update().1 != cuts {
                        return None;
                    }
                    let lines = state.lock().events(&path, &query, from);
                    match lines {
                        Ok((lines, to)) if !lines.is_empty() => {
                            return Some((lines, (to, changed)));
                        }
                        Ok(_) => changed.changed().await.ok()?,
                        Err(gone) => return Some((gone, (u64::MAX, changed))),
                    }
                }
            }
        });
        let body = StreamBody::new(lines.map(|lines| Ok(Frame::data(Bytes::from(lines)))));
        json_response(200, body.boxed_unsync())
    }
}

impl Service<Request<Body>> for FakeApi {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect_bytes().await else {
                return Ok(status(400, "BadRequest", "unreadable body"));
            };
            Ok(this.handle(&parts.method, &parts.uri, &body, &parts.headers))
        })
    }
}

#[derive(Clone)]
struct ObjectPath {
    collection: String,
    namespace: String,
    name: Option<String>,
}

impl ObjectPath {
    fn parse(path: &str) -> Option<ObjectPath> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let base = if parts.first() == Some(&"api") { 2 } else { 3 };
        let (prefix, rest) = parts.split_at_checked(base)?;
        let (namespace, rest) = match rest {
            // `namespaces/x` is itself an object; `namespaces/x/pods` is not.
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest[0] != "status" => (*namespace, rest),
            rest => ("", rest),
        };
        Some(ObjectPath {
            collection: format!("/{}/{}", prefix.join("/"), rest.first()?),
            namespace: namespace.to_owned(),
            name: rest.get(1).map(|name| (*name).to_owned()),
        })
    }

    fn key(&self) -> (String, String, String) {
        (self.collection.clone(), self.namespace.clone(), self.name.clone().unwrap_or_default())
    }
}

impl State {
    fn list(&self, path: &ObjectPath, query: &HashMap<String, String>) -> Answer {
        let matching = self
            .objects
            .iter()
            .filter(|((collection, ..), object)| *collection == path.collection && selected(path, query, object));
        let start: usize = query.get("continue").and_then(|token| token.parse().ok()).unwrap_or(0);
        let limit: usize = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let items: Vec<&Value> = matching.map(|(_, object)| object).skip(start).collect();
        let token = if items.len() > limit { (start + limit).to_string() } else { String::new() };
        let items: Vec<&Value> = items.into_iter().take(limit).collect();
        answer(
            200,
            &json!({
                "kind": "List", "apiVersion": "v1",
                "metadata": {"resourceVersion": self.version.to_string(), "continue": token},
                "items": items,
            }),
        )
    }

    /// The lines for a watch that has seen everything up to `from`, and the version seen then.
    fn events(&self, path: &ObjectPath, query: &HashMap<String, String>, from: u64) -> Result<(String, u64), String> {
        if from == u64::MAX {
            return Ok((String::new(), from));
        }
        if from < self.compacted {
            let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
                "message": "too old resource version"});
            return Err(format!("{}\n", json!({"type": "ERROR", "object": gone})));
        }
        let mut lines = String::new();
        for logged in self.log.iter().filter(|logged| logged.version > from) {
            if logged.collection != path.collection {
                continue;
            }
            let was = logged.old.as_ref().is_some_and(|old| selected(path, query, old));
            let is = logged.kind != "DELETED" && selected(path, query, &logged.object);
            let kind = match (was, is) {
                (false, true) => "ADDED",
                (true, true) => "MODIFIED",
                (true, false) => "DELETED",
                (false, false) => continue,
            };
            lines.push_str(&format!("{}\n", json!({"type": kind, "object": logged.object})));
        }
        if lines.is_empty() && self.version > from {
            let bookmark = json!({"kind": "Bookmark", "apiVersion": "v1",
                "metadata": {"resourceVersion": self.version.to_string()}});
            lines = format!("{}\n", json!({"type": "BOOKMARK", "object": bookmark}));
        }
        Ok((lines, self.version))
    }

    fn create(&mut self, path: &ObjectPath, body: &[u8]) -> Answer {
        let Ok(mut object) = serde_json::from_slice::<Value>(body) else {
            return status(400, "BadRequest", "not JSON");
        };
        let version = self.version + 1;
        let meta = &mut object["metadata"];
        if meta["name"].is_null()
            && let Some(prefix) = meta["generateName"].as_str()
        {
            meta["name"] = json!(format!("{prefix}{version:05}"));
        }
        if !path.namespace.is_empty() {
            meta["namespace"] = json!(path.namespace);
        }
        meta["uid"] = json!(format!("uid-{version}"));
        meta["creationTimestamp"] = json!(jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_default());
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        let path = ObjectPath { name: Some(name.clone()), ..path.clone() };
        if self.objects.contains_key(&path.key()) {
            return status(409, "AlreadyExists", &format!("\"{name}\" already exists"));
        }
        self.store(&path, "ADDED", object, 201)
    }

    fn replace(&mut self, path: &ObjectPath, body: &[u8]) -> Answer {
        let Some(old) = self.objects.get(&path.key()) else {
            return not_found(path);
        };
        let Ok(mut object) = serde_json::from_slice::<Value>(body) else {
            return status(400, "BadRequest", "not JSON");
        };
        let expected = &object["metadata"]["resourceVersion"];
        if expected.is_string() && *expected != old["metadata"]["resourceVersion"] {
            return status(409, "Conflict", "the object has been modified");
        }
        for field in ["uid", "creationTimestamp", "namespace"] {
            object["metadata"][field] = old["metadata"][field].clone();
        }
        self.store(path, "MODIFIED", object, 200)
    }

    fn patch(&mut self, path: &ObjectPath, body: &[u8], headers: &http::HeaderMap) -> Answer {
        let Some(mut object) = self.objects.get(&path.key()).cloned() else {
            return not_found(path);
        };
        let Ok(patch) = serde_json::from_slice::<Value>(body) else {
            return status(400, "BadRequest", "not JSON");
        };
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
        if !kind.contains("merge-patch") {
            return status(415, "UnsupportedMediaType", "the fake merges only");
        }
        merge(&mut object, &patch);
        self.store(path, "MODIFIED", object, 200)
    }

    fn delete(&mut self, path: &ObjectPath) -> Answer {
        let Some(object) = self.objects.remove(&path.key()) else {
            return not_found(path);
        };
        self.version += 1;
        let mut last = object.clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let response = answer(200, &last);
        let collection = path.collection.clone();
        self.log.push(Logged { version: self.version, kind: "DELETED", collection, old: Some(object), object: last });
        response
    }

    fn store(&mut self, path: &ObjectPath, kind: &'static str, mut object: Value, code: u16) -> Answer {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let old = self.objects.insert(path.key(), object.clone());
        let response = answer(code, &object);
        let collection = path.collection.clone();
        self.log.push(Logged { version: self.version, kind, collection, old, object });
        response
    }
}

fn selected(path: &ObjectPath, query: &HashMap<String, String>, object: &Value) -> bool {
    let meta = &object["metadata"];
    if !path.namespace.is_empty() && meta["namespace"] != path.namespace.as_str() {
        return false;
    }
    let terms = |name: &str| -> Vec<(String, String)> {
        let selector = query.get(name).map_or("", String::as_str);
        let terms = selector.split(',').filter_map(|term| term.split_once('='));
        terms.map(|(key, value)| (key.to_owned(), value.trim_start_matches('=').to_owned())).collect()
    };
    let field = |path: &str| path.split('.').fold(object, |value, part| &value[part]).as_str().unwrap_or("");
    terms("labelSelector").iter().all(|(key, value)| meta["labels"][key.as_str()] == value.as_str())
        && terms("fieldSelector").iter().all(|(key, value)| field(key) == value.as_str())
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Some(object) = target.as_object_mut() {
                object.remove(key);
            }
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}

fn parse_query(query: &str) -> HashMap<String, String> {
    let decode = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
            match (byte, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
                (b'%', Some(decoded)) => {
                    bytes.push(decoded);
                    rest = &tail[2..];
                }
                (b'+', _) => {
                    bytes.push(b' ');
                    rest = tail;
                }
                _ => {
                    bytes.push(byte);
                    rest = tail;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decode(key), decode(value))).collect()
}

fn answer(code: u16, object: &Value) -> Answer {
    json_response(code, Full::new(Bytes::from(object.to_string())).boxed_unsync())
}

fn json_response(code: u16, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn status(code: u16, reason: &str, message: &str) -> Answer {
    answer(
        code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": code, "reason": reason, "message": message,
        }),
    )
}

fn not_found(path: &ObjectPath) -> Answer {
    status(404, "NotFound", &format!("{:?} not found", path.name.as_deref().unwrap_or_default()))
}
