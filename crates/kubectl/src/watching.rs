//! Waiting for an object to become something.

use std::future::Future;

use futures::StreamExt as _;
use serde_json::Value;

use crate::{
    discovery::Resource,
    error::{Error, Result},
    rest::{Rest, query},
};

/// What happens to an object.
pub(crate) enum Change<'a> {
    /// It is like this.
    Is(&'a Value),
    /// It is not there when the waiting begins.
    Missing,
    /// It is not there any more.
    Gone,
}

/// Shows an object, and each change of it, to `done` until that is satisfied.
pub(crate) async fn until(
    rest: &Rest,
    resource: &Resource,
    namespace: Option<&str>,
    name: &str,
    mut done: impl FnMut(Change<'_>) -> Result<bool>,
) -> Result<()> {
    let collection = resource.path(namespace);
    let selector = format!("metadata.name={name}");
    loop {
        let list = rest.get(&format!("{collection}{}", query(&[("fieldSelector", &selector)]))).await?;
        let change = match list["items"].as_array().and_then(|items| items.first()) {
            Some(object) => Change::Is(object),
            None => Change::Missing,
        };
        if done(change)? {
            return Ok(());
        }
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let parameters = [("fieldSelector", selector.as_str()), ("watch", "true"), ("resourceVersion", version)];
        let mut events = rest.watch(&format!("{collection}{}", query(&parameters)), "application/json").await?;
        while let Some(event) = events.next().await {
            let event = event?;
            let object = &event["object"];
            let satisfied = match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => done(Change::Is(object))?,
                Some("DELETED") => done(Change::Gone)?,
                // The watch is too old; the list tells anew.
                Some("ERROR") => break,
                _ => false,
            };
            if satisfied {
                return Ok(());
            }
        }
    }
}

/// With a limit; zero is none.
pub(crate) async fn within<T>(
    limit: Option<std::time::Duration>,
    waiting: impl Future<Output = Result<T>>,
    late: impl FnOnce() -> Error,
) -> Result<T> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, waiting).await.unwrap_or_else(|_| Err(late())),
        None => waiting.await,
    }
}
