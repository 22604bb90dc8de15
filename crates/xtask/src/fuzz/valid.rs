//! Valid encodings of everything that is fuzzed, to be mutated.

use bytes::{Bytes, BytesMut};
use format::{
    attachments,
    ctl::{self, Attach, FromManager, ToManager},
    data::{Change, DataMessage, DigestQuery, Replicate, RequestId, Status, UnitMeta},
    disk::{
        DriveShape, FormatVersion, JournalPlace, Superblock,
        apart::JournalHead,
        journal::{BatchHeader, PlacedUnit, Record, begin_batch, finish_batch},
        layers::{FrozenLayer, LAYERS_MAX, LayerRecord, Layers, Masks},
        page::{Owner, PageHeader, PageKind, ReplicaRow, encode_page, encode_row},
    },
    record,
    replica::{Part, PartRecord, ReplicaRecord},
};
use model::{
    epoch::{AttachGeneration, Epoch, ModSeq},
    group::{GroupConfig, Member, Role},
    id::{GroupId, InstanceId, LayerId, ReplicaId, VolumeId},
    limits::STRIPES_MAX,
    units::{ByteCount, Rate},
    volume::{Media, Stripes},
};
use sim::random::Random;

use super::targets::UUID;

/// The page that is decoded.
pub const PAGE: u32 = 7;

fn small(random: &mut Random) -> u64 {
    random.below(1 << 20)
}

fn crcs(count: usize, random: &mut Random) -> Vec<u32> {
    (0..count).map(|_| (random.number() & 0xffff_ffff) as u32).collect()
}

pub fn journal_head(random: &mut Random) -> Vec<u8> {
    let (bytes, previous) = (random.number(), small(random));
    let head = JournalHead { uuid: UUID, bytes, generation: previous + small(random), previous };
    head.encode()[..4096].to_vec()
}

pub fn superblock(random: &mut Random) -> Vec<u8> {
    let is_apart = random.chance(50);
    let shape = DriveShape {
        media: *random.pick(&[Media::Ssd, Media::Hdd]),
        drive_bytes: 1 << 30,
        journal_bytes: 16 << 20,
        journal: if is_apart { JournalPlace::Apart } else { JournalPlace::Inside },
        replicas_max: 64,
    };
    let found = Superblock {
        version: if is_apart { FormatVersion::V2 } else { a_version(random) },
        uuid: UUID,
        shape,
        sequence: small(random),
        tail: small(random) << 12,
        tail_lsn: small(random),
        durable_lsn: small(random),
        pages_written: 17,
        checkpoint: small(random),
        pages_fingerprint: random.number(),
        stale_lsn: small(random),
        journal_generation: small(random),
    };
    found.encode().to_vec()
}

fn a_version(random: &mut Random) -> FormatVersion {
    *random.pick(&[FormatVersion::V1, FormatVersion::V2, FormatVersion::V3])
}

fn some_layers(random: &mut Random) -> Layers {
    let frozen = (0..random.below(LAYERS_MAX as u64 + 1)).map(|id| FrozenLayer {
        id: LayerId::from_raw(id << 20),
        number: 1 + id as u16,
        is_released: random.chance(50),
    });
    Layers { frozen: frozen.collect(), head: 99 }
}

fn a_row(random: &mut Random) -> ReplicaRow {
    let meta = vec![7; random.below(3000) as usize].into();
    let (replica, birth) = (ReplicaId::from_raw(small(random)), 1 + small(random));
    let layers = some_layers(random);
    ReplicaRow { replica, size: 1 << 30, birth, layers, meta }
}

pub fn row(random: &mut Random) -> Vec<u8> {
    encode_row(a_version(random), Some(&a_row(random))).to_vec()
}

pub fn page(random: &mut Random) -> Vec<u8> {
    let kind = *random.pick(&[PageKind::Replica, PageKind::Descriptors, PageKind::Map]);
    let header = PageHeader { kind, page: PAGE, lsn: small(random), checkpoint: small(random) };
    encode_page(UUID, &header, &encode_row(a_version(random), Some(&a_row(random)))).to_vec()
}

