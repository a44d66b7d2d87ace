//! Flags as kubectl's library reads them: anywhere on the line, long and short, values after `=` or a space.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::{Error, Result},
    time::GoDuration,
};

/// What follows a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Nothing, or `=true` and `=false`.
    Bool,
    /// One value.
    Text,
    /// A whole number.
    Int,
    /// A length of time as Go writes it.
    Duration,
    /// Values separated by commas; the flag may come several times.
    List,
    /// One value each time that the flag comes; commas are part of it.
    Array,
    /// A value after `=`, or nothing, which means this.
    Optional(&'static str),
}

/// A flag of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    /// `\0` for none.
    pub(crate) short: char,
    pub(crate) takes: Takes,
    pub(crate) default: &'static str,
    pub(crate) help: &'static str,
}

impl Flag {
    pub(crate) const fn new(name: &'static str, takes: Takes, help: &'static str) -> Flag {
        let default = match takes {
            Takes::Bool => "false",
            _ => "",
        };
        Flag { name, short: '\0', takes, default, help }
    }
    pub(crate) const fn bool(name: &'static str, help: &'static str) -> Flag {
        Flag::new(name, Takes::Bool, help)
    }
    pub(crate) const fn text(name: &'static str, help: &'static str) -> Flag {
        Flag::new(name, Takes::Text, help)
    }
    pub(crate) const fn int(name: &'static str, help: &'static str) -> Flag {
        Flag::new(name, Takes::Int, help)
    }
    pub(crate) const fn duration(name: &'static str, help: &'static str) -> Flag {
        Flag::new(name, Takes::Duration, help)
    }
    pub(crate) const fn list(name: &'static str, help: &'static str) -> Flag {
        Flag::new(name, Takes::List, help)
    }
    pub(crate) const fn array(name: &'static str, help: &'static str) -> Flag {
        Flag::new(name, Takes::Array, help)
    }
    pub(crate) const fn short(mut self, short: char) -> Flag {
        self.short = short;
        self
    }
    pub(crate) const fn or(mut self, default: &'static str) -> Flag {
        self.default = default;
        self
    }
}

/// The flags of a line, and what is left of it.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    given: BTreeMap<&'static str, Vec<String>>,
    defaults: BTreeMap<&'static str, &'static str>,
    /// Flags that the command has of its own besides those of the same name that every command has.
    own: BTreeSet<&'static str>,
    /// The words that are not flags.
    pub(crate) args: Vec<String>,
    /// How many of them stand before `--`, if that is there.
    pub(crate) dash: Option<usize>,
}

