//! Sets of completion indexes in the text form of the API: `0,2-5,7`.

use std::collections::BTreeSet;

pub(super) type Indexes = BTreeSet<i32>;

/// Reads a set; what is no index below `completions` is left out.
pub(super) fn parse(text: &str, completions: i32) -> Indexes {
    let mut set = Indexes::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { continue };
        set.extend(first.max(0)..=last.min(completions.saturating_sub(1)));
    }
    set
}

/// Writes a set: runs of three and more as ranges.
pub(super) fn format(set: &Indexes) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &index in set {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let text = |(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways() {
        for text in ["", "0", "0,1", "0-2", "1,3-5,7", "0-2,4,5"] {
            assert_eq!(format(&parse(text, 100)), text);
        }
        assert_eq!(format(&parse("1-9", 4)), "1-3");
        assert_eq!(format(&parse("x,2", 4)), "2");
    }
}
