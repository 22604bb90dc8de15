use bytes::BytesMut;
use model::{
    epoch::ModSeq,
    id::{LayerId, ReplicaId},
};
use proptest::prelude::*;

use super::{
    apart::{JournalHead, JournalMismatch},
    journal::{
        BatchHeader, PlacedUnit, RECORD_LEN_MAX, Record, begin_batch, decode_batch, finish_batch,
    },
    layers::{FrozenLayer, LAYERS_MAX, LayerRecord, Layers, Masks},
    map::{BIRTH_LIMIT, MapPage, MapPageMut, PageEntry, SlotOwner},
    page::{
        Descriptor, DescriptorMut, META_LEN_MAX, Owner, PAGE_BODY_LEN, PAGE_HEADER_LEN, PageHeader,
        PageKind, ReplicaRow, decode_page, decode_row, encode_page, encode_row,
    },
    *,
};

const UUID: DriveUuid = DriveUuid(*b"0123456789abcdef");
const OTHER: DriveUuid = DriveUuid(*b"0123456789abcdeF");

fn shape(media: Media) -> DriveShape {
    DriveShape {
        media,
        drive_bytes: 1 << 30,
        journal_bytes: 16 << 20,
        journal: JournalPlace::Inside,
        replicas_max: 64,
    }
}

fn superblock() -> Superblock {
    Superblock {
        version: FormatVersion::V2,
        uuid: UUID,
        shape: shape(Media::Ssd),
        sequence: 5,
        tail: 0x12_3000,
        tail_lsn: 77,
        durable_lsn: 99,
        pages_written: 17,
        checkpoint: 4,
        pages_fingerprint: 0x0102_0304_0506_0708,
        stale_lsn: 3,
        journal_generation: 0,
    }
}

fn superblock_apart() -> Superblock {
    let shape = DriveShape { journal: JournalPlace::Apart, ..shape(Media::Hdd) };
    Superblock { shape, journal_generation: 6, ..superblock() }
}

fn journal_head() -> JournalHead {
    JournalHead { uuid: UUID, bytes: 16 << 20, generation: 6, previous: 5 }
}

fn owner() -> Owner {
    Owner { replica: ReplicaId::from_raw(0xabcd), layer: 0, extent: 6 }
}

fn records() -> Vec<Record> {
    let (slot, owner, mod_seq) = (9, owner(), ModSeq::from_raw(0x1_0000_0002));
    let unit = PlacedUnit { unit: 2, mod_seq, valid: 0b101, cleared: 0, crcs: vec![0xc1, 0xc2] };
    vec![
        Record::Data { slot, owner, fresh: true, mod_seq, first: 3, crcs: vec![0xd1, 0xd2, 0xd3] },
        Record::Set {
            slot,
            owner,
            fresh: false,
            unit: 1,
            mod_seq,
            valid: 0x8000,
            cleared: 0,
            crcs: vec![7],
        },
        Record::Place { slot, owner, old: Some(8), units: vec![unit] },
        Record::Place { slot, owner, old: None, units: vec![] },
        Record::Clear { slot, owner, mod_seq, first: 250, count: 6 },
        Record::Free { slot, owner },
        Record::Replica {
            index: 1,
            replica: owner.replica,
            size: 1 << 30,
            meta: Bytes::from_static(b"meta"),
        },
        Record::Remove { index: 1, replica: owner.replica },
        Record::Seal,
        Record::Direct { slot, owner, fresh: true, mod_seq, first: 200, crcs: vec![0xe1, 0xe2] },
    ]
}

fn layer_records() -> Vec<Record> {
    let (slot, replica, mod_seq) = (9, owner().replica, ModSeq::from_raw(0x1_0000_0002));
    let owner = Owner { layer: 0xabc, ..owner() };
    let (index, layer) = (1, LayerId::from_raw(0x55aa));
    let (valid, cleared) = (0x8001, 0x7000);
    let unit = PlacedUnit { unit: 2, mod_seq, valid, cleared, crcs: vec![0xc1, 0xc2] };
    let masks = Masks {
        slot,
        owner,
        fresh: true,
        unit: 1,
        mod_seq,
        valid: 0x803,
        cleared: 0x10,
        filled: 0x801,
        lost: 2,
        crcs: vec![0xe1, 0xe2, 0xe3],
    };
    let layers = [
        LayerRecord::Freeze { index, replica, layer, head: 3 },
        LayerRecord::Release { index, replica, layer },
        LayerRecord::Merged { index, replica, layer },
        LayerRecord::Relabel { slot, owner },
        LayerRecord::Masks(masks),
    ];
    let crcs = vec![0xd1, 0xd2];
    let others = [
        Record::Data { slot, owner, fresh: true, mod_seq, first: 3, crcs: crcs.clone() },
        Record::Set { slot, owner, fresh: false, unit: 1, mod_seq, valid, cleared, crcs },
        Record::Place { slot, owner, old: Some(8), units: vec![unit] },
    ];
    layers.map(Record::Layer).into_iter().chain(others).collect()
}

