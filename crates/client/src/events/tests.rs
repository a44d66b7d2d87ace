use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::json;

use super::*;
use crate::fake::FakeApi;

fn correlator() -> Correlator {
    Correlator::new(EventSource { component: Some("kubelet".into()), host: Some("n1".into()) })
}

fn recorded(object: &str, message: &str) -> Recorded {
    Recorded {
        object: ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some("default".into()),
            name: Some(object.into()),
            ..ObjectReference::default()
        },
        kind: EventType::Warning,
        reason: "Failed".into(),
        message: message.into(),
        at: Timestamp::from_second(1_700_000_000).unwrap(),
    }
}

#[tokio::test(start_paused = true)]
async fn an_equal_event_raises_the_count() {
    let mut correlator = correlator();
    let now = Instant::now();
    let first = correlator.correlate(&recorded("p", "no"), now).unwrap();
    assert!(first.patch.is_none());
    assert_eq!(first.event.metadata.name.as_deref(), Some("p.17979cfe362a0000"));
    assert_eq!(first.event.reporting_component.as_deref(), Some("kubelet"));
    assert_eq!(first.event.source.unwrap().host.as_deref(), Some("n1"));
    let second = correlator.correlate(&recorded("p", "no"), now).unwrap();
    assert_eq!(second.event.metadata.name, first.event.metadata.name);
    assert_eq!(second.patch.unwrap(), json!({"count": 2, "lastTimestamp": "2023-11-14T22:13:20Z", "message": "no"}));
    assert!(correlator.correlate(&recorded("q", "no"), now).unwrap().patch.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_tenth_similar_event_and_those_after_it_are_combined() {
    let mut correlator = correlator();
    let now = Instant::now();
    let mut write = |number: u32, now| correlator.correlate(&recorded("p", &number.to_string()), now).unwrap();
    for number in 1..10 {
        assert!(write(number, now).patch.is_none());
    }
    let tenth = write(10, now);
    assert_eq!(tenth.event.message.as_deref(), Some("(combined from similar events): 10"));
    assert!(tenth.patch.is_none());
    assert_eq!(write(11, now).patch.unwrap()["count"], 2);
    let later = now + Duration::from_secs(601);
    assert_eq!(write(12, later).event.message.as_deref(), Some("12"));
}

#[tokio::test(start_paused = true)]
async fn an_object_has_25_events_at_once_and_then_one_in_5_minutes() {
    let mut correlator = correlator();
    let now = Instant::now();
    let sent = |correlator: &mut Correlator, now| correlator.correlate(&recorded("p", "no"), now).is_some();
    assert_eq!((0..40).filter(|_| sent(&mut correlator, now)).count(), 25);
    let later = now + Duration::from_secs(301);
    assert_eq!((0..40).filter(|_| sent(&mut correlator, later)).count(), 1);
    assert!(correlator.correlate(&recorded("q", "no"), now).is_some(), "another object");
}

#[tokio::test(start_paused = true)]
async fn events_arrive_at_the_server_and_survive_its_absence() {
    let fake = FakeApi::new();
    let recorder = EventRecorder::new(fake.client(), "kubelet", Some("n1"));
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "web", "uid": "u"}})).unwrap();
    fake.fail_next(None, 503);
    for _ in 0..3 {
        recorder.for_object(&pod, EventType::Normal, "Pulled", "pulled");
    }
    let events: Api<Event> = Api::namespaced(fake.client(), "web");
    let event = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let list = events.list(&kube::api::ListParams::default()).await.unwrap();
            match list.items.into_iter().next() {
                Some(event) if event.count == Some(3) => break event,
                _ => sleep(Duration::from_millis(100)).await,
            }
        }
    })
    .await
    .expect("three events in one");
    assert!(event.name_any().starts_with("p."));
    assert_eq!(event.involved_object.kind.as_deref(), Some("Pod"));
    assert_eq!(event.involved_object.api_version.as_deref(), Some("v1"));
    assert_eq!(event.involved_object.uid.as_deref(), Some("u"));
    assert_eq!(event.type_.as_deref(), Some("Normal"));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_server_forgot_is_made_anew() {
    let fake = FakeApi::new();
    let recorder = EventRecorder::new(fake.client(), "kubelet", None);
    let events: Api<Event> = Api::namespaced(fake.client(), "default");
    let one = async || {
        recorder.event(recorded("p", "").object, EventType::Normal, "Pulled", "pulled");
        loop {
            if let Some(event) = events.list(&kube::api::ListParams::default()).await.unwrap().items.pop() {
                return event;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let first = one().await;
    events.delete(&first.name_any(), &kube::api::DeleteParams::default()).await.unwrap();
    let second = one().await;
    assert_ne!(first.name_any(), second.name_any());
}
