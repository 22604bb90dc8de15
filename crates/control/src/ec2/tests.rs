//! Tables of calls and what they must be answered with, and golden answers.
//!
//! The golden answers in `testdata/` are parsed by botocore in `tests/clients/test_xml.py`. Where
//! one differs, the test prints what is answered now, as the file should say it.

use std::collections::BTreeMap;

use model::units::{Gib, Iops, MibPerSec};

use super::*;
use crate::{
    api::{
        AttachVolume, CommandKind, CreateVolume, DetachVolume, ModifyVolume, Resource, ZoneChoice,
    },
    router::{Received, fixture::*},
};

/// Status and code of the refusal; "ok" where the call is answered, "command" where it goes on to
/// the rules.
fn outcome(fixture: &Fixture, account: &str, query: &str) -> (u16, String) {
    match fixture.received(&ec2_call(account, query)) {
        Received::Command { .. } => (0, "command".to_owned()),
        Received::Answer(answer) => {
            let body = text(&answer);
            let code = body.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
            (answer.status, code.map_or("ok", |(code, _)| code).to_owned())
        }
    }
}

fn message(fixture: &Fixture, query: &str) -> String {
    let answer = fixture.answer(&ec2_call(ONE, query));
    let body = text(&answer);
    let message = body.split_once("<Message>").and_then(|(_, r)| r.split_once("</Message>"));
    message.expect("a refusal").0.to_owned()
}

/// The values of one element of the answer, in order.
fn found(fixture: &Fixture, account: &str, query: &str, element: &str) -> Vec<String> {
    let answer = fixture.answer(&ec2_call(account, query));
    assert_eq!(answer.status, 200, "{query}: {}", text(&answer));
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let inside = |part: &str| part.split_once(&close).map(|(value, _)| value.to_owned());
    text(&answer).split(&open).skip(1).filter_map(inside).collect()
}