fn batch(records: &[Record]) -> Bytes {
    let mut head = BytesMut::new();
    begin_batch(&mut head);
    records.iter().for_each(|record| record.put(&mut head));
    let payload: u32 = records.iter().map(Record::payload_blocks).sum();
    let header = BatchHeader {
        position: 0x4000,
        first_lsn: 100,
        previous_lsn: 99,
        durable_lsn: 98,
        head_blocks: 0,
        payload_blocks: u16::try_from(payload).expect("few"),
        records: u16::try_from(records.len()).expect("few"),
    };
    finish_batch(head, UUID, &header)
}

fn page_header(kind: PageKind) -> PageHeader {
    PageHeader { kind, page: 3, lsn: 44, checkpoint: 2 }
}

fn row() -> ReplicaRow {
    ReplicaRow {
        replica: ReplicaId::from_raw(0xabcd),
        size: 1 << 30,
        birth: 0x1234_5678,
        layers: Layers::default(),
        meta: Bytes::from_static(b"meta"),
    }
}

fn layered_row() -> ReplicaRow {
    let layer =
        |id, number, is_released| FrozenLayer { id: LayerId::from_raw(id), number, is_released };
    let frozen = vec![layer(0x77, 9, true), layer(0x88, 2, false)];
    ReplicaRow { layers: Layers { head: 3, frozen }, ..row() }
}

fn descriptor(slot_blocks: u32) -> Vec<u8> {
    let mut bytes = vec![0; page::descriptor_len(slot_blocks)];
    let mut descriptor = DescriptorMut(&mut bytes);
    descriptor.set_owner(owner());
    descriptor.set_mod_seq(0, ModSeq::from_raw(5));
    descriptor.set_valid(0, 0b10);
    descriptor.set_crc(1, 0xdead_beef);
    bytes
}

fn map_page(slot_blocks: u32) -> Vec<u8> {
    let mut body = vec![0; PAGE_BODY_LEN];
    let mut map = MapPageMut { body: &mut body, slot_blocks };
    map.clear();
    map.set_entry(0, PageEntry { lsn: 9, crc: 0xdead_beef, half: Some(1) });
    map.set_owner(0, 2, Some(slot_owner()));
    body
}

fn slot_owner() -> SlotOwner {
    SlotOwner { birth: 0x1234_5678_9abc, extent: 0xffff_fff0, layer: 7 }
}

/// Eight bytes to a line; lines of zeros are left out.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, line) in bytes.chunks(8).enumerate() {
        if line.iter().any(|&byte| byte != 0) {
            let hex: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
            text.push_str(&format!("{:04x} {hex}\n", index * 8));
        }
    }
    text
}

/// The bytes on drives that exist: a change here needs a new format version, and drives of the old
/// one must still open.
#[test]
fn structures_have_their_bytes() {
    let descriptors = encode_page(UUID, &page_header(PageKind::Descriptors), &descriptor(16));
    let map = encode_page(UUID, &page_header(PageKind::Map), &map_page(16));
    let replica = |version| {
        let row = encode_row(version, Some(&row()));
        encode_page(UUID, &page_header(PageKind::Replica), &row)
    };
    let layered = encode_row(FormatVersion::V3, Some(&layered_row()));
    let layered = encode_page(UUID, &page_header(PageKind::Replica), &layered);
    let superblock_v3 = Superblock { version: FormatVersion::V3, ..superblock() };
    let superblock_v1 = Superblock { version: FormatVersion::V1, ..superblock() };
    let found = [
        ("superblock", dump(&superblock().encode())),
        ("superblock, version 1", dump(&superblock_v1.encode())),
        ("superblock, version 3", dump(&superblock_apart().encode())),
        ("head of a journal", dump(&journal_head().encode())),
        ("descriptor page", dump(&descriptors)),
        ("map page", dump(&map)),
        ("replica page", dump(&replica(FormatVersion::V2))),
        ("replica page, version 1", dump(&replica(FormatVersion::V1))),
        ("batch", dump(&batch(&records()))),
        ("superblock, version 3", dump(&superblock_v3.encode())),
        ("replica page, layers", dump(&layered)),
        ("batch, layers", dump(&batch(&layer_records()))),
    ];
    let text: String = found.iter().map(|(name, bytes)| format!("{name}\n{bytes}")).collect();
    let golden = include_str!("golden.txt");
    assert_eq!(text, golden, "{text}");
}

