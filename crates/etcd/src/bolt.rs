//! Just enough of bbolt's file format (version 2) to write etcd's database in one go, and to read it.
//!
//! Pages of 4 KiB: two with the same description (meta), an empty list of free pages, and a B+ tree for each bucket,
//! whose roots are the values of a tree of their own. Everything is little-endian.

use std::io::{self, Seek, SeekFrom, Write};

use bytes::Bytes;

const PAGE: usize = 4096;
const HEADER: usize = 16;
const ELEMENT: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const META: u16 = 4;
const FREE: u16 = 0x10;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Marks an element of a leaf that is a bucket.
const BUCKET: u32 = 1;
const FREELIST_PAGE: u64 = 2;
/// No tree of a sound file is as deep.
const DEEPEST: usize = 32;

/// Writes a database from its first page to its last.
pub struct Writer<W> {
    out: W,
    next: u64,
    buckets: Vec<(String, u64)>,
}

struct Item {
    flags: u32,
    key: Vec<u8>,
    value: Bytes,
}

impl<W: Write + Seek> Writer<W> {
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&[0; PAGE * 3])?;
        Ok(Writer { out, next: 3, buckets: Vec::new() })
    }

    /// Writes a bucket; its items must be in the order of their keys.
    pub fn bucket(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = io::Result<(Vec<u8>, Bytes)>>,
    ) -> io::Result<()> {
        let items = items.into_iter().map(|item| item.map(|(key, value)| Item { flags: 0, key, value }));
        let root = self.tree(items)?;
        self.buckets.push((name.to_owned(), root));
        Ok(())
    }

    /// Writes what leads to the buckets. The file's size.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        let mut buckets = std::mem::take(&mut self.buckets);
        buckets.sort();
        let items: Vec<_> = buckets
            .into_iter()
            .map(|(name, root)| {
                // The page of its root, and a counter that etcd does not use.
                let value = [root.to_le_bytes(), [0; 8]].concat();
                Ok(Item { flags: BUCKET, key: name.into_bytes(), value: value.into() })
            })
            .collect();
        let root = self.tree(items)?;
        let mut free = vec![0; PAGE];
        header(&mut free, FREELIST_PAGE, FREE, 0, 0);
        self.out.seek(SeekFrom::Start(0))?;
        for number in 0..2u64 {
            let mut page = vec![0; PAGE];
            header(&mut page, number, META, 0, 0);
            let mut meta = Vec::with_capacity(64);
            for word in [MAGIC, VERSION, PAGE as u32, 0] {
                meta.extend(word.to_le_bytes());
            }
            for word in [root, 0, FREELIST_PAGE, self.next, number] {
                meta.extend(word.to_le_bytes());
            }
            meta.extend(checksum(&meta).to_le_bytes());
            page[HEADER..HEADER + meta.len()].copy_from_slice(&meta);
            self.out.write_all(&page)?;
        }
        self.out.write_all(&free)?;
        let size = self.out.seek(SeekFrom::End(0))?;
        Ok((self.out, size))
    }

    /// The page of the tree's root.
    fn tree(&mut self, items: impl IntoIterator<Item = io::Result<Item>>) -> io::Result<u64> {
        let mut level: Vec<(Vec<u8>, u64)> = Vec::new();
        let (mut waiting, mut size) = (Vec::new(), HEADER);
        for item in items {
            let item = item?;
            let more = ELEMENT + item.key.len() + item.value.len();
            if !waiting.is_empty() && size + more > PAGE {
                level.push(self.leaf(&waiting)?);
                waiting.clear();
                size = HEADER;
            }
            size += more;
            waiting.push(item);
        }
        if !waiting.is_empty() || level.is_empty() {
            level.push(self.leaf(&waiting)?);
        }
        while level.len() > 1 {
            let mut above = Vec::new();
            let mut rest = level.as_slice();
            while !rest.is_empty() {
                let mut size = HEADER;
                let fits = rest.iter().take_while(|(key, _)| {
                    size += ELEMENT + key.len();
                    size <= PAGE
                });
                // Two at least, or there would be no end.
                let count = fits.count().max(2).min(rest.len());
                above.push(self.branch(&rest[..count])?);
                rest = &rest[count..];
            }
            level = above;
        }
        Ok(level[0].1)
    }

    fn leaf(&mut self, items: &[Item]) -> io::Result<(Vec<u8>, u64)> {
        let mut page = vec![0; HEADER + items.len() * ELEMENT];
        for (index, item) in items.iter().enumerate() {
            let at = HEADER + index * ELEMENT;
            let position = page.len() - at;
            let words = [item.flags, narrow(position)?, narrow(item.key.len())?, narrow(item.value.len())?];
            page[at..at + ELEMENT].copy_from_slice(&words.map(u32::to_le_bytes).concat());
            page.extend(&item.key);
            page.extend(&item.value);
        }
        let first = items.first().map(|i| i.key.clone()).unwrap_or_default();
        Ok((first, self.page(page, LEAF, items.len())?))
    }

    fn branch(&mut self, children: &[(Vec<u8>, u64)]) -> io::Result<(Vec<u8>, u64)> {
        let mut page = vec![0; HEADER + children.len() * ELEMENT];
        for (index, (key, child)) in children.iter().enumerate() {
            let at = HEADER + index * ELEMENT;
            let position = page.len() - at;
            page[at..at + 8].copy_from_slice(&[narrow(position)?, narrow(key.len())?].map(u32::to_le_bytes).concat());
            page[at + 8..at + 16].copy_from_slice(&child.to_le_bytes());
            page.extend(key);
        }
        Ok((children[0].0.clone(), self.page(page, BRANCH, children.len())?))
    }

    fn page(&mut self, mut page: Vec<u8>, flags: u16, count: usize) -> io::Result<u64> {
        let pages = page.len().div_ceil(PAGE);
        page.resize(pages * PAGE, 0);
        let id = self.next;
        let count = u16::try_from(count).map_err(|_| io::Error::other("a page with too many elements"))?;
        header(&mut page, id, flags, count, narrow(pages - 1)?);
        self.out.write_all(&page)?;
        self.next += pages as u64;
        Ok(id)
    }
}

