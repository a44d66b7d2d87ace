//! One record of the log: one change of one key.
//!
//! The log table maps a [`Position`] to a record. All numbers are little-endian:
//!
//! ```text
//! offset  size
//!      0     4  CRC-32C of the position (8 bytes) and of everything that follows in the record
//!      4     1  format, 1
//!      5     1  flags: 1 = deletion, 2 = last record of its transaction
//!      6     2  length of the key
//!      8     8  create revision (0 for a deletion)
//!     16     8  version (0 for a deletion)
//!     24     8  lease, 0 for none
//!     32     …  key, UTF-8
//!      …     …  value, to the end (none for a deletion)
//! ```
//!
//! The position is part of the checksum so that a record found in the wrong place is noticed.

use std::sync::Arc;

use bytes::Bytes;

use crate::{KeyValue, LeaseId, Revision};

const FORMAT: u8 = 1;
const DELETION: u8 = 1;
const LAST: u8 = 2;
const HEADER: usize = 32;

/// Longest key in bytes.
pub(super) const MAX_KEY_BYTES: usize = u16::MAX as usize;

/// Where a record is in the log: its revision, and its number within the revision's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Position(pub(super) u64);

impl Position {
    /// Bits for the number within a transaction. What is left for revisions lasts for decades at a
    /// hundred thousand writes a second.
    const SUB_BITS: u32 = 16;

    pub(super) fn new(revision: Revision, sub: usize) -> Position {
        debug_assert!(sub < 1 << Self::SUB_BITS);
        Position((revision.0 << Self::SUB_BITS) | sub as u64)
    }

    /// The first position of a revision.
    pub(super) fn start(revision: Revision) -> Position {
        Position::new(revision, 0)
    }

    pub(super) fn revision(self) -> Revision {
        Revision(self.0 >> Self::SUB_BITS)
    }

    pub(super) fn sub(self) -> usize {
        (self.0 & ((1 << Self::SUB_BITS) - 1)) as usize
    }
}

/// How many operations a transaction may hold at most; a lease's end may delete more keys than
/// [`crate::MAX_TXN_OPS`].
pub(super) const MAX_SUB: usize = 1 << Position::SUB_BITS;

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: Arc<str>,
    pub(super) create_revision: Revision,
    pub(super) version: u64,
    pub(super) lease: Option<LeaseId>,
    /// `None` for a deletion.
    pub(super) value: Option<Bytes>,
    /// Whether it is the last of its transaction.
    pub(super) last: bool,
}

impl Record {
    pub(super) fn encode(&self, position: Position) -> Vec<u8> {
        let value = self.value.as_deref().unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEADER + self.key.len() + value.len());
        bytes.extend_from_slice(&[0; 4]);
        bytes.push(FORMAT);
        let deletion = if self.value.is_none() { DELETION } else { 0 };
        bytes.push(deletion | if self.last { LAST } else { 0 });
        let key_len = u16::try_from(self.key.len()).expect("transactions with longer keys are refused");
        bytes.extend_from_slice(&key_len.to_le_bytes());
        bytes.extend_from_slice(&self.create_revision.0.to_le_bytes());
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.lease.map_or(0, |lease| lease.0).to_le_bytes());
        bytes.extend_from_slice(self.key.as_bytes());
        bytes.extend_from_slice(value);
        let crc = checksum(position, &bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `Err` says what is wrong with the bytes.
    pub(super) fn decode(position: Position, bytes: &[u8]) -> Result<Record, &'static str> {
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or("record is too short")?;
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes are eight bytes"));
        let crc = u32::from_le_bytes(header[..4].try_into().expect("four bytes are four bytes"));
        if crc != checksum(position, &bytes[4..]) {
            return Err("checksum does not match");
        }
        if header[4] != FORMAT {
            return Err("unknown record format");
        }
        let key_len = usize::from(u16::from_le_bytes([header[6], header[7]]));
        let (key, value) = rest.split_at_checked(key_len).ok_or("key exceeds the record")?;
        let lease = i64::from_le_bytes(word(24).to_le_bytes());
        Ok(Record {
            key: std::str::from_utf8(key).map_err(|_| "key is not UTF-8")?.into(),
            create_revision: Revision(word(8)),
            version: word(16),
            lease: (lease != 0).then_some(LeaseId(lease)),
            value: (header[5] & DELETION == 0).then(|| Bytes::copy_from_slice(value)),
            last: header[5] & LAST != 0,
        })
    }

    /// The key as this record leaves it; `None` for a deletion.
    pub(super) fn into_key_value(self, revision: Revision) -> Option<KeyValue> {
        Some(KeyValue {
            key: self.key,
            value: self.value?,
            create_revision: self.create_revision,
            mod_revision: revision,
            version: self.version,
            lease: self.lease,
        })
    }
}

fn checksum(position: Position, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&position.0.to_le_bytes()), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            key: "/registry/pods/default/ä".into(),
            create_revision: Revision(7),
            version: 3,
            lease: Some(LeaseId(-5)),
            value: Some(Bytes::from_static(b"value")),
            last: true,
        }
    }

    #[test]
    fn round_trip() {
        let position = Position::new(Revision(12), 3);
        assert_eq!((position.revision(), position.sub()), (Revision(12), 3));
        let deletion = Record { value: None, lease: None, last: false, ..record() };
        for record in [record(), deletion] {
            assert_eq!(Record::decode(position, &record.encode(position)), Ok(record));
        }
    }

    #[test]
    fn any_flipped_bit_and_any_missing_byte_is_noticed() {
        let position = Position::new(Revision(12), 0);
        let good = record().encode(position);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            Record::decode(position, &bad).unwrap_err();
        }
        for len in 0..good.len() {
            Record::decode(position, &good[..len]).unwrap_err();
        }
        Record::decode(Position::new(Revision(12), 1), &good).unwrap_err();
    }
}