#[test]
fn layouts_have_their_offsets() {
    let v1 = |media| Layout::of(&shape(media), FormatVersion::V1).expect("large enough");
    let ssd = v1(Media::Ssd);
    assert_eq!((ssd.slots, ssd.descriptor_pages), (16_044, 382));
    assert_eq!((ssd.journal_offset, ssd.slots_offset), (0x39_0000, 0x139_0000));
    assert_eq!((ssd.page_offset(0, 0), ssd.page_offset(0, 1)), (0x1_0000, 0x1_0000 + 446 * BLOCK));
    let hdd = v1(Media::Hdd);
    assert_eq!((hdd.slots, hdd.descriptor_pages), (1_002, 334));
    assert_eq!((hdd.journal_offset, hdd.slots_offset), (0x33_0000, 0x140_0000));
    let v2 = |media| Layout::of(&shape(media), FormatVersion::V2).expect("large enough");
    let ssd = v2(Media::Ssd);
    assert_eq!((ssd.slots, ssd.descriptor_pages, ssd.map_pages), (16_044, 382, 55));
    assert_eq!((ssd.journal_offset, ssd.slots_offset), (0x40_0000, 0x140_0000));
    assert_eq!((ssd.page_offset(0, 0), ssd.page_offset(0, 1)), (0x1_0000, 0x1_0000 + 501 * BLOCK));
    assert_eq!((ssd.pages_read_at_open(), ssd.first_descriptor_page()), (119, 119));
    let v3 = Layout::of(&shape(Media::Ssd), FormatVersion::V3).expect("large enough");
    assert_eq!(Layout { version: FormatVersion::V2, ..v3 }, ssd);
    let hdd = v2(Media::Hdd);
    assert_eq!((hdd.slots, hdd.descriptor_pages, hdd.map_pages), (1_002, 334, 5));
    assert_eq!((hdd.journal_offset, hdd.slots_offset), (0x34_0000, 0x140_0000));
}

#[test]
fn a_journal_apart_leaves_its_place_on_the_drive_to_slots() {
    for media in [Media::Ssd, Media::Hdd] {
        let inside = Layout::of(&shape(media), FormatVersion::V2).expect("large enough");
        let shape = DriveShape { journal: JournalPlace::Apart, ..shape(media) };
        let apart = Layout::of(&shape, FormatVersion::V2).expect("large enough");
        assert_eq!(
            (apart.journal_offset, apart.journal_bytes),
            (64 << 10, (16 << 20) - (64 << 10))
        );
        assert_eq!(apart.journal_device_bytes(), shape.journal_bytes);
        let pages_end = apart.page_offset(apart.pages() - 1, 1) + BLOCK;
        assert!(apart.slots_offset - pages_end < apart.slot_bytes() + (64 << 10));
        assert!(apart.slots > inside.slots + 10, "{} and {}", apart.slots, inside.slots);
        assert!(apart.slot_offset(apart.slots - 1) + apart.slot_bytes() <= shape.drive_bytes);
    }
}

#[test]
fn a_superblock_says_where_the_journal_lies_and_knows_all_flags() {
    let found = superblock_apart();
    assert_eq!(Superblock::decode(&found.encode()), Ok(found));
    let layered = Superblock { version: FormatVersion::V3, ..found };
    assert_eq!(Superblock::decode(&layered.encode()), Ok(layered));
    for flags in [0u16, 4, 7] {
        let mut bytes = found.encode().to_vec();
        bytes[104..106].copy_from_slice(&flags.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..508]);
        bytes[508..512].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Superblock::decode(&bytes), Err(DiskError::Field("flags")));
    }
}