#[test]
fn wrong_calls_get_the_code_a_client_expects() {
    let fixture = Fixture::new();
    let page_501 = "Action=DescribeVolumesModifications&MaxResults=501";
    let many_values: String =
        (1..=1001).map(|n| format!("&Filter.1.Value.{n}=x")).collect::<Vec<_>>().concat();
    let many_values = format!("Action=DescribeVolumes&Filter.1.Name=size{many_values}");
    let many: String = (0..2001).map(|n| format!("&x{n}=")).collect::<Vec<_>>().concat();
    let many = format!("Action=DescribeVolumes{many}");
    let many_resources: String =
        (1..=1001).map(|n| format!("&ResourceId.{n}={IO1}")).collect::<Vec<_>>().concat();
    let many_resources = format!("Action=CreateTags&Tag.1.Key=k{many_resources}");
    let long =
        format!("Action=DescribeVolumes&Filter.1.Name=size&Filter.1.Value.1={}", "x".repeat(1025));
    for (query, status, code) in [
        ("", 400, "MissingAction"),
        ("Action=", 400, "MissingAction"),
        ("Action=RunInstances", 400, "InvalidAction"),
        ("Action=describeVolumes", 400, "InvalidAction"),
        // Parameters.
        ("Action=DescribeVolumes&Nonsense=1", 400, "UnknownParameter"),
        ("Action=DescribeVolumes&VolumeId=vol-00000000000000001", 400, "UnknownParameter"),
        ("Action=DescribeVolumes&Filter.1.Name=size&Filter.1.Values.1=8", 400, "UnknownParameter"),
        ("Action=DescribeVolumes&DryRun=yes", 400, "InvalidParameterValue"),
        ("Action=DescribeVolumes&DryRun=true&DryRun=true", 400, "MalformedQueryString"),
        (&many, 400, "MalformedQueryString"),
        ("Action=DeleteVolume", 400, "MissingParameter"),
        ("Action=DeleteVolume&VolumeId=", 400, "MissingParameter"),
        ("Action=DeleteVolume&VolumeId=vol-00000000000000001&Force=true", 400, "UnknownParameter"),
        // Ids.
        ("Action=DeleteVolume&VolumeId=x", 400, "InvalidParameterValue"),
        ("Action=DeleteVolume&VolumeId=vol-does_not_exist", 400, "InvalidVolumeID.Malformed"),
        ("Action=DeleteVolume&VolumeId=vol-12345678", 400, "InvalidVolume.NotFound"),
        ("Action=DescribeVolumes&VolumeId.1=x", 400, "InvalidParameterValue"),
        ("Action=DescribeVolumes&VolumeId.1=vol-0000000000000dead", 400, "InvalidVolume.NotFound"),
        ("Action=DescribeVolumes&VolumeId.1=vol-00000000000000004", 400, "InvalidVolume.NotFound"),
        ("Action=DescribeVolumes&VolumeId.1=vol-00000000000000005", 400, "InvalidVolume.NotFound"),
        (
            "Action=DescribeVolumeStatus&VolumeId.1=vol-00000000000000004",
            400,
            "InvalidVolume.NotFound",
        ),
        (
            "Action=DescribeVolumesModifications&VolumeId.1=vol-00000000000000004",
            400,
            "InvalidVolume.NotFound",
        ),
        (
            "Action=DescribeVolumesModifications&VolumeId.1=vol-00000000000000002",
            400,
            "InvalidVolumeModification.NotFound",
        ),
        ("Action=DescribeInstances&InstanceId.1=i-x", 400, "InvalidInstanceID.Malformed"),
        (
            "Action=DescribeInstances&InstanceId.1=i-0000000000000000b",
            400,
            "InvalidInstanceID.NotFound",
        ),
        (
            "Action=AttachVolume&VolumeId=vol-00000000000000002&Device=/dev/sdf&InstanceId=x",
            400,
            "InvalidInstanceID.Malformed",
        ),
        (
            "Action=AttachVolume&VolumeId=vol-00000000000000002&InstanceId=i-0000000000000000a",
            400,
            "MissingParameter",
        ),
        // Numbers.
        ("Action=CreateVolume&AvailabilityZone=local-1a&Size=8.5", 400, "InvalidParameterValue"),
        ("Action=CreateVolume&AvailabilityZone=local-1a&Size=-1", 400, "InvalidParameterValue"),
        ("Action=CreateVolume&AvailabilityZone=local-1a&Size=%2B1", 400, "InvalidParameterValue"),
        ("Action=CreateVolume&AvailabilityZone=local-1a&Size=", 400, "InvalidParameterValue"),
        (
            "Action=CreateVolume&AvailabilityZone=local-1a&Size=99999999999",
            400,
            "InvalidParameterValue",
        ),
        ("Action=CreateVolume&Size=8&OutpostArn=x", 400, "UnsupportedOperation"),
        ("Action=CreateVolume&Size=8&VolumeInitializationRate=100", 400, "UnsupportedOperation"),
        // Tags.
        (
            "Action=CreateVolume&TagSpecification.1.ResourceType=snapshot",
            400,
            "InvalidParameterValue",
        ),
        ("Action=CreateVolume&TagSpecification.1.Tag.1.Key=a", 400, "MissingParameter"),
        (
            "Action=CreateVolume&TagSpecification.1.ResourceType=volume&TagSpecification.1.Tags.1.Key=a",
            400,
            "UnknownParameter",
        ),
        ("Action=CreateTags&Tag.1.Key=a", 400, "MissingParameter"),
        ("Action=CreateTags&ResourceId.1=vol-00000000000000001", 400, "MissingParameter"),
        ("Action=CreateTags&ResourceId.1=snap-1&Tag.1.Key=a", 400, "InvalidID"),
        (
            "Action=CreateTags&ResourceId.1=vol-00000000000000001&Tag.1.Value=a",
            400,
            "MissingParameter",
        ),
        (
            "Action=CreateTags&ResourceId.1=vol-00000000000000001&Tag.1.Key=a&Tag.2.Key=a",
            400,
            "InvalidParameterValue",
        ),
        (&many_resources, 400, "InvalidParameterValue"),
        // Filters and pages.
        (
            "Action=DescribeVolumes&Filter.1.Name=nonsense&Filter.1.Value.1=x",
            400,
            "InvalidParameterValue",
        ),
        (
            "Action=DescribeVolumes&Filter.1.Name=tag:&Filter.1.Value.1=x",
            400,
            "InvalidParameterValue",
        ),
        ("Action=DescribeVolumes&Filter.1.Value.1=x", 400, "MissingParameter"),
        ("Action=DescribeVolumes&Filter.1.Name=size", 400, "MissingParameter"),
        (&many_values, 400, "FilterLimitExceeded"),
        (&long, 400, "InvalidParameterValue"),
        ("Action=DescribeVolumes&MaxResults=0", 400, "InvalidParameterValue"),
        ("Action=DescribeVolumes&MaxResults=x", 400, "InvalidParameterValue"),
        (page_501, 400, "InvalidParameterValue"),
        ("Action=DescribeTags&MaxResults=4", 400, "InvalidParameterValue"),
        ("Action=DescribeTags&MaxResults=1001", 400, "InvalidParameterValue"),
        ("Action=DescribeInstances&MaxResults=4", 400, "InvalidParameterValue"),
        ("Action=DescribeVolumes&NextToken=x", 400, "InvalidPaginationToken"),
        (
            "Action=DescribeVolumes&MaxResults=5&VolumeId.1=vol-00000000000000001",
            400,
            "InvalidParameterCombination",
        ),
        (
            "Action=DescribeInstances&MaxResults=5&InstanceId.1=i-0000000000000000a",
            400,
            "InvalidParameterCombination",
        ),
        // Places.
        ("Action=DescribeAvailabilityZones&ZoneName.1=mars-1a", 400, "InvalidParameterValue"),
        ("Action=DescribeAvailabilityZones&ZoneId.1=mars-az1", 400, "InvalidParameterValue"),
        ("Action=DescribeRegions&RegionName.1=mars-1", 400, "InvalidParameterValue"),
    ] {
        let expected = (status, code.to_owned());
        assert_eq!(outcome(&fixture, ONE, query), expected, "{}", quoted(query));
    }
}

