//! Telling users what happened to an object, as `core/v1` Events.
//!
//! The behaviour of client-go's recorder, with its numbers:
//! - An event equal to an earlier one (source, object, type, reason, message) raises that one's `count`
//!   and `lastTimestamp` instead of making another.
//! - More than 10 events within 10 minutes that differ in nothing but the message become one, whose
//!   message starts with `(combined from similar events): `.
//! - One source may send 25 events about one object at once, then one every 5 minutes; more are dropped.
//! - What the server does not take is tried again 12 times, 10 s apart, unless it rejects it.
//!
//! Recording never waits: a full queue (1000) drops the event and says so in the log.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

const QUEUE: usize = 1000;
const MAX_TRIES: u32 = 12;
const RETRY_PERIOD: Duration = Duration::from_secs(10);
/// From how many similar events on, within how long, they are combined.
const SIMILAR_EVENTS: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// The spam filter's bucket.
const BURST: f64 = 25.0;
const REFILL_PER_S: f64 = 1.0 / 300.0;
/// How many objects are remembered; client-go's cache size.
const REMEMBERED: usize = 4096;

/// Whether the user should worry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Information.
    Normal,
    /// Something does not work.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Records events of one component. Cloning is cheap.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Recorded>,
}

struct Recorded {
    object: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

impl EventRecorder {
    /// A recorder for `component` (`kubelet`, `deployment-controller`, …), on `host` if it matters. It
    /// works until all its clones are gone and what they recorded is sent.
    ///
    /// Must be called on a tokio runtime.
    pub fn new(client: Client, component: &str, host: Option<&str>) -> EventRecorder {
        let (queue, recorded) = mpsc::channel(QUEUE);
        let source = EventSource { component: Some(component.to_owned()), host: host.map(str::to_owned) };
        let sender = Sender { client, correlator: Correlator::new(source) };
        tokio::spawn(sender.run(recorded));
        EventRecorder { queue }
    }

    /// Records that something happened to an object. Never waits.
    pub fn event(&self, object: ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let (reason, message) = (reason.to_owned(), message.into());
        let recorded = Recorded { object, kind, reason, message, at: Timestamp::now() };
        if let Err(error) = self.queue.try_send(recorded) {
            tracing::warn!(%error, "event dropped");
        }
    }

    /// [`event`](EventRecorder::event) for an object at hand.
    pub fn for_object<K>(&self, object: &K, kind: EventType, reason: &str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.event(object_reference(object), kind, reason, message);
    }
}

/// What an event says about the object concerned.
pub fn object_reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// Sends what is recorded.
struct Sender {
    client: Client,
    correlator: Correlator,
}

impl Sender {
    async fn run(mut self, mut recorded: mpsc::Receiver<Recorded>) {
        while let Some(recorded) = recorded.recv().await {
            let Some(write) = self.correlator.correlate(&recorded, Instant::now()) else {
                tracing::debug!(reason = %recorded.reason, "event dropped by the rate limit");
                continue;
            };
            self.send(write).await;
        }
    }

    async fn send(&mut self, mut write: Write) {
        let namespace = write.event.metadata.namespace.clone().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        for _ in 0..MAX_TRIES {
            let result = match &write.patch {
                Some(patch) => {
                    let name = write.event.metadata.name.as_deref().unwrap_or_default();
                    events.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await
                }
                None => events.create(&PostParams::default(), &write.event).await,
            };
            match result {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.code == 404 && write.patch.is_some() => {
                    // Expired on the server: begin anew.
                    write.patch = None;
                    let name = event_name(&write.event.involved_object, Timestamp::now());
                    write.event.metadata.name = Some(name.clone());
                    self.correlator.renamed(&write.key, name);
                }
                Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                    // Usually a namespace that is being deleted.
                    tracing::debug!(code = status.code, message = %status.message, "event rejected");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot send event, trying again");
                    sleep(RETRY_PERIOD).await;
                }
            }
        }
        tracing::warn!(reason = ?write.event.reason, "event given up");
    }
}

/// What is to be sent for a recorded event.
#[derive(Debug)]
struct Write {
    key: EqualKey,
    event: Event,
    /// Set if the event exists already and only this is to be changed.
    patch: Option<serde_json::Value>,
}

/// Events of one key are similar: they differ in the message at most.
type SimilarKey = (ObjectKeyParts, EventType, String);
/// Events of one key are equal.
type EqualKey = (SimilarKey, Option<String>, String);
type ObjectKeyParts = [Option<String>; 5];

/// Decides what becomes of each event; no I/O.
struct Correlator {
    source: EventSource,
    buckets: HashMap<ObjectKeyParts, (f64, Instant)>,
    similar: HashMap<SimilarKey, (HashSet<String>, Instant)>,
    sent: HashMap<EqualKey, Sent>,
}

struct Sent {
    name: String,
    count: i32,
    first: Timestamp,
    at: Instant,
}

