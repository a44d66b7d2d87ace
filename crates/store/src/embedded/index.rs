//! The index in memory: for each key, where its versions are in the log.
//!
//! A key's history is a list of marks in order, each the position of a record and whether it is a
//! deletion. Example: created at 5, updated at 7, deleted at 9, created again at 12:
//! `[5, 7, 9†, 12]`. At revision 8 the key is what record 7 says, at 10 it does not exist.
//!
//! Compaction at R keeps, of the marks up to R, only the last, and not even that if it is a deletion:
//! compacted at 9 the example is `[12]`, at 8 it is `[7, 9†, 12]`.
//!
//! Values are not kept here.

use std::{
    collections::BTreeMap,
    ops::{Bound, Range},
    sync::Arc,
};

use super::record::Position;
use crate::{LeaseId, Revision};

/// A position and whether a deletion is there.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mark(u64);

impl Mark {
    /// Positions leave their highest bit unused for as long as revisions stay below 2^47.
    const DELETION: u64 = 1 << 63;

    fn new(position: Position, deletion: bool) -> Mark {
        Mark(position.0 | if deletion { Mark::DELETION } else { 0 })
    }

    fn position(self) -> Position {
        Position(self.0 & !Mark::DELETION)
    }

    fn is_deletion(self) -> bool {
        self.0 & Mark::DELETION != 0
    }
}

/// What is known of a key that exists, without reading its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Latest {
    pub(super) position: Position,
    pub(super) create_revision: Revision,
    pub(super) version: u64,
    pub(super) lease: Option<LeaseId>,
}

struct History {
    marks: Vec<Mark>,
    /// Of the last mark, unless that is a deletion.
    create_revision: Revision,
    version: u64,
    lease: Option<LeaseId>,
}

impl History {
    fn at(&self, revision: Revision) -> Option<Position> {
        let after = self.marks.partition_point(|mark| mark.position().revision() <= revision);
        let mark = self.marks.get(after.checked_sub(1)?)?;
        (!mark.is_deletion()).then(|| mark.position())
    }
}

#[derive(Default)]
pub(super) struct Index {
    keys: BTreeMap<Arc<str>, History>,
}

impl Index {
    /// Adds a change: later than all of the key's others.
    pub(super) fn apply(&mut self, key: &Arc<str>, position: Position, put: Option<(Revision, u64, Option<LeaseId>)>) {
        let history = self.keys.entry(key.clone()).or_insert_with(|| History {
            marks: Vec::with_capacity(1),
            create_revision: Revision::ZERO,
            version: 0,
            lease: None,
        });
        debug_assert!(history.marks.last().is_none_or(|last| last.position() < position));
        history.marks.push(Mark::new(position, put.is_none()));
        (history.create_revision, history.version, history.lease) = put.unwrap_or((Revision::ZERO, 0, None));
    }

    /// The key as it is now, if it exists.
    pub(super) fn latest(&self, key: &str) -> Option<Latest> {
        let history = self.keys.get(key)?;
        let last = history.marks.last().filter(|mark| !mark.is_deletion())?;
        Some(Latest {
            position: last.position(),
            create_revision: history.create_revision,
            version: history.version,
            lease: history.lease,
        })
    }

    /// Where the key's value at `revision` is.
    pub(super) fn at(&self, key: &str, revision: Revision) -> Option<Position> {
        self.keys.get(key)?.at(revision)
    }

    /// Where the value is that the change at `position` replaced or deleted.
    pub(super) fn before(&self, key: &str, position: Position) -> Option<Position> {
        self.at(key, Revision(position.revision().0 - 1))
    }

