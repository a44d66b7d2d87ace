//! Quantities such as `500m`, `1.5Gi` and `2e3`: parsing, arithmetic and the canonical form.
//!
//! A quantity is kept as a whole number of nano-units (10⁻⁹), which is the precision that Kubernetes keeps;
//! anything finer is rounded up, as upstream does.

use std::{cmp::Ordering, fmt, str::FromStr};

const NANO: i128 = 1_000_000_000;

/// The notation that a quantity was written in and is printed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `k`, `M`, `G`: powers of 1000.
    DecimalSi,
    /// `Ki`, `Mi`, `Gi`: powers of 1024.
    BinarySi,
    /// `e3`: powers of ten.
    DecimalExponent,
}

/// A fixed-point number with a notation.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The text is no quantity. The message is upstream's, which validation shows to users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseError;

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// A quantity of whole units, printed in powers of 1000.
    pub fn from_units(units: i64) -> Self {
        Quantity { nanos: i128::from(units) * NANO, format: Format::DecimalSi }
    }

    /// A quantity of thousandths, such as millicores.
    pub fn from_millis(millis: i64) -> Self {
        Quantity { nanos: i128::from(millis) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// A quantity of bytes, printed in powers of 1024.
    pub fn from_bytes(bytes: i64) -> Self {
        Quantity { nanos: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// The value in whole units, rounded up.
    pub fn units(&self) -> i64 {
        clamp(div_up(self.nanos, NANO))
    }

    /// The value in thousandths, rounded up.
    pub fn millis(&self) -> i64 {
        clamp(div_up(self.nanos, NANO / 1000))
    }

    /// Whether the value has no part smaller than one unit.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;
    /// Adds, in the notation of the left operand unless that is zero.
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

fn clamp(v: i128) -> i64 {
    v.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

/// Division that rounds away from zero, as upstream rounds up magnitudes.
fn div_up(a: i128, b: i128) -> i128 {
    let (q, r) = (a / b, a % b);
    if r == 0 { q } else { q + a.signum() }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let (negative, rest) = match s.as_bytes().first() {
            Some(b'-') => (true, &s[1..]),
            Some(b'+') => (false, &s[1..]),
            _ => (false, s),
        };
        let number_len = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, suffix) = rest.split_at(number_len);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseError);
        }
        let (format, multiplier, exponent) = suffix_value(suffix).ok_or(ParseError)?;

        // All digits as one integer, then scaled; too many of them saturate, as upstream caps them.
        let mut digits: i128 = 0;
        for b in whole.bytes().chain(fraction.bytes()) {
            digits = digits.saturating_mul(10).saturating_add(i128::from(b - b'0'));
        }
        let scale = exponent + 9 - i32::try_from(fraction.len()).map_err(|_| ParseError)?;
        let scaled = digits.saturating_mul(multiplier);
        let mut nanos = if scale >= 0 {
            (0..scale).fold(scaled, |v, _| v.saturating_mul(10))
        } else {
            match 10i128.checked_pow(scale.unsigned_abs()) {
                Some(divisor) => div_up(scaled, divisor),
                None => i128::from(scaled != 0),
            }
        };
        if negative {
            nanos = -nanos;
        }
        // Upstream caps at 2^63-1 units.
        let cap = i128::from(i64::MAX) * NANO;
        Ok(Quantity { nanos: nanos.clamp(-cap, cap), format })
    }
}

/// Notation, multiplier and power of ten of a suffix.
fn suffix_value(suffix: &str) -> Option<(Format, i128, i32)> {
    let binary = |power: u32| Some((Format::BinarySi, 1i128 << (10 * power), 0));
    let decimal = |exponent: i32| Some((Format::DecimalSi, 1, exponent));
    match suffix {
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
            (-100..=100).contains(&exponent).then_some((Format::DecimalExponent, 1, exponent))
        }
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that keeps it exact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi && self.nanos % NANO == 0 {
            let units = self.nanos / NANO;
            // Below 1024 there is nothing for a binary suffix to say.
            if units.abs() >= 1024 {
                for (power, suffix) in [(6, "Ei"), (5, "Pi"), (4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")] {
                    let unit = 1i128 << (10 * power);
                    if units % unit == 0 {
                        return write!(f, "{}{suffix}", units / unit);
                    }
                }
            }
            return write!(f, "{units}");
        }
        let mut value = self.nanos;
        let mut exponent = -9;
        while value % 1000 == 0 && exponent < 18 {
            value /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return match exponent {
                0 => write!(f, "{value}"),
                e => write!(f, "{value}e{e}"),
            };
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            _ => "E",
        };
        write!(f, "{value}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(s: &str) -> String {
        s.parse::<Quantity>().unwrap().to_string()
    }

    #[test]
    fn prints_the_canonical_form() {
        for (input, want) in [
            ("0", "0"),
            ("0.5", "500m"),
            ("1", "1"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000Ki", "1000Ki"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("12e6", "12e6"),
            ("1E3", "1e3"),
            ("-5", "-5"),
            (".5", "500m"),
            ("1.", "1"),
            ("0.0000000001", "1n"),
            ("0.5Mi", "512Ki"),
            ("100Mi", "100Mi"),
            ("1023", "1023"),
            ("0.1Ki", "102400m"),
        ] {
            assert_eq!(canonical(input), want, "{input}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for bad in ["", "abc", "1.2.3", "1 Gi", "1GiB", "Mi", "-", "1e", "1ee3", "--1", "0x10"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn adds_and_compares_across_notations() {
        let a: Quantity = "1Gi".parse().unwrap();
        let b: Quantity = "1073741824".parse().unwrap();
        assert_eq!(a, b);
        assert_eq!((a + b).to_string(), "2Gi");
        assert!("1G".parse::<Quantity>().unwrap() < a);
        assert_eq!("250m".parse::<Quantity>().unwrap().millis(), 250);
        assert_eq!("1.5".parse::<Quantity>().unwrap().units(), 2);
    }
}