#[test]
fn a_dry_run_of_a_read_would_have_succeeded_or_fails_as_the_read_would() {
    let fixture = Fixture::new();
    for action in [
        "DescribeVolumes",
        "DescribeVolumeStatus",
        "DescribeVolumesModifications",
        "DescribeTags",
        "DescribeInstances",
        "DescribeAvailabilityZones",
        "DescribeRegions",
    ] {
        let query = format!("Action={action}&DryRun=true");
        let expected = (412, "DryRunOperation".to_owned());
        assert_eq!(outcome(&fixture, ONE, &query), expected, "{action}");
        let query = format!("Action={action}&DryRun=false");
        assert_eq!(outcome(&fixture, ONE, &query), (200, "ok".to_owned()), "{action}");
    }
    let query = format!("Action=DescribeVolumes&DryRun=true&VolumeId.1={NOWHERE}");
    assert_eq!(outcome(&fixture, ONE, &query), (400, "InvalidVolume.NotFound".to_owned()));
}

#[test]
fn a_refusal_names_every_id_that_is_not_there() {
    let fixture = Fixture::new();
    let query = format!("Action=DescribeVolumes&VolumeId.1={OF_TWO}");
    assert_eq!(message(&fixture, &query), format!("The volume '{OF_TWO}' does not exist."));
    let query =
        format!("Action=DescribeVolumes&VolumeId.1={OF_TWO}&VolumeId.2={GP3}&VolumeId.3={NOWHERE}");
    assert_eq!(
        message(&fixture, &query),
        format!("The volumes '{OF_TWO}, {NOWHERE}' do not exist.")
    );
}

