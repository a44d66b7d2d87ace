use super::attr;
use crate::netlink::Message;

/// The type of a field of a key or value. The kernel knows only lengths; the type numbers are the nft
/// tool's, so that `nft list` shows addresses as addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    /// A 32-bit number in host order, shown like a mark.
    Number,
}

impl Field {
    fn type_number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Number => 19,
        }
    }

    fn len(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Number => 4,
            Self::Ipv6 => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
}

/// What a set holds beside its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetData<'a> {
    None,
    Verdict,
    Value(&'a [Field]),
}

/// A set or map to be created.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    pub name: &'a str,
    /// More than one field makes a concatenated key. A single field narrower than four bytes is not
    /// supported: [`Key`](super::Key) pads every field.
    pub key: &'a [Field],
    pub data: SetData<'a>,
    /// Elements may be ranges. Only for concatenated keys, whose ranges name both ends.
    pub interval: bool,
    /// Rules may add elements ([`Rule::dynset`](super::Rule::dynset)), at most this many.
    pub dynamic: Option<u32>,
    /// Elements may expire.
    pub timeout: bool,
}

impl<'a> Set<'a> {
    pub fn plain(name: &'a str, key: &'a [Field]) -> Self {
        Self { name, key, data: SetData::None, interval: false, dynamic: None, timeout: false }
    }

    pub fn map(name: &'a str, key: &'a [Field], value: &'a [Field]) -> Self {
        Self { data: SetData::Value(value), ..Self::plain(name, key) }
    }

    pub fn vmap(name: &'a str, key: &'a [Field]) -> Self {
        Self { data: SetData::Verdict, ..Self::plain(name, key) }
    }

    #[must_use]
    pub fn interval(mut self) -> Self {
        self.interval = true;
        self
    }

    #[must_use]
    pub fn dynamic(mut self, max_elements: u32) -> Self {
        self.dynamic = Some(max_elements);
        self.timeout = true;
        self
    }

    pub(crate) fn encode(&self, message: &mut Message, id: u32) {
        let concatenated = self.key.len() > 1;
        let mut flags = 0;
        if self.interval {
            flags |= libc::NFT_SET_INTERVAL;
        }
        if self.dynamic.is_some() {
            flags |= libc::NFT_SET_EVAL;
        }
        if self.timeout {
            flags |= libc::NFT_SET_TIMEOUT;
        }
        if self.data != SetData::None {
            flags |= libc::NFT_SET_MAP;
        }
        if concatenated {
            flags |= NFT_SET_CONCAT;
        }
        message
            .str(attr::SET_NAME, self.name)
            .be32(attr::SET_FLAGS, flags.cast_unsigned())
            .be32(attr::SET_KEY_TYPE, type_of(self.key))
            .be32(attr::SET_KEY_LEN, len_of(self.key))
            .be32(attr::SET_ID, id);
        match self.data {
            SetData::None => {}
            SetData::Verdict => {
                message.be32(attr::SET_DATA_TYPE, libc::NFT_DATA_VERDICT);
            }
            SetData::Value(fields) => {
                message.be32(attr::SET_DATA_TYPE, type_of(fields));
                message.be32(attr::SET_DATA_LEN, len_of(fields));
            }
        }
        if concatenated || self.dynamic.is_some() {
            message.nest(attr::SET_DESC, |description| {
                if let Some(size) = self.dynamic {
                    description.be32(attr::SET_DESC_SIZE, size);
                }
                if concatenated {
                    description.nest(attr::SET_DESC_CONCAT, |fields| {
                        for field in self.key {
                            fields.nest(attr::LIST_ELEM, |entry| {
                                entry.be32(attr::SET_FIELD_LEN, field.len());
                            });
                        }
                    });
                }
            });
        }
    }
}

const NFT_SET_CONCAT: i32 = 0x80;

fn len_of(fields: &[Field]) -> u32 {
    fields.iter().map(|field| field.len().next_multiple_of(4)).sum()
}

fn type_of(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |all, field| (all << 6) | field.type_number())
}
