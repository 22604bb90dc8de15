//! Refusals and defaults of the commands: the EC2 code, and that nothing changed.

use std::collections::BTreeMap;

use format::record::Record;
use model::{
    id::{InstanceId, VolumeId},
    state::VolumeState,
    units::{Gib, Iops, MibPerSec},
};

use super::world::{World, caller, gp3, rate, standard};
use crate::api::{
    ApiError, AttachVolume, Caller, Command, CommandKind, CreateVolume, DetachVolume, Done,
    ModifyVolume, Resource, ZoneChoice,
};

/// A world with one available gp3 volume of 8 GiB in zone a.
fn with_volume() -> (World, VolumeId) {
    let mut world = World::new();
    let volume = world.create(gp3("local-1a", 8));
    world.until("available", 5_000, |w| w.volume(volume).state == VolumeState::Available);
    (world, volume)
}

#[track_caller]
fn refused(world: &mut World, kind: CommandKind, code: &str, text: &str) {
    let before: BTreeMap<String, Record> = world.store.clone();
    let error = match world.ask(kind.clone()) {
        Err(error) => error,
        Ok(done) => panic!("{kind:?} was carried out: {done:?}"),
    };
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(text), "'{}' lacks '{text}'", error.message);
    assert!(world.store == before, "a refusal changed something");
}

fn create(change: impl FnOnce(&mut CreateVolume)) -> CommandKind {
    let mut request = gp3("local-1a", 8);
    change(&mut request);
    CommandKind::CreateVolume(request)
}

fn modify(volume: VolumeId, change: impl FnOnce(&mut ModifyVolume)) -> CommandKind {
    let mut request = ModifyVolume { volume: Some(volume), ..ModifyVolume::default() };
    change(&mut request);
    CommandKind::ModifyVolume(request)
}

#[test]
fn create_volume_refuses_what_ec2_refuses() {
    let mut world = World::new();
    let mut check = |change: fn(&mut CreateVolume), code: &str, text: &str| {
        refused(&mut world, create(change), code, text);
    };
    check(|r| r.zone = ZoneChoice::Missing, "MissingParameter", "AvailabilityZone");
    check(|r| r.zone = ZoneChoice::Both, "InvalidParameterCombination", "together");
    check(|r| r.zone = ZoneChoice::Name("mars-1a".to_owned()), "InvalidZone.NotFound", "mars-1a");
    check(|r| r.zone = ZoneChoice::Id("local-1-az9".to_owned()), "InvalidZone.NotFound", "az9");
    check(|r| r.size = None, "MissingParameter", "size/snapshot");
    check(
        |r| r.volume_type = Some("gp9".to_owned()),
        "UnknownVolumeType",
        "Unsupported volume type 'gp9' for volume creation.",
    );
    check(
        |r| r.size = Some(Gib::new(70_000)),
        "InvalidParameterValue",
        "Volume of 70000GiB is too large for volume type gp3; maximum is 65536GiB",
    );
    check(
        |r| r.size = Some(Gib::ZERO),
        "InvalidParameterValue",
        "Volume of 0GiB is too small for volume type gp3; minimum is 1GiB",
    );
    check(
        |r| r.iops = Some(Iops::new(90_000)),
        "InvalidParameterValue",
        "Volume iops of 90000 is too high; maximum is 80000.",
    );
    check(
        |r| r.iops = Some(Iops::new(100)),
        "InvalidParameterValue",
        "Volume iops of 100 is too low; minimum is 3000.",
    );
    check(
        |r| r.iops = Some(Iops::new(4_800)),
        "InvalidParameterValue",
        "Iops to volume size ratio of 600.000000 is too high; maximum is 500",
    );
    check(
        |r| r.throughput = Some(MibPerSec::new(1_500)),
        "InvalidParameterValue",
        "Throughput (MiBps) to iops ratio of 0.500000 is too high; maximum is 0.250000 MiBps \
         per iops",
    );
    check(
        |r| {
            r.volume_type = Some("gp2".to_owned());
            r.iops = Some(Iops::new(3_000));
        },
        "InvalidParameterCombination",
        "The parameter iops is not supported for gp2 volumes.",
    );
    check(
        |r| r.volume_type = Some("io2".to_owned()),
        "InvalidParameterCombination",
        "The parameter iops must be specified for io2 volumes.",
    );
    check(
        |r| {
            r.volume_type = None;
            r.throughput = Some(MibPerSec::new(125));
        },
        "InvalidParameterCombination",
        "The throughput parameter is not supported for gp2 volumes.",
    );
    check(
        |r| r.kms_key_id = Some("key".to_owned()),
        "InvalidParameterDependency",
        "The parameter KmsKeyId requires the parameter Encrypted to be set.",
    );
    check(|r| r.encrypted = true, "EncryptedVolumesNotSupported", "Encrypted");
    check(|r| r.multi_attach = true, "InvalidParameterCombination", "gp3");
    check(|r| r.snapshot_id = Some("snap-1".to_owned()), "InvalidSnapshot.NotFound", "snap-1");
    check(|r| r.client_token = Some("x".repeat(65)), "InvalidParameterValue", "64");
    check(
        |r| drop(r.tags.insert("aws:x".to_owned(), String::new())),
        "InvalidTagKey.Malformed",
        "reserved",
    );
    check(
        |r| r.tags.extend((0..51).map(|n| (n.to_string(), String::new()))),
        "TagLimitExceeded",
        "50",
    );
    check(
        |r| r.size = Some(Gib::new(101)),
        "InsufficientVolumeCapacity",
        "One drive has at most 100 GiB, 10000 IOPS and 1000 MiB/s left",
    );
}