fn a_record(random: &mut Random) -> Record {
    let (slot, mod_seq) = (random.below(99) as u32, ModSeq::from_raw(small(random)));
    let owner = Owner {
        replica: ReplicaId::from_raw(small(random)),
        layer: random.below(3) as u16,
        extent: slot + 1,
    };
    let (index, replica, fresh) = (slot, owner.replica, random.chance(50));
    let valid = (random.number() & 0xffff) as u16;
    let of_valid = crcs(valid.count_ones() as usize, random);
    match random.below(12) {
        0 => {
            let crcs = crcs(1 + random.below(64) as usize, random);
            Record::Data { slot, owner, fresh, mod_seq, first: random.below(192) as u32, crcs }
        }
        1 => {
            let (crcs, cleared) = (of_valid, random.below(65_536) as u16 & !valid);
            Record::Set { slot, owner, fresh, unit: 3, mod_seq, valid, cleared, crcs }
        }
        2 => {
            let placed =
                |unit| PlacedUnit { unit, mod_seq, valid, cleared: 0, crcs: of_valid.clone() };
            let units = (0..random.below(17) as u32).map(|unit| placed(unit % 16)).collect();
            Record::Place { slot, owner, old: fresh.then_some(slot + 1), units }
        }
        3 => Record::Clear { slot, owner, mod_seq, first: 3, count: 1 + random.below(99) as u32 },
        4 => Record::Free { slot, owner },
        5 => {
            let ReplicaRow { replica, size, meta, .. } = a_row(random);
            Record::Replica { index, replica, size, meta }
        }
        6 => Record::Remove { index, replica },
        7 => {
            let crcs = crcs(1 + random.below(64) as usize, random);
            Record::Direct { slot, owner, fresh, mod_seq, first: random.below(192) as u32, crcs }
        }
        8..11 => Record::Layer(a_layer_record(slot, owner, random)),
        _ => Record::Seal,
    }
}

fn a_layer_record(slot: u32, owner: Owner, random: &mut Random) -> LayerRecord {
    let (index, replica, layer) = (slot, owner.replica, LayerId::from_raw(small(random)));
    let mask = |random: &mut Random| random.below(65_536) as u16;
    match random.below(5) {
        0 => LayerRecord::Freeze { index, replica, layer, head: mask(random) },
        1 => LayerRecord::Release { index, replica, layer },
        2 => LayerRecord::Merged { index, replica, layer },
        3 => LayerRecord::Relabel { slot, owner },
        _ => {
            let valid = mask(random);
            let filled = valid & mask(random);
            let lost = valid & mask(random) & !filled;
            LayerRecord::Masks(Masks {
                slot,
                owner,
                fresh: random.chance(50),
                unit: 3,
                mod_seq: ModSeq::from_raw(small(random)),
                valid,
                cleared: mask(random) & !valid,
                filled,
                lost,
                crcs: crcs((filled | lost).count_ones() as usize, random),
            })
        }
    }
}

pub fn batch(random: &mut Random) -> Vec<u8> {
    let records: Vec<Record> = (0..=random.below(12)).map(|_| a_record(random)).collect();
    let mut head = BytesMut::new();
    begin_batch(&mut head);
    records.iter().for_each(|record| record.put(&mut head));
    let payload: u32 = records.iter().map(Record::payload_blocks).sum();
    let first_lsn = 1 + small(random);
    let header = BatchHeader {
        position: small(random) << 12,
        first_lsn,
        previous_lsn: first_lsn - 1,
        durable_lsn: first_lsn - 1,
        head_blocks: 0,
        payload_blocks: u16::try_from(payload).expect("a few records"),
        records: u16::try_from(records.len()).expect("a few records"),
    };
    // Recovery may cut it short: short batches are valid inputs too.
    let payload = payload.min(240 - head.len() as u32 / 4096);
    let payload_blocks = u16::try_from(payload).expect("bounded");
    let header = BatchHeader { payload_blocks, ..header };
    finish_batch(head, UUID, &header).to_vec()
}

