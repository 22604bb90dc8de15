//! AWS Signature Version 4, the signing side, for the native API.
//!
//! Invariant: `host`, `x-amz-content-sha256` and `x-amz-date` are signed, so neither the body nor
//! the address nor the moment can be changed on the way.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use model::time::WallTime;
use sha2::{Digest, Sha256};

pub const SERVICE: &str = "pliant";
const SIGNED_HEADERS: &str = "host;x-amz-content-sha256;x-amz-date";

/// Whose signature it is.
#[derive(Clone)]
pub struct Signer {
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
}

/// Leaves the secret out.
impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// What is signed. Path and query hold only characters that need no encoding.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    pub body: &'a [u8],
    pub wall: WallTime,
}

impl Signer {
    /// The headers to add to the request.
    pub fn headers(&self, request: Request<'_>) -> [(&'static str, String); 3] {
        let date = basic_date(request.wall);
        let day = &date[..8];
        let payload = hex(&Sha256::digest(request.body));
        let canonical = format!(
            "{}\n{}\n\nhost:{}\nx-amz-content-sha256:{payload}\nx-amz-date:{date}\n\n\
             {SIGNED_HEADERS}\n{payload}",
            request.method, request.path, request.host
        );
        let scope = format!("{day}/{}/{SERVICE}/aws4_request", self.region);
        let canonical = hex(&Sha256::digest(canonical));
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}");
        let key = signing_key(&self.secret_key, [day, &self.region, SERVICE]);
        let signature = hex(&mac(&key, &to_sign));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={SIGNED_HEADERS}, \
             Signature={signature}",
            self.access_key
        );
        [("authorization", authorization), ("x-amz-content-sha256", payload), ("x-amz-date", date)]
    }
}

/// `scope`: day, region, service.
fn signing_key(secret: &str, scope: [&str; 3]) -> Vec<u8> {
    let first = format!("AWS4{secret}").into_bytes();
    scope.into_iter().chain(["aws4_request"]).fold(first, |key, part| mac(&key, part))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes what is written to it");
        text
    })
}

/// `20261122T090000Z`.
fn basic_date(wall: WallTime) -> String {
    let extended = wall.to_string();
    let seconds = extended.split('.').next().expect("the first part");
    seconds.chars().filter(char::is_ascii_alphanumeric).chain(['Z']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_in_the_basic_form() {
        assert_eq!(basic_date(WallTime::from_millis(1_795_338_061_007)), "20261122T090101Z");
    }

    /// The example of AWS's own documentation.
    #[test]
    fn a_signing_key_is_derived_as_aws_does() {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let key = signing_key(secret, ["20150830", "us-east-1", "iam"]);
        let expected = "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9";
        assert_eq!(hex(&key), expected);
    }
}
