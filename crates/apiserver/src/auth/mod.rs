//! Authentication: who asks.

mod service_account;
mod x509;

use std::collections::BTreeMap;

use http::{HeaderMap, header};
use skiff_api::Status;

pub use self::{
    service_account::{Accepted, Bound, ISSUER, Request as TokenRequest, ServiceAccountTokens, TokenError},
    x509::user_of_certificate,
};

/// Somebody who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const ANONYMOUS: &str = "system:anonymous";
pub const MASTERS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";

impl User {
    /// A component of the control plane or another known user, in these groups and that of all known users.
    pub fn known(name: impl Into<String>, groups: &[&str]) -> User {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push(AUTHENTICATED.to_owned());
        User { name: name.into(), groups, ..User::default() }
    }

    /// Somebody who said nothing of himself.
    pub fn anonymous() -> User {
        User { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..User::default() }
    }

    pub fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// The token of an `Authorization: Bearer` header, or of the WebSocket protocol that browsers use instead.
pub fn bearer_token(headers: &HeaderMap) -> Option<String> {
    use base64::Engine as _;
    if let Some(value) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()) {
        let (scheme, token) = value.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned()).filter(|t| !t.is_empty());
    }
    const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .find_map(|p| p.trim().strip_prefix(PREFIX))
        .and_then(|t| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(t).ok())
        .and_then(|t| String::from_utf8(t).ok())
}

/// Whom the request wants to be taken for (`Impersonate-User` and its like), if anybody.
pub fn impersonated(headers: &HeaderMap) -> Result<Option<User>, Status> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let groups: Vec<String> =
        headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
            extra
                .entry(crate::request::percent_decode(key))
                .or_default()
                .push(value.to_str().unwrap_or_default().to_owned());
        }
    }
    let (name, uid) = (text("impersonate-user"), text("impersonate-uid"));
    if name.is_empty() {
        if !groups.is_empty() || !extra.is_empty() || !uid.is_empty() {
            return Err(Status::internal(
                "requested impersonation without impersonating a user: only Impersonate-Group, Impersonate-Uid or Impersonate-Extra were set",
            ));
        }
        return Ok(None);
    }
    let mut user = User { name, uid, groups, extra };
    if user.groups.is_empty()
        && let Some(rest) = user.name.strip_prefix("system:serviceaccount:")
        && let Some((namespace, _)) = rest.split_once(':')
    {
        user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let all = if user.is_anonymous() { UNAUTHENTICATED } else { AUTHENTICATED };
    if !user.in_group(all) {
        user.groups.push(all.into());
    }
    Ok(Some(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_in_both_places() {
        let mut h = HeaderMap::new();
        h.insert("authorization", "Bearer abc".parse().unwrap());
        assert_eq!(bearer_token(&h).as_deref(), Some("abc"));
        h.insert("authorization", "Basic abc".parse().unwrap());
        assert_eq!(bearer_token(&h), None);
        let mut h = HeaderMap::new();
        h.insert(
            "sec-websocket-protocol",
            "v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj".parse().unwrap(),
        );
        assert_eq!(bearer_token(&h).as_deref(), Some("abc"));
    }

    #[test]
    fn impersonation_needs_a_user() {
        let mut h = HeaderMap::new();
        assert_eq!(impersonated(&h).unwrap(), None);
        h.insert("impersonate-group", "g".parse().unwrap());
        assert!(impersonated(&h).is_err());
        h.insert("impersonate-user", "jane".parse().unwrap());
        let u = impersonated(&h).unwrap().unwrap();
        assert!(u.in_group("g") && u.in_group("system:authenticated"));
    }
}
