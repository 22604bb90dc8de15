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
        let mut key = mac(format!("AWS4{}", self.secret_key).as_bytes(), day);
        for part in [self.region.as_str(), SERVICE, "aws4_request"] {
            key = mac(&key, part);
        }
        let signature = hex(&mac(&key, &to_sign));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={SIGNED_HEADERS}, \
             Signature={signature}",
            self.access_key
        );
        [("authorization", authorization), ("x-amz-content-sha256", payload), ("x-amz-date", date)]
    }
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
    use control::{http::HttpRequest, sigv4};

    use super::*;

    #[test]
    fn a_date_is_in_the_basic_form() {
        assert_eq!(basic_date(WallTime::from_millis(1_795_338_061_007)), "20261122T090101Z");
    }

    /// The verifying side is written apart from this one, against AWS's own test vectors.
    #[test]
    fn the_manager_reads_the_claim() {
        let signer = Signer {
            access_key: "AKIAEXAMPLE".to_owned(),
            secret_key: "secret".to_owned(),
            region: "local-1".to_owned(),
        };
        let wall = WallTime::from_millis(1_795_338_061_007);
        let body = br#"{"zone":"local-1a"}"#;
        let request =
            Request { method: "POST", host: "127.0.0.1:7480", path: "/v1/volumes", body, wall };
        let mut headers = vec![("host".to_owned(), "127.0.0.1:7480".to_owned())];
        let added = signer.headers(request);
        headers.extend(added.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let received = HttpRequest {
            method: "POST".to_owned(),
            path: "/v1/volumes".to_owned(),
            query: String::new(),
            headers,
            body: body.to_vec(),
        };
        let claim = sigv4::Claim::parse(&received).expect("well formed");
        assert_eq!(claim.service(), SERVICE);
    }
}
