//! Tokens of a pod's service account for drivers that ask for them.

use std::collections::BTreeMap;

use k8s_openapi::api::{core::v1::Pod, storage::v1::CSIDriverSpec};
use serde_json::{Value, json};

use crate::{kubelet::Kubelet, volumes::tokens::request};

/// The entry of a volume's context, or of its secrets, that has them; none if the driver asks for none.
pub(super) async fn of(
    kubelet: &Kubelet,
    pod: &Pod,
    driver: &CSIDriverSpec,
) -> Result<BTreeMap<String, String>, String> {
    let wanted = driver.token_requests.as_deref().unwrap_or_default();
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut tokens = serde_json::Map::new();
    for token in wanted {
        let (text, expires) = request(kubelet, pod, Some(&token.audience), token.expiration_seconds).await?;
        tokens.insert(token.audience.clone(), json!({"token": text, "expirationTimestamp": expires.to_string()}));
    }
    Ok([("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), Value::Object(tokens).to_string())].into())
}
