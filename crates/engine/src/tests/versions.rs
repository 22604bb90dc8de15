//! Drives that earlier versions wrote are opened, read, changed and opened again.
//!
//! Each file in `drives` is a whole drive, block by block, as the engine of that version left it:
//! a line has the block's number and its words, `word*count` for a run. Blocks of a journal that lies
//! apart follow a line that says so. The first line says what the replica held.

use format::disk::{BLOCK_LEN, FormatVersion, JournalPlace, Superblock};
use model::{id::LayerId, volume::Media};

use super::{
    cases::{SIZE, content, read, replica, write, zero},
    sim::{Bench, Image, geometry},
};
use crate::api::{Geometry, OpError, Outcome, Request};

struct Written {
    /// Of the drive, and of where its journal lies, if that lies apart.
    images: (Image, Image),
    content_crc: u32,
    digest: u64,
    slots_used: u64,
}

fn parse(text: &str) -> Written {
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().expect("a first line").split(' ').collect();
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
    let mut images = (Image::default(), Image::default());
    let mut device = &mut images.0;
    for line in lines {
        if line == "journal" {
            device = &mut images.1;
            continue;
        }
        let (block, words) = line.split_once(' ').expect("a block and its words");
        let mut bytes = Vec::new();
        for word in words.split(' ') {
            let (word, count) = word.split_once('*').unwrap_or((word, "1"));
            let count: usize = count.parse().expect("a count");
            bytes.extend(hex(word).to_le_bytes().repeat(count));
        }
        device.put(block.parse().expect("a number"), &bytes);
    }
    Written {
        images,
        content_crc: u32::try_from(hex(head[1])).expect("four bytes"),
        digest: hex(head[3]),
        slots_used: head[5].parse().expect("a count"),
    }
}

fn content_crc(bench: &mut Bench) -> u32 {
    let half = u32::try_from(SIZE / 2).expect("small");
    let first = read(bench, 0, half);
    crc32c::crc32c_append(crc32c::crc32c(&first), &read(bench, SIZE / 2, half))
}

fn digest(bench: &mut Bench) -> u64 {
    let outcome = bench.ask(Request::Digest { replica: replica(), offset: 0, length: SIZE });
    let Ok(Outcome::Digest { digest }) = outcome else { panic!("{outcome:?}") };
    digest
}

#[test]
fn drives_of_version_1_are_opened_read_and_changed() {
    let drives = [
        (Media::Ssd, include_str!("drives/v1_ssd.txt")),
        (Media::Hdd, include_str!("drives/v1_hdd.txt")),
    ];
    for (media, text) in drives {
        is_opened_read_and_changed(geometry(media, 24 << 20), parse(text), FormatVersion::V1);
    }
}

#[test]
fn a_drive_of_version_3_is_opened_read_and_changed_with_the_journal_apart() {
    let written = parse(include_str!("drives/v3_hdd_apart.txt"));
    let superblock = written.images.0.read(0, BLOCK_LEN);
    assert_eq!(superblock[4..6], [3, 0], "it says so");
    let found = Superblock::decode(&superblock).expect("a superblock").shape;
    let geometry = Geometry { journal: JournalPlace::Apart, ..geometry(Media::Hdd, 24 << 20) };
    assert_eq!((found.media, found.journal), (geometry.media, geometry.journal));
    is_opened_read_and_changed(geometry, written, FormatVersion::V2);
}

fn is_opened_read_and_changed(geometry: Geometry, written: Written, version: FormatVersion) {
    let mut bench = Bench::open_on(geometry, written.images);
    let opened = bench.opened.take().expect("open");
    assert_eq!(opened.len(), 1, "the other was removed");
    assert!(!opened[0].stale);
    assert_eq!((opened[0].replica, &opened[0].meta[..]), (replica(), &b"more"[..]));
    assert!(bench.engine.usage().journal_bytes_used > 0, "not all was written home");
    assert_eq!(content_crc(&mut bench), written.content_crc);
    assert_eq!(digest(&mut bench), written.digest);
    assert_eq!(bench.engine.usage().slots_used, written.slots_used);
    assert_eq!(bench.engine.format_version(), Some(version));

    // It goes on as what it is: slots are freed, used again, and found after each crash.
    for round in 0..20u64 {
        let at = round % 5 * (512 << 10);
        write(&mut bench, 100 + 3 * round, at, content(100 + round, 128));
        zero(&mut bench, 101 + 3 * round, at, 64 << 10);
        write(&mut bench, 102 + 3 * round, at + (4 << 10), content(200 + round, 2));
        if round % 3 == 0 {
            bench.cycle();
        }
        let (crc, digest_before) = (content_crc(&mut bench), digest(&mut bench));
        let used = bench.engine.usage().slots_used;
        bench = Bench::open_on(geometry, bench.seen());
        assert_eq!((content_crc(&mut bench), digest(&mut bench)), (crc, digest_before));
        assert_eq!(bench.engine.usage().slots_used, used);
    }
    let freeze = Request::Freeze { replica: replica(), layer: LayerId::from_raw(1) };
    let without_maps = version == FormatVersion::V1;
    let frozen = if without_maps { Err(OpError::NoLayers) } else { Ok(Outcome::Done) };
    assert_eq!(bench.ask(freeze), frozen);
    let remove = Request::RemoveReplica { replica: replica() };
    assert_eq!(bench.ask(remove), Ok(Outcome::Done));
    bench.cycle();
    let mut bench = Bench::open_on(geometry, bench.seen());
    assert_eq!(bench.engine.usage().slots_used, 0);
    let gone = Request::Read { replica: replica(), offset: 0, length: 4096 };
    assert_eq!(bench.ask(gone), Err(OpError::UnknownReplica));
}
