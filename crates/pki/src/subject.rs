//! Subjects as they were asked for. The certificate library keeps one value of each kind of name, but groups of users
//! are values of one kind: so the subject is put into what it made, which is then signed again.

use rcgen::{KeyPair, SigningKey as _};
use x509_parser::{
    asn1_rs::{Any, FromDer as _, Header},
    prelude::X509Certificate,
};

/// Replaces the subject of a certificate and signs the result with the key of its issuer.
pub(crate) fn put(certificate: &[u8], subject: &[u8], issuer: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let unreadable = |_| rcgen::Error::CouldNotParseCertificate;
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(unreadable)?;
    let old = parsed.subject().as_raw();
    resign(certificate, old, subject, issuer).ok_or(rcgen::Error::CouldNotParseCertificate)?
}

/// The same in a request, for tests.
#[cfg(test)]
pub(crate) fn put_into_request(request: &[u8], subject: &[u8], key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    use x509_parser::prelude::X509CertificationRequest;
    let (_, parsed) = X509CertificationRequest::from_der(request).unwrap();
    resign(request, parsed.certification_request_info.subject.as_raw(), subject, key).unwrap()
}

/// `signed` is SEQUENCE { SEQUENCE { … old … }, algorithm, signature }, and `old` a part of it.
fn resign(signed: &[u8], old: &[u8], new: &[u8], key: &KeyPair) -> Option<Result<Vec<u8>, rcgen::Error>> {
    let (content, _) = Header::from_der(signed).ok()?;
    let (after, _) = Any::from_der(content).ok()?;
    let (body, _) = Header::from_der(&content[..content.len() - after.len()]).ok()?;
    let (rest, _) = Any::from_der(after).ok()?;
    let algorithm = &after[..after.len() - rest.len()];
    let at = (old.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    let (before, behind) = (body.get(..at)?, body.get(at + old.len()..)?);
    let body = yasna::construct_der(|w| {
        w.write_sequence(|w| [before, new, behind].map(|part| w.next().write_der(part)));
    });
    Some(key.sign(&body).map(|signature| {
        yasna::construct_der(|w| {
            w.write_sequence(|w| {
                w.next().write_der(&body);
                w.next().write_der(algorithm);
                w.next().write_bitvec_bytes(&signature, signature.len() * 8);
            });
        })
    }))
}
