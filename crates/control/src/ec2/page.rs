//! Pages of a describe call: how many items, from where, and the token for the rest.
//!
//! A token names the last item shown and the query it belongs to, so that it means the same after
//! a restart and after that item is gone. It grants nothing: whoever makes one up only starts
//! their own query elsewhere.

use model::id::AccountId;
use sha2::{Digest, Sha256};

use super::form::{Form, invalid_value};
use crate::{api::ApiError, sigv4::hex};

/// Bytes of the digest that a token carries.
const BINDING_BYTES: usize = 16;
/// More than any token we make: a tag's key and its resource.
const TOKEN_CHARS_MAX: usize = 4096;

/// How many items an action gives at once.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub min: usize,
    pub max: usize,
    /// Whether asking for more than `max` gives `max`, or is refused.
    pub clamp: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    count_max: Option<usize>,
    after: Option<Vec<u8>>,
    binding: String,
}

impl Page {
    /// To be taken before anything else: the token is bound to the form as it came.
    pub fn take(
        form: &mut Form,
        account: AccountId,
        action: &str,
        bounds: Bounds,
    ) -> Result<Self, ApiError> {
        let mut hash = Sha256::new();
        hash.update(format!("{account} {action} "));
        hash.update(form.digest());
        let binding = hex(&hash.finalize()[..BINDING_BYTES]);
        let after = match form.take("NextToken") {
            None => None,
            Some(text) if text.is_empty() => None,
            Some(text) => Some(position(&text, &binding)?),
        };
        let count_max = match form.integer::<usize>("MaxResults")? {
            None => None,
            Some(n) if n < bounds.min || (n > bounds.max && !bounds.clamp) => {
                let expected = format!("a number from {} to {}", bounds.min, bounds.max);
                return Err(invalid_value(&n.to_string(), "MaxResults", &expected));
            }
            Some(n) => Some(n.min(bounds.max)),
        };
        Ok(Self { count_max, after, binding })
    }

    /// EC2 takes ids or a page size, not both.
    pub fn refuse_with_ids(&self, ids: &[impl Sized], name: &str) -> Result<(), ApiError> {
        if self.count_max.is_some() && !ids.is_empty() {
            return Err(ApiError::new(
                "InvalidParameterCombination",
                format!("The parameter {name} cannot be used with the parameter MaxResults"),
            ));
        }
        Ok(())
    }

    /// The items of this page, of items in the order of their keys, and the token for the rest.
    pub fn cut<T>(self, items: impl IntoIterator<Item = (String, T)>) -> (Vec<T>, Option<String>) {
        let mut rest = items
            .into_iter()
            .skip_while(|(key, _)| self.after.as_deref().is_some_and(|a| key.as_bytes() <= a))
            .peekable();
        let mut taken = Vec::new();
        while let Some((key, item)) = rest.next() {
            taken.push(item);
            if self.count_max == Some(taken.len()) {
                let token = rest.peek().map(|_| self.binding + &hex(key.as_bytes()));
                return (taken, token);
            }
        }
        (taken, None)
    }
}

fn position(token: &str, binding: &str) -> Result<Vec<u8>, ApiError> {
    let error = || {
        ApiError::new(
            "InvalidPaginationToken",
            "The pagination token is not valid for this request",
        )
    };
    if token.len() > TOKEN_CHARS_MAX {
        return Err(error());
    }
    let digits = token.strip_prefix(binding).ok_or_else(error)?.as_bytes();
    if digits.is_empty() || digits.len() % 2 != 0 {
        return Err(error());
    }
    digits
        .chunks_exact(2)
        .map(|pair| {
            let value = |d: u8| char::from(d).to_digit(16).and_then(|v| u8::try_from(v).ok());
            Some(value(pair[0])? << 4 | value(pair[1])?)
        })
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { min: 1, max: 1000, clamp: true };

    fn form(query: &str) -> Form {
        Form::parse(&crate::http::HttpRequest {
            method: "GET".into(),
            path: "/".into(),
            query: query.into(),
            headers: vec![],
            body: vec![],
            oversized: false,
        })
        .expect("a form")
    }

    fn page(query: &str) -> Result<Page, ApiError> {
        let account = "000000000001".parse().expect("an account");
        Page::take(&mut form(query), account, "DescribeVolumes", BOUNDS)
    }

    fn items(keys: &[&str]) -> Vec<(String, String)> {
        keys.iter().map(|k| ((*k).to_owned(), (*k).to_owned())).collect()
    }

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let (first, token) = page("MaxResults=2").expect("valid").cut(items(&["a", "b", "c", "d"]));
        assert_eq!(first, ["a", "b"]);
        let query = format!("MaxResults=2&NextToken={}", token.expect("there is more"));
        // What was last is gone, something new is before it.
        let (second, token) = page(&query).expect("valid").cut(items(&["aa", "c", "d"]));
        assert_eq!((second, token), (vec!["c".to_owned(), "d".to_owned()], None));
    }

    #[test]
    fn a_token_belongs_to_its_query() {
        let (_, token) = page("MaxResults=1&x=1").expect("valid").cut(items(&["a", "b"]));
        let token = token.expect("there is more");
        assert!(page(&format!("MaxResults=7&x=1&NextToken={token}")).is_ok());
        for query in [
            format!("MaxResults=1&x=2&NextToken={token}"),
            format!("MaxResults=1&NextToken={token}"),
            format!("x=1&NextToken={token}0"),
            format!("x=1&NextToken={token}zz"),
            format!("x=1&NextToken={}", &token[..BINDING_BYTES * 2]),
            "x=1&NextToken=nonsense".to_owned(),
        ] {
            let found = page(&query).map_err(|e| e.code);
            assert_eq!(found, Err("InvalidPaginationToken"), "{query}");
        }
        let other = "000000000002".parse().expect("an account");
        let mut theirs = form(&format!("x=1&NextToken={token}"));
        assert!(Page::take(&mut theirs, other, "DescribeVolumes", BOUNDS).is_err());
    }

    #[test]
    fn counts_are_bounded() {
        for (text, ok) in [("0", false), ("1", true), ("1000", true), ("5000", true), ("-1", false)]
        {
            assert_eq!(page(&format!("MaxResults={text}")).is_ok(), ok, "{text}");
        }
    }
}
