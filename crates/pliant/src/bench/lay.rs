//! Gives the replicas of a drive extents, so that a restart can be timed on a drive that is full
//! of metadata without writing what the metadata is of.
//!
//! Content is zeros, and a slot of a new, sparse drive is zeros already: such writes are answered
//! and not carried out. Everything else goes to the drive as it would from a server.

use std::path::PathBuf;

use bytes::Bytes;
use engine::api::{Durability, Geometry, OpToken, Request};
use format::{data::Change, disk::JournalPlace};
use model::{epoch::ModSeq, volume::Media};

use super::{say, turning::Turning};
use crate::drive::{self, Completion, DriveOptions, DriverKind, Flush, LOCK_WAIT};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// File of the drive, as a server formatted it
    #[arg(long)]
    drive: PathBuf,
    #[arg(long)]
    size_gib: u64,
    #[arg(long)]
    journal_mib: u64,
    #[arg(long)]
    replicas_max: u32,
    /// From the start of each replica, what is given extents
    #[arg(long)]
    gib_each: u64,
}

const CHUNK: usize = 1 << 20;
const IN_FLIGHT: usize = 32;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let bytes = args.size_gib << 30;
    let geometry = Geometry {
        media: Media::Ssd,
        drive_bytes: bytes,
        journal_bytes: args.journal_mib << 20,
        journal: JournalPlace::Inside,
        replicas_max: args.replicas_max,
        memory_bytes: 256 << 20,
    };
    let (path, kind, flush) = (args.drive.clone(), DriverKind::Auto, Flush::Auto);
    let options =
        DriveOptions { path, bytes, threads: 4, direct: true, kind, flush, lock_wait: LOCK_WAIT };
    let (mut turning, replicas) =
        Turning::open(geometry, Some(keep_zeros_out), |sink| Ok(drive::open(&options, sink)?))?;
    let data = Bytes::from(vec![0; CHUNK]);
    let crcs = vec![crc32c::crc32c(&data[..4096]); CHUNK / 4096];
    let mut changes = replicas.iter().flat_map(|replica| {
        let reach = (args.gib_each << 30).min(replica.size.get());
        let mod_seq = ModSeq::from_raw(1);
        (0..reach).step_by(CHUNK).map(move |offset| (replica.replica, mod_seq, offset))
    });
    let (mut in_flight, mut asked, mut laid) = (0, 0, 0);
    loop {
        while in_flight < IN_FLIGHT
            && let Some((replica, mod_seq, offset)) = changes.next()
        {
            let change = Change::Write { crcs: crcs.clone(), data: data.clone() };
            let request = Request::Change { replica, mod_seq, offset, change };
            asked += 1;
            turning.request(OpToken(asked), request);
            in_flight += 1;
        }
        if in_flight == 0 {
            break;
        }
        turning.turn()?;
        for (_, result) in std::mem::take(&mut turning.completed) {
            result?;
            in_flight -= 1;
            laid += CHUNK;
        }
    }
    turning.settle()?;
    say(&serde_json::json!({ "replicas": replicas.len(), "bytes": laid }))
}

fn keep_zeros_out(request: drive::Request) -> Result<drive::Request, Completion> {
    match request {
        // Journal and pages are written in other ways, and are never zeros alone.
        drive::Request::Write { token, ref data, durability: Durability::Later, .. }
            if data.iter().all(|part| part.chunks(4096).all(|block| block == [0; 4096])) =>
        {
            Err(Completion::Written { token, result: Ok(()) })
        }
        request => Ok(request),
    }
}
