//! Watches: many on one stream, each with a number.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _};
use skiff_store::{Error, EventKind, Revision, Store as _};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Etcd,
    kv::{Keys, to_message},
    messages::{self as m, watch_request},
    number,
    services::watch::watch_server::Watch,
};

/// How many answers wait for a slow client before its watches do.
const WAITING: usize = 16;

type Answers = mpsc::Sender<Result<m::WatchResponse, Status>>;

#[tonic::async_trait]
impl Watch for Etcd {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<m::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<m::WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, queue) = mpsc::channel(WAITING);
        let this = Etcd {
            store: self.store.clone(),
            name: self.name.clone(),
            client_urls: self.client_urls.clone(),
            file: self.file.clone(),
        };
        tokio::spawn(Arc::new(this).follow(request.into_inner(), answers));
        let stream = futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
        Ok(Response::new(Box::pin(stream)))
    }
}

impl Etcd {
    async fn follow(self: Arc<Self>, mut requests: Streaming<m::WatchRequest>, answers: Answers) {
        let mut watches = JoinSet::new();
        let mut handles: HashMap<i64, AbortHandle> = HashMap::new();
        let mut next_id = 0;
        loop {
            let request = tokio::select! {
                request = requests.next() => request,
                () = answers.closed() => return,
            };
            while watches.try_join_next().is_some() {}
            let Some(Ok(request)) = request else { return };
            let answer = match request.request {
                Some(watch_request::Request::Create(create)) => {
                    let id = if create.watch_id != 0 { create.watch_id } else { next_id };
                    next_id = next_id.max(id + 1);
                    match Keys::parse(&create.key, &create.range_end) {
                        Ok(keys) => {
                            let from = u64::try_from(create.start_revision).ok().filter(|r| *r > 0).map(Revision);
                            // Registered before the answer, so that nothing after it is missed.
                            let watch = self.store.watch(keys.prefix(), from);
                            let created = m::WatchResponse {
                                header: self.header(),
                                watch_id: id,
                                created: true,
                                ..Default::default()
                            };
                            if answers.send(Ok(created)).await.is_err() {
                                return;
                            }
                            let (this, answers) = (self.clone(), answers.clone());
                            handles.insert(id, watches.spawn(this.one(watch, keys, create, id, answers)));
                            continue;
                        }
                        Err(refused) => m::WatchResponse {
                            header: self.header(),
                            watch_id: -1,
                            created: true,
                            canceled: true,
                            cancel_reason: refused.message().to_owned(),
                            ..Default::default()
                        },
                    }
                }
                Some(watch_request::Request::Cancel(cancel)) => {
                    let Some(handle) = handles.remove(&cancel.watch_id) else { continue };
                    handle.abort();
                    m::WatchResponse {
                        header: self.header(),
                        watch_id: cancel.watch_id,
                        canceled: true,
                        ..Default::default()
                    }
                }
                Some(watch_request::Request::Progress(_)) => {
                    m::WatchResponse { header: self.header(), watch_id: -1, ..Default::default() }
                }
                None => continue,
            };
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
        }
    }

    async fn one(
        self: Arc<Self>,
        mut watch: skiff_store::Watch,
        keys: Keys,
        asked: m::WatchCreateRequest,
        id: i64,
        answers: Answers,
    ) {
        let wants = |kind: EventKind| !asked.filters.contains(&if kind == EventKind::Put { 0 } else { 1 });
        loop {
            let answer = match watch.recv().await {
                Ok(Some(batch)) => {
                    let matching = batch.events.iter().filter(|e| keys.contain(&e.kv.key) && wants(e.kind));
                    let events: Vec<m::Event> = matching
                        .map(|event| m::Event {
                            kind: i32::from(event.kind == EventKind::Delete),
                            kv: Some(to_message(&event.kv)),
                            prev_kv: event.prev.as_ref().filter(|_| asked.prev_kv).map(to_message),
                        })
                        .collect();
                    if events.is_empty() {
                        continue;
                    }
                    m::WatchResponse {
                        header: self.header_at(batch.revision),
                        watch_id: id,
                        events,
                        ..Default::default()
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    let compact_revision = match &error {
                        Error::Compacted { compacted, .. } => number(*compacted),
                        _ => 0,
                    };
                    m::WatchResponse {
                        header: self.header(),
                        watch_id: id,
                        canceled: true,
                        compact_revision,
                        cancel_reason: crate::status(&error).message().to_owned(),
                        ..Default::default()
                    }
                }
            };
            let over = answer.canceled;
            if answers.send(Ok(answer)).await.is_err() || over {
                return;
            }
        }
    }
}
