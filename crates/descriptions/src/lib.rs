//! What the types and fields of the API mean, as `kubectl explain` shows it.
//!
//! The build script collects the texts and compresses them into the program. Nothing of them is in memory until
//! [`Descriptions::load`] is called, and nothing after its result is dropped.

use std::{collections::HashMap, io::Read as _};

static COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.zz"));

/// One definition: its own text and those of its fields, by name.
#[derive(Debug, Default)]
pub struct Definition {
    pub text: String,
    pub fields: HashMap<String, String>,
}

/// All descriptions, by definition without the `io.k8s.` prefix.
#[derive(Debug, Default)]
pub struct Descriptions(HashMap<String, Definition>);

impl Descriptions {
    /// Unpacks the descriptions; a megabyte, in about ten milliseconds. There are none if they were not to be had when
    /// the program was built.
    pub fn load() -> Descriptions {
        let mut text = String::new();
        // The build script wrote it, so only an empty build can be without text.
        if flate2::read::ZlibDecoder::new(COMPRESSED).read_to_string(&mut text).is_err() {
            return Descriptions::default();
        }
        let mut all = HashMap::new();
        let mut current: Option<(String, Definition)> = None;
        for (name, text) in text.lines().filter_map(|l| l.split_once('\t')) {
            let text = unescape(text);
            match (name.strip_prefix('='), &mut current) {
                (Some(name), current) => {
                    all.extend(current.replace((name.to_owned(), Definition { text, fields: HashMap::new() })));
                }
                (None, Some((_, definition))) => {
                    definition.fields.insert(name.to_owned(), text);
                }
                (None, None) => {}
            }
        }
        all.extend(current);
        Descriptions(all)
    }

    /// The texts of a definition such as `api.core.v1.Pod`.
    pub fn of(&self, definition: &str) -> Option<&Definition> {
        self.0.get(definition)
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                _ => '\\',
            }),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_fields_are_described() {
        assert!(COMPRESSED.len() < 1024 * 1024);
        let all = Descriptions::load();
        let pod = all.of("api.core.v1.Pod").unwrap();
        assert!(pod.text.starts_with("Pod is a collection of containers"), "{}", pod.text);
        let container = all.of("api.core.v1.Container").unwrap();
        assert!(container.fields["livenessProbe"].starts_with("Periodic probe of container liveness."));
        assert!(container.fields["image"].starts_with("Container image name."));
        assert!(container.fields.len() > 20);
        // Quotes and line feeds are what they were.
        let policy = &container.fields["restartPolicy"];
        assert!(policy.contains("\"Always\""), "{policy}");
        let quantity = &all.of("apimachinery.pkg.api.resource.Quantity").unwrap().text;
        assert!(quantity.contains("\n\n") && !quantity.contains("\\n"), "{quantity}");
        assert!(all.0.len() > 500, "{}", all.0.len());
    }
}