#[test]
fn filters_choose_volumes() {
    let fixture = Fixture::new();
    for (filter, volumes) in [
        ("", vec![GP3, IO1, ST1]),
        ("&VolumeId.1=vol-00000000000000002", vec![IO1]),
        ("&Filter.1.Name=attachment.device&Filter.1.Value.1=/dev/sd*", vec![GP3]),
        ("&Filter.1.Name=attachment.instance-id&Filter.1.Value.1=i-0000000000000000a", vec![GP3]),
        ("&Filter.1.Name=attachment.status&Filter.1.Value.1=attached", vec![GP3]),
        ("&Filter.1.Name=attachment.delete-on-termination&Filter.1.Value.1=false", vec![GP3]),
        ("&Filter.1.Name=attachment.attach-time&Filter.1.Value.1=2026-11-22T14:*", vec![GP3]),
        ("&Filter.1.Name=availability-zone&Filter.1.Value.1=local-1?", vec![GP3, IO1, ST1]),
        ("&Filter.1.Name=availability-zone-id&Filter.1.Value.1=local-1-az2", vec![]),
        ("&Filter.1.Name=create-time&Filter.1.Value.1=2026-11-22*", vec![GP3, IO1, ST1]),
        ("&Filter.1.Name=encrypted&Filter.1.Value.1=true", vec![]),
        ("&Filter.1.Name=multi-attach-enabled&Filter.1.Value.1=false", vec![GP3, IO1, ST1]),
        ("&Filter.1.Name=size&Filter.1.Value.1=8&Filter.1.Value.2=500", vec![GP3, ST1]),
        ("&Filter.1.Name=snapshot-id&Filter.1.Value.1=", vec![GP3, IO1, ST1]),
        ("&Filter.1.Name=status&Filter.1.Value.1=in-use", vec![GP3]),
        ("&Filter.1.Name=tag:Name&Filter.1.Value.1=a*", vec![GP3]),
        ("&Filter.1.Name=tag:empty&Filter.1.Value.1=", vec![GP3]),
        ("&Filter.1.Name=tag:none&Filter.1.Value.1=*", vec![]),
        ("&Filter.1.Name=tag-key&Filter.1.Value.1=Name", vec![GP3]),
        ("&Filter.1.Name=volume-id&Filter.1.Value.1=*2&Filter.1.Value.2=*4", vec![IO1]),
        ("&Filter.1.Name=volume-type&Filter.1.Value.1=io1", vec![IO1]),
        ("&Filter.1.Name=volume-type&Filter.1.Value.1=IO1", vec![]),
        ("&Filter.1.Name=operator.principal&Filter.1.Value.1=*", vec![]),
        (
            "&Filter.2.Name=size&Filter.2.Value.1=8&Filter.7.Name=status&Filter.7.Value.1=in-use",
            vec![GP3],
        ),
        (
            "&Filter.1.Name=size&Filter.1.Value.1=8&Filter.2.Name=status&Filter.2.Value.1=creating",
            vec![],
        ),
    ] {
        let query = format!("Action=DescribeVolumes{filter}");
        let answer = fixture.answer(&ec2_call(ONE, &query));
        // An attachment names its volume too: a volume's own id is followed by its size.
        let all = text(&answer).split("<volumeId>").skip(1);
        let ids: Vec<&str> =
            all.filter_map(|part| part.split_once("</volumeId><size>")).map(|p| p.0).collect();
        assert_eq!(ids, volumes, "{filter}");
    }
}

