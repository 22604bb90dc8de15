//! Calls to the manager's native API, signed as a client would.

use control::http::HttpRequest;
use hmac::{Hmac, KeyInit, Mac};
use model::time::WallTime;
use serde_json::Value;
use sha2::{Digest, Sha256};

pub const ACCESS_KEY: &str = "AKIDSIMULATION";
pub const SECRET: &str = "simulated-secret";
const REGION: &str = "local-1";
const SERVICE: &str = "pliant";

/// A signed request; no body means an empty one.
pub fn request(method: &str, path: &str, body: Option<&Value>, wall: WallTime) -> HttpRequest {
    let body = body.map_or_else(Vec::new, |b| b.to_string().into_bytes());
    let stamp: String = wall.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect();
    let stamp = format!("{}Z", &stamp[..15]);
    let day = &stamp[..8];
    let scope = format!("{day}/{REGION}/{SERVICE}/aws4_request");
    let canonical = format!(
        "{method}\n{path}\n\nhost:sim\nx-amz-date:{stamp}\n\nhost;x-amz-date\n{}",
        hex(&Sha256::digest(&body))
    );
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}",
        hex(&Sha256::digest(canonical.as_bytes()))
    );
    let mut key = mac(format!("AWS4{SECRET}").as_bytes(), day);
    for part in [REGION, SERVICE, "aws4_request"] {
        key = mac(&key, part);
    }
    let signature = hex(&mac(&key, &to_sign));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders=host;x-amz-date, \
         Signature={signature}"
    );
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    HttpRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        query: String::new(),
        headers: vec![
            header("host", "sim"),
            header("x-amz-date", &stamp),
            header("authorization", &authorization),
            header("content-type", "application/json"),
        ],
        body,
        oversized: false,
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes any key");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
