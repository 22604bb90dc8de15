//! Filters of describe calls: the values of one filter are alternatives, filters add up.
//! `*` and `?` are wildcards, `\` takes the next character as it is.

use std::collections::BTreeSet;

use model::limits::FILTER_VALUES_MAX;

use super::form::{Form, quoted};
use crate::api::ApiError;

/// Characters of one value; the longest thing a filter can match is a tag's value.
const VALUE_CHARS_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filters(Vec<Filter>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Filter {
    name: String,
    /// Values without wildcards, looked up rather than tried one by one.
    literals: BTreeSet<String>,
    patterns: Vec<Vec<Piece>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Literal(char),
    AnyOne,
    AnyRun,
}

impl Filters {
    /// `known`: the action's filters; `tag:` among them stands for `tag:<key>`.
    pub fn take(form: &mut Form, known: &[&str]) -> Result<Self, ApiError> {
        let mut filters = Vec::new();
        let mut values_total = 0;
        for mut filter in form.structures("Filter") {
            let name = filter.required("Name")?;
            let is_tag = known.contains(&"tag:") && name.len() > 4 && name.starts_with("tag:");
            if !is_tag && (name == "tag:" || !known.contains(&name.as_str())) {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    format!("The filter '{}' is invalid", quoted(&name)),
                ));
            }
            let values = filter.list("Value");
            filter.finish()?;
            values_total += values.len();
            if values_total > FILTER_VALUES_MAX {
                return Err(ApiError::new(
                    "FilterLimitExceeded",
                    format!("A call may carry {FILTER_VALUES_MAX} filter values"),
                ));
            }
            if values.is_empty() {
                return Err(filter.missing("Value.1"));
            }
            filters.push(Filter::new(name, &values)?);
        }
        Ok(Self(filters))
    }

    /// `values` gives what a thing has for the name of a filter: none, one or several values.
    pub fn accept(&self, values: impl Fn(&str) -> Vec<String>) -> bool {
        self.0.iter().all(|filter| values(&filter.name).iter().any(|v| filter.matches(v)))
    }
}

impl Filter {
    fn new(name: String, values: &[String]) -> Result<Self, ApiError> {
        let mut filter = Self { name, literals: BTreeSet::new(), patterns: Vec::new() };
        for value in values {
            if value.chars().count() > VALUE_CHARS_MAX {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    format!(
                        "A value of the filter '{}' is longer than {VALUE_CHARS_MAX} characters",
                        quoted(&filter.name)
                    ),
                ));
            }
            let pieces = pieces(value);
            let literal: Option<String> = pieces
                .iter()
                .map(|piece| if let Piece::Literal(c) = piece { Some(*c) } else { None })
                .collect();
            match literal {
                Some(text) => drop(filter.literals.insert(text)),
                None => filter.patterns.push(pieces),
            }
        }
        Ok(filter)
    }

    fn matches(&self, value: &str) -> bool {
        self.literals.contains(value) || {
            let text: Vec<char> = value.chars().collect();
            self.patterns.iter().any(|pattern| matches(pattern, &text))
        }
    }
}

fn pieces(value: &str) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        pieces.push(match c {
            '*' => Piece::AnyRun,
            '?' => Piece::AnyOne,
            // A backslash at the end has nothing to protect, and stands for itself.
            '\\' => Piece::Literal(chars.next().unwrap_or('\\')),
            other => Piece::Literal(other),
        });
    }
    pieces
}

/// Backtracks to the last `*` alone: time is at most length of text times length of pattern.
fn matches(pattern: &[Piece], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut resume: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(Piece::AnyRun) => {
                resume = Some((p + 1, t));
                p += 1;
            }
            Some(Piece::AnyOne) => (p, t) = (p + 1, t + 1),
            Some(Piece::Literal(c)) if *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => {
                let Some((after, from)) = resume else { return false };
                resume = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|piece| *piece == Piece::AnyRun)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pattern: &str, text: &str) -> bool {
        Filter::new("n".into(), &[pattern.to_owned()]).expect("short enough").matches(text)
    }

    #[test]
    fn wildcards_match_as_in_ec2() {
        for (pattern, text) in [
            ("", ""),
            ("a", "a"),
            ("*", ""),
            ("*", "anything"),
            ("gp?", "gp3"),
            ("a*c", "abbc"),
            ("a*c", "ac"),
            ("*b*", "abc"),
            ("*ab", "aab"),
            ("**a**", "a"),
            ("a\\*c", "a*c"),
            ("a\\?", "a?"),
            ("a\\\\", "a\\"),
            ("a\\", "a\\"),
            ("é?", "éü"),
        ] {
            assert!(check(pattern, text), "{pattern} must match {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", ""),
            ("a", "A"),
            ("a", "ab"),
            ("?", ""),
            ("a*c", "abcd"),
            ("a\\*c", "abc"),
            ("gp?", "gp"),
            ("*a*b", "ba"),
        ] {
            assert!(!check(pattern, text), "{pattern} must not match {text}");
        }
    }

    /// The definition, plainly.
    fn plain(pattern: &[Piece], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some((Piece::AnyRun, rest)), _) => {
                (0..=text.len()).any(|skip| plain(rest, &text[skip..]))
            }
            (Some((Piece::AnyOne, rest)), Some((_, after))) => plain(rest, after),
            (Some((Piece::Literal(c), rest)), Some((d, after))) => c == d && plain(rest, after),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_its_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            let text: Vec<char> = text.chars().collect();
            let pattern = pieces(&pattern);
            prop_assert_eq!(matches(&pattern, &text), plain(&pattern, &text));
        }
    }
}
