//! What a request is about, read from its method, path and query once and for all.

use std::sync::Arc;

use http::{HeaderMap, Method, Uri};
use parking_lot::Mutex;
use skiff_api::{
    Kind, Status,
    selector::{FieldSelector, LabelSelector},
    validation::FieldError,
};

use crate::{object::Filter, owners::Tracking};

/// The request's attributes; authorization and dispatch see only these.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestInfo {
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the lower-case HTTP
    /// method for paths that are no resources.
    pub verb: String,
    pub is_resource: bool,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// Path segments after the subresource, as of a proxy request.
    pub rest: Vec<String>,
}

impl RequestInfo {
    /// Reads a request line. The rules are those of upstream's request info, including the old `/watch/` prefix.
    pub fn parse(method: &Method, uri: &Uri, query: &Query) -> RequestInfo {
        let mut info = RequestInfo {
            path: uri.path().to_owned(),
            verb: method.as_str().to_ascii_lowercase(),
            ..RequestInfo::default()
        };
        let decoded: Vec<String> = uri.path().split('/').filter(|s| !s.is_empty()).map(percent_decode).collect();
        let mut parts = decoded.iter().map(String::as_str).peekable();
        match parts.next() {
            Some("api") => {
                let Some(version) = parts.next() else { return info };
                info.version = version.to_owned();
            }
            Some("apis") => {
                let (Some(group), Some(version)) = (parts.next(), parts.next()) else { return info };
                info.group = group.to_owned();
                info.version = version.to_owned();
            }
            _ => return info,
        }
        if parts.peek().is_none() {
            return info;
        }
        info.is_resource = true;
        let mut old_watch = false;
        if parts.peek() == Some(&"watch") {
            old_watch = true;
            parts.next();
        }
        info.verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "get",
        }
        .to_owned();
        let mut parts: Vec<&str> = parts.collect();
        // `namespaces/x/status` is about a namespace; `namespaces/x/pods` about what is in it.
        if parts.first() == Some(&"namespaces") && parts.len() > 1 {
            info.namespace = parts[1].to_owned();
            if parts.len() > 2 && !["status", "finalize"].contains(&parts[2]) {
                parts.drain(..2);
            }
        }
        let mut parts = parts.into_iter();
        info.resource = parts.next().unwrap_or_default().to_owned();
        info.name = parts.next().unwrap_or_default().to_owned();
        info.subresource = parts.next().unwrap_or_default().to_owned();
        info.rest = parts.map(str::to_owned).collect();
        if info.name.is_empty() {
            match info.verb.as_str() {
                "get" => info.verb = "list".to_owned(),
                "delete" => info.verb = "deletecollection".to_owned(),
                _ => {}
            }
        }
        if old_watch {
            info.verb = "watch".to_owned();
        } else if info.verb == "list" {
            if query.flag("watch") {
                info.verb = "watch".to_owned();
            }
            // A list of one name is authorized as that name.
            if let Some(name) = query
                .get("fieldSelector")
                .and_then(|s| FieldSelector::parse(s).ok())
                .and_then(|s| s.exact("metadata.name").map(str::to_owned))
            {
                info.name = name;
            }
        }
        info
    }

    /// `pods/log`, `pods`.
    pub fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// The parameters of a query, decoded, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Query {
        Query(
            query
                .split('&')
                .filter(|p| !p.is_empty())
                .map(|pair| {
                    let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
                    (percent_decode(&k.replace('+', " ")), percent_decode(&v.replace('+', " ")))
                })
                .collect(),
        )
    }

    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// A boolean: there without a value, `1` and `true` are yes.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| !matches!(v, "0" | "false" | "False" | "FALSE" | "f" | "F"))
    }

    pub fn int(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.get(name) {
            None | Some("") => Ok(None),
            Some(v) => v
                .parse()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {v:?}: invalid syntax"))),
        }
    }
}

