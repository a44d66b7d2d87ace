//! The cluster's certificates and keys: its authority, what it issues, and kubeconfig files.
//!
//! Everything lies in one directory, keys readable by their owner only. A certificate that ends within
//! [`RENEW_BEFORE_DAYS`] is made anew at the next start or when [`Authority::needs_renewal`] is asked.

mod files;
mod kubeconfig;
mod subject;
mod unverified;

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject as _;
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate, X509CertificationRequest},
};

pub use self::{
    files::{load_or_create, read, write_private, write_public},
    kubeconfig::Kubeconfig,
    unverified::unverified_tls,
};

/// Lifetime of the authority, as kubeadm's.
const CA_DAYS: i64 = 3650;
/// Lifetime of what it issues.
pub const CERTIFICATE_DAYS: i64 = 365;
/// How long before its end a certificate is replaced.
pub const RENEW_BEFORE_DAYS: i64 = 90;

/// What went wrong with a key or certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make or sign the certificate of {name}")]
    Certificate {
        name: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    #[error("the certificate signing request is not valid: {0}")]
    Request(String),
    #[error("{0} is no certificate in PEM form")]
    NotPem(String),
    #[error("cannot read or write {path}")]
    File {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A certificate and its key, both in PEM form.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
    /// Both, as the kubelet's serving certificate need not be but a peer's is.
    Both,
}

/// What to issue.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The user, or the server's name.
    pub common_name: &'a str,
    /// The user's group.
    pub organization: Option<&'a str>,
    pub usage: Usage,
    pub dns_names: &'a [String],
    pub addresses: &'a [IpAddr],
}

/// The cluster's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

fn serial() -> SerialNumber {
    // 159 random bits, as upstream's; the key generator is the source of randomness at hand.
    let key = KeyPair::generate().map(|k| k.public_key_raw().to_vec()).unwrap_or_default();
    let mut bytes: Vec<u8> = key.get(1..20).unwrap_or(&[1]).to_vec();
    bytes[0] &= 0x7f;
    SerialNumber::from(bytes)
}

fn lifetime(params: &mut CertificateParams, days: i64) {
    let now = time::OffsetDateTime::now_utc();
    // A little in the past, for clocks that differ.
    params.not_before = now - time::Duration::minutes(5);
    params.not_after = now + time::Duration::days(days);
}

impl Authority {
    /// A new authority.
    pub fn generate(name: &str) -> Result<(Authority, Pair), Error> {
        let fault = |source| Error::Certificate { name: name.to_owned(), source };
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        params.distinguished_name = subject;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.serial_number = Some(serial());
        lifetime(&mut params, CA_DAYS);
        let key = KeyPair::generate().map_err(Error::Key)?;
        let certificate = params.self_signed(&key).map_err(fault)?;
        let pair = Pair { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() };
        Ok((Authority { issuer: Issuer::new(params, key), certificate_pem: pair.certificate_pem.clone() }, pair))
    }

