//! Keeping a supervisor small: there is one per pod, and most of the time they all wait.
//!
//! The program is large and its start touches much of it. Those pages are the file's, shared by all, and
//! come back by themselves when they are needed; letting go of them takes them off this process's account.

/// Gives back what can be had again. Failing to is no harm.
pub(super) fn shrink() {
    // SAFETY: returns unused memory of the heap to the system; nothing is invalidated.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    let mut current = None;
    for line in smaps.lines() {
        if let Some(mapping) = parse_mapping(line) {
            current = mapping;
        } else if let Some(anonymous) = line.strip_prefix("Anonymous:") {
            // Pages that were written, like those the loader relocated, have no other copy.
            if anonymous.trim() == "0 kB"
                && let Some((start, length)) = current.take()
            {
                // SAFETY: the range is a private, read-only mapping of a file of which no page was
                // changed: whatever is dropped is read from the file again.
                unsafe {
                    libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
                }
            }
        }
    }
}

/// `Some` for the first line of a mapping; within, start and length if it is private, read-only and a file's.
fn parse_mapping(line: &str) -> Option<Option<(usize, usize)>> {
    let mut words = line.split_ascii_whitespace();
    let (range, access) = (words.next()?, words.next()?);
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    let read_only = access.starts_with("r-") && access.ends_with('p');
    Some((is_file && read_only && end > start).then(|| (start, end - start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_files_are_let_go() {
        let text = "00400000-00500000 r-xp 00001000 fe:00 123                        /bin/skiff";
        assert_eq!(parse_mapping(text), Some(Some((0x40_0000, 0x10_0000))));
        for other in [
            "00400000-00500000 rw-p 00001000 fe:00 123 /bin/skiff",
            "00400000-00500000 r--s 00001000 fe:00 123 /bin/skiff",
            "00400000-00500000 r--p 00000000 00:00 0 [vvar]",
            "00400000-00500000 rw-p 00000000 00:00 0",
        ] {
            assert_eq!(parse_mapping(other), Some(None), "{other}");
        }
        assert_eq!(parse_mapping("Anonymous:             0 kB"), None);
        // And the process goes on.
        shrink();
    }
}