impl Correlator {
    fn new(source: EventSource) -> Correlator {
        Correlator { source, buckets: HashMap::new(), similar: HashMap::new(), sent: HashMap::new() }
    }

    /// `None` if the event is one too many.
    fn correlate(&mut self, recorded: &Recorded, now: Instant) -> Option<Write> {
        let object = &recorded.object;
        let parts = [
            object.kind.clone(),
            object.namespace.clone(),
            object.name.clone(),
            object.uid.clone(),
            object.api_version.clone(),
        ];
        let similar_key = (parts.clone(), recorded.kind, recorded.reason.clone());
        let (message, combined) = self.combine(&similar_key, &recorded.message, now);
        // Combined events are one event whatever their message.
        let distinct = if combined { String::new() } else { recorded.message.clone() };
        let equal_key = (similar_key, object.field_path.clone(), distinct);
        self.forget_old(now);
        let known = self.sent.get_mut(&equal_key);
        let (name, count, first, patch) = match known {
            Some(sent) => {
                sent.count = sent.count.saturating_add(1);
                sent.at = now;
                let patch = serde_json::json!({
                    "count": sent.count,
                    "lastTimestamp": Time(recorded.at),
                    "message": message,
                });
                (sent.name.clone(), sent.count, sent.first, Some(patch))
            }
            None => {
                let name = event_name(object, recorded.at);
                let sent = Sent { name: name.clone(), count: 1, first: recorded.at, at: now };
                self.sent.insert(equal_key.clone(), sent);
                (name, 1, recorded.at, None)
            }
        };
        if !self.allowed(parts, now) {
            if count == 1 {
                // It is not on the server, so the next one must not try to patch it.
                self.sent.remove(&equal_key);
            }
            return None;
        }
        let namespace = object.namespace.clone().filter(|namespace| !namespace.is_empty());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace.unwrap_or_else(|| "default".into())),
                ..ObjectMeta::default()
            },
            involved_object: object.clone(),
            reason: Some(recorded.reason.clone()),
            message: Some(message),
            type_: Some(recorded.kind.as_str().into()),
            count: Some(count),
            first_timestamp: Some(Time(first)),
            last_timestamp: Some(Time(recorded.at)),
            reporting_component: self.source.component.clone(),
            reporting_instance: Some(self.source.host.clone().unwrap_or_default()),
            source: Some(self.source.clone()),
            ..Event::default()
        };
        Some(Write { key: equal_key, event, patch })
    }

    /// The message to use, and whether this event was combined with similar ones.
    fn combine(&mut self, key: &SimilarKey, message: &str, now: Instant) -> (String, bool) {
        if self.similar.len() >= REMEMBERED {
            self.similar.retain(|_, (_, at)| now.duration_since(*at) < SIMILAR_WINDOW);
        }
        let (messages, at) = self.similar.entry(key.clone()).or_insert_with(|| (HashSet::new(), now));
        if now.duration_since(*at) > SIMILAR_WINDOW {
            messages.clear();
        }
        *at = now;
        messages.insert(message.to_owned());
        if messages.len() < SIMILAR_EVENTS {
            return (message.to_owned(), false);
        }
        // Not more are needed to know that there are too many.
        if messages.len() > SIMILAR_EVENTS {
            messages.remove(message);
        }
        (format!("(combined from similar events): {message}"), true)
    }

    fn allowed(&mut self, object: ObjectKeyParts, now: Instant) -> bool {
        if self.buckets.len() >= REMEMBERED {
            self.buckets
                .retain(|_, (tokens, at)| *tokens + now.duration_since(*at).as_secs_f64() * REFILL_PER_S < BURST);
        }
        let (tokens, at) = self.buckets.entry(object).or_insert((BURST, now));
        *tokens = (*tokens + now.duration_since(*at).as_secs_f64() * REFILL_PER_S).min(BURST);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    /// Keeps the memory bounded: what was sent longest ago goes first.
    fn forget_old(&mut self, now: Instant) {
        if self.sent.len() < REMEMBERED {
            return;
        }
        let mut ages: Vec<_> = self.sent.values().map(|sent| now.duration_since(sent.at)).collect();
        let (_, median, _) = ages.select_nth_unstable(REMEMBERED / 2);
        let median = *median;
        self.sent.retain(|_, sent| now.duration_since(sent.at) < median);
    }

    fn renamed(&mut self, key: &EqualKey, name: String) {
        if let Some(sent) = self.sent.get_mut(key) {
            sent.name = name;
        }
    }
}

/// `<object>.<time in hexadecimal nanoseconds>`, as client-go names events.
fn event_name(object: &ObjectReference, at: Timestamp) -> String {
    format!("{}.{:x}", object.name.as_deref().unwrap_or_default(), at.as_nanosecond())
}

#[cfg(test)]
mod tests;
