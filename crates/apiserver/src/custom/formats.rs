//! The formats of texts that schemas may ask for. Others are not checked, as with upstream.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Whether a text has a format, or the format is none that is checked.
pub(super) fn fits(format: &str, text: &str) -> bool {
    match format {
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(ip, bits)| {
            let max = if ip.parse::<Ipv4Addr>().is_ok() { 32 } else { 128 };
            (max == 32 || ip.parse::<Ipv6Addr>().is_ok()) && bits.parse::<u8>().is_ok_and(|b| b <= max)
        }),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "byte" => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        "hostname" => skiff_api::names::dns1123_subdomain(&text.to_ascii_lowercase()).is_empty(),
        "email" => text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()),
        "uri" => text.parse::<http::Uri>().is_ok_and(|u| u.scheme().is_some() || text.starts_with('/')),
        "mac" => {
            let parts: Vec<&str> = text.split([':', '-']).collect();
            matches!(parts.len(), 6 | 8)
                && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
        }
        "duration" => crate::cel::duration(text).is_some(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("date", "2024-02-29", "2024-2-30"),
            ("date-time", "2024-02-29T00:00:00Z", "yesterday"),
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "1"),
            ("duration", "1h30m", "long"),
        ] {
            assert!(fits(format, good), "{format}");
            assert!(!fits(format, bad), "{format}");
        }
        assert!(fits("int32", "anything"));
    }
}