#[test]
fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let (mut world, volume) = with_volume();
    let before = world.store.clone();
    for kind in [
        create(|_| {}),
        modify(volume, |r| r.size = Some(Gib::new(9))),
        CommandKind::DeleteVolume { volume },
    ] {
        let error = world.ask_as(caller(), Command { dry_run: true, kind }).expect_err("dry");
        assert_eq!((error.code, error.status), ("DryRunOperation", 412));
    }
    // Ranges are checked first: a well-known driver reads its limits from these texts.
    let kind = create(|r| r.iops = Some(Iops::new(1_000_000)));
    let error = world.ask_as(caller(), Command { dry_run: true, kind }).expect_err("dry");
    assert_eq!(error.code, "InvalidParameterValue");
    assert!(world.store == before);
}

#[test]
fn a_client_token_makes_one_volume() {
    let mut world = World::new();
    let request = || create(|r| r.client_token = Some("t".repeat(64)));
    let made = |result: Result<Done, ApiError>| match result {
        Ok(Done::Volume(volume)) => volume.volume,
        other => panic!("{other:?}"),
    };
    let first = made(world.ask(request()));
    world.run(1_000);
    assert_eq!(made(world.ask(request())), first);
    let other = create(|r| {
        r.client_token = Some("t".repeat(64));
        r.size = Some(Gib::new(9));
    });
    refused(&mut world, other, "IdempotentParameterMismatch", "client token");
    assert_eq!(world.state().volumes.len(), 1);
    // A day later it is forgotten.
    world.ms += 25 * 3_600_000;
    world.run(5_000);
    assert!(world.state().client_tokens.is_empty());
}

