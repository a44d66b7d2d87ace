//! The rules for names, labels and the like, with upstream's messages.
//!
//! Each function returns every fault that it finds; none means that the text is good.

fn is_alnum_lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn edges(s: &str, ok: impl Fn(u8) -> bool) -> bool {
    let b = s.as_bytes();
    matches!((b.first(), b.last()), (Some(&f), Some(&l)) if ok(f) && ok(l))
}

fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

const DNS1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const DNS1123_SUBDOMAIN_WITH_UNDERSCORE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn good_dns1123_label(s: &str) -> bool {
    edges(s, is_alnum_lower) && s.bytes().all(|b| is_alnum_lower(b) || b == b'-')
}

/// Names of namespaces, containers, and the parts of domain names.
pub fn dns1123_label(s: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if s.len() > 63 {
        faults.push(too_long(63));
    }
    if !good_dns1123_label(s) {
        faults.push(DNS1123_LABEL.into());
    }
    faults
}

/// Names of most objects.
pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if s.len() > 253 {
        faults.push(too_long(253));
    }
    if s.is_empty() || !s.split('.').all(good_dns1123_label) {
        faults.push(DNS1123_SUBDOMAIN.into());
    }
    faults
}

/// What a pod may search names in: underscores are found in domains of other systems.
pub fn dns1123_subdomain_with_underscore(s: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if s.len() > 253 {
        faults.push(too_long(253));
    }
    let good = |part: &str| {
        let part = part.strip_prefix('_').unwrap_or(part);
        edges(part, is_alnum_lower) && part.bytes().all(|b| is_alnum_lower(b) || matches!(b, b'-' | b'_'))
    };
    if s.is_empty() || !s.split('.').all(good) {
        faults.push(DNS1123_SUBDOMAIN_WITH_UNDERSCORE.into());
    }
    faults
}

/// Names of Services before they were relaxed, and of port names in DNS.
pub fn dns1035_label(s: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if s.len() > 63 {
        faults.push(too_long(63));
    }
    if !good_dns1123_label(s) || !s.starts_with(|c: char| c.is_ascii_lowercase()) {
        faults.push(DNS1035_LABEL.into());
    }
    faults
}

/// Names that become one segment of a path, such as those of the RBAC kinds.
pub fn path_segment(s: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if s == "." || s == ".." {
        faults.push(format!("may not be '{s}'"));
    }
    for c in ["/", "%"] {
        if s.contains(c) {
            faults.push(format!("may not contain '{c}'"));
        }
    }
    faults
}

/// Keys of labels and annotations, names of resources and finalizers: `[prefix/]name`.
pub fn qualified_name(s: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let name = match s.split_once('/') {
        None => s,
        Some((_, name)) if name.contains('/') => {
            return vec![
                "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".into(),
            ];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".into());
            } else {
                faults.extend(dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        faults.push(format!("name part {}", too_long(63)));
    }
    if !good_qualified(name) {
        faults.push(QUALIFIED_NAME.into());
    }
    faults
}

fn good_qualified(s: &str) -> bool {
    edges(s, |b| b.is_ascii_alphanumeric())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Values of labels.
pub fn label_value(s: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if s.len() > 63 {
        faults.push(too_long(63));
    }
    if !s.is_empty() && !good_qualified(s) {
        faults.push(LABEL_VALUE.into());
    }
    faults
}

/// Keys of ConfigMaps and Secrets.
pub fn config_key(s: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if s.len() > 253 {
        faults.push(too_long(253));
    }
    if s.is_empty() || !s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        faults.push(CONFIG_KEY.into());
    } else if s == "." || s == ".." {
        faults.push(format!("must not be '{s}'"));
    } else if s.starts_with("..") {
        faults.push("must not start with '..'".into());
    }
    faults
}

/// Names of environment variables.
pub fn env_name(s: &str) -> Vec<String> {
    if s.is_empty() || !s.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        vec![ENV_NAME.into()]
    } else {
        Vec::new()
    }
}

/// Names of container and Service ports (IANA_SVC_NAME).
pub fn port_name(s: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if s.len() > 15 {
        faults.push("must be no more than 15 characters".into());
    }
    if s.is_empty() || !s.bytes().all(|b| is_alnum_lower(b) || b == b'-') {
        faults.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !s.bytes().any(|b| b.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        faults.push("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        faults.push("must not begin or end with a hyphen".into());
    }
    faults
}

/// Names of headers of HTTP.
pub fn http_header(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec!["a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')".into()]
}

/// Addresses, of either family.
pub fn ip_address(s: &str) -> Vec<String> {
    match s.parse::<std::net::IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
    }
}

/// Port numbers.
pub fn port_number(n: i64) -> Vec<String> {
    if (1..=65535).contains(&n) { Vec::new() } else { vec!["must be between 1 and 65535, inclusive".into()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_and_refuses() {
        assert!(dns1123_label("my-name").is_empty());
        assert!(dns1123_label("123").is_empty());
        for bad in ["", "-a", "a-", "A", "a.b", "a_b"] {
            assert_eq!(dns1123_label(bad).len(), 1, "{bad}");
        }
        assert!(dns1123_subdomain("a.b-c.d").is_empty());
        assert!(!dns1123_subdomain("a..b").is_empty());
        assert!(!dns1123_subdomain("Invalid_Name").is_empty());
        assert!(!dns1035_label("1a").is_empty());
        assert!(qualified_name("example.com/My.name_1").is_empty());
        assert!(!qualified_name("a/b/c").is_empty());
        assert!(!qualified_name("/b").is_empty());
        assert!(label_value("").is_empty());
        assert!(!label_value("a b").is_empty());
        assert!(config_key("..a").len() == 1 && config_key(".a").is_empty());
        assert!(port_name("http-2").is_empty());
        assert!(!port_name("80").is_empty());
        assert_eq!(dns1123_label(&"a".repeat(64)), vec!["must be no more than 63 characters"]);
    }
}
