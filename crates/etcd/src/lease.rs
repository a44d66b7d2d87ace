//! Leases, and what else clients ask of a member: who there is, and whether they have to log in.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use skiff_store::{LeaseId, Store as _};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Etcd, MEMBER_ID, messages as m,
    services::{auth::auth_server::Auth, cluster::cluster_server::Cluster, lease::lease_server::Lease},
    status,
};

fn seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl Lease for Etcd {
    async fn lease_grant(
        &self,
        request: Request<m::LeaseGrantRequest>,
    ) -> Result<Response<m::LeaseGrantResponse>, Status> {
        let asked = request.get_ref();
        let ttl = Duration::from_secs(u64::try_from(asked.ttl).unwrap_or(0));
        let id = (asked.id != 0).then_some(LeaseId(asked.id));
        let lease = self.store.lease_grant(ttl, id).await.map_err(|e| status(&e))?;
        Ok(Response::new(m::LeaseGrantResponse {
            header: self.header(),
            id: lease.id.0,
            ttl: seconds(lease.ttl),
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<m::LeaseRevokeRequest>,
    ) -> Result<Response<m::LeaseRevokeResponse>, Status> {
        self.store.lease_revoke(LeaseId(request.get_ref().id)).await.map_err(|e| status(&e))?;
        Ok(Response::new(m::LeaseRevokeResponse { header: self.header() }))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<m::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<m::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let store = self.store.clone();
        let header = self.header();
        let answers = request.into_inner().then(move |asked| {
            let store = store.clone();
            async move {
                let id = asked?.id;
                match store.lease_keepalive(LeaseId(id)).await {
                    Ok(lease) => Ok(m::LeaseKeepAliveResponse { header, id, ttl: seconds(lease.ttl) }),
                    // As etcd says it: no time is left.
                    Err(error) if error.code() == skiff_store::Code::LeaseNotFound => {
                        Ok(m::LeaseKeepAliveResponse { header, id, ttl: 0 })
                    }
                    Err(error) => Err(status(&error)),
                }
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[tonic::async_trait]
impl Cluster for Etcd {
    async fn member_list(&self, _: Request<m::MemberListRequest>) -> Result<Response<m::MemberListResponse>, Status> {
        let member = m::Member {
            id: MEMBER_ID,
            name: self.name.clone(),
            // There is nobody to be a peer of.
            peer_urls: Vec::new(),
            client_urls: self.client_urls.clone(),
            is_learner: false,
        };
        Ok(Response::new(m::MemberListResponse { header: self.header(), members: vec![member] }))
    }
}

#[tonic::async_trait]
impl Auth for Etcd {
    async fn auth_status(&self, _: Request<m::AuthStatusRequest>) -> Result<Response<m::AuthStatusResponse>, Status> {
        Ok(Response::new(m::AuthStatusResponse { header: self.header(), enabled: false, auth_revision: 1 }))
    }
}
