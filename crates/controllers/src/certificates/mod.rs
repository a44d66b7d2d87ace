//! Certificates: requests of kubelets are approved, approved requests are signed.
//!
//! Watches CertificateSigningRequests; writes their conditions and certificates. Only a node's requests for certificates of
//! its own are approved here; all others wait for `kubectl certificate approve`.

use std::sync::Arc;

use base64::Engine as _;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use skiff_client::{Action, Controller, Informer, Informers, ObjectKey, self_mapper};
use skiff_pki::{Authority, Usage};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

use crate::{Error, Result, While as _, is_conflict, is_not_found};

const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

pub(crate) async fn run(informers: Informers, authority: Arc<Authority>) {
    let requests: Informer<CertificateSigningRequest> = informers.informer();
    let client = informers.client().clone();
    let watched = requests.clone();
    Controller::new("certificates")
        .watch(&watched, self_mapper)
        .run(move |key: ObjectKey| {
            let (requests, client, authority) = (requests.clone(), client.clone(), authority.clone());
            async move { reconcile(&requests, client, &authority, &key.name).await }
        })
        .await;
}

fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    request.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind)
}

/// What a request wants to be called.
struct Asked {
    name: String,
    organizations: Vec<String>,
    dns_names: Vec<String>,
    /// Addresses and everything else that is no DNS name.
    others: usize,
}

fn read(pem: &str) -> Option<Asked> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &request.certification_request_info.subject;
    let mut asked = Asked {
        name: subject.iter_common_name().next()?.as_str().ok()?.to_owned(),
        organizations: subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned)).collect(),
        dns_names: Vec::new(),
        others: 0,
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension {
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(name) => asked.dns_names.push((*name).to_owned()),
                    _ => asked.others += 1,
                }
            }
        }
    }
    Some(asked)
}

/// Whether a node asks for a certificate of its own: as a client by its bootstrap token or by the certificate that it
/// has, as a server by the latter and under its own name alone.
fn is_nodes_own(request: &CertificateSigningRequest, pem: &str) -> bool {
    let spec = &request.spec;
    let Some(asked) = read(pem) else { return false };
    let Some(node) = asked.name.strip_prefix("system:node:").filter(|_| asked.organizations == ["system:nodes"]) else {
        return false;
    };
    let in_group = |g: &str| spec.groups.iter().flatten().any(|x| x == g);
    let itself = in_group("system:nodes") && spec.username.as_deref() == Some(&asked.name);
    match spec.signer_name.as_str() {
        KUBELET_CLIENT => {
            asked.dns_names.is_empty() && asked.others == 0 && (itself || in_group("system:bootstrappers"))
        }
        KUBELET_SERVING => itself && asked.dns_names == [node] && asked.others == 0,
        _ => false,
    }
}

async fn reconcile(
    requests: &Informer<CertificateSigningRequest>,
    client: kube::Client,
    authority: &Authority,
    name: &str,
) -> Result<Action> {
    let Some(request) = requests.get("", name) else { return Ok(Action::Done) };
    if has(&request, "Denied") || has(&request, "Failed") {
        return Ok(Action::Done);
    }
    let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
    let api: Api<CertificateSigningRequest> = Api::all(client);
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    if !has(&request, "Approved") {
        if !is_nodes_own(&request, &pem) {
            return Ok(Action::Done);
        }
        let patch = json!({"metadata": {"uid": request.uid()}, "status": {"conditions": [{
            "type": "Approved", "status": "True", "reason": "AutoApproved",
            "message": "Auto approving kubelet client certificate after SubjectAccessReview.",
            "lastUpdateTime": now, "lastTransitionTime": now,
        }]}});
        return match api.patch_approval(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(Action::Done),
            patched => patched.during("approving a request").map(|_| Action::Done),
        };
    }
    if request.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty()) {
        return Ok(Action::Done);
    }
    let usage = match request.spec.signer_name.as_str() {
        KUBELET_CLIENT | CLIENT => Usage::Client,
        KUBELET_SERVING => Usage::Server,
        // Somebody else's signer.
        _ => return Ok(Action::Done),
    };
    let seconds = request.spec.expiration_seconds.map_or(skiff_pki::CERTIFICATE_DAYS * 86_400, i64::from);
    let days = (seconds / 86_400).clamp(1, skiff_pki::CERTIFICATE_DAYS);
    let status = match authority.sign(&pem, usage, days) {
        Ok(certificate) => {
            json!({"certificate": base64::engine::general_purpose::STANDARD.encode(certificate)})
        }
        Err(error) => {
            let mut conditions = serde_json::to_value(request.status.as_ref().and_then(|s| s.conditions.clone()))
                .map_err(|e| Error::Object(e.to_string()))?;
            if let Some(list) = conditions.as_array_mut() {
                list.push(json!({"type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": error.to_string(), "lastUpdateTime": now}));
            }
            json!({ "conditions": conditions })
        }
    };
    let patch = json!({"metadata": {"uid": request.uid()}, "status": status});
    match api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(Action::Done),
        patched => patched.during("signing a request").map(|_| Action::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(username: &str, group: &str, subject: &str, organization: &str) -> (CertificateSigningRequest, String) {
        let (_, pem) = skiff_pki::signing_request(subject, Some(organization), None).unwrap();
        let object = serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": {
            "signerName": KUBELET_CLIENT, "request": "", "username": username, "groups": [group]}}))
        .unwrap();
        (object, pem)
    }

    #[test]
    fn only_a_nodes_own_certificate_is_approved_by_itself() {
        for (user, group, subject, organization, want) in [
            ("system:bootstrap:abcdef", "system:bootstrappers", "system:node:a", "system:nodes", true),
            ("system:node:a", "system:nodes", "system:node:a", "system:nodes", true),
            ("system:node:b", "system:nodes", "system:node:a", "system:nodes", false),
            ("jane", "dev", "system:node:a", "system:nodes", false),
            ("system:bootstrap:abcdef", "system:bootstrappers", "admin", "system:masters", false),
        ] {
            let (object, pem) = request(user, group, subject, organization);
            assert_eq!(is_nodes_own(&object, &pem), want, "{user} {subject}");
        }
    }
}
