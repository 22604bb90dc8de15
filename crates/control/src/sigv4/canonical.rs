//! The canonical request: the one text that signer and verifier must agree on.

use super::Fault;
use crate::http::HttpRequest;

/// `presigned`: the query carries the signature, which is then left out of what it signs.
pub fn request(
    request: &HttpRequest,
    signed_headers: &[String],
    payload_hash: &str,
    presigned: bool,
) -> Result<String, Fault> {
    let mut text = String::with_capacity(512);
    text.push_str(&request.method);
    text.push('\n');
    text.push_str(&path(&request.path));
    text.push('\n');
    text.push_str(&query(&request.query, presigned));
    text.push('\n');
    for name in signed_headers {
        text.push_str(name);
        text.push(':');
        text.push_str(&header(request, name)?);
        text.push('\n');
    }
    text.push('\n');
    text.push_str(&signed_headers.join(";"));
    text.push('\n');
    text.push_str(payload_hash);
    Ok(text)
}

/// The path as it came, without dot segments and doubled slashes, encoded once more: every
/// service but S3 signs it so.
fn path(raw: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in raw.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    let mut text = String::with_capacity(raw.len() + 1);
    for segment in &segments {
        text.push('/');
        encode(segment.as_bytes(), &mut text);
    }
    if segments.is_empty() || raw.ends_with('/') {
        text.push('/');
    }
    text
}

/// Names and values, decoded, in the order they came. A plus sign is a plus sign: SigV4 knows no
/// form encoding here.
pub fn query_pairs(query: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn query(raw: &str, presigned: bool) -> String {
    let mut pairs: Vec<(String, String)> = query_pairs(raw)
        .into_iter()
        .filter(|(name, _)| !(presigned && name == b"X-Amz-Signature"))
        .map(|(name, value)| (encoded(&name), encoded(&value)))
        .collect();
    pairs.sort();
    let parts: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    parts.join("&")
}

/// All values of one header, in order, trimmed, inner runs of white space made one space.
fn header(request: &HttpRequest, name: &str) -> Result<String, Fault> {
    let values: Vec<String> = request
        .headers
        .iter()
        .filter(|(n, _)| n == name)
        .map(|(_, value)| value.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    if values.is_empty() {
        return Err(Fault::Incomplete("a header named in SignedHeaders did not come"));
    }
    Ok(values.join(","))
}

fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped =
            if byte == b'%' { bytes.get(at + 1..at + 3).and_then(hex_pair) } else { None };
        out.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    out
}

fn hex_pair(digits: &[u8]) -> Option<u8> {
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    encode(bytes, &mut text);
    text
}

/// Everything but the unreserved characters of RFC 3986 becomes `%XX`.
fn encode(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}
