//! One watch of etcd's, resumed where it was whenever it breaks off.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tonic::{Status, Streaming};

use super::{
    connection::{Cause, Connection},
    convert::{number, revision, revision_of},
    messages::{self as m, watch_request},
};
use crate::{Error, Result, Revision};

/// How often etcd is asked how far the watch is, while somebody waits for that.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(20);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// How far somebody waits for a watch to come.
pub(super) struct Goal {
    revision: AtomicU64,
    raised: Notify,
}

impl Goal {
    pub(super) fn new(revision: Revision) -> Goal {
        Goal { revision: AtomicU64::new(revision.0), raised: Notify::new() }
    }

    /// Etcd is asked for news until the watch is here.
    pub(super) fn raise(&self, to: Revision) {
        if self.revision.fetch_max(to.0, Ordering::AcqRel) < to.0 {
            self.raised.notify_one();
        }
    }
}

/// What a watch tells.
pub(super) struct Step {
    pub(super) events: Vec<m::Event>,
    /// Everything up to here has been told. Never splits the events of a revision.
    pub(super) revision: Revision,
}

/// See the [module](self).
pub(super) struct Follow {
    connection: Arc<Connection>,
    range: Range<Bytes>,
    next: Revision,
    goal: Arc<Goal>,
    open: Option<Open>,
    /// Whether it was open before, or could not be opened.
    broke_off: bool,
    /// The pieces of an answer that is too large for one message.
    pieces: Vec<m::Event>,
    retry: Duration,
}

struct Open {
    endpoint: usize,
    requests: mpsc::Sender<m::WatchRequest>,
    answers: Streaming<m::WatchResponse>,
}

impl Follow {
    /// Follows the keys of a range from a revision on, without rest until `goal`.
    pub(super) fn new(connection: Arc<Connection>, range: Range<Bytes>, from: Revision, goal: Revision) -> Follow {
        Follow::with_goal(connection, range, from, Arc::new(Goal::new(goal)))
    }

    pub(super) fn with_goal(
        connection: Arc<Connection>,
        range: Range<Bytes>,
        from: Revision,
        goal: Arc<Goal>,
    ) -> Follow {
        Follow {
            connection,
            range,
            next: from,
            goal,
            open: None,
            broke_off: false,
            pieces: Vec::new(),
            retry: FIRST_RETRY,
        }
    }

    /// The revision that it goes on from.
    pub(super) fn next_revision(&self) -> Revision {
        self.next
    }

    /// What happened next. As long as etcd cannot be reached, this waits.
    ///
    /// Errors: `Compacted`; the watch is over then.
    pub(super) async fn next(&mut self) -> Result<Step> {
        loop {
            let Some(open) = &mut self.open else {
                if std::mem::take(&mut self.broke_off) {
                    self.rest().await;
                }
                self.open().await;
                continue;
            };
            let behind = self.goal.revision.load(Ordering::Acquire) >= self.next.0;
            let answer = tokio::select! {
                answer = open.answers.message() => answer,
                () = tokio::time::sleep(PROGRESS_INTERVAL), if behind => {
                    let request = watch_request::Request::Progress(m::WatchProgressRequest {});
                    // A queue that is full has such a request in it already.
                    let _ = open.requests.try_send(m::WatchRequest { request: Some(request) });
                    continue;
                }
                () = self.goal.raised.notified(), if !behind => continue,
            };
            let status = match answer {
                Ok(Some(answer)) => match self.take(answer)? {
                    Some(step) => return Ok(step),
                    None => continue,
                },
                Ok(None) => Status::unavailable("etcd closed the watch"),
                Err(status) => status,
            };
            self.lost(&status);
        }
    }

    fn take(&mut self, answer: m::WatchResponse) -> Result<Option<Step>> {
        if answer.canceled {
            if answer.compact_revision > 0 {
                let compacted = revision(answer.compact_revision);
                return Err(Error::Compacted { requested: self.next, compacted });
            }
            self.lost(&Status::unavailable(answer.cancel_reason));
            return Ok(None);
        }
        if answer.created {
            return Ok(None);
        }
        self.retry = FIRST_RETRY;
        if answer.events.is_empty() && self.pieces.is_empty() {
            let revision = revision_of(answer.header.as_ref());
            if revision < self.next {
                return Ok(None);
            }
            self.next = revision.next();
            return Ok(Some(Step { events: Vec::new(), revision }));
        }
        self.pieces.extend(answer.events);
        if answer.fragment {
            return Ok(None);
        }
        let events = std::mem::take(&mut self.pieces);
        let last = events.last().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
        let revision = revision(last);
        if revision < self.next {
            return Ok(None);
        }
        self.next = revision.next();
        Ok(Some(Step { events, revision }))
    }

    async fn open(&mut self) {
        let (requests, queue) = mpsc::channel(4);
        let create = m::WatchCreateRequest {
            key: self.range.start.clone(),
            range_end: self.range.end.clone(),
            start_revision: number(self.next),
            progress_notify: true,
            prev_kv: true,
            fragment: true,
            ..Default::default()
        };
        let create = m::WatchRequest { request: Some(watch_request::Request::Create(create)) };
        // The queue is new.
        let _ = requests.try_send(create);
        let queue = futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
        let (endpoint, _) = self.connection.client();
        match self.connection.open(endpoint, "/etcdserverpb.Watch/Watch", queue).await {
            Ok(answers) => self.open = Some(Open { endpoint, requests, answers }),
            Err(status) => {
                self.connection.failed(endpoint, &status);
                tracing::warn!(error = %Cause(&status), "cannot watch etcd, trying again");
                self.broke_off = true;
            }
        }
    }

    /// A watch that is refused again and again is not opened in a circle.
    async fn rest(&mut self) {
        tokio::time::sleep(self.retry).await;
        self.retry = (self.retry * 2).min(LAST_RETRY);
    }

    fn lost(&mut self, status: &Status) {
        self.pieces.clear();
        self.broke_off = true;
        if let Some(open) = self.open.take() {
            tracing::warn!(error = %Cause(status), from = %self.next, "a watch of etcd broke off, resuming it");
            self.connection.failed(open.endpoint, status);
        }
    }
}
