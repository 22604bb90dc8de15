//! AWS's published suite (as botocore carries it, Apache-2.0) and requests signed by botocore.

use std::collections::{BTreeMap, BTreeSet};

use format::record::{AccessKey, Account};
use model::id::AccountId;
use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::{api::Place, state::State};

const ACCESS_KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// 2026-11-22T15:00:00Z, when botocore signed.
const SIGNED_AT: u64 = 1_795_359_600_000;

#[derive(Deserialize)]
struct Vector {
    name: String,
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: String,
    #[serde(default)]
    canonical: Option<String>,
}

impl Vector {
    fn request(&self) -> HttpRequest {
        HttpRequest {
            method: self.method.clone(),
            path: self.path.clone(),
            query: self.query.clone(),
            headers: self.headers.clone(),
            body: self.body.clone().into_bytes(),
            oversized: false,
        }
    }
}

fn vectors(text: &str) -> Vec<Vector> {
    serde_json::from_str(text).expect("the vectors are JSON")
}

fn by_botocore(name: &str) -> HttpRequest {
    vectors(include_str!("testdata/botocore.json"))
        .iter()
        .find(|v| v.name == name)
        .expect("the vector is there")
        .request()
}

fn verify_at(millis: u64, request: &HttpRequest, services: &[&str]) -> Result<Caller, Fault> {
    let account: AccountId = "000000000001".parse().expect("an account id");
    let wall = WallTime::from_millis(millis);
    let state = State {
        accounts: BTreeMap::from([(
            account,
            Account { account, name: "one".into(), root: false, created: wall },
        )]),
        access_keys: BTreeMap::from([(
            ACCESS_KEY.to_owned(),
            AccessKey {
                access_key: ACCESS_KEY.into(),
                secret: SECRET.into(),
                account,
                created: wall,
            },
        )]),
        ..State::default()
    };
    let place = Place { region: "local-1".into(), zones: vec![], endpoint: String::new() };
    let view = View {
        state: &state,
        place: &place,
        servers_up: &BTreeSet::new(),
        nodes_up: &BTreeSet::new(),
        live: &crate::live::Live::default(),
        wall,
        request_id: "test",
    };
    verify(&view, request, &Claim::parse(request)?, services)
}

#[test]
fn every_request_of_the_published_suite_verifies() {
    let suite = vectors(include_str!("testdata/aws4_suite.json"));
    assert_eq!(suite.len(), 34);
    for vector in suite {
        let request = vector.request();
        let claim = Claim::parse(&request).expect(&vector.name);
        let canonical = canonical::request(
            &request,
            &claim.signed_headers,
            &hex(&Sha256::digest(&request.body)),
            false,
        );
        assert_eq!(canonical.ok(), vector.canonical, "{}", vector.name);
        assert_eq!(claim.is_signed_by(&request, SECRET), Ok(true), "{}", vector.name);
        assert_eq!(claim.is_signed_by(&request, "another"), Ok(false), "{}", vector.name);
    }
}

#[test]
fn what_botocore_signs_verifies() {
    for vector in vectors(include_str!("testdata/botocore.json")) {
        let found = verify_at(SIGNED_AT, &vector.request(), &["ec2", "sts", "pliant"]);
        assert_eq!(found.map(|c| c.access_key), Ok(ACCESS_KEY.to_owned()), "{}", vector.name);
    }
}

#[test]
fn a_change_of_anything_signed_is_noticed() {
    let check = |name: &str, change: &dyn Fn(&mut HttpRequest)| {
        let mut request = by_botocore(name);
        change(&mut request);
        let found = verify_at(SIGNED_AT, &request, &["ec2"]);
        assert_eq!(found, Err(Fault::WrongSignature), "{name}");
    };
    check("ec2 form", &|r| r.body.push(b'x'));
    check("ec2 form", &|r| r.body.clear());
    check("ec2 form", &|r| r.path.push('x'));
    check("ec2 form", &|r| r.query.push_str("x=y"));
    check("ec2 form", &|r| r.method = "PUT".into());
    check("ec2 form", &|r| set_header(r, "host", "127.0.0.1:7701"));
    check("ec2 form", &|r| set_header(r, "host", "127.0.0.1"));
    check("ec2 form", &|r| set_header(r, "content-type", "text/plain"));
    check("ec2 form", &|r| set_header(r, "x-amz-date", "20261122T150001Z"));
    check("ec2 form", &|r| r.headers.push(("host".into(), "evil.example".into())));
    check("ec2 presigned", &|r| r.query = r.query.replace("Expires=3600", "Expires=36000"));
    check("ec2 presigned", &|r| r.query = r.query.replace("DescribeVolumes", "DeleteVolume"));
    check("ec2 presigned", &|r| r.body = b"Action=DeleteVolume".to_vec());
}

#[test]
fn a_header_that_is_not_signed_may_change() {
    let mut request = by_botocore("ec2 form");
    request.headers.push(("amz-sdk-request".into(), "attempt=2".into()));
    assert!(verify_at(SIGNED_AT, &request, &["ec2"]).is_ok());
}

#[test]
fn a_signature_lives_a_quarter_of_an_hour_either_way() {
    let request = by_botocore("ec2 form");
    for at in [SIGNED_AT - SKEW_MILLIS_MAX, SIGNED_AT + SKEW_MILLIS_MAX] {
        assert!(verify_at(at, &request, &["ec2"]).is_ok());
    }
    for at in [SIGNED_AT - SKEW_MILLIS_MAX - 1, SIGNED_AT + SKEW_MILLIS_MAX + 1] {
        assert_eq!(verify_at(at, &request, &["ec2"]), Err(Fault::Expired));
    }
}