#[test]
fn a_journal_that_is_not_the_drives_is_told_from_one_that_is() {
    let (superblock, head, bytes) = (superblock_apart(), journal_head(), 16 << 20);
    assert_eq!(head.check(&superblock, bytes), Ok(()));
    // After a crash between the head and the superblock that names it.
    let next = JournalHead { generation: 9, previous: 6, ..head };
    assert_eq!(next.check(&superblock, bytes), Ok(()));
    let foreign = JournalHead { uuid: OTHER, ..head };
    assert_eq!(foreign.check(&superblock, bytes), Err(JournalMismatch::Foreign));
    let (found, wanted) = (bytes, bytes / 2);
    let longer = Err(JournalMismatch::Length { found, wanted });
    assert_eq!(head.check(&superblock, wanted), longer);
    for (generation, previous, is_older) in [(5, 4, true), (0, 0, true), (8, 7, false)] {
        let head = JournalHead { generation, previous, ..head };
        let (journal, drive) = (generation, 6);
        let mismatch = match is_older {
            true => JournalMismatch::JournalOlder { journal, drive },
            false => JournalMismatch::DriveOlder { journal, drive },
        };
        assert_eq!(head.check(&superblock, bytes), Err(mismatch));
    }
}

#[test]
fn either_copy_of_a_journals_head_is_enough() {
    let head = journal_head();
    let copies = head.encode();
    for copy in [0, BLOCK_LEN] {
        let mut bytes = copies.to_vec();
        bytes[copy + 33] ^= 1;
        assert_eq!(JournalHead::newest(&bytes), Some(head));
        // One that was torn off before is older.
        let old = JournalHead { generation: 5, previous: 4, ..head }.encode();
        bytes[copy..copy + BLOCK_LEN].copy_from_slice(&old[..BLOCK_LEN]);
        assert_eq!(JournalHead::newest(&bytes), Some(head));
    }
    assert_eq!(JournalHead::newest(&[0; 2 * BLOCK_LEN]), None);
}

#[test]
fn the_number_of_a_layer_comes_again_only_when_no_layer_has_it() {
    let mut layers = layered_row().layers;
    layers.head = 0xffff;
    layers.frozen[0].number = 0;
    layers.frozen[1].number = 1;
    assert_eq!(layers.next_number(&[]), 2);
    assert_eq!(layers.next_number(&[2, 4]), 3);
    layers.freeze(LayerId::from_raw(5), 2);
    assert_eq!((layers.head, layers.frozen[2].number, layers.next_number(&[])), (2, 0xffff, 3));
}

#[test]
fn a_map_page_holds_what_is_put_in_it() {
    for slot_blocks in [16, 256] {
        let mut body = map_page(slot_blocks);
        let last = (map::groups_per_page(slot_blocks) - 1, 2);
        let mut change = MapPageMut { body: &mut body, slot_blocks };
        change.set_owner(last.0, last.1, Some(slot_owner()));
        change.set_owner(0, 1, Some(slot_owner()));
        change.set_owner(0, 1, None);
        let map = MapPage { body: &body, slot_blocks };
        assert_eq!(map.entry(0), PageEntry { lsn: 9, crc: 0xdead_beef, half: Some(1) });
        assert_eq!(map.entry(last.0), PageEntry::NONE);
        assert_eq!((map.owner(0, 2), map.owner(0, 1)), (Some(slot_owner()), None));
        assert_eq!(map.owner(last.0, last.1), Some(slot_owner()));
    }
}

