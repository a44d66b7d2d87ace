//! Watches: what happens to a kind's objects from now or from a revision on, as lines of an endless answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use http::{Response, header};
use skiff_api::{Kind, Status, validation::FieldError};
use skiff_store::Revision;

use crate::{
    cache::{CacheError, CacheWatch, Signal, event_line},
    custom::{Version, conversion},
    http::{Body, JSON, respond, streamed},
    registry::{
        Registry, Resource,
        engine::{Engine, cache_status},
    },
    render::{Accepted, Form, Renderer},
    request::ListOptions,
    resources::{Asked, check_fields, invalid_list_options},
};

/// The verb `watch`.
pub async fn watch(engine: &Engine, asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let mut options = ListOptions::parse(asked.query, asked.namespace())?;
    check_fields(asked, &options)?;
    // The old path names one object; a field selector of that name is the same watch.
    if !asked.info.name.is_empty() {
        options.filter.name = asked.info.name.clone();
    }
    let cache = &asked.resource.cache;
    // As upstream: between half an hour and an hour unless the client says otherwise.
    let seconds = options.timeout_s.filter(|t| *t > 0).unwrap_or_else(|| 1800 + rand::random_range(0..1800));
    let renderer = Renderer { include: "", ..asked.renderer() };
    let include = asked.query.get("includeObject").unwrap_or_default().to_owned();
    let initial = match (options.send_initial_events, options.resource_version) {
        (Some(true), _) => true,
        (Some(false), _) => false,
        // Without a resourceVersion or with 0 a watch begins with what is there.
        (None, None | Some(0)) => true,
        (None, Some(_)) => false,
    };
    if options.send_initial_events.is_some() && options.resource_version_match.as_deref() != Some("NotOlderThan") {
        return Err(invalid_list_options(FieldError::forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )));
    }
    let mut first = Vec::new();
    let started: Result<CacheWatch, CacheError> = if initial {
        if let Some(rv) = options.resource_version {
            cache.at_least(Revision(rv)).await.map_err(|e| cache_status(&e))?;
        }
        match cache.watch_with_initial(options.filter.clone()).await {
            Ok((listed, watch)) => {
                let renderer = Renderer { include: &include, ..renderer };
                let shown = asked.all_shown(&engine.registry, &listed.objects).await?;
                for (i, object) in shown.iter().enumerate() {
                    first.push(event_line("ADDED", &renderer.event_object(object, i == 0)));
                }
                if options.send_initial_events == Some(true) && options.bookmarks {
                    first.push(event_line("BOOKMARK", &renderer.bookmark(listed.revision, true)));
                }
                Ok(watch)
            }
            Err(e) => Err(e),
        }
    } else {
        let after = match options.resource_version {
            Some(rv) if rv > 0 => Revision(rv),
            _ => cache.fresh().await.map_err(|e| cache_status(&e))?,
        };
        cache.watch_after(options.filter.clone(), after).await
    };
    let watch = match started {
        Ok(watch) => watch,
        // Clients expect this one as an event.
        Err(e @ CacheError::TooOld { .. }) => {
            let line = event_line("ERROR", cache_status(&e).to_value().to_string().as_bytes());
            return Ok(respond(200, JSON, line));
        }
        Err(e) => return Err(cache_status(&e)),
    };
    let described = !first.is_empty();
    let state = WatchState {
        watch,
        kind: asked.kind,
        strategy: asked.resource.strategy,
        version: asked.version.clone(),
        accepted: asked.accepted,
        converting: conversion::needs_webhook(asked.resource)
            .then(|| (engine.registry.clone(), asked.resource.clone())),
        include,
        bookmarks: options.bookmarks,
        described,
        deadline: tokio::time::Instant::now() + Duration::from_secs(seconds),
    };
    let lines = futures::stream::iter(first).chain(futures::stream::unfold(state, |mut s| async move {
        let line = s.next_line().await?;
        Some((line, s))
    }));
    let mut response = Response::new(streamed(lines));
    let content_type = if asked.accepted.yaml { "application/yaml;stream=watch" } else { JSON };
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    Ok(response)
}

struct WatchState {
    watch: CacheWatch,
    kind: &'static Kind,
    strategy: &'static crate::registry::Strategy,
    version: Option<Arc<Version>>,
    accepted: Accepted,
    /// For a kind whose versions only a webhook knows.
    converting: Option<(Arc<Registry>, Arc<Resource>)>,
    include: String,
    bookmarks: bool,
    /// Whether the columns of a table have been described.
    described: bool,
    deadline: tokio::time::Instant,
}

impl WatchState {
    async fn next_line(&mut self) -> Option<Bytes> {
        loop {
            let signal = tokio::time::timeout_at(self.deadline, self.watch.recv()).await.ok()??;
            match signal {
                Signal::Change(change, seen) => {
                    let plain = self.accepted.form == Form::Object
                        && self.converting.is_none()
                        && !matches!(self.kind.storage, skiff_api::kinds::Storage::Version { .. })
                        && self.version.as_ref().is_none_or(|v| !v.completes());
                    if plain {
                        return Some(change.line(seen));
                    }
                    let first = !std::mem::replace(&mut self.described, true);
                    let mut bytes = change.shown().bytes.clone();
                    if let Some((registry, resource)) = &self.converting
                        && self.accepted.form != Form::Metadata
                    {
                        let version = self.version.as_deref();
                        match conversion::shown_one(registry, resource, self.kind, version, &bytes).await {
                            Ok(shown) => bytes = shown,
                            // The client hears why, and begins anew: nothing is skipped.
                            Err(status) => {
                                self.deadline = tokio::time::Instant::now();
                                return Some(event_line("ERROR", status.to_value().to_string().as_bytes()));
                            }
                        }
                    }
                    let object = self.renderer().event_object(&bytes, first);
                    return Some(event_line(seen.as_str(), &object));
                }
                Signal::Bookmark(revision) if self.bookmarks => {
                    return Some(event_line("BOOKMARK", &self.renderer().bookmark(revision, false)));
                }
                Signal::Bookmark(_) => {}
            }
        }
    }

    fn renderer(&self) -> Renderer<'_> {
        Renderer {
            kind: self.kind,
            strategy: self.strategy,
            version: self.version.as_deref(),
            accepted: self.accepted,
            include: &self.include,
        }
    }
}