    /// Where the values of a range at `revision` are, in order of the keys: at most `limit` of them,
    /// and how many there are in all. An empty end is no end; a limit of 0 is none.
    pub(super) fn range(&self, keys: &Range<&str>, revision: Revision, limit: usize) -> (Vec<Position>, usize) {
        let end = if keys.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(keys.end) };
        if !keys.end.is_empty() && keys.start >= keys.end {
            return (Vec::new(), 0);
        }
        let mut positions = Vec::new();
        let mut count = 0;
        let histories = self.keys.range::<str, _>((Bound::Included(keys.start), end));
        for position in histories.filter_map(|(_, history)| history.at(revision)) {
            count += 1;
            if limit == 0 || count <= limit {
                positions.push(position);
            }
        }
        (positions, count)
    }

    /// Forgets what nobody may ask for after a compaction at `revision`, for the next `limit` keys after
    /// `after`. Returns where that is in the log, and the key to go on after, if there are more.
    pub(super) fn compact(
        &mut self,
        revision: Revision,
        after: Option<&str>,
        limit: usize,
    ) -> (Vec<Position>, Option<Arc<str>>) {
        let mut garbage = Vec::new();
        let mut empty = Vec::new();
        let mut last = None;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let histories = self.keys.range_mut::<str, _>((start, Bound::Unbounded));
        for (seen, (key, history)) in histories.enumerate() {
            if seen == limit {
                break;
            }
            let old = history.marks.partition_point(|mark| mark.position().revision() <= revision);
            let keep_last = old > 0 && !history.marks[old - 1].is_deletion();
            let drop = if keep_last { old - 1 } else { old };
            garbage.extend(history.marks.drain(..drop).map(Mark::position));
            history.marks.shrink_to(history.marks.len() + 1);
            if history.marks.is_empty() {
                empty.push(key.clone());
            }
            last = (seen + 1 == limit).then(|| key.clone());
        }
        for key in empty {
            self.keys.remove(&key);
        }
        (garbage, last)
    }

    /// All keys that exist, with their leases.
    pub(super) fn leased(&self) -> impl Iterator<Item = (&Arc<str>, LeaseId)> {
        self.keys.iter().filter_map(|(key, history)| {
            let exists = history.marks.last().is_some_and(|mark| !mark.is_deletion());
            Some((key, history.lease.filter(|_| exists)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the module's documentation.
    fn example() -> Index {
        let mut index = Index::default();
        let key: Arc<str> = "k".into();
        let at = |revision| Position::start(Revision(revision));
        index.apply(&key, at(5), Some((Revision(5), 1, None)));
        index.apply(&key, at(7), Some((Revision(5), 2, None)));
        index.apply(&key, at(9), None);
        index.apply(&key, at(12), Some((Revision(12), 1, None)));
        index
    }

    fn revisions(index: &Index) -> Vec<Option<u64>> {
        (4..=12).map(|at| index.at("k", Revision(at)).map(|position| position.revision().0)).collect()
    }

    #[test]
    fn a_key_at_each_revision() {
        let (x, five, seven) = (None, Some(5), Some(7));
        assert_eq!(revisions(&example()), [x, five, five, seven, seven, x, x, x, Some(12)]);
        assert_eq!(example().latest("k").unwrap().create_revision, Revision(12));
        assert_eq!(example().before("k", Position::start(Revision(9))), Some(Position::start(Revision(7))));
    }

    #[test]
    fn compaction_keeps_what_can_still_be_read() {
        let garbage = |at| {
            let mut index = example();
            let (garbage, more) = index.compact(Revision(at), None, 10);
            assert_eq!(more, None);
            let left = index.keys.get("k").map_or(0, |history| history.marks.len());
            assert_eq!(garbage.len() + left, 4);
            garbage.iter().map(|position| position.revision().0).collect::<Vec<_>>()
        };
        assert_eq!(garbage(4), []);
        assert_eq!(garbage(6), []);
        assert_eq!(garbage(7), [5]);
        assert_eq!(garbage(8), [5]);
        assert_eq!(garbage(9), [5, 7, 9]);
        assert_eq!(garbage(20), [5, 7, 9]);
    }

    #[test]
    fn ranges_are_limited_and_counted() {
        let mut index = Index::default();
        for (number, key) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let position = Position::start(Revision(number as u64 + 2));
            index.apply(&key.into(), position, Some((position.revision(), 1, None)));
        }
        let count = |keys: Range<&str>, at, limit| {
            let (positions, count) = index.range(&keys, Revision(at), limit);
            (positions.len(), count)
        };
        assert_eq!(count("a".."c", 9, 0), (2, 2));
        assert_eq!(count("b".."", 9, 2), (2, 3));
        assert_eq!(count("".."", 3, 0), (2, 2));
        assert_eq!(count("c".."b", 9, 0), (0, 0));
    }
}
