//! Who may use the kubelet's API: the API server and administrators by their certificates, all others as the API
//! server says.

use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, api::PostParams};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Failure, is_read};
use crate::kubelet::Kubelet;

/// The user of the certificate with which the API server comes.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
const ADMINISTRATORS: &str = "system:masters";

/// An authenticated user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct User {
    name: String,
    uid: Option<String>,
    groups: Vec<String>,
}

/// The user of a certificate that TLS has verified.
pub(super) fn user_of_certificate(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push("system:authenticated".to_owned());
    (!name.is_empty()).then_some(User { name, uid: None, groups })
}

/// Lets the request pass, or says why not.
pub(super) async fn check(kubelet: &Kubelet, user: Option<User>, request: &Request<Incoming>) -> Result<(), Failure> {
    let user = match user {
        Some(user) => user,
        None => by_token(kubelet, request).await?,
    };
    if user.name == API_SERVER || user.groups.iter().any(|g| g == ADMINISTRATORS) {
        return Ok(());
    }
    let (verb, subresource) = attributes(request);
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: user.uid,
            groups: Some(user.groups),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(subresource.to_owned()),
                name: Some(kubelet.config.node_name.clone()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(kubelet.client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await;
    match answer.map(|a| a.status.is_some_and(|s| s.allowed)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(
            StatusCode::FORBIDDEN,
            format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])", user.name),
        )),
        Err(error) => Err(Failure::internal(format!(
            "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource}): {error}",
            user.name
        ))),
    }
}

async fn by_token(kubelet: &Kubelet, request: &Request<Incoming>) -> Result<User, Failure> {
    let unauthorized = || Failure::new(StatusCode::UNAUTHORIZED, "Unauthorized");
    let value = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = value.and_then(|v| v.strip_prefix("Bearer ")).ok_or_else(unauthorized)?;
    let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
    let reviews: Api<TokenReview> = Api::all(kubelet.client.clone());
    let review = TokenReview { spec, ..TokenReview::default() };
    let answer = reviews.create(&PostParams::default(), &review).await.map_err(|error| {
        tracing::debug!(%error, "cannot have a token reviewed");
        unauthorized()
    })?;
    let status = answer.status.unwrap_or_default();
    let user = status.user.filter(|_| status.authenticated == Some(true)).ok_or_else(unauthorized)?;
    let name = user.username.filter(|n| !n.is_empty()).ok_or_else(unauthorized)?;
    Ok(User { name, uid: user.uid, groups: user.groups.unwrap_or_default() })
}

/// What a request is to authorization: a verb on a subresource of the node.
fn attributes(request: &Request<Incoming>) -> (&'static str, &'static str) {
    let verb = match request.method().as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ if is_read(request.method()) => "get",
        _ => "",
    };
    (verb, subresource(request.uri().path()))
}

fn subresource(path: &str) -> &'static str {
    let below = |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    if below("/stats") {
        "stats"
    } else if below("/metrics") {
        "metrics"
    } else if below("/logs") {
        "log"
    } else if below("/pods") || below("/runningpods") {
        "pods"
    } else if below("/healthz") {
        "healthz"
    } else if below("/configz") {
        "configz"
    } else {
        "proxy"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_certificates() {
        assert_eq!(subresource("/stats/summary"), "stats");
        assert_eq!(subresource("/metricsx"), "proxy");
        assert_eq!(subresource("/exec/a/b/c"), "proxy");
        let (authority, _) = skiff_pki::Authority::generate("test").unwrap();
        let request = skiff_pki::Request {
            common_name: "me",
            organization: Some("system:masters"),
            usage: skiff_pki::Usage::Client,
            dns_names: &[],
            addresses: &[],
        };
        let pair = authority.issue(&request).unwrap();
        use rustls_pki_types::pem::PemObject as _;
        let der = rustls_pki_types::CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes()).unwrap();
        let user = user_of_certificate(&der).unwrap();
        assert_eq!((user.name.as_str(), user.groups[0].as_str()), ("me", "system:masters"));
    }
}
