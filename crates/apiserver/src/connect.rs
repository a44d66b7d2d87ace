//! Requests that open a connection to a pod, node or Service: what webhooks and policies are asked about them.

use serde_json::{Value, json};
use skiff_api::{Kind, Status};

use crate::{
    admission::{Attributes, Operation},
    auth::User,
    discovery,
    registry::engine::Engine,
    request::{Query, RequestInfo, WriteOptions},
};

/// Subresources that connect.
const CONNECTING: [&str; 4] = ["attach", "exec", "portforward", "proxy"];

/// The options of a connection as an object, such as `PodExecOptions`.
fn options(kind: &'static Kind, info: &RequestInfo, query: &Query) -> Value {
    let (name, ..) = discovery::subresource(kind, &info.subresource);
    let mut options = json!({"kind": name, "apiVersion": "v1"});
    match info.subresource.as_str() {
        "attach" | "exec" => {
            for flag in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(flag) {
                    options[flag] = true.into();
                }
            }
            if let Some(container) = query.get("container") {
                options["container"] = container.into();
            }
            let command: Vec<&str> = query.get_all("command").collect();
            if !command.is_empty() {
                options["command"] = json!(command);
            }
        }
        "portforward" => {
            let ports: Vec<i32> = query.get_all("ports").filter_map(|p| p.parse().ok()).collect();
            if !ports.is_empty() {
                options["ports"] = json!(ports);
            }
        }
        _ => options["path"] = format!("/{}", info.rest.join("/")).into(),
    }
    options
}

/// Asks whether a connection may be made, if the request is for one.
pub(crate) async fn admit(
    engine: &Engine,
    user: &User,
    kind: &'static Kind,
    info: &RequestInfo,
    query: &Query,
) -> Result<(), Status> {
    if !CONNECTING.contains(&info.subresource.as_str()) {
        return Ok(());
    }
    let write = WriteOptions::default();
    let attributes = Attributes {
        namespace: if kind.namespaced { info.namespace.clone() } else { String::new() },
        name: info.name.clone(),
        ..Attributes::new(user, Operation::Connect, kind, &info.subresource, &write)
    };
    engine.admission.ask(&attributes, &mut options(kind, info, query)).await
}

#[cfg(test)]
mod tests {
    use skiff_api::kinds::by_resource;

    use super::*;

    #[test]
    fn options_are_objects() {
        let pods = by_resource("", "v1", "pods").unwrap();
        let info = RequestInfo { subresource: "exec".into(), ..RequestInfo::default() };
        let query = Query::parse("command=sh&command=-c&stdin=true&tty=false&container=c");
        assert_eq!(
            options(pods, &info, &query),
            json!({"kind": "PodExecOptions", "apiVersion": "v1", "stdin": true, "container": "c", "command": ["sh", "-c"]})
        );
    }
}
