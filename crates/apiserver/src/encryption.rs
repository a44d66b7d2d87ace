//! Which objects are encrypted at rest, and how: upstream's `EncryptionConfiguration`
//! (`apiserver.config.k8s.io/v1`), as `--encryption-provider-config` names it.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use skiff_api::kinds::{KINDS, Storage};
use skiff_store::{KeyError, Provider, Rule};

use crate::object::kind_prefix;

/// What is wrong with a configuration. The words name the field, never a secret.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// No YAML, or not of this shape.
    #[error("{0}")]
    Syntax(String),
    /// Another kind of object.
    #[error("expected kind EncryptionConfiguration of apiserver.config.k8s.io/v1, got {kind:?} of {api_version:?}")]
    Kind {
        /// The kind found.
        kind: String,
        /// Its version.
        api_version: String,
    },
    /// A resource that no kind has.
    #[error("{at}: no resource {resource:?} is stored here; write PLURAL, PLURAL.GROUP, *.GROUP or *.*")]
    Resource {
        /// The field.
        at: String,
        /// What it names.
        resource: String,
    },
    /// A provider of upstream's that is not here.
    #[error("{at}: the provider {provider} is not supported; aesgcm, aescbc and identity are")]
    Unsupported {
        /// The field.
        at: String,
        /// Its name.
        provider: &'static str,
    },
    /// None of the providers, or several, where there must be one.
    #[error("{at}: one provider must be given, found {found}")]
    Count {
        /// The field.
        at: String,
        /// How many there are.
        found: usize,
    },
    /// Nothing in a list that must not be empty.
    #[error("{at}: Required value")]
    Empty {
        /// The field.
        at: String,
    },
    /// A secret that is no base64.
    #[error("{at}: secret must be base64 encoded")]
    Base64 {
        /// The field.
        at: String,
    },
    /// A secret of the wrong length.
    #[error("{at}: {source}")]
    Length {
        /// The field.
        at: String,
        /// How long it is.
        source: KeyError,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_version: String,
    kind: String,
    resources: Vec<Resources>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    resources: Vec<String>,
    providers: Vec<OneProvider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneProvider {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    identity: Option<Nothing>,
    secretbox: Option<serde_json::Value>,
    kms: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    secret: String,
}

/// Reads a configuration, in YAML or JSON.
///
/// Errors: whatever would leave something unencrypted that was to be encrypted, or unreadable.
pub fn encryption_rules(text: &str) -> Result<Vec<Rule>, EncryptionError> {
    let configuration: Configuration =
        serde_saphyr::from_str(text).map_err(|e| EncryptionError::Syntax(without_the_text(&e.to_string())))?;
    let Configuration { api_version, kind, resources } = configuration;
    if (api_version.as_str(), kind.as_str()) != ("apiserver.config.k8s.io/v1", "EncryptionConfiguration") {
        return Err(EncryptionError::Kind { kind, api_version });
    }
    if resources.is_empty() {
        return Err(EncryptionError::Empty { at: "resources".into() });
    }
    resources.iter().enumerate().map(|(i, one)| rule(&format!("resources[{i}]"), one)).collect()
}

/// The configuration of a new control plane: Secrets are encrypted with a key of its own; those that an earlier
/// version wrote are read as they are.
pub fn default_encryption_configuration() -> String {
    let mut secret = [0; 32];
    aws_lc_rs::rand::fill(&mut secret).expect("the system has random numbers");
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\n\
         kind: EncryptionConfiguration\n\
         resources:\n\
         - resources: [secrets]\n\
        \x20 providers:\n\
        \x20 - aesgcm: {{keys: [{{name: key1, secret: {}}}]}}\n\
        \x20 - identity: {{}}\n",
        BASE64.encode(secret)
    )
}