#[test]
fn filters_choose_everywhere_else() {
    let fixture = Fixture::new();
    let gp3 = [GP3].as_slice();
    let zones = ["local-1a", "local-1b", "local-1c"];
    for (query, element, expected) in [
        ("DescribeVolumesModifications", "volumeId", gp3),
        (
            "DescribeVolumesModifications&Filter.1.Name=modification-state&Filter.1.Value.1=failed",
            "volumeId",
            &[],
        ),
        (
            "DescribeVolumesModifications&Filter.1.Name=original-size&Filter.1.Value.1=4",
            "volumeId",
            gp3,
        ),
        (
            "DescribeVolumesModifications&Filter.1.Name=target-iops&Filter.1.Value.1=3000",
            "volumeId",
            gp3,
        ),
        (
            "DescribeVolumesModifications&Filter.1.Name=original-iops&Filter.1.Value.1=*",
            "volumeId",
            &[],
        ),
        ("DescribeVolumeStatus", "volumeId", &[GP3, IO1, ST1]),
        (
            "DescribeVolumeStatus&Filter.1.Name=volume-status.status&Filter.1.Value.1=ok",
            "volumeId",
            gp3,
        ),
        (
            "DescribeVolumeStatus&Filter.1.Name=volume-status.details-status\
             &Filter.1.Value.1=degraded",
            "volumeId",
            &[IO1],
        ),
        (
            "DescribeVolumeStatus&Filter.1.Name=event.event-id&Filter.1.Value.1=*",
            "volumeId",
            &[IO1],
        ),
        ("DescribeVolumeStatus&Filter.1.Name=action.code&Filter.1.Value.1=*", "volumeId", &[]),
        ("DescribeTags", "key", &["role", "Name", "empty"]),
        ("DescribeTags&Filter.1.Name=resource-type&Filter.1.Value.1=instance", "key", &["role"]),
        ("DescribeTags&Filter.1.Name=key&Filter.1.Value.1=Na*", "key", &["Name"]),
        ("DescribeTags&Filter.1.Name=value&Filter.1.Value.1=", "key", &["empty"]),
        ("DescribeTags&Filter.1.Name=tag:role&Filter.1.Value.1=db", "key", &["role"]),
        (
            "DescribeTags&Filter.1.Name=resource-id&Filter.1.Value.1=vol-00000000000000001",
            "key",
            &["Name", "empty"],
        ),
        ("DescribeInstances", "instanceId", &[INSTANCE]),
        (
            "DescribeInstances&Filter.1.Name=instance-state-name&Filter.1.Value.1=running",
            "instanceId",
            &[INSTANCE],
        ),
        (
            "DescribeInstances&Filter.1.Name=block-device-mapping.volume-id\
             &Filter.1.Value.1=vol-00000000000000002",
            "instanceId",
            &[],
        ),
        ("DescribeInstances&Filter.1.Name=tag:role&Filter.1.Value.1=d?", "instanceId", &[INSTANCE]),
        ("DescribeAvailabilityZones", "zoneName", &zones),
        ("DescribeAvailabilityZones&ZoneName.1=local-1b", "zoneName", &["local-1b"]),
        ("DescribeAvailabilityZones&ZoneId.1=local-1-az3", "zoneName", &["local-1c"]),
        (
            "DescribeAvailabilityZones&Filter.1.Name=zone-id&Filter.1.Value.1=*az1",
            "zoneName",
            &["local-1a"],
        ),
        ("DescribeAvailabilityZones&Filter.1.Name=state&Filter.1.Value.1=x", "zoneName", &[]),
        ("DescribeRegions&RegionName.1=local-1", "regionEndpoint", &["127.0.0.1:7700"]),
        ("DescribeRegions&Filter.1.Name=region-name&Filter.1.Value.1=x", "regionName", &[]),
    ] {
        let query = format!("Action={query}");
        assert_eq!(found(&fixture, ONE, &query, element), expected, "{query}");
    }
}

