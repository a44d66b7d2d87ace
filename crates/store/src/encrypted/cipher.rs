//! The forms of a value at rest, as upstream's providers of the same names write them.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    cipher::{
        AES_128, AES_192, AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey,
        PaddedBlockEncryptingKey, UnboundCipherKey,
    },
    iv::FixedLength,
    rand,
};

/// What every encrypted value begins with, whoever wrote it.
const ENCRYPTED: &[u8] = b"k8s:enc:";
const NONCE: usize = 12;
const BLOCK: usize = 16;

/// One way to write values, with one key.
pub struct Provider {
    /// What its values begin with; empty for those that are as they are.
    prefix: Vec<u8>,
    form: Form,
}

enum Form {
    Identity,
    /// Prefix, nonce, ciphertext with its tag. Bound to the key in the store: a value moved to another is refused.
    AesGcm(Box<LessSafeKey>),
    /// Prefix, initialisation vector, ciphertext padded as PKCS 7 says. Not authenticated, as upstream's.
    AesCbc {
        seal: Box<PaddedBlockEncryptingKey>,
        open: Box<PaddedBlockDecryptingKey>,
    },
}

/// A key of a length that its provider does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("secret is not of the expected length, got {length}, expected one of [16 24 32]")]
pub struct KeyError {
    /// In bytes.
    pub length: usize,
}

impl Provider {
    /// Leaves values as they are; refuses to take those of others for plain ones.
    pub fn identity() -> Provider {
        Provider { prefix: Vec::new(), form: Form::Identity }
    }

    /// AES in Galois/Counter Mode with a random nonce for each value: a key is to be replaced before 2³² writes.
    ///
    /// Errors: a secret of another length than 16, 24 or 32 bytes.
    pub fn aesgcm(name: &str, secret: &[u8]) -> Result<Provider, KeyError> {
        let wrong = KeyError { length: secret.len() };
        let algorithm = match secret.len() {
            16 => &AES_128_GCM,
            24 => &AES_192_GCM,
            32 => &AES_256_GCM,
            _ => return Err(wrong),
        };
        let key = UnboundKey::new(algorithm, secret).map_err(|_| wrong)?;
        Ok(Provider { prefix: prefix("aesgcm", name), form: Form::AesGcm(Box::new(LessSafeKey::new(key))) })
    }

    /// AES in Cipher Block Chaining mode.
    ///
    /// Errors: a secret of another length than 16, 24 or 32 bytes.
    pub fn aescbc(name: &str, secret: &[u8]) -> Result<Provider, KeyError> {
        let wrong = KeyError { length: secret.len() };
        let algorithm = match secret.len() {
            16 => &AES_128,
            24 => &AES_192,
            32 => &AES_256,
            _ => return Err(wrong),
        };
        let key = || UnboundCipherKey::new(algorithm, secret).map_err(|_| wrong);
        let seal = Box::new(PaddedBlockEncryptingKey::cbc_pkcs7(key()?).map_err(|_| wrong)?);
        let open = Box::new(PaddedBlockDecryptingKey::cbc_pkcs7(key()?).map_err(|_| wrong)?);
        Ok(Provider { prefix: prefix("aescbc", name), form: Form::AesCbc { seal, open } })
    }

    /// Whether a value has this provider's form and the name of its key.
    pub(super) fn wrote(&self, value: &[u8]) -> bool {
        match self.form {
            Form::Identity => !value.starts_with(ENCRYPTED),
            Form::AesGcm(_) | Form::AesCbc { .. } => value.starts_with(&self.prefix),
        }
    }

    /// The value as it is stored under this key.
    pub(super) fn seal(&self, key: &str, value: &[u8]) -> Vec<u8> {
        const RANDOM: &str = "the system has random numbers";
        const SIZE: &str = "a value is smaller than 64 GiB";
        match &self.form {
            Form::Identity => value.to_vec(),
            Form::AesGcm(cipher) => {
                let mut nonce = [0; NONCE];
                rand::fill(&mut nonce).expect(RANDOM);
                let mut body = value.to_vec();
                let sealed = cipher.seal_in_place_append_tag(
                    Nonce::assume_unique_for_key(nonce),
                    Aad::from(key.as_bytes()),
                    &mut body,
                );
                sealed.expect(SIZE);
                [&self.prefix, &nonce[..], &body].concat()
            }
            Form::AesCbc { seal, .. } => {
                let mut iv = [0; BLOCK];
                rand::fill(&mut iv).expect(RANDOM);
                let mut body = value.to_vec();
                seal.less_safe_encrypt(&mut body, EncryptionContext::Iv128(FixedLength::from(iv))).expect(SIZE);
                [&self.prefix, &iv[..], &body].concat()
            }
        }
    }

    /// The value again; nothing if it was changed, or written with another secret.
    pub(super) fn open(&self, key: &str, stored: &[u8]) -> Option<Vec<u8>> {
        let body = stored.strip_prefix(&*self.prefix)?;
        match &self.form {
            Form::Identity => Some(body.to_vec()),
            Form::AesGcm(cipher) => {
                let (nonce, body) = body.split_first_chunk::<NONCE>()?;
                let mut body = body.to_vec();
                let nonce = Nonce::assume_unique_for_key(*nonce);
                let length = cipher.open_in_place(nonce, Aad::from(key.as_bytes()), &mut body).ok()?.len();
                body.truncate(length);
                Some(body)
            }
            Form::AesCbc { open, .. } => {
                let (iv, body) = body.split_first_chunk::<BLOCK>()?;
                let mut body = body.to_vec();
                let context = DecryptionContext::Iv128(FixedLength::from(*iv));
                let length = open.decrypt(&mut body, context).ok()?.len();
                body.truncate(length);
                Some(body)
            }
        }
    }
}

fn prefix(provider: &str, name: &str) -> Vec<u8> {
    [ENCRYPTED, format!("{provider}:v1:{name}:").as_bytes()].concat()
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.form {
            Form::Identity => f.write_str("identity"),
            Form::AesGcm(_) | Form::AesCbc { .. } => {
                f.write_str(String::from_utf8_lossy(&self.prefix).trim_end_matches(':'))
            }
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
