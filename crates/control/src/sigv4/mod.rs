//! AWS Signature Version 4, the verifying side: who signed this request, and is it what they
//! signed.
//!
//! Decides: whether a request carries a valid, fresh signature of a known access key, in the
//! header form or in the query form (presigned).
//! Does not: know what the request asks for, or what its signer may do; read a clock.
//! Invariants:
//! - the signed payload hash is the hash of the body that came;
//! - host is always among the signed headers;
//! - signatures are compared in constant time; no secret leaves this module or reaches a log;
//! - an unknown key and a wrong signature cost the same and look the same.

mod canonical;
mod date;

use hmac::{Hmac, KeyInit, Mac};
use model::time::WallTime;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub use canonical::query_pairs;

use crate::{
    api::{Caller, View},
    http::HttpRequest,
};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// How far a request's date may be from our clock, either way.
const SKEW_MILLIS_MAX: u64 = 15 * 60 * 1000;
/// Longest life of a presigned request: seven days, as AWS has it.
const EXPIRES_SECONDS_MAX: u64 = 7 * 24 * 60 * 60;
/// Headers that one signature may cover.
const SIGNED_HEADERS_MAX: usize = 64;

/// Why a request is not believed. The texts go to callers as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("The request carries no signature; sign it with AWS Signature Version 4")]
    Missing,
    #[error("The signature is not complete: {0}")]
    Incomplete(&'static str),
    #[error("The request is signed for service '{0}', which is not served here")]
    Service(String),
    #[error("The request has expired; its date must be within 15 minutes of the service's clock")]
    Expired,
    #[error("The service was not able to validate the provided access credentials")]
    UnknownKey,
    #[error("The service was not able to validate the provided access credentials")]
    WrongSignature,
    #[error("x-amz-content-sha256 must be the SHA-256 of the body; an unsigned body is refused")]
    Payload,
    #[error("Session tokens are not issued by this service; use an access key alone")]
    SessionToken,
}

/// What a request says about its signature, before any of it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    access_key: String,
    /// `YYYYMMDD`, as signed.
    scope_date: String,
    region: String,
    service: String,
    /// `YYYYMMDDTHHMMSSZ`, as signed.
    date_text: String,
    date: WallTime,
    /// Presigned requests alone.
    expires_seconds: Option<u64>,
    signed_headers: Vec<String>,
    signature: [u8; 32],
}

impl Claim {
    pub fn parse(request: &HttpRequest) -> Result<Self, Fault> {
        match request.header("authorization") {
            Some(value) => Self::from_header(request, value),
            None => Self::from_query(request),
        }
    }

    /// The service in the credential scope: decides which protocol the caller speaks.
    pub fn service(&self) -> &str {
        &self.service
    }

    fn from_header(request: &HttpRequest, value: &str) -> Result<Self, Fault> {
        let rest = value
            .strip_prefix(ALGORITHM)
            .ok_or(Fault::Incomplete("Authorization must begin with AWS4-HMAC-SHA256"))?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in rest.split(',') {
            match part.trim().split_once('=') {
                Some(("Credential", v)) => credential = Some(v),
                Some(("SignedHeaders", v)) => signed_headers = Some(v),
                Some(("Signature", v)) => signature = Some(v),
                _ => return Err(Fault::Incomplete("Authorization holds an unknown part")),
            }
        }
        let date_text = request
            .header("x-amz-date")
            .ok_or(Fault::Incomplete("the header x-amz-date is missing"))?
            .trim();
        Self::new(Parts { credential, signed_headers, signature, date_text, expires: None })
            .and_then(|claim| {
                if !claim.signed_headers.iter().any(|h| h == "x-amz-date") {
                    return Err(Fault::Incomplete("x-amz-date must be a signed header"));
                }
                Ok(claim)
            })
    }

