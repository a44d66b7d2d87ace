//! Names of images as users write them.

/// The name with `:latest` if it has neither tag nor digest. The error says what is wrong with the name.
pub(super) fn with_default_tag(image: &str) -> Result<String, String> {
    let invalid = |why: &str| Err(format!("couldn't parse image reference {image:?}: {why}"));
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
            return invalid("invalid reference format");
        }
    }
    // A colon before the last slash belongs to the registry's port.
    let (name, tag) = match rest.rfind(':') {
        Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..])),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(good) || tag.starts_with(['.', '-']) {
            return invalid("invalid reference format");
        }
    }
    let mut parts = name.split('/').collect::<Vec<_>>();
    let registry = parts[0].contains(['.', ':']) || parts[0] == "localhost";
    if registry && parts.len() > 1 {
        let host = parts.remove(0);
        if !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']')) {
            return invalid("invalid reference format");
        }
    }
    let path = parts.join("/");
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return invalid(&format!("invalid reference format: repository name ({path}) must be lowercase"));
    }
    let good_part = |part: &&str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    if !parts.iter().all(good_part) {
        return invalid("invalid reference format");
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (image, want) in [
            ("nginx", "nginx:latest"),
            ("nginx:1", "nginx:1"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
        ] {
            assert_eq!(with_default_tag(image).unwrap(), want);
        }
        let digest = format!("nginx@sha256:{}", "a".repeat(64));
        assert_eq!(with_default_tag(&digest).unwrap(), digest);
        for bad in ["", "Nginx", "a b", "nginx:", "nginx:-x", "a//b", "nginx@sha256:1", "-x"] {
            assert!(with_default_tag(bad).is_err(), "{bad}");
        }
        assert_eq!(
            with_default_tag("Nginx").unwrap_err(),
            "couldn't parse image reference \"Nginx\": invalid reference format: repository name (Nginx) must be lowercase"
        );
    }
}
