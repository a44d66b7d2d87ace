use std::net::{IpAddr, Ipv4Addr};

use super::{attr, comment_data};
use crate::{
    Subnet,
    netlink::{Attributes, Message, text},
};

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    pub(crate) fn encode(&self, message: &mut Message) {
        message.nest(attr::DATA_VERDICT, |verdict| {
            let (code, chain) = match self {
                Self::Accept => (libc::NF_ACCEPT, None),
                Self::Drop => (libc::NF_DROP, None),
                Self::Return => (libc::NFT_RETURN, None),
                Self::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
                Self::Goto(chain) => (libc::NFT_GOTO, Some(chain)),
            };
            verdict.be32(attr::VERDICT_CODE, code.cast_unsigned());
            if let Some(chain) = chain {
                verdict.str(attr::VERDICT_CHAIN, chain);
            }
        });
    }

    fn decode(attributes: Attributes<'_>) -> Option<Self> {
        let code = i32::from_be_bytes(attributes.get(attr::VERDICT_CODE)?.try_into().ok()?);
        let chain = || attributes.get(attr::VERDICT_CHAIN).map(text);
        Some(match code {
            libc::NF_ACCEPT => Self::Accept,
            libc::NF_DROP => Self::Drop,
            libc::NFT_RETURN => Self::Return,
            libc::NFT_JUMP => Self::Jump(chain()?),
            libc::NFT_GOTO => Self::Goto(chain()?),
            _ => return None,
        })
    }
}

/// The bytes of a key or a value: fields one after the other, each padded to four bytes as in the
/// kernel's registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub Vec<u8>);

impl Key {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn ipv4(mut self, address: Ipv4Addr) -> Self {
        self.0.extend_from_slice(&address.octets());
        self
    }

    /// An address of either family.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.ipv4(address),
            IpAddr::V6(address) => {
                self.0.extend_from_slice(&address.octets());
                self
            }
        }
    }

    /// An IP protocol number.
    #[must_use]
    pub fn protocol(mut self, number: u8) -> Self {
        self.0.extend_from_slice(&[number, 0, 0, 0]);
        self
    }

    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        self.0.extend_from_slice(&[high, low, 0, 0]);
        self
    }

    /// A number of our own, in host order as marks and numgen produce it.
    #[must_use]
    pub fn number(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_ne_bytes());
        self
    }

    /// An element of a set, or the end of a range with [`Element::until`].
    pub fn element(self) -> Element {
        Element { key: self, key_end: None, data: None, timeout_ms: None, comment: None }
    }

    /// An element of a map.
    pub fn value(self, value: Key) -> Element {
        Element { data: Some(Data::Value(value)), ..self.element() }
    }

    /// An element of a verdict map.
    pub fn verdict(self, verdict: Verdict) -> Element {
        Element { data: Some(Data::Verdict(verdict)), ..self.element() }
    }
}

/// What a map holds under a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    Value(Key),
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub key: Key,
    /// The last key of a range, in sets with [`Set::interval`](super::Set::interval).
    pub key_end: Option<Key>,
    pub data: Option<Data>,
    /// Milliseconds until the kernel removes it; the set's own if absent.
    pub timeout_ms: Option<u64>,
    pub comment: Option<String>,
}

impl Element {
    /// The ranges of concatenated keys name their last key.
    #[must_use]
    pub fn until(mut self, last: Key) -> Self {
        self.key_end = Some(last);
        self
    }

    /// A range of addresses as the last field of a concatenated key.
    #[must_use]
    pub fn in_subnet(prefix: Key, range: Subnet) -> Self {
        let last = prefix.clone().address(range.last());
        prefix.address(range.base()).element().until(last)
    }

    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// `key_only`: as a deletion names it.
    pub(crate) fn encode(&self, message: &mut Message, key_only: bool) {
        message.nest(attr::LIST_ELEM, |element| {
            element.nest(attr::ELEM_KEY, |key| {
                key.bytes(attr::DATA_VALUE, &self.key.0);
            });
            if let Some(end) = &self.key_end {
                element.nest(attr::ELEM_KEY_END, |key| {
                    key.bytes(attr::DATA_VALUE, &end.0);
                });
            }
            if key_only {
                return;
            }
            match &self.data {
                Some(Data::Value(value)) => {
                    element.nest(attr::ELEM_DATA, |data| {
                        data.bytes(attr::DATA_VALUE, &value.0);
                    });
                }
                Some(Data::Verdict(verdict)) => {
                    element.nest(attr::ELEM_DATA, |data| verdict.encode(data));
                }
                None => {}
            }
            if let Some(timeout) = self.timeout_ms {
                element.be64(attr::ELEM_TIMEOUT, timeout);
            }
            if let Some(comment) = &self.comment {
                element.bytes(attr::ELEM_USERDATA, &comment_data(comment));
            }
        });
    }

    pub(crate) fn decode(attributes: Attributes<'_>) -> Option<Self> {
        let key = |kind| {
            let value = attributes.nested(kind).get(attr::DATA_VALUE)?;
            Some(Key(value.to_vec()))
        };
        let data = attributes.nested(attr::ELEM_DATA);
        let data = match data.get(attr::DATA_VALUE) {
            Some(value) => Some(Data::Value(Key(value.to_vec()))),
            None => Verdict::decode(data.nested(attr::DATA_VERDICT)).map(Data::Verdict),
        };
        let timeout = attributes.get(attr::ELEM_TIMEOUT);
        Some(Self {
            key: key(attr::ELEM_KEY)?,
            key_end: key(attr::ELEM_KEY_END),
            data,
            timeout_ms: timeout.and_then(|value| Some(u64::from_be_bytes(value.try_into().ok()?))),
            comment: attributes.get(attr::ELEM_USERDATA).and_then(|data| Some(text(data.get(2..)?))),
        })
    }
}