    fn from_query(request: &HttpRequest) -> Result<Self, Fault> {
        let pairs = query_pairs(&request.query);
        let find = |name: &str| {
            pairs.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, v)| v.as_slice())
        };
        let text = |name: &str| find(name).and_then(|v| std::str::from_utf8(v).ok());
        match text("X-Amz-Algorithm") {
            None => return Err(Fault::Missing),
            Some(ALGORITHM) => {}
            Some(_) => return Err(Fault::Incomplete("X-Amz-Algorithm must be AWS4-HMAC-SHA256")),
        }
        Self::new(Parts {
            credential: text("X-Amz-Credential"),
            signed_headers: text("X-Amz-SignedHeaders"),
            signature: text("X-Amz-Signature"),
            date_text: text("X-Amz-Date").ok_or(Fault::Incomplete("X-Amz-Date is missing"))?,
            expires: Some(
                text("X-Amz-Expires").ok_or(Fault::Incomplete("X-Amz-Expires is missing"))?,
            ),
        })
    }

    fn new(parts: Parts<'_>) -> Result<Self, Fault> {
        let credential = parts.credential.ok_or(Fault::Incomplete("Credential is missing"))?;
        let scope: Vec<&str> = credential.split('/').collect();
        let [access_key, scope_date, region, service, "aws4_request"] = scope[..] else {
            return Err(Fault::Incomplete(
                "Credential must be key/YYYYMMDD/region/service/aws4_request",
            ));
        };
        if access_key.is_empty() || region.is_empty() || service.is_empty() {
            return Err(Fault::Incomplete("Credential holds an empty part"));
        }
        let date = date::parse(parts.date_text)
            .ok_or(Fault::Incomplete("the date must be of the form 20300102T030405Z"))?;
        if !parts.date_text.starts_with(scope_date) || scope_date.len() != 8 {
            return Err(Fault::Incomplete("the scope's date is not the day of the request's date"));
        }
        let signature = parts
            .signature
            .and_then(unhex)
            .ok_or(Fault::Incomplete("Signature must be 64 hex digits"))?;
        let expires_seconds = match parts.expires {
            None => None,
            Some(text) => Some(
                text.parse()
                    .ok()
                    .filter(|s| *s <= EXPIRES_SECONDS_MAX)
                    .ok_or(Fault::Incomplete("X-Amz-Expires must be 0 to 604800 seconds"))?,
            ),
        };
        Ok(Self {
            access_key: access_key.to_owned(),
            scope_date: scope_date.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
            date_text: parts.date_text.to_owned(),
            date,
            expires_seconds,
            signed_headers: signed_headers(parts.signed_headers)?,
            signature,
        })
    }

    /// Whether the signature is the one that `secret` makes of this request.
    fn is_signed_by(&self, request: &HttpRequest, secret: &str) -> Result<bool, Fault> {
        let canonical = canonical::request(
            request,
            &self.signed_headers,
            &hex(&Sha256::digest(&request.body)),
            self.expires_seconds.is_some(),
        )?;
        let scope = format!("{}/{}/{}/aws4_request", self.scope_date, self.region, self.service);
        let to_sign = format!(
            "{ALGORITHM}\n{}\n{scope}\n{}",
            self.date_text,
            hex(&Sha256::digest(canonical.as_bytes()))
        );
        let start = format!("AWS4{secret}");
        let key = [&self.scope_date, &self.region, &self.service, "aws4_request"]
            .into_iter()
            .fold(start.into_bytes(), |key, part| keyed_hash(&key, part.as_bytes()).to_vec());
        let expected = keyed_hash(&key, to_sign.as_bytes());
        Ok(expected.ct_eq(&self.signature).into())
    }

    fn check_date(&self, now: WallTime) -> Result<(), Fault> {
        let (now, date) = (now.as_millis(), self.date.as_millis());
        let life = match self.expires_seconds {
            Some(seconds) => seconds * 1000,
            None => SKEW_MILLIS_MAX,
        };
        let too_old = date.saturating_add(life) < now;
        let too_early = now.saturating_add(SKEW_MILLIS_MAX) < date;
        if too_old || too_early { Err(Fault::Expired) } else { Ok(()) }
    }
}

struct Parts<'a> {
    credential: Option<&'a str>,
    signed_headers: Option<&'a str>,
    signature: Option<&'a str>,
    date_text: &'a str,
    expires: Option<&'a str>,
}

/// Checks everything about the claim: service, payload, signature, date.
pub fn verify(
    view: &View<'_>,
    request: &HttpRequest,
    claim: &Claim,
    services: &[&str],
) -> Result<Caller, Fault> {
    if !services.contains(&claim.service.as_str()) {
        return Err(Fault::Service(claim.service.chars().take(32).collect()));
    }
    if let Some(stated) = request.header("x-amz-content-sha256")
        && stated.trim() != hex(&Sha256::digest(&request.body))
    {
        return Err(Fault::Payload);
    }
    let key = view.state.access_keys.get(&claim.access_key);
    let account = key.and_then(|k| view.state.accounts.get(&k.account));
    // An unknown key is checked against some secret all the same, so that time does not tell
    // which keys exist.
    let secret = key.map_or("", |k| k.secret.as_str());
    let signed = claim.is_signed_by(request, secret)?;
    let (Some(key), Some(account)) = (key, account) else {
        return Err(Fault::UnknownKey);
    };
    if !signed {
        return Err(Fault::WrongSignature);
    }
    claim.check_date(view.wall)?;
    if carries_session_token(request) {
        return Err(Fault::SessionToken);
    }
    Ok(Caller { account: account.account, access_key: key.access_key.clone(), root: account.root })
}

/// A request may carry one in a header or, presigned, in the query.
fn carries_session_token(request: &HttpRequest) -> bool {
    request.header("x-amz-security-token").is_some()
        || query_pairs(&request.query).iter().any(|(n, _)| n == b"X-Amz-Security-Token")
}

fn signed_headers(text: Option<&str>) -> Result<Vec<String>, Fault> {
    let text = text.ok_or(Fault::Incomplete("SignedHeaders is missing"))?;
    let names: Vec<String> = text.split(';').map(str::to_owned).collect();
    if names.len() > SIGNED_HEADERS_MAX {
        return Err(Fault::Incomplete("SignedHeaders names more than 64 headers"));
    }
    let ordered = names.windows(2).all(|pair| pair[0] < pair[1]);
    let legal = |name: &String| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase())
    };
    if !ordered || !names.iter().all(legal) {
        return Err(Fault::Incomplete("SignedHeaders must be lower case, sorted and distinct"));
    }
    if !names.iter().any(|n| n == "host") {
        return Err(Fault::Incomplete("host must be a signed header"));
    }
    Ok(names)
}

fn keyed_hash(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

/// 64 lower-case hex digits.
fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
pub(crate) mod signing;
#[cfg(test)]
mod tests;