#[test]
fn areas_do_not_overlap_whatever_the_size() {
    let versions = [FormatVersion::V1, FormatVersion::V2];
    let kinds = [Media::Ssd, Media::Hdd].into_iter().flat_map(|m| versions.map(|v| (m, v)));
    for (media, version) in kinds {
        for step in 0..200u64 {
            let drive_bytes = (12 << 20) + step * step * 0x1_2345;
            let (journal_bytes, replicas_max) = (4 << 20, 5);
            let shape = DriveShape { drive_bytes, journal_bytes, replicas_max, ..shape(media) };
            let Ok(layout) = Layout::of(&shape, version) else { continue };
            assert!(layout.pages_offset >= SUPERBLOCKS_BYTES);
            let pages_end = layout.page_offset(layout.pages() - 1, 1) + BLOCK;
            assert!(pages_end <= layout.journal_offset);
            assert!(layout.journal_offset + layout.journal_bytes <= layout.slots_offset);
            let end = layout.slot_offset(layout.slots - 1) + layout.slot_bytes();
            assert!(end <= drive_bytes);
            let groups = map::groups_per_page(layout.slot_blocks);
            let mapped = layout.map_pages * groups;
            assert!(version == FormatVersion::V1 || mapped >= layout.descriptor_pages);
            // Not much is left over.
            let per_page = u64::from(layout.slots / layout.descriptor_pages);
            let spare = (per_page + 2) * layout.slot_bytes() + (256 << 10);
            assert!(drive_bytes - end < spare, "{} of {drive_bytes} unused", drive_bytes - end);
        }
        let wanted = Layout::of(&DriveShape { drive_bytes: 1 << 20, ..shape(media) }, version);
        let drive_bytes = wanted.expect_err("too small");
        assert!(Layout::of(&DriveShape { drive_bytes, ..shape(media) }, version).is_ok());
    }
}

#[test]
fn a_superblock_survives_its_encoding() {
    for media in [Media::Ssd, Media::Hdd] {
        for version in [FormatVersion::V1, FormatVersion::V2, FormatVersion::V3] {
            let superblock = Superblock { version, shape: shape(media), ..superblock() };
            assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
        }
    }
}

#[test]
fn a_page_survives_its_encoding_and_no_other_page_is_taken_for_it() {
    let header = page_header(PageKind::Descriptors);
    let body: Vec<u8> = (0..PAGE_BODY_LEN).map(|i| i.to_le_bytes()[0]).collect();
    let bytes = encode_page(UUID, &header, &body);
    let found = decode_page(UUID, header.kind, 3, &bytes).expect("it is whole");
    assert_eq!(found, (header, &body[..]));
    assert_eq!(decode_page(UUID, header.kind, 4, &bytes), Err(DiskError::Foreign));
    assert_eq!(decode_page(UUID, PageKind::Replica, 3, &bytes), Err(DiskError::Foreign));
    assert_eq!(decode_page(OTHER, header.kind, 3, &bytes), Err(DiskError::Foreign));
    let row = row();
    let bytes = encode_page(
        UUID,
        &page_header(PageKind::Replica),
        &encode_row(FormatVersion::V2, Some(&row)),
    );
    assert_eq!(decode_row(FormatVersion::V2, &bytes[PAGE_HEADER_LEN..]), Ok(Some(row)));
    let bytes =
        encode_page(UUID, &page_header(PageKind::Replica), &encode_row(FormatVersion::V2, None));
    assert_eq!(decode_row(FormatVersion::V2, &bytes[PAGE_HEADER_LEN..]), Ok(None));
}

#[test]
fn a_batch_survives_its_encoding_and_another_drives_is_refused() {
    let bytes = batch(&records());
    let (header, found) = decode_batch(UUID, &bytes).expect("it is whole");
    assert_eq!(found, records());
    assert_eq!((header.first_lsn, header.last_lsn()), (100, 109));
    assert_eq!((header.head_blocks, header.payload_blocks), (1, 4));
    let layers = batch(&layer_records());
    let (header, found) = decode_batch(UUID, &layers).expect("it is whole");
    assert_eq!((found, header.payload_blocks), (layer_records(), 6));
    assert_eq!(decode_batch(OTHER, &bytes), Err(DiskError::Foreign));
    assert_eq!(decode_batch(UUID, &bytes[..4095]), Err(DiskError::Short));
}

#[test]
fn every_flipped_bit_is_found() {
    let structures = [
        superblock().encode(),
        encode_page(UUID, &page_header(PageKind::Descriptors), &descriptor(16)),
        batch(&records()),
        batch(&layer_records()),
    ];
    for (index, bytes) in structures.iter().enumerate() {
        // Behind its sector, a superblock is not looked at.
        let len = if index == 0 { 512 } else { bytes.len() };
        for bit in 0..len * 8 {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let refused = match index {
                0 => Superblock::decode(&bytes).is_err(),
                1 => decode_page(UUID, PageKind::Descriptors, 3, &bytes).is_err(),
                _ => decode_batch(UUID, &bytes).is_err(),
            };
            assert!(refused, "bit {bit} of structure {index} slipped through");
        }
    }
}

