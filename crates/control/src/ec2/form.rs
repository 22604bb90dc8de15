//! The parameters of an EC2 Query call: `Name=value`, `Name.1=value`, `Name.1.Member=value`.
//!
//! Invariant: what a call takes it takes out; whatever is left in the end is unknown, and refused.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    str::FromStr,
};

use sha2::{Digest, Sha256};

use crate::{api::ApiError, http::HttpRequest, sigv4};

/// Parameters of one call. EC2's CSI driver sends up to a thousand filter values.
const PARAMETERS_MAX: usize = 2000;
/// Characters of a caller's text repeated in an error message.
const QUOTED_CHARS_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Form {
    /// What is before each name: `Filter.1.` in the form of the first filter.
    prefix: String,
    parameters: BTreeMap<String, String>,
}

impl Form {
    /// Reads the query and, of a POST, the body. The query form's signature is left out.
    pub fn parse(request: &HttpRequest) -> Result<Self, ApiError> {
        let mut parameters = BTreeMap::new();
        for (name, value) in pairs(request)? {
            if parameters.len() == PARAMETERS_MAX {
                return Err(ApiError::new(
                    "MalformedQueryString",
                    format!("The request holds more than {PARAMETERS_MAX} parameters"),
                ));
            }
            match parameters.entry(name) {
                Entry::Vacant(entry) => drop(entry.insert(value)),
                Entry::Occupied(entry) => {
                    return Err(ApiError::new(
                        "MalformedQueryString",
                        format!("The parameter {} is given twice", quoted(entry.key())),
                    ));
                }
            }
        }
        Ok(Self { prefix: String::new(), parameters })
    }

    /// What the call asks for, whichever page of it: binds a page token to its query.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (name, value) in &self.parameters {
            if !matches!(name.as_str(), "MaxResults" | "NextToken" | "Version" | "DryRun") {
                for text in [name, value] {
                    hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
                    hash.update(text.as_bytes());
                }
            }
        }
        hash.finalize().into()
    }

    pub fn take(&mut self, name: &str) -> Option<String> {
        self.parameters.remove(name)
    }

    pub fn required(&mut self, name: &str) -> Result<String, ApiError> {
        match self.take(name) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(self.missing(name)),
        }
    }

    pub fn missing(&self, name: &str) -> ApiError {
        ApiError::new(
            "MissingParameter",
            format!("The request must contain the parameter {}{name}", self.prefix),
        )
    }

    /// A whole number that fits `T`.
    pub fn integer<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(value) if plain => Ok(Some(value)),
            _ => Err(invalid_value(&text, name, "a whole number that is not negative")),
        }
    }

    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(text) => Err(invalid_value(&text, name, "true or false")),
        }
    }

    /// `Name.1`, `Name.2`, in the order of their numbers.
    pub fn list(&mut self, name: &str) -> Vec<String> {
        let start = format!("{name}.");
        let mut found: BTreeMap<u32, String> = BTreeMap::new();
        self.parameters.retain(|key, value| {
            match key.strip_prefix(&start).and_then(position) {
                // Of `Name.1` and `Name.01` one stays, and is then unknown.
                Some(at) if !found.contains_key(&at) => {
                    found.insert(at, std::mem::take(value));
                    false
                }
                _ => true,
            }
        });
        found.into_values().collect()
    }

    /// `Name.1.…`, `Name.2.…`: one form for each number, with what follows it.
    pub fn structures(&mut self, name: &str) -> Vec<Self> {
        let start = format!("{name}.");
        let mut found: BTreeMap<u32, Self> = BTreeMap::new();
        self.parameters.retain(|key, value| {
            let parts = key.strip_prefix(&start).and_then(|rest| rest.split_once('.'));
            let Some((at, member)) = parts.and_then(|(n, m)| Some((position(n)?, m))) else {
                return true;
            };
            let form = found.entry(at).or_insert_with(|| Self {
                prefix: format!("{}{start}{at}.", self.prefix),
                parameters: BTreeMap::new(),
            });
            match form.parameters.entry(member.to_owned()) {
                Entry::Vacant(entry) => {
                    entry.insert(std::mem::take(value));
                    false
                }
                Entry::Occupied(_) => true,
            }
        });
        found.into_values().collect()
    }

    /// Refuses what nobody took.
    pub fn finish(&self) -> Result<(), ApiError> {
        match self.parameters.keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::new(
                "UnknownParameter",
                format!("The parameter {}{} is not recognized", self.prefix, quoted(name)),
            )),
        }
    }
}

/// The query is decoded as its signature was checked, where a plus sign is no space: else one
/// signature would stand for two meanings.
fn pairs(request: &HttpRequest) -> Result<Vec<(String, String)>, ApiError> {
    let body = if request.method == "POST" { request.body.as_slice() } else { &[] };
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes)
            .map_err(|_| ApiError::new("MalformedQueryString", "The query is not UTF-8"))
    };
    sigv4::query_pairs(&request.query)
        .into_iter()
        .filter(|(name, _)| !name.starts_with(b"X-Amz-"))
        .map(|(name, value)| Ok((text(name)?, text(value)?)))
        .chain(form_urlencoded::parse(body).map(|(n, v)| Ok((n.into_owned(), v.into_owned()))))
        .collect()
}

fn position(text: &str) -> Option<u32> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

pub fn invalid_value(value: &str, name: &str, expected: &str) -> ApiError {
    ApiError::new(
        "InvalidParameterValue",
        format!("Value ({}) for parameter {name} is invalid. Expected: {expected}.", quoted(value)),
    )
}

/// A caller's text, cut to a length that fits a message.
pub fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_CHARS_MAX).collect()
}
