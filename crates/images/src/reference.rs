//! Image references, normalised as Docker does it.

use std::fmt;
use std::str::FromStr;

use crate::digest::is_hex64;
use crate::{Digest, Error};

/// The registry of references that name none.
const DEFAULT_DOMAIN: &str = "docker.io";
/// The repository prefix of Docker Hub's official images.
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Longest repository name, domain included, that registries accept.
const MAX_NAME: usize = 255;

/// A normalised image reference: `nginx` is `docker.io/library/nginx:latest`.
///
/// Always has a tag or a digest. With both, the digest decides and the tag is only remembered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry, for example `docker.io` or `127.0.0.1:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository in the registry, for example `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if any.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if any.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same repository at a digest, the form of `repoDigests`.
    pub fn with_digest(&self, digest: &Digest) -> Reference {
        Reference { tag: None, digest: Some(digest.clone()), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference, Error> {
        let bad = |detail| Error::InvalidReference { reference: text.to_owned(), detail };
        if text.is_empty() {
            return Err(bad(""));
        }
        if is_hex64(text) {
            return Err(bad(": a 64-byte hexadecimal string is an id, not a name"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|_| bad(": invalid digest"))?)),
            None => (text, None),
        };
        // A colon after the last slash starts a tag, one before it a port.
        let after_slash = rest.rfind('/').map_or(0, |i| i + 1);
        let (name, tag) = match rest[after_slash..].find(':') {
            Some(i) => (&rest[..after_slash + i], Some(&rest[after_slash + i + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(""));
        }
        let (domain, path) = match name.split_once('/') {
            Some((first, path))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first.bytes().any(|b| b.is_ascii_uppercase()) =>
            {
                (first, path.to_owned())
            }
            _ => (DEFAULT_DOMAIN, name.to_owned()),
        };
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("{OFFICIAL}{path}") } else { path };
        if !is_domain(domain) {
            return Err(bad(""));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad(": repository name must be lowercase"));
        }
        if !path.split('/').all(is_path_component) {
            return Err(bad(""));
        }
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(bad(": repository name must not be more than 255 characters"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Reference { domain: domain.to_owned(), path, tag, digest })
    }
}

fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    bytes.next().is_some_and(word) && tag.len() <= 128 && bytes.all(|b| word(b) || b == b'.' || b == b'-')
}

/// A host name, IPv4 address or bracketed IPv6 address, with an optional port.
fn is_domain(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        (None, port.strip_prefix(':').or(if port.is_empty() { None } else { Some("") }))
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        }
    };
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower-case letters and digits, in words separated by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let mut separator = String::new();
    let mut words = 0;
    for c in component.chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            let allowed = match separator.as_str() {
                "" => true,
                "." | "_" | "__" => words > 0,
                s => words > 0 && s.bytes().all(|b| b == b'-'),
            };
            if !allowed {
                return false;
            }
            separator.clear();
            words += 1;
        } else if matches!(c, '.' | '_' | '-') {
            separator.push(c);
        } else {
            return false;
        }
    }
    words > 0 && separator.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &str, normalised: &str) {
        let reference: Reference = given.parse().unwrap_or_else(|e| panic!("{given}: {e}"));
        assert_eq!(reference.to_string(), normalised);
        let again: Reference = normalised.parse().expect("normal form parses");
        assert_eq!(again, reference);
    }

    #[test]
    fn normalises_like_docker() {
        let d = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.27", "docker.io/library/nginx:1.27");
        check("me/app", "docker.io/me/app:latest");
        check("index.docker.io/nginx", "docker.io/library/nginx:latest");
        check("localhost/app", "localhost/app:latest");
        check("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c");
        check("[::1]:5000/a", "[::1]:5000/a:latest");
        check("registry.k8s.io/e2e-test-images/agnhost:2.53", "registry.k8s.io/e2e-test-images/agnhost:2.53");
        check(&format!("nginx@{d}"), &format!("docker.io/library/nginx@{d}"));
        check(&format!("nginx:1@{d}"), &format!("docker.io/library/nginx:1@{d}"));
        check("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest");
    }

    #[test]
    fn refuses_what_docker_refuses() {
        for bad in [
            "",
            ":x",
            "a//b",
            "/a",
            "a/",
            "Nginx",
            "a/B",
            "nginx:",
            "nginx:.x",
            "a@sha256:zz",
            "a..b",
            "a___b",
            "_a",
            "a_",
            "-a.com/x",
            "h:port/x",
            "a b",
            "[::1/x",
            "nginx:a/b:c:d",
            "../etc/passwd",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was accepted");
        }
        assert!(format!("a/{}", "b".repeat(300)).parse::<Reference>().is_err());
    }
}