    /// The authority of this pair.
    pub fn load(pair: &Pair) -> Result<Authority, Error> {
        let fault = |source| Error::Certificate { name: "the authority".into(), source };
        let key = KeyPair::from_pem(&pair.key_pem).map_err(Error::Key)?;
        let issuer = Issuer::from_ca_cert_pem(&pair.certificate_pem, key).map_err(fault)?;
        Ok(Authority { issuer, certificate_pem: pair.certificate_pem.clone() })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a certificate with a new key.
    pub fn issue(&self, request: &Request<'_>) -> Result<Pair, Error> {
        let fault = |source| Error::Certificate { name: request.common_name.to_owned(), source };
        let mut params = CertificateParams::new(request.dns_names.to_vec()).map_err(fault)?;
        params.subject_alt_names.extend(request.addresses.iter().map(|a| SanType::IpAddress(*a)));
        let mut subject = DistinguishedName::new();
        if let Some(organization) = request.organization {
            subject.push(DnType::OrganizationName, organization);
        }
        subject.push(DnType::CommonName, request.common_name);
        params.distinguished_name = subject;
        usage(&mut params, request.usage);
        params.serial_number = Some(serial());
        lifetime(&mut params, CERTIFICATE_DAYS);
        let key = KeyPair::generate().map_err(Error::Key)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(fault)?;
        Ok(Pair { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Signs a request of somebody else's key, after checking that whoever asks has it. Subject and names are taken
    /// over as they stand, and nothing else: a user is in all groups (O=) that the request names.
    pub fn sign(&self, request_pem: &str, wanted: Usage, days: i64) -> Result<String, Error> {
        let invalid = |e: &dyn std::fmt::Display| Error::Request(e.to_string());
        let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(request_pem.as_bytes())
            .map_err(|e| invalid(&e))?;
        let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|e| invalid(&e))?;
        parsed.verify_signature().map_err(|e| invalid(&e))?;
        let asked = &parsed.certification_request_info;
        let key = SubjectPublicKeyInfo::from_der(asked.subject_pki.raw).map_err(|e| invalid(&e))?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = names(&parsed)?;
        params.distinguished_name = DistinguishedName::new();
        usage(&mut params, wanted);
        params.is_ca = IsCa::NoCa;
        params.serial_number = Some(serial());
        lifetime(&mut params, days);
        let fault = |source| Error::Certificate { name: asked.subject.to_string(), source };
        let unnamed = params.signed_by(&key, &self.issuer).map_err(fault)?;
        let named = subject::put(unnamed.der(), asked.subject.as_raw(), self.issuer.key()).map_err(fault)?;
        Ok(pem::encode(&pem::Pem::new("CERTIFICATE", named)))
    }

    /// Whether a certificate ends soon, or is none of this authority's.
    pub fn needs_renewal(&self, certificate_pem: &str) -> bool {
        let Ok(der) = der(certificate_pem) else { return true };
        let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return true };
        let Ok(ca_der) = self::der(&self.certificate_pem) else { return true };
        let Ok((_, authority)) = X509Certificate::from_der(&ca_der) else { return true };
        if certificate.issuer() != authority.subject()
            || certificate.verify_signature(Some(authority.public_key())).is_err()
        {
            return true;
        }
        ends_soon(certificate_pem)
    }
}

/// The names beside the subject that a request asks for.
fn names(request: &X509CertificationRequest<'_>) -> Result<Vec<SanType>, Error> {
    let mut found = Vec::new();
    let text = |name: &str| name.try_into().map_err(|e: rcgen::Error| Error::Request(e.to_string()));
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(asked) = extension else { continue };
        for name in &asked.general_names {
            found.push(match name {
                GeneralName::DNSName(name) => SanType::DnsName(text(name)?),
                GeneralName::RFC822Name(name) => SanType::Rfc822Name(text(name)?),
                GeneralName::URI(name) => SanType::URI(text(name)?),
                GeneralName::IPAddress(bytes) => {
                    let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                    SanType::IpAddress(address.map_err(|_| Error::Request("an address of a wrong length".into()))?)
                }
                other => return Err(Error::Request(format!("a name of an unknown kind: {other}"))),
            });
        }
    }
    Ok(found)
}

fn usage(params: &mut CertificateParams, usage: Usage) {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = match usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Both => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
    };
}

/// A key and a certificate signing request for it.
pub fn signing_request(
    common_name: &str,
    organization: Option<&str>,
    dns_name: Option<&str>,
) -> Result<(String, String), Error> {
    let fault = |source| Error::Certificate { name: common_name.to_owned(), source };
    let names: Vec<String> = dns_name.into_iter().map(str::to_owned).collect();
    let mut params = CertificateParams::new(names).map_err(fault)?;
    let mut subject = DistinguishedName::new();
    if let Some(organization) = organization {
        subject.push(DnType::OrganizationName, organization);
    }
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    let key = KeyPair::generate().map_err(Error::Key)?;
    let request = params.serialize_request(&key).map_err(fault)?;
    Ok((key.serialize_pem(), request.pem().map_err(fault)?))
}

/// A key pair for signing tokens: private (PKCS #8) and public (SubjectPublicKeyInfo), in PEM form.
pub fn signing_key() -> Result<(String, String), Error> {
    let key = KeyPair::generate().map_err(Error::Key)?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// Whether a certificate is to be replaced because of its age. What cannot be read is.
pub fn ends_soon(certificate_pem: &str) -> bool {
    let Ok(der) = der(certificate_pem) else { return true };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return true };
    let left = certificate.validity().not_after.timestamp() - jiff::Timestamp::now().as_second();
    left < RENEW_BEFORE_DAYS * 86_400
}

