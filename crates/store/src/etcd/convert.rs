//! Between etcd's messages and our values.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tonic::Status;

use super::messages::{self as m, compare::Target};
use crate::{Code, Error, Event, EventKind, KeyValue, LeaseId, Op, Result, Revision, prefix_end};

/// What keys begin with, here and in etcd.
pub(super) struct Keys {
    pub(super) root: String,
    pub(super) prefix: String,
}

impl Keys {
    /// A key as etcd has it.
    ///
    /// Errors: `InvalidArgument` for a key that is none of this store's.
    pub(super) fn etcd_key(&self, key: &str) -> Result<Bytes> {
        match key.strip_prefix(&self.root) {
            Some(rest) => Ok(format!("{}{rest}", self.prefix).into()),
            None => Err(Error::InvalidArgument {
                what: format!("key {key:?} does not begin with {}", self.root),
                key: Some(key.to_owned()),
            }),
        }
    }

    fn our_key(&self, key: &[u8]) -> Result<Arc<str>> {
        let text = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(&self.prefix));
        match text {
            Some(rest) => Ok(format!("{}{rest}", self.root).into()),
            None => Err(Error::unavailable(format!("etcd has a key {:?} among ours", String::from_utf8_lossy(key)))),
        }
    }

    /// The range of all keys that may be ours.
    pub(super) fn everything(&self) -> Range<Bytes> {
        self.prefix.clone().into()..prefix_end(&self.prefix).into()
    }

    /// A range as etcd has it. One without an end ends with what is ours.
    pub(super) fn range(&self, keys: &Range<&str>) -> Result<(Bytes, Bytes)> {
        let everything = self.everything();
        // What ends all keys of ours does not itself begin as they do.
        let end = if keys.end.is_empty() || keys.end == prefix_end(&self.root) {
            everything.end
        } else {
            self.etcd_key(keys.end)?
        };
        Ok((self.etcd_key(keys.start)?, end))
    }

    pub(super) fn prefix_range(&self, prefix: &str) -> Result<Range<Bytes>> {
        let (start, end) = self.range(&(prefix..&prefix_end(prefix)))?;
        Ok(start..end)
    }

    pub(super) fn key_value(&self, kv: m::KeyValue) -> Result<KeyValue> {
        Ok(KeyValue {
            key: self.our_key(&kv.key)?,
            value: kv.value,
            create_revision: revision(kv.create_revision),
            mod_revision: revision(kv.mod_revision),
            version: u64::try_from(kv.version).unwrap_or_default(),
            lease: (kv.lease != 0).then_some(LeaseId(kv.lease)),
        })
    }

    pub(super) fn event(&self, event: m::Event) -> Result<Event> {
        let kv = event.kv.ok_or_else(|| Error::unavailable("etcd sent an event without its key"))?;
        let prev = event.prev_kv.map(|kv| self.key_value(kv)).transpose()?;
        let kind = if event.kind == 1 { EventKind::Delete } else { EventKind::Put };
        Ok(Event { kind, kv: self.key_value(kv)?, prev })
    }
}

/// Holds when a key was last written at a revision, or, for 0, when it does not exist.
pub(super) fn written_at(key: Bytes, at: Revision) -> m::Compare {
    const EQUAL: i32 = 0;
    const MOD: i32 = 2;
    m::Compare {
        result: EQUAL,
        target: MOD,
        key,
        target_union: Some(Target::ModRevision(number(at))),
        range_end: Bytes::new(),
    }
}

/// What a write made of a key, which etcd does not say.
pub(super) fn after(op: &Op, prev: Option<&KeyValue>, revision: Revision) -> Option<KeyValue> {
    match op {
        Op::Put { key, value, lease } => Some(KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: prev.map_or(revision, |prev| prev.create_revision),
            mod_revision: revision,
            version: prev.map_or(0, |prev| prev.version) + 1,
            lease: *lease,
        }),
        Op::Delete { .. } => None,
    }
}

/// The key after a key.
pub(super) fn behind(key: &[u8]) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}

pub(super) fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or_default())
}

pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

pub(super) fn revision_of(header: Option<&m::ResponseHeader>) -> Revision {
    revision(header.map_or(0, |header| header.revision))
}

/// What etcd means. Its clients tell errors apart by their texts; whatever they do not know may have been done or not.
pub(super) fn code(status: &Status) -> Code {
    let text = status.message();
    match status.code() {
        tonic::Code::OutOfRange if text.ends_with("required revision has been compacted") => Code::Compacted,
        tonic::Code::OutOfRange if text.ends_with("required revision is a future revision") => Code::FutureRevision,
        tonic::Code::NotFound if text.ends_with("requested lease not found") => Code::LeaseNotFound,
        tonic::Code::FailedPrecondition if text.ends_with("lease already exists") => Code::LeaseExists,
        tonic::Code::ResourceExhausted if text.ends_with("database space exceeded") => Code::NoSpace,
        tonic::Code::InvalidArgument if text.ends_with("request is too large") => Code::TooLarge,
        tonic::Code::InvalidArgument => Code::InvalidArgument,
        _ => Code::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_another_beginning_in_etcd() {
        let keys = Keys { root: "/registry".into(), prefix: "/a".into() };
        assert_eq!(keys.etcd_key("/registry/pods/x").unwrap(), "/a/pods/x");
        assert_eq!(&*keys.our_key(b"/a/pods/x").unwrap(), "/registry/pods/x");
        assert_eq!(keys.etcd_key("/other").unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(keys.prefix_range("/registry/pods/").unwrap(), Bytes::from("/a/pods/")..Bytes::from("/a/pods0"));
        assert_eq!(keys.range(&("/registry".."/registrz")).unwrap(), (Bytes::from("/a"), Bytes::from("/b")));
        assert_eq!(keys.range(&("/registry/x".."")).unwrap(), (Bytes::from("/a/x"), Bytes::from("/b")));
    }
}
