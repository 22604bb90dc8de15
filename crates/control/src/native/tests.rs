//! Tables of native calls, and the OpenAPI document held against what is served.

use std::collections::BTreeSet;

use format::{ctl::IncompleteReplica, record::Record};
use model::units::{Gib, Iops, MibPerSec};
use serde_json::Value;

use super::*;
use crate::{
    api::{self, ZoneChoice},
    router::{Received, fixture::*},
    state::Write,
};

fn get(fixture: &Fixture, account: &str, path: &str) -> (u16, Value) {
    let answer = fixture.answer(&signed(account, "pliant", "GET", path, ""));
    (answer.status, serde_json::from_slice(&answer.body).expect("answers are JSON"))
}

fn refused(fixture: &Fixture, method: &str, path: &str, body: &str) -> (u16, String) {
    let answer = fixture.answer(&signed(ONE, "pliant", method, path, body));
    let value: Value = serde_json::from_slice(&answer.body).expect("answers are JSON");
    let code = value["error"]["code"].as_str().unwrap_or("ok").to_owned();
    assert_eq!(code == "ok", value["error"]["message"].is_null(), "{value}");
    (answer.status, code)
}

fn decoded(method: &str, path: &str, body: &str) -> Command {
    let fixture = Fixture::new();
    match fixture.received(&signed(ROOT, "pliant", method, path, body)) {
        Received::Command { command, .. } => command,
        Received::Answer(answer) => panic!("refused: {}", text(&answer)),
    }
}

fn document() -> Value {
    serde_json::from_str(OPENAPI).expect("the document is JSON")
}