fn narrow(number: usize) -> io::Result<u32> {
    u32::try_from(number).map_err(|_| io::Error::other("a value of more than 4 GiB"))
}

fn header(page: &mut [u8], id: u64, flags: u16, count: u16, overflow: u32) {
    page[..8].copy_from_slice(&id.to_le_bytes());
    page[8..10].copy_from_slice(&flags.to_le_bytes());
    page[10..12].copy_from_slice(&count.to_le_bytes());
    page[12..16].copy_from_slice(&overflow.to_le_bytes());
}

/// FNV-1a, as bbolt checks its description with.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A database that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damaged(pub &'static str);

type Result<T> = std::result::Result<T, Damaged>;

/// Reads a database that is in memory.
pub struct Reader<'a> {
    bytes: &'a [u8],
    page_size: usize,
    root: u64,
}

const SHORT: Damaged = Damaged("it ends too early");

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let four = bytes.get(at..at + 4).ok_or(SHORT)?;
    Ok(u32::from_le_bytes(four.try_into().unwrap_or_default()))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let eight = bytes.get(at..at + 8).ok_or(SHORT)?;
    Ok(u64::from_le_bytes(eight.try_into().unwrap_or_default()))
}

fn size(number: u32) -> usize {
    number as usize
}

impl<'a> Reader<'a> {
    /// Whether this may be such a database.
    pub fn recognises(start: &[u8]) -> bool {
        u32_at(start, HEADER) == Ok(MAGIC)
    }

    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        let page_size = size(u32_at(bytes, HEADER + 8)?);
        if !(512..=1 << 20).contains(&page_size) {
            return Err(Damaged("its pages have an impossible size"));
        }
        let mut best: Option<(u64, u64)> = None;
        for page in 0..2 {
            let Some(meta) = bytes.get(page * page_size + HEADER..page * page_size + HEADER + 64) else { continue };
            let good =
                u32_at(meta, 0)? == MAGIC && u32_at(meta, 4)? == VERSION && u64_at(meta, 56)? == checksum(&meta[..56]);
            let transaction = u64_at(meta, 48)?;
            if good && best.is_none_or(|(known, _)| transaction > known) {
                best = Some((transaction, u64_at(meta, 16)?));
            }
        }
        let (_, root) = best.ok_or(Damaged("neither of its descriptions is whole"))?;
        Ok(Reader { bytes, page_size, root })
    }

    /// Calls `each` for the items of a bucket, in order. `false` if there is no such bucket.
    pub fn bucket(&self, name: &str, each: &mut dyn FnMut(&'a [u8], &'a [u8]) -> Result<()>) -> Result<bool> {
        let mut found = None;
        self.walk(self.page(self.root)?, DEEPEST, &mut |flags, key, value| {
            if key == name.as_bytes() && flags & BUCKET != 0 {
                found = Some(value);
            }
            Ok(())
        })?;
        let Some(value) = found else { return Ok(false) };
        let mut plain = |_: u32, key: &'a [u8], value: &'a [u8]| each(key, value);
        match u64_at(value, 0)? {
            // A small bucket is kept within its parent.
            0 => self.walk(&value[16..], DEEPEST, &mut plain)?,
            root => self.walk(self.page(root)?, DEEPEST, &mut plain)?,
        }
        Ok(true)
    }

    fn page(&self, id: u64) -> Result<&'a [u8]> {
        let at = usize::try_from(id).ok().and_then(|id| id.checked_mul(self.page_size)).ok_or(SHORT)?;
        self.bytes.get(at..).ok_or(SHORT)
    }

    fn walk(
        &self,
        page: &'a [u8],
        depth: usize,
        each: &mut dyn FnMut(u32, &'a [u8], &'a [u8]) -> Result<()>,
    ) -> Result<()> {
        if depth == 0 {
            return Err(Damaged("its tree has no end"));
        }
        let head = page.get(..HEADER).ok_or(SHORT)?;
        let flags = u16::from_le_bytes([head[8], head[9]]);
        let count = usize::from(u16::from_le_bytes([head[10], head[11]]));
        for index in 0..count {
            let at = HEADER + index * ELEMENT;
            if flags & LEAF != 0 {
                let start = at + size(u32_at(page, at + 4)?);
                let middle = start + size(u32_at(page, at + 8)?);
                let end = middle + size(u32_at(page, at + 12)?);
                let key = page.get(start..middle).ok_or(SHORT)?;
                each(u32_at(page, at)?, key, page.get(middle..end).ok_or(SHORT)?)?;
            } else if flags & BRANCH != 0 {
                self.walk(self.page(u64_at(page, at + 8)?)?, depth - 1, each)?;
            } else {
                return Err(Damaged("a page is of an unexpected kind"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::new(io::Cursor::new(Vec::new())).unwrap();
        let key = |n: u32| format!("key-{n:08}").into_bytes();
        // Small ones, large ones, and enough for several levels.
        let value = |n: u32| Bytes::from(vec![b'v'; if n.is_multiple_of(1000) { 10_000 } else { (n % 50) as usize }]);
        writer.bucket("many", (0..20_000).map(|n| Ok((key(n), value(n))))).unwrap();
        writer.bucket("empty", []).unwrap();
        let (out, size) = writer.finish().unwrap();
        let bytes = out.into_inner();
        assert_eq!((bytes.len() as u64, bytes.len() % PAGE), (size, 0));
        assert!(Reader::recognises(&bytes));
        let reader = Reader::new(&bytes).unwrap();
        let mut n = 0;
        let found = reader.bucket("many", &mut |k, v| {
            assert_eq!((k, v), (key(n).as_slice(), value(n).as_ref()));
            n += 1;
            Ok(())
        });
        assert_eq!((found, n), (Ok(true), 20_000));
        assert_eq!(reader.bucket("empty", &mut |_, _| panic!("it is empty")), Ok(true));
        assert_eq!(reader.bucket("none", &mut |_, _| Ok(())), Ok(false));
        assert!(Reader::new(&bytes[..60]).is_err());
        assert!(Reader::new(&bytes[..PAGE * 4]).unwrap().bucket("many", &mut |_, _| Ok(())).is_err());
    }
}