/// The bytes of the first certificate of a PEM text.
pub fn der(pem: &str) -> Result<Vec<u8>, Error> {
    use rustls_pki_types::CertificateDer;
    CertificateDer::from_pem_slice(pem.as_bytes()).map(|c| c.to_vec()).map_err(|e| Error::NotPem(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issued_certificates_name_their_user() {
        let (ca, pair) = Authority::generate("test").unwrap();
        let request = Request {
            common_name: "jane",
            organization: Some("dev"),
            usage: Usage::Client,
            dns_names: &[],
            addresses: &[],
        };
        let issued = ca.issue(&request).unwrap();
        let der = der(&issued.certificate_pem).unwrap();
        let (_, cert) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(cert.subject().iter_common_name().next().unwrap().as_str().unwrap(), "jane");
        assert_eq!(cert.subject().iter_organization().count(), 1);
        // The authority that was written down is the same one.
        let again = Authority::load(&pair).unwrap();
        assert!(!again.needs_renewal(&issued.certificate_pem));
        let (other, _) = Authority::generate("test").unwrap();
        assert!(other.needs_renewal(&issued.certificate_pem));
    }

    #[test]
    fn requests_are_signed() {
        let (ca, _) = Authority::generate("test").unwrap();
        let (_, request) = signing_request("system:node:a", Some("system:nodes"), Some("a")).unwrap();
        let certificate = ca.sign(&request, Usage::Client, 1).unwrap();
        let der = der(&certificate).unwrap();
        let (_, cert) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(cert.subject().iter_common_name().next().unwrap().as_str().unwrap(), "system:node:a");
        assert!(ca.sign("garbage", Usage::Client, 1).is_err());
    }

    /// `openssl req -subj` makes a set of names for each group; Go's library puts all groups into one set.
    #[test]
    fn all_groups_of_a_request_are_kept() {
        let (ca, _) = Authority::generate("test").unwrap();
        let key = KeyPair::generate().unwrap();
        for together in [false, true] {
            let subject = yasna::construct_der(|w| {
                let attribute = |w: yasna::DERWriter<'_>, last: u64, value: &str| {
                    w.write_sequence(|w| {
                        w.next().write_oid(&yasna::models::ObjectIdentifier::from_slice(&[2, 5, 4, last]));
                        w.next().write_utf8_string(value);
                    });
                };
                w.write_sequence(|w| {
                    for set in if together { vec![vec!["dev", "ops"]] } else { vec![vec!["dev"], vec!["ops"]] } {
                        w.next().write_set(|w| {
                            for group in set {
                                attribute(w.next(), 10, group);
                            }
                        });
                    }
                    w.next().write_set(|w| attribute(w.next(), 3, "jane"));
                });
            });
            let plain = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            let request =
                subject::put_into_request(plain.serialize_request(&key).unwrap().der(), &subject, &key).unwrap();
            let request = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", request));
            let signed = der(&ca.sign(&request, Usage::Client, 1).unwrap()).unwrap();
            let (_, certificate) = X509Certificate::from_der(&signed).unwrap();
            let groups: Vec<_> = certificate.subject().iter_organization().map(|o| o.as_str().unwrap()).collect();
            assert_eq!(groups, ["dev", "ops"]);
            assert_eq!(certificate.subject().iter_common_name().next().unwrap().as_str().unwrap(), "jane");
            let names = certificate.subject_alternative_name().unwrap().unwrap();
            assert_eq!(names.value.general_names, [GeneralName::DNSName("a.example")]);
            let authority = der(ca.certificate_pem()).unwrap();
            let (_, authority) = X509Certificate::from_der(&authority).unwrap();
            certificate.verify_signature(Some(authority.public_key())).unwrap();
        }
        // Whoever asks has to have the key.
        let mut forged = signing_request("jane", None, None).unwrap().1;
        let other = signing_request("root", None, None).unwrap().1;
        forged.replace_range(200.., &other[200..]);
        assert!(ca.sign(&forged, Usage::Client, 1).is_err());
    }
}