#[test]
fn an_account_sees_its_own_things_alone() {
    let fixture = Fixture::new();
    let of_two = |query: &str, element: &str| found(&fixture, TWO, query, element);
    assert_eq!(of_two("Action=DescribeVolumes", "volumeId"), [OF_TWO]);
    assert_eq!(of_two("Action=DescribeVolumeStatus", "volumeId"), [OF_TWO]);
    assert_eq!(of_two("Action=DescribeInstances", "instanceId"), [INSTANCE_OF_TWO]);
    assert_eq!(of_two("Action=DescribeInstances", "name"), ["stopped"]);
    assert_eq!(of_two("Action=DescribeTags", "resourceId"), [INSTANCE_OF_TWO]);
    assert!(of_two("Action=DescribeVolumesModifications", "volumeId").is_empty());
    // Not even the root account: it has volumes of its own, or none.
    assert!(found(&fixture, ROOT, "Action=DescribeVolumes", "volumeId").is_empty());
}

#[test]
fn pages_add_up_to_the_whole() {
    let fixture = Fixture::new();
    let mut seen = Vec::new();
    let mut token = String::new();
    for _ in 0..3 {
        let query = format!("Action=DescribeVolumes&MaxResults=1{token}");
        seen.extend(found(&fixture, ONE, &query, "size"));
        let next = found(&fixture, ONE, &query, "nextToken");
        token = next.first().map_or_else(String::new, |t| format!("&NextToken={t}"));
    }
    assert_eq!((seen.join(" "), token.as_str()), ("8 100 500".to_owned(), ""));
}

#[test]
fn a_volume_whose_primary_is_away_is_impaired() {
    let mut fixture = Fixture::new();
    fixture.servers_up.clear();
    let query = format!("Action=DescribeVolumeStatus&VolumeId.1={GP3}");
    let status = found(&fixture, ONE, &query, "status");
    assert_eq!(status[1..], ["passed", "stalled", "completed"]);
    let answer = fixture.answer(&ec2_call(ONE, &query));
    assert!(text(&answer).contains("<volumeStatus><status>impaired</status>"));
}

/// Status, io-enabled, io-performance, event type, event description.
fn status_of(fixture: &Fixture, volume: &str) -> Vec<String> {
    let query = format!("Action=DescribeVolumeStatus&VolumeId.1={volume}");
    let statuses = found(fixture, ONE, &query, "status");
    let overall = found(fixture, ONE, &query, "volumeStatus").concat();
    let overall = overall.split(['<', '>']).nth(2).expect("a status").to_owned();
    let events = ["eventType", "description"].map(|e| found(fixture, ONE, &query, e).concat());
    [vec![overall], statuses[statuses.len() - 3..statuses.len() - 1].to_vec(), events.to_vec()]
        .concat()
}

#[test]
fn a_volume_whose_replicas_are_gone_is_impaired_and_says_why() {
    let mut fixture = Fixture::new();
    assert_eq!(status_of(&fixture, GP3), ["ok", "passed", "normal", "", ""]);
    // The mirror's drive was swapped for an empty one.
    let mirror = "server-b-1".parse().expect("a name");
    fixture.live.servers.get_mut(&mirror).expect("up").replicas.clear();
    let gone = "server-b-1 does not hold rep-0000000000000002 on ssd any more";
    let degraded = ["warning", "passed", "degraded", "io-performance:degraded", gone];
    assert_eq!(status_of(&fixture, GP3), degraded);
    // The primary's drive fails as well: nothing is left of what was acknowledged.
    let primary = "server-a-1".parse().expect("a name");
    let failed = ("ssd".parse().expect("a name"), "input/output error".to_owned());
    fixture.live.servers.get_mut(&primary).expect("up").failed_drives.extend([failed]);
    let both = format!("server-a-1/ssd is out of service: input/output error; {gone}");
    let lost = ["impaired", "failed", "stalled", "potential-data-inconsistency", &both];
    assert_eq!(status_of(&fixture, GP3), lost);
    for (filter, value) in
        [("event.event-type", "potential-*"), ("event.event-id", "evol-00000000000000001")]
    {
        let query =
            format!("Action=DescribeVolumeStatus&Filter.1.Name={filter}&Filter.1.Value.1={value}");
        assert_eq!(found(&fixture, ONE, &query, "volumeId"), [GP3], "{filter}");
    }
}

