//! Image manifests and indexes, of OCI and of Docker's second schema, which differ only in media types.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{Digest, Error};

/// A reference to content.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) media_type: String,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// What an image of an index runs on.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
}

/// One image.
#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
}

/// Several images, usually one per platform.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// Either of them.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// This machine's architecture in Go's words, which images use.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

impl Document {
    /// Tells the two apart by what they hold: media types are missing or wrong often enough.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Document, Error> {
        let bad = |e: serde_json::Error| Error::Manifest { what: "image manifest", reason: e.to_string() };
        #[derive(Deserialize)]
        struct Probe {
            #[serde(rename = "schemaVersion", default)]
            version: u32,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let probe: Probe = serde_json::from_slice(bytes).map_err(bad)?;
        if probe.version == 1 {
            return Err(Error::Manifest {
                what: "image manifest",
                reason: "schema version 1 is no longer supported".to_owned(),
            });
        }
        Ok(match probe.manifests {
            Some(_) => Document::Index(serde_json::from_slice(bytes).map_err(bad)?),
            None => Document::Manifest(serde_json::from_slice(bytes).map_err(bad)?),
        })
    }
}

impl Index {
    /// Those for this machine, the best first. Entries without a platform may be anything, so they
    /// come last; attestations say `unknown` and are left out.
    pub(crate) fn for_host(&self) -> Vec<&Descriptor> {
        let is_ours = |p: &Platform| p.os == "linux" && p.architecture == host_architecture();
        let ours = self.manifests.iter().filter(|m| m.platform.as_ref().is_some_and(is_ours));
        let unsaid = self
            .manifests
            .iter()
            .filter(|m| m.platform.as_ref().is_none_or(|p| p.os.is_empty() && p.architecture.is_empty()));
        ours.chain(unsaid).collect()
    }
}
