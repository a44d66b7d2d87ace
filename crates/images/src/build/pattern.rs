//! Patterns of names, as in COPY and .dockerignore.

/// Names of a path without `.`, with `..` taken back; what would lead above the root stays at the root.
pub(super) fn clean(path: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names
}

/// Whether one name has this form: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` before what stands for itself.
pub(super) fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return name.is_empty() };
    match first {
        b'*' => (0..=name.len()).any(|skipped| matches_name(rest, &name[skipped..])),
        b'?' => !name.is_empty() && matches_name(rest, &name[1..]),
        b'[' => match (rest.iter().skip(1).position(|b| *b == b']'), name.split_first()) {
            (Some(end), Some((byte, name))) => {
                let (class, rest) = (&rest[..=end], &rest[end + 2..]);
                let (negated, class) = match class.split_first() {
                    Some((b'^' | b'!', class)) => (true, class),
                    _ => (false, class),
                };
                in_class(class, *byte) != negated && matches_name(rest, name)
            }
            _ => false,
        },
        b'\\' if !rest.is_empty() => name.first() == rest.first() && matches_name(&rest[1..], &name[1..]),
        byte => name.first() == Some(byte) && matches_name(rest, &name[1..]),
    }
}

fn in_class(class: &[u8], byte: u8) -> bool {
    match class {
        [from, b'-', to, rest @ ..] => (*from..=*to).contains(&byte) || in_class(rest, byte),
        [one, rest @ ..] => *one == byte || in_class(rest, byte),
        [] => false,
    }
}

fn matches_path(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, _) => path.is_empty(),
        (Some((&"**", rest)), _) => (0..=path.len()).any(|skipped| matches_path(rest, &path[skipped..])),
        (Some(_), None) => false,
        (Some((first, rest)), Some((name, path))) => {
            matches_name(first.as_bytes(), name.as_bytes()) && matches_path(rest, path)
        }
    }
}

/// A .dockerignore: of the lines that match a path or a directory above it, the last one decides.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Ignore(Vec<(bool, String)>);

impl Ignore {
    pub(super) fn parse(text: &str) -> Ignore {
        let line = |line: &str| {
            let line = line.trim();
            let (back, pattern) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
            (!line.is_empty() && !line.starts_with('#')).then(|| (back, clean(pattern).join("/")))
        };
        Ignore(text.lines().filter_map(line).filter(|(_, pattern)| !pattern.is_empty()).collect())
    }

    pub(super) fn leaves_out(&self, path: &str) -> bool {
        let names = clean(path);
        let mut out = false;
        for (back, pattern) in &self.0 {
            let pattern: Vec<_> = pattern.split('/').collect();
            if out == *back && (1..=names.len()).any(|n| matches_path(&pattern, &names[..n])) {
                out = !back;
            }
        }
        out
    }

    /// Whether something in a directory that is left out may be taken back.
    pub(super) fn takes_back(&self) -> bool {
        self.0.iter().any(|(back, _)| *back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (pattern, name, expected) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.x", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[]", "a", false),
            ("[a", "a", false),
            ("\\*", "*", true),
            ("*", "", true),
        ] {
            assert_eq!(matches_name(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn the_last_line_that_matches_decides() {
        let ignore = Ignore::parse("# comment\n/target\n**/*.pyc\ndocs/*\n!docs/keep.md\n");
        for path in ["target", "target/a/b", "x/y/z.pyc", "z.pyc", "docs/a"] {
            assert!(ignore.leaves_out(path), "{path}");
        }
        for path in ["src/target", "docs", "docs/keep.md", "a.py"] {
            assert!(!ignore.leaves_out(path), "{path}");
        }
    }

    #[test]
    fn no_path_leads_above_the_root() {
        assert_eq!(clean("../../a/./b/../c"), ["a", "c"]);
    }
}