#[test]
fn what_another_account_owns_does_not_exist() {
    let (mut world, volume) = with_volume();
    let made = world.ask(CommandKind::CreateAccount { name: "guest".to_owned() });
    let Ok(Done::Account { account, key }) = made else { panic!("{made:?}") };
    assert_eq!((key.access_key.len(), key.secret.len()), (20, 40));
    let guest = Caller { account: account.account, access_key: key.access_key, root: false };
    let instance = world.nodes[0].instance;
    let device = "/dev/sdf".to_owned();
    let attach = AttachVolume { volume, instance, device, kernel_device: false };
    let detach = DetachVolume { volume, instance: None, device: None, force: true };
    for kind in [
        CommandKind::DeleteVolume { volume },
        CommandKind::AttachVolume(attach),
        CommandKind::DetachVolume(detach),
        modify(volume, |r| r.size = Some(Gib::new(9))),
        CommandKind::DeleteTags { resources: vec![Resource::Volume(volume)], tags: None },
    ] {
        let result = world.ask_as(guest.clone(), Command { dry_run: false, kind });
        let error = result.expect_err("not the guest's");
        assert_eq!(error.code, "InvalidVolume.NotFound");
        assert!(error.message.contains(&volume.to_string()));
    }
    let kind = CommandKind::CreateAccount { name: "another".to_owned() };
    let error = world.ask_as(guest, Command { dry_run: false, kind }).expect_err("not root");
    assert_eq!((error.code, error.status), ("UnauthorizedOperation", 403));
}

#[test]
fn attach_and_detach_refuse_what_ec2_refuses() {
    let (mut world, volume) = with_volume();
    let here = world.nodes[0].instance;
    let elsewhere = world.nodes[1].instance;
    let attach = |volume, instance, device: &str| {
        let device = device.to_owned();
        CommandKind::AttachVolume(AttachVolume { volume, instance, device, kernel_device: false })
    };
    let detach = |instance, device: Option<&str>| {
        let device = device.map(str::to_owned);
        CommandKind::DetachVolume(DetachVolume { volume, instance, device, force: false })
    };
    let w = &mut world;
    let nobody = InstanceId::from_raw(99);
    refused(w, detach(None, None), "IncorrectState", "is in the 'available' state.");
    refused(w, attach(volume, nobody, "/dev/sdf"), "InvalidInstanceID.NotFound", "i-");
    refused(
        w,
        attach(VolumeId::from_raw(5), here, "/dev/sdf"),
        "InvalidVolume.NotFound",
        "vol-00000000000000005",
    );
    refused(
        w,
        attach(volume, elsewhere, "/dev/sdf"),
        "InvalidVolume.ZoneMismatch",
        "is not in the same availability zone as instance",
    );
    refused(w, attach(volume, here, ""), "MissingParameter", "device");
    refused(w, attach(volume, here, "/dev/sd f"), "InvalidParameterValue", "device");
    let second = w.create(gp3("local-1a", 1));
    refused(w, attach(second, here, "/dev/sdf"), "IncorrectState", "'creating'");
    w.until("available", 5_000, |w| w.volume(second).state == VolumeState::Available);

    w.ask(attach(volume, here, "/dev/sdf")).expect("attachable");
    refused(w, attach(volume, here, "/dev/sdg"), "VolumeInUse", "already attached");
    refused(
        w,
        attach(second, here, "/dev/sdf"),
        "InvalidParameterValue",
        "Attachment point /dev/sdf is already in use",
    );
    refused(w, detach(Some(elsewhere), None), "InvalidAttachment.NotFound", "not attached");
    refused(w, detach(None, Some("/dev/sdz")), "InvalidAttachment.NotFound", "not attached");
    let delete = CommandKind::DeleteVolume { volume };
    refused(w, delete, "VolumeInUse", "is currently attached to i-");
}

#[test]
fn modify_volume_refuses_what_ec2_refuses() {
    let (mut world, volume) = with_volume();
    let w = &mut world;
    refused(w, modify(volume, |_| {}), "MissingParameter", "at least one");
    refused(
        w,
        modify(volume, |r| r.size = Some(Gib::new(7))),
        "InvalidParameterValue",
        "New size cannot be smaller than existing size",
    );
    refused(
        w,
        modify(volume, |r| r.volume_type = Some("st1".to_owned())),
        "InvalidParameterValue",
        "minimum is 125GiB",
    );
    refused(
        w,
        modify(volume, |r| r.zone = Some("mars".to_owned())),
        "InvalidZone.NotFound",
        "mars",
    );
    refused(
        w,
        modify(volume, |r| r.size = Some(Gib::new(150))),
        "InsufficientVolumeCapacity",
        "There is not enough ssd capacity in local-1a for 150 GiB",
    );
    // 10,000 IOPS a drive, 3,000 of them promised to another volume on each.
    w.create(gp3("local-1a", 1));
    refused(
        w,
        modify(volume, |r| {
            r.size = Some(Gib::new(20));
            r.iops = Some(Iops::new(7_001));
        }),
        "InsufficientVolumeCapacity",
        "IOPS",
    );
    w.ask(modify(volume, |r| r.zone = Some("local-1b".to_owned()))).expect("there is room");
    let again = modify(volume, |r| r.size = Some(Gib::new(9)));
    refused(w, again, "IncorrectModificationState", "modification state OPTIMIZING");
}

