//! The signing side, for tests of what is behind the signature.

use model::time::WallTime;
use sha2::{Digest, Sha256};

use super::{ALGORITHM, canonical, hex, keyed_hash};
use crate::http::HttpRequest;

/// Adds date and Authorization; the request must have its host.
pub(crate) fn sign(
    request: &mut HttpRequest,
    access_key: &str,
    secret: &str,
    service: &str,
    wall: WallTime,
) {
    // 2026-11-22T15:00:00.000Z becomes 20261122T150000Z.
    let digits: String = wall.to_string().chars().filter(|c| !"-:".contains(*c)).collect();
    let date = format!("{}Z", digits.split('.').next().expect("split gives one part"));
    request.headers.push(("x-amz-date".to_owned(), date.clone()));
    let names = ["host".to_owned(), "x-amz-date".to_owned()];
    let payload = hex(&Sha256::digest(&request.body));
    let canonical = canonical::request(request, &names, &payload, false).expect("host is there");
    let scope = format!("{}/local-1/{service}/aws4_request", &date[..8]);
    let digest = hex(&Sha256::digest(canonical.as_bytes()));
    let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{digest}");
    let key = scope.split('/').fold(format!("AWS4{secret}").into_bytes(), |key, part| {
        keyed_hash(&key, part.as_bytes()).to_vec()
    });
    let signature = hex(&keyed_hash(&key, to_sign.as_bytes()));
    request.headers.push((
        "authorization".to_owned(),
        format!(
            "{ALGORITHM} Credential={access_key}/{scope}, SignedHeaders=host;x-amz-date, \
             Signature={signature}"
        ),
    ));
}