fn config(random: &mut Random) -> GroupConfig {
    let member = |role| Member {
        replica: ReplicaId::from_raw(3),
        server: "server-a-1".parse().expect("a legal name"),
        address: "127.0.0.1:7000".parse().expect("a legal address"),
        drive: "ssd".parse().expect("a legal name"),
        role,
    };
    GroupConfig {
        group: GroupId::from_raw(small(random)),
        volume: VolumeId::from_raw(1),
        epoch: Epoch::new(small(random)).expect("below 2^24"),
        members: vec![member(Role::Primary), member(Role::Mirror)],
        size: ByteCount::new(1 << 30),
        attach_generation: AttachGeneration::from_raw(5),
        rate: Rate::default(),
        media: Media::Ssd,
    }
}

pub fn replica_record(random: &mut Random) -> Vec<u8> {
    let config = config(random);
    let record = ReplicaRecord {
        group: config.group,
        volume: config.volume,
        promised: config.epoch,
        adopted: random.chance(70).then_some(config),
        stale: random.chance(50),
    };
    if random.chance(50) {
        return record.encode().to_vec();
    }
    let count = 2 + u32::try_from(random.below(u64::from(STRIPES_MAX) - 1)).expect("a handful");
    let of = Stripes::try_from(count).expect("within the limit");
    let index = u32::try_from(random.below(u64::from(count))).expect("a handful");
    let part = Part { index, of, size: ByteCount::new(1 << 30), serial: small(random) };
    PartRecord { part, record }.encode().to_vec()
}

pub fn record(random: &mut Random) -> Vec<u8> {
    let config = config(random);
    let group = record::Group {
        primary_boot: None,
        desired: Vec::new(),
        replicas: Default::default(),
        config,
    };
    serde_json::to_vec(&record::Record::Group(group)).expect("plain data always serializes")
}

fn attach(random: &mut Random) -> Attach {
    let config = config(random);
    let (volume, instance) = (config.volume, InstanceId::from_raw(6));
    Attach { volume, instance, device: "/dev/sdf".to_owned(), kernel_device: true, config }
}

pub fn attachments(random: &mut Random) -> Vec<u8> {
    attachments::encode(&(0..random.below(3)).map(|_| attach(random)).collect::<Vec<_>>())
}

fn a_message(random: &mut Random) -> DataMessage {
    let config = config(random);
    let (group, epoch, replica) = (config.group, config.epoch, ReplicaId::from_raw(3));
    let session = random.number();
    let id = RequestId { session, request: small(random) };
    let (offset, length, token) = (small(random) << 12, 8192, small(random));
    let (status, mod_seq) = (Status::Ok, ModSeq::from_raw(small(random)));
    let unit = UnitMeta { offset: 65536, mod_seq, valid: vec![3, 0], crcs: crcs(2, random) };
    let data = Bytes::from(vec![5; 8192]);
    let change = Change::Write { crcs: crcs(2, random), data: data.clone() };
    match random.below(13) {
        0 => DataMessage::Read { group, epoch, id, offset, length },
        1 => DataMessage::Change { group, epoch, id, offset, change },
        2 => {
            let change = Change::Zero { length };
            DataMessage::Change { group, epoch, id, offset, change }
        }
        3 => DataMessage::Reply { group, epoch, id, status, crcs: crcs(2, random), data },
        4 => DataMessage::Adopt { config },
        5 => {
            let replicate = Replicate { group, replica, epoch, mod_seq, offset, change };
            DataMessage::Replicate(replicate)
        }
        6 => DataMessage::QueryDigest(DigestQuery { group, replica, epoch, token, offset, length }),
        7 => DataMessage::ReplicateAck { group, replica, mod_seq },
        8 => DataMessage::FillDone { group, replica, token, status, bytes_moved: offset },
        9 => {
            let have = vec![unit];
            DataMessage::PullRegion { group, epoch, replica, token, offset, length, have }
        }
        10 => DataMessage::RegionImage { group, token, status, units: vec![unit], data },
        11 => DataMessage::Room { group, replica, full: true },
        _ => {
            let attach = AttachGeneration::from_raw(9);
            DataMessage::OpenSession { group, epoch, attach, id }
        }
    }
}

