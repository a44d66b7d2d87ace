//! The annotations of an Ingress that change how its requests are handled; names and meaning are ingress-nginx's.

use std::{collections::BTreeMap, time::Duration};

const PREFIX: &str = "nginx.ingress.kubernetes.io/";
/// How long an answer may take to begin, unless said otherwise.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How much more than the rate may come at once, unless said otherwise.
const BURST: u32 = 5;

/// How the requests of an Ingress are handled.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `rewrite-target`: the path that pods see; `$1` and so on are groups of the rule's path.
    pub rewrite: Option<String>,
    /// `use-regex`, or implied by `rewrite-target`: paths of rules are regular expressions.
    pub regex: bool,
    /// `ssl-redirect`: hosts with TLS are led to it.
    pub ssl_redirect: bool,
    /// `force-ssl-redirect`: the same without TLS.
    pub force_ssl_redirect: bool,
    /// `proxy-body-size` in bytes.
    pub body_limit: Option<u64>,
    pub rate: Option<Rate>,
    /// `backend-protocol` GRPC: HTTP/2 to the pods.
    pub http2: bool,
    /// `proxy-read-timeout`.
    pub read_timeout: Duration,
    /// `permanent-redirect` and `temporal-redirect`: status code and where to.
    pub redirect: Option<(u16, String)>,
    /// `app-root`: where `/` leads.
    pub app_root: Option<String>,
    /// `upstream-vhost`: the host that pods see.
    pub host: Option<String>,
}

/// `limit-rps` and `limit-rpm`, for each client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    pub burst: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rewrite: None,
            regex: false,
            ssl_redirect: true,
            force_ssl_redirect: false,
            body_limit: None,
            rate: None,
            http2: false,
            read_timeout: READ_TIMEOUT,
            redirect: None,
            app_root: None,
            host: None,
        }
    }
}

/// Reads the annotations of an Ingress. What cannot be understood is as if it was not there, and named.
pub fn parse(annotations: Option<&BTreeMap<String, String>>) -> (Settings, Vec<String>) {
    let mut settings = Settings::default();
    let mut faults = Vec::new();
    let find = |name: &str| annotations?.get(&format!("{PREFIX}{name}")).map(|value| value.trim().to_owned());
    let mut parsed = |name: &str, known: &mut dyn FnMut(&str) -> Option<()>| {
        if let Some(value) = find(name)
            && known(&value).is_none()
        {
            faults.push(format!("{PREFIX}{name}: {value:?} is not understood"));
        }
    };
    let flag = |value: &str| value.parse::<bool>().ok();
    parsed("use-regex", &mut |v| flag(v).map(|v| settings.regex = v));
    parsed("ssl-redirect", &mut |v| flag(v).map(|v| settings.ssl_redirect = v));
    parsed("force-ssl-redirect", &mut |v| flag(v).map(|v| settings.force_ssl_redirect = v));
    parsed("proxy-body-size", &mut |v| size(v).map(|v| settings.body_limit = (v > 0).then_some(v)));
    parsed("proxy-read-timeout", &mut |v| {
        v.trim_end_matches('s').parse().ok().map(|v| settings.read_timeout = Duration::from_secs(v))
    });
    parsed("backend-protocol", &mut |v| match v.to_ascii_uppercase().as_str() {
        "HTTP" | "AUTO_HTTP" => Some(()),
        "GRPC" => {
            settings.http2 = true;
            Some(())
        }
        _ => None,
    });
    let mut multiplier = BURST;
    parsed("limit-burst-multiplier", &mut |v| v.parse().ok().map(|v| multiplier = v));
    let burst = f64::from(multiplier);
    let mut rate = None;
    for (name, seconds) in [("limit-rpm", 60.0), ("limit-rps", 1.0)] {
        parsed(name, &mut |v| {
            let limit = f64::from(v.parse::<u32>().ok()?);
            rate = (limit > 0.0).then_some(Rate { per_second: limit / seconds, burst: limit * burst });
            Some(())
        });
    }
    settings.rate = rate;
    let text = |name: &str| find(name).filter(|value| !value.is_empty());
    settings.rewrite = text("rewrite-target");
    settings.app_root = text("app-root");
    settings.host = text("upstream-vhost");
    let temporal = text("temporal-redirect").map(|to| (302, to));
    settings.redirect = temporal.or_else(|| text("permanent-redirect").map(|to| (301, to)));
    settings.regex |= settings.rewrite.is_some();
    (settings, faults)
}

/// Bytes, or with `k`, `m` or `g` so many times 1,024.
fn size(text: &str) -> Option<u64> {
    let (number, factor) = match text.to_ascii_lowercase() {
        t if t.ends_with('k') => (text.len() - 1, 1 << 10),
        t if t.ends_with('m') => (text.len() - 1, 1 << 20),
        t if t.ends_with('g') => (text.len() - 1, 1 << 30),
        _ => (text.len(), 1),
    };
    text.get(..number)?.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_faults() {
        let of = |pairs: &[(&str, &str)]| {
            let map = pairs.iter().map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned())).collect();
            parse(Some(&map))
        };
        assert_eq!(parse(None), (Settings::default(), Vec::new()));
        let (settings, faults) = of(&[
            ("rewrite-target", "/$2"),
            ("ssl-redirect", "false"),
            ("proxy-body-size", "8m"),
            ("limit-rps", "5"),
            ("backend-protocol", "GRPC"),
            ("proxy-read-timeout", "120"),
        ]);
        assert!(faults.is_empty());
        assert_eq!(settings.rewrite.as_deref(), Some("/$2"));
        assert!(settings.regex && !settings.ssl_redirect && settings.http2);
        assert_eq!(settings.body_limit, Some(8 << 20));
        assert_eq!(settings.rate, Some(Rate { per_second: 5.0, burst: 25.0 }));
        assert_eq!(settings.read_timeout, Duration::from_secs(120));
        let (settings, faults) =
            of(&[("proxy-body-size", "many"), ("limit-rpm", "60"), ("limit-burst-multiplier", "1")]);
        assert_eq!(faults, ["nginx.ingress.kubernetes.io/proxy-body-size: \"many\" is not understood"]);
        assert_eq!(settings.rate, Some(Rate { per_second: 1.0, burst: 60.0 }));
        assert_eq!(of(&[("proxy-body-size", "0")]).0.body_limit, None);
    }
}
