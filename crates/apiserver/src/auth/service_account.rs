//! Service account tokens: JSON web tokens that this server signs and checks.

use std::collections::BTreeMap;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use super::User;

/// Name of the issuer and of the audience of tokens for the API server, upstream's default.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Why a token was not made or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("invalid bearer token")]
    Invalid(#[from] jsonwebtoken::errors::Error),
    #[error("token is not for the audience {0:?}")]
    Audience(Vec<String>),
    #[error("service account token is of no service account")]
    Subject,
}

/// An object that a token is bound to: the token ends with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub name: String,
    pub uid: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Private,
    nbf: i64,
    sub: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Private {
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<Bound>,
    serviceaccount: Bound,
}

/// What an accepted token says; the caller checks that the objects still are what they were.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub namespace: String,
    pub service_account: Bound,
    pub pod: Option<Bound>,
    pub secret: Option<Bound>,
    pub audiences: Vec<String>,
    pub user: User,
}

/// What a new token is to say.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub namespace: String,
    pub service_account: Bound,
    pub pod: Option<Bound>,
    pub secret: Option<Bound>,
    pub node: Option<Bound>,
    pub audiences: Vec<String>,
    pub lifetime_s: i64,
}

/// Signs and checks.
pub struct ServiceAccountTokens {
    sign: EncodingKey,
    check: DecodingKey,
    key_id: String,
}

impl ServiceAccountTokens {
    /// With an ECDSA P-256 key pair in PEM (PKCS #8 and SubjectPublicKeyInfo).
    pub fn new(private_pem: &str, public_pem: &str) -> Result<ServiceAccountTokens, TokenError> {
        use base64::Engine as _;
        let digest = digest_of(public_pem.as_bytes());
        Ok(ServiceAccountTokens {
            sign: EncodingKey::from_ec_pem(private_pem.as_bytes())?,
            check: DecodingKey::from_ec_pem(public_pem.as_bytes())?,
            key_id: base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest),
        })
    }

    /// A signed token and the time of its end.
    pub fn issue(&self, request: &Request) -> Result<(String, jiff::Timestamp), TokenError> {
        let now = jiff::Timestamp::now();
        let ends = now + jiff::SignedDuration::from_secs(request.lifetime_s);
        let audiences = if request.audiences.is_empty() { vec![ISSUER.to_owned()] } else { request.audiences.clone() };
        let claims = Claims {
            aud: audiences,
            exp: ends.as_second(),
            iat: now.as_second(),
            iss: ISSUER.to_owned(),
            jti: uuid::Uuid::new_v4().to_string(),
            kubernetes: Private {
                namespace: request.namespace.clone(),
                node: request.node.clone(),
                pod: request.pod.clone(),
                secret: request.secret.clone(),
                serviceaccount: request.service_account.clone(),
            },
            nbf: now.as_second(),
            sub: format!("system:serviceaccount:{}:{}", request.namespace, request.service_account.name),
        };
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        Ok((jsonwebtoken::encode(&header, &claims, &self.sign)?, ends))
    }

    /// Checks signature, times and audience.
    pub fn check(&self, token: &str, audiences: &[String]) -> Result<Accepted, TokenError> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.set_issuer(&[ISSUER]);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.check, &validation)?.claims;
        let wanted: Vec<String> = if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences.to_vec() };
        let common: Vec<String> = wanted.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if common.is_empty() {
            return Err(TokenError::Audience(wanted));
        }
        let private = claims.kubernetes;
        if claims.sub != format!("system:serviceaccount:{}:{}", private.namespace, private.serviceaccount.name) {
            return Err(TokenError::Subject);
        }
        let mut extra = BTreeMap::new();
        let mut add = |key: &str, value: &str| {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        };
        add("credential-id", &format!("JTI={}", claims.jti));
        if let Some(pod) = &private.pod {
            add("pod-name", &pod.name);
            add("pod-uid", &pod.uid);
        }
        if let Some(node) = &private.node {
            add("node-name", &node.name);
            add("node-uid", &node.uid);
        }
        let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{}", private.namespace)];
        let mut user = User::known(claims.sub, &groups);
        user.uid = private.serviceaccount.uid.clone();
        user.extra = extra;
        Ok(Accepted {
            namespace: private.namespace,
            service_account: private.serviceaccount,
            pod: private.pod,
            secret: private.secret,
            audiences: common,
            user,
        })
    }
}

fn digest_of(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).to_vec()
}