#[test]
fn a_descriptor_holds_what_is_put_in_it() {
    for slot_blocks in [16, 256] {
        let bytes = descriptor(slot_blocks);
        let found = Descriptor(&bytes);
        assert_eq!(found.owner(), Some(owner()));
        assert_eq!((found.valid(0), found.mod_seq(0)), (2, ModSeq::from_raw(5)));
        assert!(found.is_valid(1) && !found.is_valid(0));
        assert_eq!(found.crc(1), 0xdead_beef);
        let mut bytes = bytes.clone();
        let last = slot_blocks - 1;
        DescriptorMut(&mut bytes).set_crc(last, 1);
        DescriptorMut(&mut bytes).set_valid(last / 16, 0x8000);
        assert!(Descriptor(&bytes).is_valid(last));
        assert_eq!(Descriptor(&bytes).crc(1), 0xdead_beef);
        DescriptorMut(&mut bytes).set_free();
        assert_eq!(Descriptor(&bytes).owner(), None);
    }
}

/// Wraps arbitrary bytes as the records of a batch whose checksum is right.
fn forged(records: u16, payload_blocks: u16, body: &[u8]) -> Bytes {
    let mut head = BytesMut::new();
    begin_batch(&mut head);
    head.extend_from_slice(body);
    let header = BatchHeader {
        position: 0,
        first_lsn: 1,
        previous_lsn: 0,
        durable_lsn: 0,
        head_blocks: 0,
        payload_blocks,
        records,
    };
    finish_batch(head, UUID, &header)
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let _ = Superblock::decode(&bytes);
        let _ = JournalHead::decode(&bytes);
        let _ = decode_page(UUID, PageKind::Descriptors, 1, &bytes);
        let _ = decode_row(FormatVersion::V1, &bytes);
        let _ = decode_row(FormatVersion::V2, &bytes);
        let _ = decode_batch(UUID, &bytes);
    }

    #[test]
    fn forged_records_never_panic(
        records in 0u16..200,
        blocks in 0u16..200,
        body in prop::collection::vec(any::<u8>(), 0..4000),
    ) {
        let _ = decode_batch(UUID, &forged(records, blocks, &body));
    }

    #[test]
    fn nearly_right_records_never_panic(
        at in 0usize..600,
        value: u8,
        records_count in 0u16..12,
        layers: bool,
    ) {
        let mut body = BytesMut::new();
        let records = if layers { layer_records() } else { records() };
        records.iter().for_each(|record| record.put(&mut body));
        let at = at % body.len();
        body[at] = value;
        let _ = decode_batch(UUID, &forged(records_count, 4, &body));
    }

    #[test]
    fn any_row_survives_its_encoding(
        raw: u64,
        size in 0..=REPLICA_BYTES_MAX,
        meta in prop::collection::vec(any::<u8>(), 0..=META_LEN_MAX),
    ) {
        let replica = ReplicaId::from_raw(raw);
        let birth = raw % (BIRTH_LIMIT - 1) + 1;
        let frozen = (0..raw % (LAYERS_MAX as u64 + 1)).map(|id| FrozenLayer {
            id: LayerId::from_raw(raw ^ id),
            number: (raw as u16).wrapping_sub(1 + id as u16),
            is_released: raw >> id & 1 == 1,
        });
        let layers = Layers { head: raw as u16, frozen: frozen.collect() };
        let row = ReplicaRow { replica, size, birth, layers, meta: meta.into() };
        let (index, replica, meta) = (2, row.replica, row.meta.clone());
        let record = Record::Replica { index, replica, size, meta };
        let mut head = BytesMut::new();
        record.put(&mut head);
        prop_assert!(head.len() <= RECORD_LEN_MAX);
        let (_, found) = decode_batch(UUID, &batch(std::slice::from_ref(&record))).expect("whole");
        prop_assert_eq!(found, vec![record]);
        let body = encode_row(FormatVersion::V2, Some(&row));
        let page = encode_page(UUID, &page_header(PageKind::Replica), &body);
        prop_assert_eq!(decode_row(FormatVersion::V2, &page[PAGE_HEADER_LEN..]), Ok(Some(row)));
    }
}
