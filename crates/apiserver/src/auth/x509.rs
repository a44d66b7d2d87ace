//! Client certificates: the common name is the user, the organizations are the groups.

use x509_parser::prelude::{FromDer, X509Certificate};

use super::User;

/// The user of a certificate that TLS has verified. `None` if it names nobody.
pub fn user_of_certificate(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    Some(User::known(name, &groups))
}