fn decoded(query: &str) -> Command {
    let fixture = Fixture::new();
    match fixture.received(&ec2_call(ONE, query)) {
        Received::Command { command, .. } => command,
        Received::Answer(answer) => panic!("refused: {}", text(&answer)),
    }
}

#[test]
fn commands_are_decoded_as_clients_send_them() {
    let command = decoded(
        "Action=CreateVolume&AvailabilityZone=local-1a&Size=10&VolumeType=gp3&Encrypted=false\
         &Iops=2147483647&Throughput=200&MultiAttachEnabled=true&DryRun=true&KmsKeyId=k\
         &SnapshotId=snap-1&TagSpecification.1.ResourceType=volume\
         &TagSpecification.1.Tag.1.Key=Name&TagSpecification.1.Tag.1.Value=a+b%26\
         &TagSpecification.1.Tag.2.Key=e&ClientToken=token",
    );
    let expected = CreateVolume {
        zone: ZoneChoice::Name("local-1a".into()),
        size: Some(Gib::new(10)),
        volume_type: Some("gp3".into()),
        iops: Some(Iops::new(2_147_483_647)),
        throughput: Some(MibPerSec::new(200)),
        multi_attach: true,
        encrypted: false,
        kms_key_id: Some("k".into()),
        snapshot_id: Some("snap-1".into()),
        stripes: None,
        tags: BTreeMap::from([("Name".into(), "a b&".into()), ("e".into(), String::new())]),
        client_token: Some("token".into()),
    };
    assert!(command.dry_run);
    assert_eq!(command.kind, CommandKind::CreateVolume(expected));
}

#[test]
fn the_other_commands_are_decoded_too() {
    let volume: VolumeId = GP3.parse().expect("an id");
    let instance: InstanceId = INSTANCE.parse().expect("an id");
    let check = |query: String, kind| assert_eq!(decoded(&query), Command { dry_run: false, kind });
    check(format!("Action=DeleteVolume&VolumeId={GP3}"), CommandKind::DeleteVolume { volume });
    check(
        format!("Action=ModifyVolume&VolumeId={GP3}&Size=12&VolumeType=io2&Iops=500"),
        CommandKind::ModifyVolume(ModifyVolume {
            volume: Some(volume),
            size: Some(Gib::new(12)),
            volume_type: Some("io2".into()),
            iops: Some(Iops::new(500)),
            ..ModifyVolume::default()
        }),
    );
    check(
        format!("Action=AttachVolume&VolumeId={GP3}&InstanceId={INSTANCE}&Device=%2Fdev%2Fsdf"),
        CommandKind::AttachVolume(AttachVolume {
            volume,
            instance,
            device: "/dev/sdf".into(),
            kernel_device: false,
        }),
    );
    check(
        format!("Action=DetachVolume&VolumeId={GP3}&Force=true"),
        CommandKind::DetachVolume(DetachVolume {
            volume,
            instance: None,
            device: None,
            force: true,
        }),
    );
    check(
        format!("Action=CreateTags&ResourceId.1={GP3}&ResourceId.2={INSTANCE}&Tag.1.Key=k"),
        CommandKind::CreateTags {
            resources: vec![Resource::Volume(volume), Resource::Instance(instance)],
            tags: BTreeMap::from([("k".into(), String::new())]),
        },
    );
    check(
        format!("Action=DeleteTags&ResourceId.1={GP3}&Tag.1.Key=a&Tag.2.Key=b&Tag.2.Value="),
        CommandKind::DeleteTags {
            resources: vec![Resource::Volume(volume)],
            tags: Some(BTreeMap::from([("a".into(), None), ("b".into(), Some(String::new()))])),
        },
    );
    check(
        format!("Action=DeleteTags&ResourceId.1={GP3}"),
        CommandKind::DeleteTags { resources: vec![Resource::Volume(volume)], tags: None },
    );
}