/// The first line says what is wrong and where; what follows shows the text, which has secrets.
fn without_the_text(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

fn rule(at: &str, one: &Resources) -> Result<Rule, EncryptionError> {
    let mut prefixes = Vec::new();
    for (i, resource) in one.resources.iter().enumerate() {
        let found = prefixes_of(resource);
        if found.is_empty() {
            return Err(EncryptionError::Resource { at: format!("{at}.resources[{i}]"), resource: resource.clone() });
        }
        prefixes.extend(found);
    }
    let mut providers = Vec::new();
    for (i, provider) in one.providers.iter().enumerate() {
        providers.extend(providers_of(&format!("{at}.providers[{i}]"), provider)?);
    }
    for (list, empty) in [("resources", prefixes.is_empty()), ("providers", providers.is_empty())] {
        if empty {
            return Err(EncryptionError::Empty { at: format!("{at}.{list}") });
        }
    }
    Ok(Rule { prefixes, providers })
}

/// Where objects of a resource are kept. Custom resources need not be defined yet.
fn prefixes_of(resource: &str) -> Vec<String> {
    if resource == "*.*" {
        return vec!["/registry/".into()];
    }
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    let stored = KINDS.iter().filter(|k| matches!(k.storage, Storage::Stored(_)) && k.group == group);
    let mut found: Vec<String> = stored.filter(|k| plural == "*" || k.plural == plural).map(kind_prefix).collect();
    if found.is_empty() && group.contains('.') {
        let below = if plural == "*" { String::new() } else { format!("{plural}/") };
        found.push(format!("/registry/{group}/{below}"));
    }
    found
}

fn providers_of(at: &str, one: &OneProvider) -> Result<Vec<Provider>, EncryptionError> {
    for (provider, given) in [("secretbox", &one.secretbox), ("kms", &one.kms)] {
        if given.is_some() {
            return Err(EncryptionError::Unsupported { at: at.to_owned(), provider });
        }
    }
    match (&one.aesgcm, &one.aescbc, &one.identity) {
        (Some(keys), None, None) => all(&format!("{at}.aesgcm"), keys, Provider::aesgcm),
        (None, Some(keys), None) => all(&format!("{at}.aescbc"), keys, Provider::aescbc),
        (None, None, Some(Nothing {})) => Ok(vec![Provider::identity()]),
        (gcm, cbc, identity) => {
            let found = [gcm.is_some(), cbc.is_some(), identity.is_some()].into_iter().filter(|given| *given).count();
            Err(EncryptionError::Count { at: at.to_owned(), found })
        }
    }
}

fn all(
    at: &str,
    keys: &Keys,
    make: fn(&str, &[u8]) -> Result<Provider, KeyError>,
) -> Result<Vec<Provider>, EncryptionError> {
    if keys.keys.is_empty() {
        return Err(EncryptionError::Empty { at: format!("{at}.keys") });
    }
    let one = |(i, key): (usize, &Key)| {
        let at = format!("{at}.keys[{i}]");
        if key.name.is_empty() || key.name.contains(':') {
            return Err(EncryptionError::Empty { at: format!("{at}.name") });
        }
        let secret = BASE64.decode(&key.secret).map_err(|_| EncryptionError::Base64 { at: format!("{at}.secret") })?;
        make(&key.name, &secret).map_err(|source| EncryptionError::Length { at: format!("{at}.secret"), source })
    };
    keys.keys.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    fn config(resources: &str, providers: &str) -> String {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
             resources:\n- resources: {resources}\n  providers: {providers}\n"
        )
    }

    #[test]
    fn resources_become_prefixes() {
        let prefixes = |resources: &str| {
            let rules = encryption_rules(&config(resources, "[{identity: {}}]")).unwrap();
            rules.into_iter().flat_map(|rule| rule.prefixes).collect::<Vec<_>>()
        };
        assert_eq!(prefixes("[secrets, configmaps]"), ["/registry/secrets/", "/registry/configmaps/"]);
        assert_eq!(prefixes("[deployments.apps]"), ["/registry/deployments/"]);
        assert_eq!(prefixes("[databases.example.com]"), ["/registry/example.com/databases/"]);
        assert_eq!(prefixes("['*.example.com']"), ["/registry/example.com/"]);
        assert_eq!(prefixes("['*.*']"), ["/registry/"]);
        assert_eq!(prefixes("['*.scheduling.k8s.io']"), ["/registry/priorityclasses/"]);
    }

    #[test]
    fn the_default_encrypts_secrets_and_reads_plain_ones() {
        let (one, other) = (default_encryption_configuration(), default_encryption_configuration());
        assert_ne!(one, other);
        let rules = encryption_rules(&one).unwrap();
        assert_eq!(
            format!("{rules:?}"),
            r#"[Rule { prefixes: ["/registry/secrets/"], providers: [k8s:enc:aesgcm:v1:key1, identity] }]"#
        );
    }

    #[test]
    fn what_would_not_work_is_refused() {
        let key = format!("{{keys: [{{name: a, secret: {SECRET}}}]}}");
        let wrong =
            |resources: &str, providers: &str| encryption_rules(&config(resources, providers)).unwrap_err().to_string();
        assert!(encryption_rules(&config("[secrets]", &format!("[{{aesgcm: {key}}}, {{aescbc: {key}}}]"))).is_ok());
        assert_eq!(
            wrong("[secretz]", "[{identity: {}}]"),
            "resources[0].resources[0]: no resource \"secretz\" is stored here; write PLURAL, PLURAL.GROUP, *.GROUP or *.*"
        );
        assert_eq!(
            wrong("[secrets]", &format!("[{{aesgcm: {key}, identity: {{}}}}]")),
            "resources[0].providers[0]: one provider must be given, found 2"
        );
        assert_eq!(
            wrong("[secrets]", &format!("[{{secretbox: {key}}}]")),
            "resources[0].providers[0]: the provider secretbox is not supported; aesgcm, aescbc and identity are"
        );
        assert_eq!(wrong("[secrets]", "[]"), "resources[0].providers: Required value");
        assert_eq!(
            wrong("[secrets]", "[{aesgcm: {keys: [{name: a, secret: YWJj}]}}]"),
            "resources[0].providers[0].aesgcm.keys[0].secret: secret is not of the expected length, got 3, expected one of [16 24 32]"
        );
        assert_eq!(
            wrong("[secrets]", "[{aesgcm: {keys: [{name: a, secret: '%%'}]}}]"),
            "resources[0].providers[0].aesgcm.keys[0].secret: secret must be base64 encoded"
        );
        let mistyped = wrong("[secrets]", &format!("[{{aesgcn: {key}}}]"));
        assert!(mistyped.contains("aesgcn") && !mistyped.contains(SECRET), "{mistyped}");
        let other = encryption_rules("apiVersion: v1\nkind: Secret\nresources: []\n").unwrap_err().to_string();
        assert_eq!(
            other,
            "expected kind EncryptionConfiguration of apiserver.config.k8s.io/v1, got \"Secret\" of \"v1\""
        );
    }
}
