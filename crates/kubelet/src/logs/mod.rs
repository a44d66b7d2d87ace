//! Containers' log files in CRI's format: reading, filtering, following.

mod follow;
mod line;
pub(crate) mod rotate;

use std::{
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use self::line::Filter;
pub(crate) use self::{
    follow::copy,
    line::{Options, Stream},
};

/// How much is read at once.
const BLOCK: u64 = 64 * 1024;

/// The content of the last `lines` lines, at most the last `max` bytes of it.
pub(crate) fn last_lines(path: &Path, lines: usize, max: usize) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let from = tail_offset(&mut file, lines)?;
    file.seek(SeekFrom::Start(from))?;
    let mut raw = Vec::new();
    file.read_to_end(&mut raw)?;
    let mut filter = Filter::new(&Options::default());
    let mut out = Vec::new();
    for line in raw.split_inclusive(|b| *b == b'\n') {
        filter.push(line, &mut out);
    }
    let start = out.len().saturating_sub(max);
    Ok(String::from_utf8_lossy(&out[start..]).into_owned())
}

/// Where the last `lines` lines begin.
fn tail_offset(file: &mut std::fs::File, lines: usize) -> io::Result<u64> {
    let end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let mut left = lines;
    let mut at = end;
    let mut block = vec![0; BLOCK as usize];
    while at > 0 {
        let from = at.saturating_sub(BLOCK);
        let part = &mut block[..(at - from) as usize];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(part)?;
        for (i, _) in part.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            let after = from + i as u64 + 1;
            // The newline at the very end begins no line.
            if after == end {
                continue;
            }
            left -= 1;
            if left == 0 {
                return Ok(after);
            }
        }
        at = from;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_a_log() {
        let dir = std::env::temp_dir().join(format!("skiff-logs-{:x}", rand::random::<u64>()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        let text: String = (0..10).map(|i| format!("2026-01-01T00:00:0{i}Z stdout F line {i}\n")).collect();
        std::fs::write(&path, text).unwrap();
        assert_eq!(last_lines(&path, 2, 100).unwrap(), "line 8\nline 9\n");
        assert_eq!(last_lines(&path, 99, 7).unwrap(), "line 9\n");
        let mut file = std::fs::File::open(&path).unwrap();
        assert_eq!(tail_offset(&mut file, 10).unwrap(), 0);
        assert_eq!(tail_offset(&mut file, 0).unwrap(), std::fs::metadata(&path).unwrap().len());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