#[test]
fn a_query_means_what_was_signed() {
    let mut request = ec2_call(ONE, "");
    request.method = "GET".into();
    request.query = "a=x+y&b=x%20y&c=x%2By&X-Amz-Date=no".into();
    let mut form = Form::parse(&request).expect("a form");
    assert_eq!(form.take("a").as_deref(), Some("x+y"));
    assert_eq!(form.take("b").as_deref(), Some("x y"));
    assert_eq!(form.take("c").as_deref(), Some("x+y"));
    assert_eq!(form.finish(), Ok(()));
    request.query = "a=%ff".into();
    assert_eq!(Form::parse(&request).expect_err("no UTF-8").code, "MalformedQueryString");
}

#[test]
fn lists_go_by_their_numbers() {
    let mut form = Form::parse(&ec2_call(ONE, "V.10=c&V.2=b&V.1=a&V.x=d&V.01=e")).expect("a form");
    assert_eq!(form.list("V"), ["e", "b", "c"]);
    let error = form.finish().expect_err("V.1 and V.x are left");
    assert_eq!(error.code, "UnknownParameter");
}

#[test]
fn answers_are_as_recorded() {
    let fixture = Fixture::new();
    for action in [
        "DescribeVolumes",
        "DescribeVolumeStatus",
        "DescribeVolumesModifications",
        "DescribeTags",
        "DescribeInstances",
        "DescribeAvailabilityZones",
        "DescribeRegions",
    ] {
        let answer = fixture.answer(&ec2_call(ONE, &format!("Action={action}")));
        check_recorded(action, &answer);
    }
    let sts = signed(ONE, "sts", "POST", "/", "Action=GetCallerIdentity&Version=2011-06-15");
    check_recorded("GetCallerIdentity", &fixture.answer(&sts));
    let error = fixture.answer(&ec2_call(ONE, "Action=DescribeVolumes&VolumeId.1=vol-12345678"));
    check_recorded("DescribeVolumes.error", &error);
    let error = fixture.answer(&signed(ONE, "sts", "POST", "/", "Action=AssumeRole"));
    check_recorded("GetCallerIdentity.error", &error);
    let state = &fixture.state;
    let print = |action: &str, done: Done| {
        let shape = Shape { action: action.to_owned() };
        check_recorded(action, &shape.print(&fixture.view(), done));
    };
    let volume = state.volumes[&IO1.parse().expect("an id")].clone();
    let attachment = state.attachments.values().next().expect("one").clone();
    let modification = state.modifications.values().next().expect("one").clone();
    print("CreateVolume", Done::Volume(Box::new(volume)));
    print("ModifyVolume", Done::Modification(Box::new(modification)));
    print("AttachVolume", Done::Attachment(Box::new(attachment.clone())));
    print("DetachVolume", Done::Attachment(Box::new(attachment)));
    print("DeleteVolume", Done::Nothing);
    print("CreateTags", Done::Nothing);
    print("DeleteTags", Done::Nothing);
}

macro_rules! recorded {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("testdata/", $name, ".xml")))),*]
    };
}

const RECORDED: [(&str, &str); 17] = recorded![
    "AttachVolume",
    "CreateTags",
    "CreateVolume",
    "DeleteTags",
    "DeleteVolume",
    "DescribeAvailabilityZones",
    "DescribeInstances",
    "DescribeRegions",
    "DescribeTags",
    "DescribeVolumeStatus",
    "DescribeVolumes.error",
    "DescribeVolumes",
    "DescribeVolumesModifications",
    "DetachVolume",
    "GetCallerIdentity.error",
    "GetCallerIdentity",
    "ModifyVolume",
];

fn check_recorded(name: &str, answer: &HttpResponse) {
    // One element a line, so that a difference can be read.
    let lines = format!("{}\n", text(answer).replace("><", ">\n<"));
    let (_, recorded) = RECORDED.iter().find(|(n, _)| *n == name).expect("it is recorded");
    assert!(lines == *recorded, "testdata/{name}.xml does not say what is answered:\n{lines}");
}