pub fn frame(random: &mut Random) -> Vec<u8> {
    data(random)
}

pub fn data(random: &mut Random) -> Vec<u8> {
    a_message(random).into_frame().encode().to_vec()
}

pub fn to_manager(random: &mut Random) -> Vec<u8> {
    let config = config(random);
    let (replica, volume, group) = (ReplicaId::from_raw(3), config.volume, config.group);
    let attach_generation = AttachGeneration::from_raw(9);
    let message = match random.below(6) {
        0 => ToManager::Beat { replicas: Vec::new() },
        1 => ToManager::ReplicaRefused { replica, reason: "no \"room\"".to_owned() },
        2 => {
            let nbd_uris = vec!["nbd+unix:///v?socket=/s".to_owned()];
            ToManager::Attached { volume, attach_generation, nbd_uris, device: None }
        }
        3 => ToManager::PrimarySilent { group, epoch: config.epoch, out_of_reach: true },
        4 => ToManager::SizeShown { volume, size: ByteCount::new(small(random)) },
        _ => ToManager::Detached { volume, attach_generation },
    };
    ctl::encode(&message).encode().to_vec()
}

pub fn from_manager(random: &mut Random) -> Vec<u8> {
    let config = config(random);
    let (replica, group, epoch) = (ReplicaId::from_raw(3), config.group, config.epoch);
    let message = match random.below(4) {
        0 => FromManager::Prepare { replica, group, epoch, as_mirror: random.chance(50) },
        1 => FromManager::Attach(attach(random)),
        2 => FromManager::HandOver { group, epoch },
        _ => FromManager::Configure { config },
    };
    ctl::encode(&message).encode().to_vec()
}

/// A client's side of an NBD connection: flags, options, requests.
pub fn nbd(random: &mut Random) -> Vec<u8> {
    let mut wire = 3u32.to_be_bytes().to_vec();
    let option = |kind: u32, data: &[u8], wire: &mut Vec<u8>| {
        wire.extend(b"IHAVEOPT");
        wire.extend(kind.to_be_bytes());
        wire.extend((data.len() as u32).to_be_bytes());
        wire.extend(data);
    };
    let name = |infos: &[u16]| {
        let mut data = vec![0, 0, 0, 3, b'v', b'o', b'l'];
        data.extend((infos.len() as u16).to_be_bytes());
        infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
        data
    };
    if random.chance(50) {
        option(8, &[], &mut wire);
    }
    if random.chance(50) {
        let mut data = vec![0, 0, 0, 3, b'v', b'o', b'l', 0, 0, 0, 1, 0, 0, 0, 15];
        data.extend(b"base:allocation");
        option(10, &data, &mut wire);
    }
    if random.chance(50) {
        option(6, &name(&[1, 3]), &mut wire);
    }
    option(7, &name(&[]), &mut wire);
    for cookie in 0..random.below(8) {
        let (kind, length) = (random.below(8) as u16, 4096 * random.below(3) as u32);
        wire.extend(0x2560_9513_u32.to_be_bytes());
        wire.extend((random.below(4) as u16).to_be_bytes());
        wire.extend(kind.to_be_bytes());
        wire.extend(cookie.to_be_bytes());
        wire.extend((random.below(256) * 4096).to_be_bytes());
        wire.extend(length.to_be_bytes());
        if kind == 1 {
            wire.resize(wire.len() + length as usize, 0x25);
        }
    }
    wire
}