impl Parsed {
    /// Reads a line; `command` is how messages name it.
    pub(crate) fn parse(words: &[String], known: &[&[Flag]], command: &str) -> Result<Parsed> {
        let find = |name: &str| known.iter().copied().flatten().find(|flag| flag.name == name);
        let find_short = |short: char| known.iter().copied().flatten().find(|flag| flag.short == short);
        let usage = |text: String| Error::Usage(format!("{text}\nSee '{command} --help' for usage."));
        let mut parsed = Parsed {
            defaults: known.iter().copied().flatten().map(|flag| (flag.name, flag.default)).collect(),
            ..Parsed::default()
        };
        let mut names = BTreeSet::new();
        parsed.own =
            known.iter().copied().flatten().map(|flag| flag.name).filter(|name| !names.insert(*name)).collect();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                parsed.dash = Some(parsed.args.len());
                parsed.args.extend(words.cloned());
                break;
            } else if let Some(long) = word.strip_prefix("--") {
                let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
                let flag = find(name).ok_or_else(|| usage(format!("unknown flag: --{name}")))?;
                let value = match (value, flag.takes) {
                    (Some(value), _) => value.to_owned(),
                    (None, Takes::Bool) => "true".to_owned(),
                    (None, Takes::Optional(value)) => value.to_owned(),
                    (None, _) => {
                        words.next().cloned().ok_or_else(|| usage(format!("flag needs an argument: --{name}")))?
                    }
                };
                parsed.set(flag, &value, &usage)?;
            } else if let Some(shorts) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
                let mut rest = shorts.chars();
                while let Some(short) = rest.next() {
                    let flag = find_short(short)
                        .ok_or_else(|| usage(format!("unknown shorthand flag: {short:?} in -{shorts}")))?;
                    let tail = rest.as_str();
                    let value = match (tail.strip_prefix('='), flag.takes) {
                        (Some(value), _) => value.to_owned(),
                        (None, Takes::Bool) => {
                            parsed.set(flag, "true", &usage)?;
                            continue;
                        }
                        (None, Takes::Optional(value)) => {
                            parsed.set(flag, value, &usage)?;
                            continue;
                        }
                        (None, _) if !tail.is_empty() => tail.to_owned(),
                        (None, _) => words
                            .next()
                            .cloned()
                            .ok_or_else(|| usage(format!("flag needs an argument: {short:?} in -{shorts}")))?,
                    };
                    parsed.set(flag, &value, &usage)?;
                    break;
                }
            } else {
                parsed.args.push(word.clone());
            }
        }
        Ok(parsed)
    }

    fn set(&mut self, flag: &Flag, value: &str, usage: &impl Fn(String) -> Error) -> Result<()> {
        let values = self.given.entry(flag.name).or_default();
        let invalid = |why: &str| {
            let name = match flag.short {
                '\0' => format!("--{}", flag.name),
                short => format!("-{short}, --{}", flag.name),
            };
            usage(format!("invalid argument {value:?} for {name:?} flag: {why}"))
        };
        match flag.takes {
            Takes::Bool => {
                let truth = match value {
                    "true" | "1" | "t" | "T" | "TRUE" | "True" => "true",
                    "false" | "0" | "f" | "F" | "FALSE" | "False" => "false",
                    _ => return Err(invalid(&format!("strconv.ParseBool: parsing {value:?}: invalid syntax"))),
                };
                *values = vec![truth.to_owned()];
            }
            Takes::Int if value.parse::<i64>().is_err() => {
                return Err(invalid(&format!("strconv.ParseInt: parsing {value:?}: invalid syntax")));
            }
            Takes::Duration if GoDuration::parse(value).is_none() => {
                return Err(invalid(&match value.parse::<f64>() {
                    Ok(_) => format!("time: missing unit in duration {value:?}"),
                    Err(_) => format!("time: invalid duration {value:?}"),
                }));
            }
            Takes::Text | Takes::Int | Takes::Duration | Takes::Optional(_) => *values = vec![value.to_owned()],
            Takes::Array => values.push(value.to_owned()),
            Takes::List => values.extend(value.split(',').filter(|part| !part.is_empty()).map(str::to_owned)),
        }
        Ok(())
    }

    /// Whether the flag stands on the line.
    pub(crate) fn given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// A flag's value, or its default. Empty for a flag that the command does not have.
    pub(crate) fn text(&self, name: &str) -> &str {
        match self.given.get(name).and_then(|values| values.last()) {
            Some(value) => value,
            None => self.defaults.get(name).copied().unwrap_or_default(),
        }
    }

    /// A flag's value, if it stands on the line.
    pub(crate) fn some(&self, name: &str) -> Option<&str> {
        self.given(name).then(|| self.text(name))
    }

    /// The value of a flag that every command has, if it stands on the line. `--user` of `create rolebinding` is not
    /// the user of the kubeconfig.
    pub(crate) fn global(&self, name: &str) -> Option<&str> {
        self.some(name).filter(|_| !self.own.contains(name))
    }

    /// Whether a flag is on.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.text(name) == "true"
    }

    /// All values of a flag.
    pub(crate) fn list(&self, name: &str) -> &[String] {
        self.given.get(name).map_or(&[], Vec::as_slice)
    }

    /// A number.
    pub(crate) fn int(&self, name: &str) -> Result<i64> {
        let text = self.text(name);
        text.parse().map_err(|_| {
            Error::text(format!(
                "invalid argument {text:?} for \"--{name}\" flag: strconv.ParseInt: parsing {text:?}: invalid syntax"
            ))
        })
    }

    /// A length of time as Go writes it.
    pub(crate) fn duration(&self, name: &str) -> Result<GoDuration> {
        let text = self.text(name);
        GoDuration::parse(text).ok_or_else(|| {
            Error::text(format!("invalid argument {text:?} for \"--{name}\" flag: time: invalid duration {text:?}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag::text("namespace", "").short('n'),
        Flag::bool("stdin", "").short('i'),
        Flag::bool("tty", "").short('t'),
        Flag::list("filename", "").short('f'),
        Flag::array("from-literal", ""),
        Flag::new("dry-run", Takes::Optional("unchanged"), "").or("none"),
        Flag::text("tail", "").or("-1"),
    ];

    fn parse(line: &str) -> Result<Parsed> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Parsed::parse(&words, &[FLAGS], "kubectl exec")
    }

    #[test]
    fn a_flag_of_the_command_hides_that_of_all() {
        let words = ["--user", "bob", "--cluster=c"].map(str::to_owned);
        let global = [Flag::text("user", ""), Flag::text("cluster", "")];
        let parsed = Parsed::parse(&words, &[&[Flag::array("user", "")], &global], "kubectl").unwrap();
        assert_eq!((parsed.list("user"), parsed.global("user")), (&["bob".to_owned()][..], None));
        assert_eq!(parsed.global("cluster"), Some("c"));
    }

    #[test]
    fn flags_stand_anywhere_in_any_form() {
        let parsed = parse("pod -it -nweb --from-literal a=1,2 --from-literal=b=3 -f x,y --dry-run -- ls -l").unwrap();
        assert_eq!(parsed.args, ["pod", "ls", "-l"]);
        assert_eq!(parsed.dash, Some(1));
        assert!(parsed.is("stdin") && parsed.is("tty"));
        assert_eq!(parsed.text("namespace"), "web");
        assert_eq!(parsed.list("from-literal"), ["a=1,2", "b=3"]);
        assert_eq!(parsed.list("filename"), ["x", "y"]);
        assert_eq!((parsed.text("dry-run"), parsed.int("tail").unwrap()), ("unchanged", -1));
    }

    #[test]
    fn what_is_unknown_or_lacks_a_value_is_refused() {
        let message = |line| parse(line).unwrap_err().to_string();
        assert_eq!(message("--foo"), "unknown flag: --foo\nSee 'kubectl exec --help' for usage.");
        assert!(message("-iz").starts_with("unknown shorthand flag: 'z' in -iz"));
        assert!(message("-n").starts_with("flag needs an argument: 'n' in -n"));
        assert!(message("--tty=maybe").starts_with("invalid argument \"maybe\" for \"-t, --tty\" flag"));
    }
}
