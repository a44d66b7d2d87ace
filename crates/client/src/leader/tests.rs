use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use http::Method;

use super::*;
use crate::fake::FakeApi;

fn candidate(fake: &FakeApi, identity: &str) -> LeaderElection {
    LeaderElection::new(fake.client(), "kube-system", "controllers", identity)
}

async fn lease(fake: &FakeApi) -> LeaseSpec {
    let leases: Api<Lease> = Api::namespaced(fake.client(), "kube-system");
    leases.get("controllers").await.unwrap().spec.unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_leads_at_a_time_and_the_next_takes_over_when_it_is_done() {
    let fake = FakeApi::new();
    let leaders = Arc::new(AtomicU32::new(0));
    let candidates = ["a", "b", "c"].map(|identity| {
        let leaders = leaders.clone();
        tokio::spawn(candidate(&fake, identity).run(move || async move {
            assert_eq!(leaders.fetch_add(1, Ordering::SeqCst), 0, "two leaders");
            sleep(Duration::from_secs(60)).await;
            leaders.fetch_sub(1, Ordering::SeqCst);
        }))
    });
    let start = Instant::now();
    for candidate in candidates {
        candidate.await.unwrap().unwrap();
    }
    let spec = lease(&fake).await;
    assert_eq!(spec.lease_transitions, Some(2));
    assert_eq!(spec.holder_identity.as_deref(), Some(""), "given up");
    // A Lease given up is taken at the next try.
    assert!(start.elapsed() < Duration::from_secs(3 * 60 + 2 * 15), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_another_may_lead() {
    let fake = FakeApi::new();
    let start = Instant::now();
    let first = tokio::spawn({
        let candidate = candidate(&fake, "a");
        async move {
            let result = candidate.run(std::future::pending::<()>).await;
            (result.unwrap_err(), start.elapsed())
        }
    });
    sleep(Duration::from_secs(1)).await;
    let spec = lease(&fake).await;
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("a"), Some(15)));
    for _ in 0..40 {
        fake.fail_next(Some(Method::PUT), 500);
    }
    let (error, after) = first.await.unwrap();
    assert_eq!(error.to_string(), "a is no longer the leader of kube-system/controllers");
    assert!((10..=12).contains(&after.as_secs()), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_waited_for() {
    let fake = FakeApi::new();
    let first = tokio::spawn(candidate(&fake, "a").run(std::future::pending::<()>));
    sleep(Duration::from_secs(7)).await;
    first.abort();
    let start = Instant::now();
    candidate(&fake, "b").run(|| async {}).await.unwrap();
    assert!((15..=20).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}
