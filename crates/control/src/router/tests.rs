use proptest::prelude::*;

use super::{fixture::*, *};
use crate::api::CommandKind;

fn code(response: &HttpResponse) -> (u16, String) {
    let body = text(response);
    let code = body
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"))
        .map_or("", |(code, _)| code);
    (response.status, code.to_owned())
}

#[test]
fn a_call_without_a_valid_signature_gets_nowhere() {
    let fixture = Fixture::new();
    let check = |change: &dyn Fn(&mut HttpRequest), status: u16, expected: &str| {
        let mut request = ec2_call(ONE, "Action=DeleteVolume&VolumeId=vol-00000000000000002");
        change(&mut request);
        assert_eq!(code(&fixture.answer(&request)), (status, expected.to_owned()));
    };
    check(&|r| r.headers.retain(|(n, _)| n != "authorization"), 403, "MissingAuthenticationToken");
    check(&|r| r.body.push(b'1'), 401, "AuthFailure");
    check(&|r| r.headers[2].1 = r.headers[2].1.replace("AKIA", "AKIB"), 401, "AuthFailure");
    check(&|r| r.headers[2].1 = "AWS4-HMAC-SHA256 x=y".into(), 400, "IncompleteSignature");
    check(&|r| r.headers[2].1 = r.headers[2].1.replace("/ec2/", "/s3/"), 400, "InvalidAction");
    check(&|r| r.method = "PUT".into(), 405, "MethodNotAllowed");
    check(&|r| r.path = "/other".into(), 404, "InvalidAction");
    check(&|r| r.body = vec![b'a'; API_BODY_BYTES_MAX + 1], 413, "RequestEntityTooLarge");
    check(&|r| r.oversized = true, 413, "RequestEntityTooLarge");
}

#[test]
fn an_old_request_is_expired() {
    let fixture = Fixture::new();
    let request = ec2_call(ONE, "Action=DescribeVolumes");
    let late = model::time::WallTime::from_millis(NOW.as_millis() + 15 * 60_000 + 1);
    let view = View { wall: late, ..fixture.view() };
    let Received::Answer(answer) = receive(&view, &request) else { panic!("a command") };
    assert_eq!(code(&answer), (400, "RequestExpired".to_owned()));
}

#[test]
fn the_scope_tells_ec2_from_sts() {
    let fixture = Fixture::new();
    let ask = "Action=GetCallerIdentity&Version=2011-06-15";
    let answer = fixture.answer(&signed(ONE, "sts", "POST", "/", ask));
    assert_eq!(answer.status, 200);
    assert!(text(&answer).contains("<Account>000000000001</Account>"));
    let answer = fixture.answer(&signed(ONE, "ec2", "POST", "/", ask));
    assert_eq!(code(&answer), (400, "InvalidAction".to_owned()));
    let answer = fixture.answer(&signed(ONE, "sts", "POST", "/", "Action=DescribeVolumes"));
    assert_eq!(code(&answer), (400, "InvalidAction".to_owned()));
    assert!(text(&answer).contains("<Type>Sender</Type>"));
    let mut forged = signed(ONE, "sts", "POST", "/", ask);
    forged.body.push(b'&');
    assert_eq!(code(&fixture.answer(&forged)), (403, "SignatureDoesNotMatch".to_owned()));
}

#[test]
fn the_native_form_takes_both_services_and_tells_faults_in_json() {
    let fixture = Fixture::new();
    for service in ["pliant", "ec2"] {
        assert_eq!(fixture.answer(&signed(ONE, service, "GET", "/v1/caller", "")).status, 200);
    }
    let answer = fixture.answer(&signed(ONE, "sts", "GET", "/v1/caller", ""));
    assert_eq!(answer.status, 400);
    assert!(text(&answer).contains("\"code\":\"InvalidAction\""));
    let mut unsigned = signed(ONE, "pliant", "GET", "/v1/volumes", "");
    unsigned.headers.retain(|(n, _)| n == "host");
    let answer = fixture.answer(&unsigned);
    assert_eq!(answer.status, 403);
    assert!(text(&answer).contains("MissingAuthenticationToken"));
}

#[test]
fn a_command_carries_its_caller_and_prints_its_answer() {
    let fixture = Fixture::new();
    let request = ec2_call(ONE, &format!("Action=DeleteVolume&VolumeId={IO1}"));
    let Received::Command { caller, command, render } = fixture.received(&request) else {
        panic!("no command");
    };
    assert_eq!(caller.account.to_string(), ONE);
    assert!(matches!(command.kind, CommandKind::DeleteVolume { .. }));
    let answer = render.clone().render(&fixture.view(), Ok(Done::Nothing));
    assert!(text(&answer).contains("<return>true</return></DeleteVolumeResponse>"));
    let error = ApiError::new("VolumeInUse", "Volume <x> is attached");
    let answer = render.render(&fixture.view(), Err(error));
    assert_eq!(code(&answer), (400, "VolumeInUse".to_owned()));
    assert!(text(&answer).contains("Volume &lt;x&gt; is attached"));
}

proptest! {
    #[test]
    fn no_signed_bytes_make_the_decoders_panic(
        action in "(Describe(Volumes|Tags|VolumeStatus|Instances)|CreateVolume|CreateTags|[ -~]*)",
        names in proptest::collection::vec(
            "(Filter|Tag|TagSpecification|VolumeId)?[.]?[0-9]{0,12}[.]?(Name|Value|Key)?[.0-9]{0,6}",
            0..8,
        ),
        value in "\\PC{0,20}",
        service in "(ec2|sts)",
    ) {
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.append_pair("Action", &action);
        for name in &names {
            body.append_pair(name, &value);
        }
        let fixture = Fixture::new();
        let _ = fixture.received(&signed(ONE, &service, "POST", "/", &body.finish()));
    }

    #[test]
    fn no_signed_json_makes_the_decoders_panic(
        method in "(GET|POST|DELETE|HEAD)",
        path in "/v1/(volumes|attachments|accounts)?(/[ -~]{0,20}){0,2}",
        body in "(\\{)?[ -~]{0,60}",
    ) {
        let fixture = Fixture::new();
        let _ = fixture.received(&signed(ROOT, "pliant", &method, &path, &body));
    }
}
