//! What one of several servers does at a time.

use futures::future::BoxFuture;
use skiff_client::LeaderElection;

/// Runs what is started by `start` while this server is the leader of the Lease `kube-system/LEASE`; never ends. A server
/// that stops being the leader stops it, and is a candidate again.
pub(crate) async fn elected(
    client: kube::Client,
    lease: &str,
    identity: &str,
    start: impl Fn() -> BoxFuture<'static, ()>,
) {
    loop {
        match LeaderElection::new(client.clone(), "kube-system", lease, identity).run(&start).await {
            Ok(()) => tracing::warn!(lease, "what the leader does has ended, beginning anew"),
            Err(error) => tracing::warn!(%error),
        }
    }
}
