//! From credentials to a user.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Value, json};
use skiff_api::Status;

use crate::{
    auth::{Accepted, ServiceAccountTokens, User, bearer_token},
    registry::Registry,
    reviews,
};

/// Knows certificates, service account tokens and bootstrap tokens.
pub struct Authenticator {
    pub registry: Arc<Registry>,
    pub tokens: Arc<ServiceAccountTokens>,
}

impl Authenticator {
    /// The user of a request: that of the verified certificate, else that of the token, else nobody in
    /// particular. A token that is wrong is refused, not ignored.
    pub async fn user(&self, certificate: Option<&User>, headers: &HeaderMap) -> Result<User, Status> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        match bearer_token(headers) {
            Some(token) => self.of_token(&token, &[]).await.map(|(user, _)| user).ok_or_else(Status::unauthorized),
            None => Ok(User::anonymous()),
        }
    }

    /// The user of a token that is good for one of the audiences (none: the API server), and which it is good for.
    async fn of_token(&self, token: &str, audiences: &[String]) -> Option<(User, Vec<String>)> {
        if let Some((id, secret)) = token.split_once('.').filter(|(id, secret)| id.len() == 6 && secret.len() == 16) {
            return self.of_bootstrap_token(id, secret).map(|user| (user, Vec::new()));
        }
        match self.tokens.check(token, audiences) {
            Ok(accepted) if self.still_valid(&accepted).await => Some((accepted.user, accepted.audiences)),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "bearer token refused");
                None
            }
        }
    }

    /// A token ends with its account and with the object that it is bound to.
    async fn still_valid(&self, accepted: &Accepted) -> bool {
        let account = &accepted.service_account;
        if !self.is_there("serviceaccounts", &accepted.namespace, &account.name, &account.uid).await {
            return false;
        }
        for (plural, bound) in [("pods", &accepted.pod), ("secrets", &accepted.secret)] {
            if let Some(bound) = bound
                && !self.is_there(plural, &accepted.namespace, &bound.name, &bound.uid).await
            {
                return false;
            }
        }
        true
    }

    async fn is_there(&self, plural: &'static str, namespace: &str, name: &str, uid: &str) -> bool {
        let resource = self.registry.builtin("", plural);
        let object = resource.cache.get(&resource.key(namespace, name)).await;
        matches!(object, Ok(Some(object)) if *object.uid == *uid)
    }

    /// Tokens that let new nodes in: Secrets `bootstrap-token-<id>` in `kube-system`.
    fn of_bootstrap_token(&self, id: &str, secret: &str) -> Option<User> {
        use base64::Engine as _;
        let secrets = self.registry.builtin("", "secrets");
        let object = secrets.cache.peek(&secrets.key("kube-system", &format!("bootstrap-token-{id}")))?.value();
        let field = |name: &str| -> String {
            let decoded =
                object["data"][name].as_str().and_then(|t| base64::engine::general_purpose::STANDARD.decode(t).ok());
            decoded.and_then(|b| String::from_utf8(b).ok()).unwrap_or_default()
        };
        let equal = same_secret(field("token-secret").as_bytes(), secret.as_bytes());
        let expired = match field("expiration").as_str() {
            "" => false,
            // A time that cannot be read is over: the safe way to be wrong.
            text => text.parse::<jiff::Timestamp>().map_or(true, |t| t < jiff::Timestamp::now()),
        };
        if object["type"] != "bootstrap.kubernetes.io/token"
            || field("token-id") != id
            || field("usage-bootstrap-authentication") != "true"
            || !equal
            || expired
        {
            return None;
        }
        let mut groups = vec!["system:bootstrappers".to_owned()];
        groups.extend(
            field("auth-extra-groups")
                .split(',')
                .map(str::trim)
                .filter(|g| g.starts_with("system:bootstrappers:"))
                .map(str::to_owned),
        );
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        Some(User::known(format!("system:bootstrap:{id}"), &groups))
    }

    /// Answers a TokenReview.
    pub async fn review(&self, mut review: Value) -> Value {
        let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
        let audiences: Vec<String> = serde_json::from_value(review["spec"]["audiences"].clone()).unwrap_or_default();
        review["status"] = match self.of_token(&token, &audiences).await {
            Some((user, good_for)) => {
                let mut status = json!({"authenticated": true, "user": reviews::user_value(&user)});
                if !good_for.is_empty() {
                    status["audiences"] = json!(good_for);
                }
                status
            }
            None => json!({"user": {}, "error": "invalid bearer token"}),
        };
        review
    }
}

/// Compares without telling by its time where the difference is.
fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}
