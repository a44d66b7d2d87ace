//! How a new machine becomes a node: with a bootstrap token it asks for a client certificate of its own, and with that
//! for one to serve with.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{Api, api::PostParams};
use serde_json::json;
use skiff_client::{Config, Credentials, Pem, https};
use skiff_pki::Pair;

/// How long the control plane may take to sign.
const SIGNING_TIMEOUT: Duration = Duration::from_secs(60);

/// Whom a node joins.
pub(crate) struct Target<'a> {
    pub(crate) server_url: &'a str,
    pub(crate) authority_pem: &'a str,
    pub(crate) token: &'a str,
    pub(crate) node_name: &'a str,
}

/// The node's own client and the pair that its kubelet serves with. Certificates of an earlier start are used as
/// long as they last.
pub(crate) async fn join(dir: &Path, target: &Target<'_>) -> Result<(kube::Client, Pair)> {
    let user = format!("system:node:{}", target.node_name);
    let with_token = || -> Result<kube::Client> {
        let config = Config::new(target.server_url, Pem::Inline(target.authority_pem.as_bytes().to_vec()))
            .with_user_agent("skiff-agent")
            .with_credentials(Credentials::Token(target.token.to_owned()));
        Ok(https(&config)?)
    };
    let pair = match load(dir, "kubelet-client")? {
        Some(pair) => pair,
        None => {
            let pair =
                request(&with_token()?, &user, "kubernetes.io/kube-apiserver-client-kubelet", "client auth", None)
                    .await?;
            store(dir, "kubelet-client", &pair)?;
            pair
        }
    };
    let config = Config::new(target.server_url, Pem::Inline(target.authority_pem.as_bytes().to_vec()))
        .with_user_agent("kubelet")
        .with_credentials(Credentials::Certificate {
            certificate: Pem::Inline(pair.certificate_pem.into_bytes()),
            key: Pem::Inline(pair.key_pem.into_bytes()),
        });
    let client = https(&config)?;
    let serving = match load(dir, "kubelet-serving")? {
        Some(pair) => pair,
        None => {
            let pair =
                request(&client, &user, "kubernetes.io/kubelet-serving", "server auth", Some(target.node_name)).await?;
            store(dir, "kubelet-serving", &pair)?;
            pair
        }
    };
    Ok((client, serving))
}

fn load(dir: &Path, name: &str) -> Result<Option<Pair>> {
    let (certificate, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    let (Some(certificate_pem), Some(key_pem)) = (skiff_pki::read(&certificate)?, skiff_pki::read(&key)?) else {
        return Ok(None);
    };
    Ok((!skiff_pki::ends_soon(&certificate_pem)).then_some(Pair { certificate_pem, key_pem }))
}

fn store(dir: &Path, name: &str, pair: &Pair) -> Result<()> {
    skiff_pki::write_private(&dir.join(format!("{name}.key")), &pair.key_pem)?;
    skiff_pki::write_public(&dir.join(format!("{name}.crt")), &pair.certificate_pem)?;
    Ok(())
}

/// Asks for a certificate and waits until it is signed.
async fn request(client: &kube::Client, user: &str, signer: &str, usage: &str, dns_name: Option<&str>) -> Result<Pair> {
    use base64::Engine as _;
    let (key_pem, request_pem) = skiff_pki::signing_request(user, Some("system:nodes"), dns_name)?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let object = serde_json::from_value(json!({
        "metadata": {"generateName": "csr-"},
        "spec": {
            "request": base64::engine::general_purpose::STANDARD.encode(&request_pem),
            "signerName": signer,
            "usages": ["digital signature", usage],
        },
    }))?;
    let created = api
        .create(&PostParams::default(), &object)
        .await
        .context("the control plane refused the request for a certificate (is the token right?)")?;
    let name = created.metadata.name.unwrap_or_default();
    let deadline = tokio::time::Instant::now() + SIGNING_TIMEOUT;
    loop {
        let current = api.get(&name).await.context("cannot read the request for a certificate")?;
        let status = current.status.unwrap_or_default();
        if let Some(certificate) = status.certificate.filter(|c| !c.0.is_empty()) {
            return Ok(Pair { certificate_pem: String::from_utf8(certificate.0)?, key_pem });
        }
        let refused = status.conditions.iter().flatten().find(|c| c.type_ == "Denied" || c.type_ == "Failed");
        if let Some(c) = refused {
            bail!("the request {name} for a certificate was refused: {}", c.message.clone().unwrap_or_default());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("the request {name} for a certificate was not signed within {} seconds", SIGNING_TIMEOUT.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
