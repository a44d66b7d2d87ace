//! Tokens of a pod's service account, which end with the pod.

use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{Api, api::PostParams};

use super::api_message;
use crate::{kubelet::Kubelet, pod::PodExt};

/// Lifetime of a token for which none is said, seconds.
const SECONDS: i64 = 3600;

/// A new token and when it ends. Without an audience it is for the API server.
pub(crate) async fn request(
    kubelet: &Kubelet,
    pod: &Pod,
    audience: Option<&str>,
    seconds: Option<i64>,
) -> Result<(String, Timestamp), String> {
    let account = PodExt::spec(pod).service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(audience.into_iter().filter(|a| !a.is_empty()).map(str::to_owned).collect()),
            expiration_seconds: Some(seconds.unwrap_or(SECONDS)),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod.name().to_owned()),
                uid: Some(pod.uid().as_str().to_owned()),
            }),
        }),
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(kubelet.client.clone(), pod.namespace());
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .map_err(|e| format!("failed to fetch token: {}", api_message(&e)))?;
    let status = answer.status.unwrap_or_default();
    match (status.token, status.expiration_timestamp) {
        (Some(token), Some(expires)) => Ok((token, expires.0)),
        _ => Err("failed to fetch token: the answer has none".to_owned()),
    }
}