/// Decodes `%2F` and the like. What is no encoding stays as it is.
pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%')
            .then(|| bytes.get(i + 1..i + 3))
            .flatten()
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match hex {
            Some(b) => {
                out.push(b);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// How a client wants unknown and duplicate fields treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Options of a write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_validation: FieldValidation,
    pub warnings: Warnings,
    pub tracking: Tracking,
    /// The kind that the client asked for, if it is another version of the stored one.
    pub requested: Option<&'static Kind>,
    /// Whether webhooks and policies have been asked before, or are not to be: they have no say in what the server
    /// does on its own account.
    pub past_hooks: bool,
    /// What of this the client has said itself.
    pub given: Given,
}

/// Options of a write as the client gave them, for webhooks and policies to see.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub manager: Option<String>,
    pub validation: Option<String>,
    /// Whether the write is a patch, and `force` of an apply.
    pub patch: bool,
    pub force: Option<bool>,
}

/// Longest name of a field manager.
const MAX_MANAGER_BYTES: usize = 128;

/// What admission has to say to the client beside yes.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Adds a warning; the same one is said once, however often the write was tried.
    pub fn add(&self, text: String) {
        let mut all = self.0.lock();
        if !all.contains(&text) {
            all.push(text);
        }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// A write's option that cannot be.
fn bad_option(fault: FieldError) -> Status {
    Status::invalid("meta.k8s.io", "CreateOptions", "", &[fault])
}

impl WriteOptions {
    pub fn parse(query: &Query) -> Result<WriteOptions, Status> {
        let given = |name: &str| query.get(name).filter(|v| !v.is_empty()).map(str::to_owned);
        let mut options = WriteOptions {
            given: Given {
                manager: given("fieldManager"),
                validation: given("fieldValidation"),
                patch: false,
                force: query.get("force").map(|_| query.flag("force")),
            },
            ..WriteOptions::default()
        };
        for value in query.get_all("dryRun").filter(|v| !v.is_empty()) {
            if value != "All" {
                let given: Vec<&str> = query.get_all("dryRun").collect();
                return Err(bad_option(FieldError::not_supported("dryRun", given, &["All"])));
            }
            options.dry_run = true;
        }
        options.field_validation = match query.get("fieldValidation") {
            None | Some("" | "Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                let fault = FieldError::not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]);
                return Err(bad_option(fault));
            }
        };
        Ok(options)
    }

    /// The options of a write whose owner is tracked: the client names it, or is it by the first part of its user
    /// agent.
    pub fn tracked(query: &Query, headers: &HeaderMap) -> Result<WriteOptions, Status> {
        let mut options = WriteOptions::parse(query)?;
        let manager = match query.get("fieldManager").filter(|m| !m.is_empty()) {
            Some(manager) => {
                if let Some(fault) = check_manager(manager) {
                    return Err(bad_option(fault));
                }
                manager.to_owned()
            }
            None => {
                let agent = headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
                let first = agent.split('/').next().unwrap_or_default();
                first.chars().filter(|c| !c.is_control()).take(MAX_MANAGER_BYTES).collect()
            }
        };
        options.tracking = Tracking::Update(manager);
        Ok(options)
    }
}

/// What is wrong with the name of a field manager.
pub fn check_manager(manager: &str) -> Option<FieldError> {
    if manager.len() > MAX_MANAGER_BYTES {
        return Some(FieldError::too_long("fieldManager", MAX_MANAGER_BYTES));
    }
    if manager.chars().any(char::is_control) {
        return Some(FieldError::invalid("fieldManager", manager, "should only contain printable characters"));
    }
    None
}

/// Options of a list or watch.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub filter: Filter,
    pub limit: usize,
    pub continue_token: Option<String>,
    /// `None`: the most recent; `Some(0)`: any.
    pub resource_version: Option<u64>,
    pub resource_version_match: Option<String>,
    pub timeout_s: Option<u64>,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    /// Reads the query; `namespace` and `name` come from the path.
    pub fn parse(query: &Query, namespace: &str) -> Result<ListOptions, Status> {
        let bad = |parameter: &str, e: &dyn std::fmt::Display| {
            Status::bad_request(format!("unable to parse requirement for {parameter}: {e}"))
        };
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())
            .map_err(|e| Status::bad_request(e.to_string()))?;
        let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())
            .map_err(|e| Status::bad_request(e.to_string()))?;
        let resource_version = match query.get("resourceVersion") {
            None | Some("") => None,
            Some(v) => Some(v.parse().map_err(|_| {
                Status::bad_request(format!(
                    "resourceVersion: Invalid value: {v:?}: strconv.ParseUint: parsing {v:?}: invalid syntax"
                ))
            })?),
        };
        let non_negative = |name: &str| -> Result<Option<u64>, Status> {
            match query.int(name)? {
                None => Ok(None),
                Some(n) => u64::try_from(n).map(Some).map_err(|_| bad(name, &"must not be negative")),
            }
        };
        Ok(ListOptions {
            filter: Filter { namespace: namespace.to_owned(), name: String::new(), labels, fields },
            limit: usize::try_from(non_negative("limit")?.unwrap_or(0)).unwrap_or(usize::MAX),
            continue_token: query.get("continue").filter(|s| !s.is_empty()).map(str::to_owned),
            resource_version,
            resource_version_match: query.get("resourceVersionMatch").filter(|s| !s.is_empty()).map(str::to_owned),
            timeout_s: non_negative("timeoutSeconds")?,
            bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events: query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: &str, path: &str) -> RequestInfo {
        let uri: Uri = path.parse().unwrap();
        RequestInfo::parse(&method.parse().unwrap(), &uri, &Query::parse(uri.query().unwrap_or_default()))
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        for (method, path, verb, ns, resource, sub, name) in [
            ("GET", "/api/v1/namespaces", "list", "", "namespaces", "", ""),
            ("GET", "/api/v1/namespaces/x", "get", "x", "namespaces", "", "x"),
            ("PUT", "/api/v1/namespaces/x/status", "update", "x", "namespaces", "status", "x"),
            ("GET", "/api/v1/namespaces/x/pods", "list", "x", "pods", "", ""),
            ("GET", "/api/v1/namespaces/x/pods?watch=true", "watch", "x", "pods", "", ""),
            ("GET", "/api/v1/watch/namespaces/x/pods", "watch", "x", "pods", "", ""),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Da", "list", "", "pods", "", "a"),
            ("POST", "/api/v1/namespaces/x/pods/p/exec?command=a", "create", "x", "pods", "exec", "p"),
            ("DELETE", "/apis/apps/v1/namespaces/x/deployments", "deletecollection", "x", "deployments", "", ""),
            ("PATCH", "/apis/apps/v1/namespaces/x/deployments/d", "patch", "x", "deployments", "", "d"),
        ] {
            let i = info(method, path);
            assert!(i.is_resource, "{path}");
            assert_eq!(
                (i.verb.as_str(), i.namespace.as_str(), i.resource.as_str(), i.subresource.as_str(), i.name.as_str()),
                (verb, ns, resource, sub, name),
                "{path}"
            );
        }
        let i = info("GET", "/apis/apps/v1");
        assert!(!i.is_resource && i.verb == "get");
        assert_eq!(info("GET", "/api/v1/namespaces/x/pods/p/proxy/a/b").rest, ["a", "b"]);
    }

    #[test]
    fn options_are_checked() {
        assert!(WriteOptions::parse(&Query::parse("dryRun=Some")).is_err());
        assert!(WriteOptions::parse(&Query::parse("dryRun=All")).unwrap().dry_run);
        assert!(WriteOptions::parse(&Query::parse("fieldValidation=Maybe")).is_err());
        assert!(ListOptions::parse(&Query::parse("resourceVersion=x"), "").is_err());
        assert!(ListOptions::parse(&Query::parse("limit=-1"), "").is_err());
        assert!(ListOptions::parse(&Query::parse("labelSelector=a%3D%3D%3Db"), "").is_err());
    }
}