#[test]
fn a_presigned_request_lives_as_long_as_it_says() {
    let request = by_botocore("ec2 presigned");
    assert!(verify_at(SIGNED_AT + 3_600_000, &request, &["ec2"]).is_ok());
    assert_eq!(verify_at(SIGNED_AT + 3_600_001, &request, &["ec2"]), Err(Fault::Expired));
    assert_eq!(verify_at(SIGNED_AT - SKEW_MILLIS_MAX - 1, &request, &["ec2"]), Err(Fault::Expired));
}

#[test]
fn a_request_for_another_service_is_refused() {
    assert_eq!(
        verify_at(SIGNED_AT, &by_botocore("sts form"), &["ec2", "pliant"]),
        Err(Fault::Service("sts".into()))
    );
}

#[test]
fn an_unknown_key_is_refused_like_a_wrong_signature() {
    let mut request = by_botocore("ec2 form");
    let value = request.header("authorization").expect("signed").replace(ACCESS_KEY, "AKIDNOBODY");
    set_header(&mut request, "authorization", &value);
    let found = verify_at(SIGNED_AT, &request, &["ec2"]).expect_err("nobody has this key");
    assert_eq!(found, Fault::UnknownKey);
    assert_eq!(found.to_string(), Fault::WrongSignature.to_string());
}

#[test]
fn an_unsigned_or_misstated_body_is_refused() {
    for stated in ["UNSIGNED-PAYLOAD", &"0".repeat(64), "", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"] {
        let mut request = by_botocore("ec2 form");
        request.headers.push(("x-amz-content-sha256".into(), stated.into()));
        assert_eq!(verify_at(SIGNED_AT, &request, &["ec2"]), Err(Fault::Payload), "{stated}");
    }
    let mut request = by_botocore("ec2 form");
    let hash = hex(&Sha256::digest(&request.body));
    request.headers.push(("x-amz-content-sha256".into(), hash));
    assert!(verify_at(SIGNED_AT, &request, &["ec2"]).is_ok());
}

#[test]
fn a_session_token_is_refused() {
    let mut request = by_botocore("ec2 form");
    request.headers.push(("x-amz-security-token".into(), "token".into()));
    assert_eq!(verify_at(SIGNED_AT, &request, &["ec2"]), Err(Fault::SessionToken));
}

#[test]
fn a_request_without_signature_is_missing_it() {
    let mut request = by_botocore("ec2 form");
    request.headers.retain(|(name, _)| name != "authorization");
    assert_eq!(Claim::parse(&request), Err(Fault::Missing));
}

#[test]
fn an_incomplete_signature_is_told_from_a_wrong_one() {
    let whole = by_botocore("ec2 form").header("authorization").expect("signed").to_owned();
    for (from, to) in [
        ("AWS4-HMAC-SHA256", "Basic"),
        ("Credential=", "Credentials="),
        ("AKIDEXAMPLE/", ""),
        ("/aws4_request", ""),
        ("20261122", "20261121"),
        ("host;", ""),
        ("content-type;host", "host;content-type"),
        ("content-type;", "content-type;content-type;"),
        ("host", "Host"),
        (";x-amz-date", ""),
        ("Signature=", "Signature=ab"),
        (", Signature=", ", Nothing="),
        ("content-type;", "a-header;content-type;"),
    ] {
        let mut request = by_botocore("ec2 form");
        set_header(&mut request, "authorization", &whole.replace(from, to));
        let found = verify_at(SIGNED_AT, &request, &["ec2"]);
        assert!(matches!(found, Err(Fault::Incomplete(_))), "{from} -> {to}: {found:?}");
    }
    for date in ["", "20261122", "Sun, 22 Nov 2026 15:00:00 GMT", "20261122T250000Z"] {
        let mut request = by_botocore("ec2 form");
        set_header(&mut request, "x-amz-date", date);
        assert!(matches!(Claim::parse(&request), Err(Fault::Incomplete(_))), "{date}");
    }
}

#[test]
fn hex_goes_there_and_back() {
    let bytes: [u8; 32] = std::array::from_fn(|i| u8::try_from(i * 8).expect("below 256"));
    assert_eq!(unhex(&hex(&bytes)), Some(bytes));
    assert_eq!(unhex(&"A".repeat(64)), None);
    assert_eq!(unhex("00"), None);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(
        authorization in proptest::option::of("(AWS4-HMAC-SHA256)?[ -~]{0,80}"),
        date in "[0-9TZ]{0,17}",
        path in "/[ -~]{0,40}",
        query in "(X-Amz-Algorithm=AWS4-HMAC-SHA256&)?[ -~]{0,80}",
        body in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut headers = vec![("x-amz-date".to_owned(), date)];
        headers.extend(authorization.map(|a| ("authorization".to_owned(), a)));
        let request = HttpRequest { method: "POST".into(), path, query, headers, body, oversized: false };
        let _ = verify_at(SIGNED_AT, &request, &["ec2"]);
    }

    #[test]
    fn no_path_or_query_makes_the_canonical_form_panic(
        path in "\\PC{0,40}",
        query in "\\PC{0,40}",
    ) {
        let headers = vec![("host".to_owned(), "h".to_owned())];
        let request =
            HttpRequest { method: "GET".into(), path, query, headers, body: vec![], oversized: false };
        let text = canonical::request(&request, &["host".to_owned()], "hash", true);
        prop_assert!(text.expect("host came").is_ascii());
    }
}

fn set_header(request: &mut HttpRequest, name: &str, value: &str) {
    for (n, v) in &mut request.headers {
        if n == name {
            value.clone_into(v);
        }
    }
}