#[test]
fn modify_volume_fills_in_ec2s_defaults() {
    let check = |request: CreateVolume, kind: &str, expected| {
        let mut world = World::new();
        let volume = world.create(request);
        world.until("available", 5_000, |w| w.volume(volume).state == VolumeState::Available);
        let kind = modify(volume, |r| r.volume_type = Some(kind.to_owned()));
        world.ask(kind).expect("there is room");
        assert_eq!(world.modification(volume).target.rate, expected);
    };
    // A 1,000 GiB gp2 would have more, but the drives of this world are small.
    let gp2 = CreateVolume { volume_type: None, ..gp3("local-1a", 90) };
    check(gp2.clone(), "gp3", rate(3_000, 128));
    check(gp2, "io2", rate(3_000, 750));
    check(standard("local-1a", 8), "gp3", rate(3_000, 125));
    let fast = CreateVolume { iops: Some(Iops::new(4_000)), ..gp3("local-1a", 8) };
    check(fast, "gp3", rate(4_000, 125));
    check(gp3("local-1a", 8), "gp2", rate(100, 128));
}

#[test]
fn tags_change_together_or_not_at_all() {
    let (mut world, volume) = with_volume();
    let instance = world.nodes[0].instance;
    let both = vec![Resource::Volume(volume), Resource::Instance(instance)];
    let tag = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let tags = BTreeMap::from([tag("Name", "db"), tag("team", "a")]);
    let kind = CommandKind::CreateTags { resources: both.clone(), tags: tags.clone() };
    world.ask(kind).expect("legal tags");
    assert_eq!(world.volume(volume).tags, tags);
    assert_eq!(world.state().instances[&instance].tags, tags);
    let missing = vec![Resource::Volume(volume), Resource::Volume(VolumeId::from_raw(1))];
    let kind = CommandKind::CreateTags { resources: missing, tags: BTreeMap::from([tag("x", "")]) };
    refused(&mut world, kind, "InvalidVolume.NotFound", "vol-");
    let named = |k: &str, v: Option<&str>| {
        let tags = BTreeMap::from([(k.to_owned(), v.map(str::to_owned))]);
        CommandKind::DeleteTags { resources: vec![Resource::Volume(volume)], tags: Some(tags) }
    };
    world.ask(named("Name", Some("other"))).expect("nothing to delete is no fault");
    assert_eq!(world.volume(volume).tags.len(), 2);
    world.ask(named("Name", None)).expect("legal");
    assert_eq!(world.volume(volume).tags, BTreeMap::from([tag("team", "a")]));
    let kind = CommandKind::DeleteTags { resources: both, tags: None };
    world.ask(kind).expect("legal");
    assert!(world.volume(volume).tags.is_empty());
    // Registering again keeps an instance's tags.
    world.kill_node(0);
    world.start_node(0);
    world.run(500);
    assert!(world.state().instances[&instance].tags.is_empty());
}

#[test]
fn a_stranger_at_the_door_is_turned_away() {
    let mut world = World::new();
    let before = world.store.clone();
    world.server("server-a-1").zone = "mars-1a".to_owned();
    world.break_link("server-a-1");
    world.strangers_expected = true;
    world.run(1_000);
    assert!(world.server("server-a-1").link.is_none());
    assert!(world.store == before);
}
