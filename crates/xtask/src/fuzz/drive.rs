//! A whole drive: an engine is opened on an image that was changed, and used.
//!
//! The input is a list of changes to a drive that a history left behind, eight bytes each: block,
//! offset, value, and whether the structure's checksum is made right again.

use std::sync::LazyLock;

use engine::api::{Device, Request};
use model::{id::ReplicaId, units::ByteCount};
use sim::{
    crash::{self, bench::Bench, damage::Rest, trace::Trace},
    drive::image::Images,
    random::Random,
};

use super::targets::{seal_batch, seal_page};

const SEEDS: std::ops::Range<u64> = 1..7;
const CHANGE_LEN: usize = 8;

type Blocks = Vec<(Device, u64)>;

/// Drives at rest, with the blocks that hold metadata or journal.
static DRIVES: LazyLock<Vec<(Rest, Blocks)>> = LazyLock::new(|| {
    let rests = SEEDS.map(|seed| crash::at_rest(seed).expect("a history without faults ends"));
    rests
        .map(|rest| {
            let end = rest.slots_offset() / 4096;
            let blocks = rest.images.blocks();
            let blocks = blocks.filter(|&(d, block)| d == Device::Journal || block < end).collect();
            (rest, blocks)
        })
        .collect()
});

pub fn valid(random: &mut Random) -> Vec<u8> {
    let length = 1 + CHANGE_LEN * (1 + random.below(6) as usize);
    (0..length).map(|_| random.below(256) as u8).collect()
}

pub fn check(bytes: &[u8]) -> Result<bool, String> {
    let Some((&which, changes)) = bytes.split_first() else { return Ok(false) };
    let (rest, blocks) = &DRIVES[usize::from(which) % DRIVES.len()];
    let mut images = rest.images.clone();
    for change in changes.chunks_exact(CHANGE_LEN) {
        let number = |at: usize| usize::from(u16::from_le_bytes([change[at], change[at + 1]]));
        let (device, block) = blocks[number(0) % blocks.len()];
        let image = images.of(device);
        let mut content = image.get(block).to_vec();
        // Most of what is decided lies in front.
        let at = if change[7] & 2 == 0 { number(2) % 4096 } else { number(2) % 128 };
        content[at] = change[4];
        content[(at + 1) % 4096] ^= change[5];
        if change[7] & 1 == 1 {
            reseal(block, &mut content);
        }
        image.put(block, content.into());
    }
    use_it(rest, images)
}

fn reseal(block: u64, content: &mut Vec<u8>) {
    match &content[..4] {
        b"PLP1" => seal_page(content),
        b"PLJ1" => seal_batch(content),
        _ if block < 2 => {
            let crc = crc32c::crc32c(&content[..508]);
            content[508..512].copy_from_slice(&crc.to_le_bytes());
        }
        _ => {}
    }
}

/// Whatever is there: it is read, described, written and removed, and all of it is answered.
fn use_it(rest: &Rest, images: Images) -> Result<bool, String> {
    let mut bench = Bench::tried(rest.plan.geometry, images, Trace::default());
    if bench.out_of_service.is_some() {
        return Ok(false);
    }
    let opened = bench.opened.clone().ok_or("it neither opens nor is refused")?;
    for found in &opened {
        let replica = found.replica;
        let length = found.size.get().min(2 << 20) / 4096 * 4096;
        let bytes = u32::try_from(length.min(1 << 20)).expect("bounded");
        drop(bench.try_ask(Request::Read { replica, offset: 0, length: bytes }));
        drop(bench.try_ask(Request::Describe { replica, offset: 0, length }));
        drop(bench.try_ask(Request::Digest { replica, offset: 0, length }));
    }
    let replica = ReplicaId::from_raw(99);
    let size = ByteCount::new(1 << 20);
    bench.request(Request::CreateReplica { replica, size, meta: "new".into() });
    bench.idle();
    for found in opened {
        bench.request(Request::RemoveReplica { replica: found.replica });
        bench.idle();
    }
    let usage = bench.engine.usage();
    if bench.out_of_service.is_none() && usage.slots_used > usage.slots_total {
        return Err(format!("{usage:?}"));
    }
    Ok(true)
}