#[test]
fn wrong_calls_are_refused_with_a_code() {
    let fixture = Fixture::new();
    let modify = "/v1/volumes/vol-00000000000000001/modify";
    for (method, path, body, status, code) in [
        ("GET", "/v1", "", 404, "NotFound"),
        ("GET", "/v1/", "", 404, "NotFound"),
        ("GET", "/v1/nothing", "", 404, "NotFound"),
        ("GET", "/v1/volumes/", "", 404, "NotFound"),
        ("GET", "/v1/volumes/a/b", "", 404, "NotFound"),
        ("GET", "/v1/volumes?limit=5", "", 400, "UnknownParameter"),
        ("HEAD", "/v1/volumes", "", 405, "MethodNotAllowed"),
        ("PUT", "/v1/volumes/vol-00000000000000001", "", 405, "MethodNotAllowed"),
        ("POST", "/v1/caller", "", 405, "MethodNotAllowed"),
        ("GET", "/v1/volumes/vol-1", "", 400, "InvalidVolumeID.Malformed"),
        ("GET", "/v1/volumes/%2e%2e", "", 400, "InvalidVolumeID.Malformed"),
        ("DELETE", "/v1/volumes/VOL-00000000000000001", "", 400, "InvalidVolumeID.Malformed"),
        ("GET", "/v1/volumes/vol-0000000000000dead", "", 404, "InvalidVolume.NotFound"),
        ("GET", "/v1/volumes/vol-00000000000000004", "", 404, "InvalidVolume.NotFound"),
        ("GET", "/v1/volumes/vol-00000000000000005", "", 404, "InvalidVolume.NotFound"),
        (
            "GET",
            "/v1/volumes/vol-00000000000000004/modifications",
            "",
            404,
            "InvalidVolume.NotFound",
        ),
        ("GET", "/v1/servers", "", 403, "UnauthorizedOperation"),
        ("GET", "/v1/accounts", "", 403, "UnauthorizedOperation"),
        ("POST", "/v1/servers/server-a-1/drain", "", 403, "UnauthorizedOperation"),
        ("POST", "/v1/servers/nobody/uncordon", "", 403, "UnauthorizedOperation"),
        ("POST", "/v1/servers/server-a-1/shoot", "", 404, "NotFound"),
        ("POST", "/v1/accounts", r#"{"name":"x"}"#, 403, "UnauthorizedOperation"),
        ("POST", "/v1/volumes", "", 400, "ValidationError"),
        ("POST", "/v1/volumes", "[]", 400, "ValidationError"),
        ("POST", "/v1/volumes", r#"["local-1a",8,"gp3",3000,125,{},"t"]"#, 400, "ValidationError"),
        ("POST", "/v1/accounts", r#" ["x"]"#, 403, "UnauthorizedOperation"),
        ("POST", "/v1/volumes", r#"{"size":8}"#, 400, "ValidationError"),
        ("POST", "/v1/volumes", r#"{"size_gib":-8}"#, 400, "ValidationError"),
        ("POST", "/v1/volumes", r#"{"size_gib":4294967296}"#, 400, "ValidationError"),
        ("POST", "/v1/volumes", r#"{"size_gib":8.5}"#, 400, "ValidationError"),
        ("POST", "/v1/volumes", r#"{"size_gib":8,"size_gib":9}"#, 400, "ValidationError"),
        ("POST", "/v1/volumes", r#"{"size_gib":8} x"#, 400, "ValidationError"),
        ("POST", modify, r#"{"volume_id":"x"}"#, 400, "ValidationError"),
        ("POST", "/v1/attachments", r#"{"volume_id":"x"}"#, 400, "ValidationError"),
        (
            "POST",
            "/v1/attachments",
            r#"{"volume_id":"x","instance_id":"y","device":"/dev/sdf"}"#,
            400,
            "InvalidVolumeID.Malformed",
        ),
        (
            "POST",
            "/v1/attachments/detach",
            r#"{"volume_id":"vol-00000000000000001","instance_id":"y"}"#,
            400,
            "InvalidInstanceID.Malformed",
        ),
    ] {
        let expected = (status, code.to_owned());
        assert_eq!(refused(&fixture, method, path, body), expected, "{method} {path} {body}");
    }
}

#[test]
fn commands_are_decoded() {
    let id: VolumeId = GP3.parse().expect("an id");
    let instance = INSTANCE.parse().expect("an id");
    let check = |method: &str, path: &str, body: &str, dry_run, kind| {
        assert_eq!(decoded(method, path, body), Command { dry_run, kind }, "{path} {body}");
    };
    check(
        "POST",
        "/v1/volumes",
        r#"{"zone":"local-1a","size_gib":8,"volume_type":"gp3","iops":4000,"throughput_mib":250,
            "stripes":4,"tags":{"a":"b"},"client_token":"t"}"#,
        false,
        CommandKind::CreateVolume(api::CreateVolume {
            zone: ZoneChoice::Name("local-1a".into()),
            size: Some(Gib::new(8)),
            volume_type: Some("gp3".into()),
            iops: Some(Iops::new(4000)),
            throughput: Some(MibPerSec::new(250)),
            multi_attach: false,
            encrypted: false,
            kms_key_id: None,
            snapshot_id: None,
            stripes: Some(4),
            tags: [("a".into(), "b".into())].into(),
            client_token: Some("t".into()),
        }),
    );
    check(
        "POST",
        &format!("/v1/volumes/{GP3}/modify"),
        r#"{"size_gib":12,"volume_type":"st1","zone":"local-1b","stripes":2,"dry_run":true}"#,
        true,
        CommandKind::ModifyVolume(api::ModifyVolume {
            volume: Some(id),
            size: Some(Gib::new(12)),
            volume_type: Some("st1".into()),
            zone: Some("local-1b".into()),
            stripes: Some(2),
            ..api::ModifyVolume::default()
        }),
    );
    check(
        "DELETE",
        &format!("/v1/volumes/{GP3}"),
        "",
        false,
        CommandKind::DeleteVolume { volume: id },
    );
    check(
        "POST",
        "/v1/attachments",
        &format!(
            r#"{{"volume_id":"{GP3}","instance_id":"{INSTANCE}","device":"/dev/sdf",
                "kernel_device":true}}"#
        ),
        false,
        CommandKind::AttachVolume(api::AttachVolume {
            volume: id,
            instance,
            device: "/dev/sdf".into(),
            kernel_device: true,
        }),
    );
    check(
        "POST",
        "/v1/attachments/detach",
        &format!(r#"{{"volume_id":"{GP3}","force":true}}"#),
        false,
        CommandKind::DetachVolume(api::DetachVolume {
            volume: id,
            instance: None,
            device: None,
            force: true,
        }),
    );
    check(
        "POST",
        "/v1/accounts",
        r#"{"name":"new"}"#,
        false,
        CommandKind::CreateAccount { name: "new".into() },
    );
}

#[test]
fn a_volume_is_shown_with_its_replicas() {
    let fixture = Fixture::new();
    let (status, volume) = get(&fixture, ONE, &format!("/v1/volumes/{IO1}"));
    assert_eq!(status, 200);
    let roles: Vec<_> = volume["replicas"].as_array().expect("a list").iter().collect();
    let role = |n: usize| (&roles[n]["role"], &roles[n]["server"], &roles[n]["server_up"]);
    assert_eq!(role(0), (&json!("primary"), &json!("server-a-1"), &json!(true)));
    assert_eq!(role(1), (&json!("mirror"), &json!("server-c-1"), &json!(false)));
    assert_eq!(role(2), (&json!("spare"), &json!("server-c-1"), &json!(false)));
    assert_eq!((&volume["in_sync"], &volume["wanted"]), (&json!(2), &json!(2)));
    assert_eq!(volume["degraded"], json!(true));
    assert_eq!(volume["modification"], Value::Null);
    assert_eq!(volume["replicas"][0]["emulation"], json!("thin file"));
}

#[test]
fn an_account_sees_its_own_things_and_root_the_fleet() {
    let fixture = Fixture::new();
    let ids = |account: &str, path: &str, list: &str, key: &str| -> Vec<String> {
        let (status, value) = get(&fixture, account, path);
        assert_eq!(status, 200, "{value}");
        let items = value[list].as_array().expect("a list").iter();
        items.map(|item| item[key].as_str().expect("text").to_owned()).collect()
    };
    assert_eq!(ids(ONE, "/v1/volumes", "volumes", "volume_id"), [GP3, IO1, ST1]);
    assert_eq!(ids(TWO, "/v1/volumes", "volumes", "volume_id"), [OF_TWO]);
    assert_eq!(ids(ONE, "/v1/attachments", "attachments", "volume_id"), [GP3]);
    assert!(ids(TWO, "/v1/attachments", "attachments", "volume_id").is_empty());
    assert_eq!(ids(ONE, "/v1/instances", "instances", "instance_id"), [INSTANCE]);
    assert_eq!(ids(ONE, "/v1/nodes", "nodes", "node"), ["node-a"]);
    assert_eq!(ids(ROOT, "/v1/nodes", "nodes", "node"), ["node-a", "node-c"]);
    assert_eq!(ids(ROOT, "/v1/servers", "servers", "server").len(), 3);
    assert_eq!(ids(ROOT, "/v1/accounts", "accounts", "account"), [ONE, TWO, ROOT]);
    let path = format!("/v1/volumes/{GP3}/modifications");
    assert_eq!(ids(ONE, &path, "modifications", "state"), ["failed", "optimizing"]);
}

#[test]
fn the_ledger_adds_up_what_was_promised() {
    let fixture = Fixture::new();
    let (_, value) = get(&fixture, ROOT, "/v1/servers");
    // Server a holds the primaries of both groups: 8 and 100 GiB, 3,000 and 1,000 IOPS.
    let drive = &value["servers"][0]["drives"][0];
    assert_eq!(drive["promised_bytes"], json!(108u64 << 30));
    assert_eq!(drive["promised_iops"], json!(4000));
    assert_eq!(drive["promised_throughput_mib"], json!(375));
}

#[test]
fn the_fleet_shows_how_each_drive_stands() {
    let mut fixture = Fixture::new();
    let drives = |fixture: &Fixture| {
        let (_, value) = get(fixture, ROOT, "/v1/servers");
        let drive = |n: usize| value["servers"][n]["drives"][0].clone();
        [drive(0), drive(2)]
    };
    let [drive, away] = drives(&fixture);
    assert_eq!((&drive["state"], &away["state"]), (&json!("serving"), &json!("unknown")));
    assert_eq!(away["usage"], Value::Null);
    let usage = &drive["usage"];
    assert_eq!(usage["total_bytes"], json!(1000u64 * 65_536));
    assert_eq!(usage["used_bytes"], json!(250u64 * 65_536));
    assert_eq!((&usage["fullness"], &usage["stuck"]), (&json!("room"), &Value::Null));
    let bad = ["found", "repaired", "lost"].map(|k| usage[format!("bad_blocks_{k}")].clone());
    assert_eq!(bad, [json!(3), json!(2), json!(1)]);
    let server = "server-a-1".parse().expect("a name");
    let facts = fixture.live.servers.get_mut(&server).expect("up");
    let ssd = "ssd".parse().expect("a name");
    facts.drives.get_mut(&ssd).expect("reported").usage.slots_used = 970;
    facts.failed_drives.insert(ssd, "input/output error".to_owned());
    let [drive, _] = drives(&fixture);
    assert_eq!(drive["state"], json!("out-of-service"));
    assert_eq!(drive["reason"], json!("input/output error"));
    assert_eq!(drive["usage"]["fullness"], json!("full"));
}

#[test]
fn a_replica_that_its_server_does_not_hold_is_missing_and_does_not_count() {
    let mut fixture = Fixture::new();
    let shown = |fixture: &Fixture| get(fixture, ONE, &format!("/v1/volumes/{GP3}")).1;
    assert_eq!(shown(&fixture)["in_sync"], json!(2));
    for server in ["server-a-1", "server-b-1"] {
        let server = server.parse().expect("a name");
        fixture.live.servers.get_mut(&server).expect("up").replicas.clear();
    }
    let volume = shown(&fixture);
    assert_eq!((&volume["in_sync"], &volume["wanted"]), (&json!(0), &json!(2)));
    assert_eq!((&volume["impaired"], &volume["degraded"]), (&json!(true), &json!(true)));
    let states: Vec<_> = (0..2).map(|n| volume["replicas"][n]["state"].clone()).collect();
    assert_eq!(states, [json!("missing"), json!("missing")]);
    assert_eq!(volume["faults"].as_array().map(Vec::len), Some(2), "{volume}");
}

#[test]
fn parts_of_a_striped_replica_whose_sibling_is_gone_are_shown_as_such() {
    let mut fixture = Fixture::new();
    let volume = fixture.state.volumes.values().find(|v| v.volume.to_string() == GP3);
    let group = volume.expect("it is there").group;
    let mut group = fixture.state.groups[&group].clone();
    let replica = group.desired[0].replica;
    for placed in group.desired.iter_mut().chain(group.replicas.get_mut(&replica)) {
        placed.beside = ["ssd-1", "ssd-2"].map(|name| name.parse().expect("a name")).to_vec();
    }
    let server = group.desired[0].drive.server.clone();
    fixture.state.apply(&Write::Put(Record::Group(group)));
    let facts = fixture.live.servers.get_mut(&server).expect("up");
    facts.replicas.clear();
    let drives = ["ssd", "ssd-2"].map(|name| name.parse().expect("a name")).to_vec();
    facts.registration.incomplete = vec![IncompleteReplica { replica, drives }];
    let (_, shown) = get(&fixture, ONE, &format!("/v1/volumes/{GP3}"));
    assert_eq!(shown["replicas"][0]["drives"], json!(["ssd", "ssd-1", "ssd-2"]));
    assert_eq!(shown["replicas"][0]["state"], json!("missing"));
    let fault = format!("{server} does not hold the part of {replica} on ssd-1 any more");
    assert_eq!(shown["faults"], json!([fault]));
}

#[test]
fn a_kernel_device_that_cannot_be_made_says_why() {
    let mut fixture = Fixture::new();
    let node: model::id::NodeId = "node-a".parse().expect("a name");
    let volume = GP3.parse().expect("an id");
    let failures = std::collections::BTreeMap::from([(volume, "no loop device".to_owned())]);
    fixture.live.nodes.insert(node, fixture.node(failures));
    let (_, value) = get(&fixture, ONE, "/v1/attachments");
    assert_eq!(value["attachments"][0]["device_error"], json!("no loop device"));
}

#[test]
fn secrets_are_shown_once() {
    let fixture = Fixture::new();
    let answer = fixture.answer(&signed(ROOT, "pliant", "GET", "/v1/accounts", ""));
    assert!(!text(&answer).contains("secret"));
    let account = fixture.state.accounts.values().next().expect("one").clone();
    let key = fixture.state.access_keys.values().next().expect("one").clone();
    let answer = print(&fixture.view(), &Done::Account { account, key });
    assert!(text(&answer).contains("\"secret_key\":\"secretAKIA000000000001\""));
}

#[test]
fn health_and_the_document_need_no_signature() {
    let fixture = Fixture::new();
    for path in ["/v1/health", "/v1/openapi.json"] {
        let mut request = signed(ONE, "pliant", "GET", path, "");
        request.headers.clear();
        assert_eq!(fixture.answer(&request).status, 200, "{path}");
    }
    let (_, health) = get(&fixture, ONE, "/v1/health");
    assert_eq!(health, json!({"status":"ok","servers_up":2,"servers":3,"nodes_up":1}));
}

#[test]
fn the_document_lists_every_route_and_no_other() {
    let document = document();
    let documented: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .expect("an object")
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("an object").keys();
            methods.map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let served: BTreeSet<(String, String)> =
        routes::ROUTES.iter().map(|(m, p, _)| ((*m).to_owned(), (*p).to_owned())).collect();
    assert_eq!(documented, served);
}

#[test]
fn what_is_served_is_exactly_what_the_document_says() {
    let fixture = Fixture::new();
    let check = |schema: &str, value: &Value| {
        assert_eq!(faults(&document(), &schema_named(schema), value, schema), [""; 0]);
    };
    let volume = format!("/v1/volumes/{GP3}");
    let modifications = format!("/v1/volumes/{GP3}/modifications");
    for (path, schema) in [
        ("/v1/volumes", "Volumes"),
        (&volume, "Volume"),
        (&modifications, "Modifications"),
        ("/v1/attachments", "Attachments"),
        ("/v1/instances", "Instances"),
        ("/v1/zones", "Zones"),
        ("/v1/caller", "Caller"),
        ("/v1/health", "Health"),
    ] {
        check(schema, &get(&fixture, ONE, path).1);
    }
    for (path, schema) in
        [("/v1/servers", "Servers"), ("/v1/nodes", "Nodes"), ("/v1/accounts", "Accounts")]
    {
        check(schema, &get(&fixture, ROOT, path).1);
    }
    check("Error", &get(&fixture, ONE, "/v1/servers").1);
    let shown = |done: &Done| -> Value {
        serde_json::from_slice(&print(&fixture.view(), done).body).expect("JSON")
    };
    let state = &fixture.state;
    let account = state.accounts.values().next().expect("one").clone();
    let key = state.access_keys.values().next().expect("one").clone();
    check("NewAccount", &shown(&Done::Account { account, key }));
    let attachment = state.attachments.values().next().expect("one").clone();
    check("Attachment", &shown(&Done::Attachment(Box::new(attachment))));
    let modification = state.modifications.values().next().expect("one").clone();
    check("Modification", &shown(&Done::Modification(Box::new(modification))));
    check("Nothing", &shown(&Done::Nothing));
    let mut fixture = Fixture::new();
    let server: model::id::ServerId = "server-a-1".parse().expect("a name");
    fixture.state.servers.get_mut(&server).expect("recorded").duty = model::state::Duty::Draining;
    let done = Done::Server(server);
    let value: Value = serde_json::from_slice(&print(&fixture.view(), &done).body).expect("JSON");
    assert_eq!(value["duty"], json!("draining"));
    check("Server", &value);
}

#[test]
fn what_the_document_lets_callers_say_is_understood() {
    let schemas = &document()["components"]["schemas"];
    let fits = |schema: &str, takes: &dyn Fn(&[u8]) -> Result<(), String>| {
        let properties = schemas[schema]["properties"].as_object().expect("an object");
        let all: serde_json::Map<String, Value> =
            properties.iter().map(|(name, s)| (name.clone(), example(s))).collect();
        let text = Value::Object(all.clone()).to_string();
        takes(text.as_bytes()).unwrap_or_else(|e| panic!("{schema}: {e}"));
        assert_eq!(schemas[schema]["additionalProperties"], json!(false), "{schema}");
        let mut more = all;
        more.insert("unheard_of".to_owned(), json!(1));
        assert!(takes(Value::Object(more).to_string().as_bytes()).is_err(), "{schema}");
    };
    fn takes<T: DeserializeOwned>(body: &[u8]) -> Result<(), String> {
        serde_json::from_slice::<T>(body).map(drop).map_err(|e| e.to_string())
    }
    fits("CreateVolume", &takes::<asks::CreateVolume>);
    fits("ModifyVolume", &takes::<asks::ModifyVolume>);
    fits("Attach", &takes::<asks::Attach>);
    fits("Detach", &takes::<asks::Detach>);
    fits("CreateAccount", &takes::<asks::CreateAccount>);
}

fn schema_named(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn example(schema: &Value) -> Value {
    match schema["type"].as_str() {
        Some("string") => json!("x"),
        Some("integer") => json!(1),
        Some("boolean") => json!(true),
        Some("object") => json!({"k": "v"}),
        other => panic!("no example of {other:?}"),
    }
}

/// Where a value differs from its schema: of JSON Schema what the document uses. Fields must be
/// those of the schema, all of them and no others.
fn faults(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.strip_prefix('#').expect("a local reference");
        let target = document.pointer(pointer).unwrap_or_else(|| panic!("{reference} is missing"));
        return faults(document, target, value, at);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let any = choices.iter().any(|choice| faults(document, choice, value, at).is_empty());
        let found: Vec<_> =
            choices.iter().flat_map(|choice| faults(document, choice, value, at)).collect();
        return if any { Vec::new() } else { found };
    }
    let mut found = Vec::new();
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !types.contains(&json!(is)) {
        found.push(format!("{at} is {is}, not {types:?}"));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        found.push(format!("{at} is {value}, not one of {allowed:?}"));
    }
    if let Value::Array(items) = value {
        for (n, item) in items.iter().enumerate() {
            found.extend(faults(document, &schema["items"], item, &format!("{at}[{n}]")));
        }
    }
    if let (Value::Object(fields), Some(known)) = (value, schema["properties"].as_object()) {
        for (name, field) in fields {
            match known.get(name) {
                None => found.push(format!("{at}.{name} is not in the document")),
                Some(schema) => {
                    found.extend(faults(document, schema, field, &format!("{at}.{name}")));
                }
            }
        }
        let missing = known.keys().filter(|name| !fields.contains_key(*name));
        found.extend(missing.map(|name| format!("{at}.{name} is not served")));
    }
    found
}
