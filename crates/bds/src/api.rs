//! What goes into a server's machine and what comes out of it.
//!
//! The server owns one engine per drive and one machine per replica. The shell owns sockets and
//! drives: it feeds frames and completions in, and carries actions out in the order given.

pub use crate::turn::Finding;
use bytes::Bytes;
use engine::api::{Device, DriveError, Durability, IoToken, Urgency};
use format::{
    ctl::{FromManager, ToManager},
    data::DataMessage,
};
use model::{
    id::{BootId, DriveName, ReplicaId, ServerId, VolumeId, Zone},
    units::{ByteCount, Rate},
    volume::Media,
};
use std::{net::SocketAddr, time::Duration};

/// An inbound data connection; the shell numbers them, never reusing a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

#[derive(Debug, Clone)]
pub struct ServerParams {
    pub cluster: String,
    pub server: ServerId,
    pub boot: BootId,
    pub zone: Zone,
    pub address: SocketAddr,
    pub drives: Vec<DriveParams>,
    pub timing: Timing,
}

#[derive(Debug, Clone)]
pub struct DriveParams {
    pub drive: DriveName,
    /// Where it and its journal lie, for whoever has to find what failed.
    pub place: String,
    pub geometry: engine::api::Geometry,
    /// What the drive may promise; reported to the manager.
    pub capacity: ByteCount,
    pub rate: Rate,
    pub media: Media,
    pub emulation: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A member of the in-sync set that has not acknowledged for this long is reported silent.
    pub member_silence: Duration,
    /// A learner that has not answered for this long is abandoned.
    pub learner_silence: Duration,
    /// A primary that handed over and heard nothing serves again after this long.
    pub hand_over_limit: Duration,
    pub beat: Duration,
    /// Everything a drive holds is read and verified once in this time; zero: only when asked for.
    pub scrub_period: Duration,
    /// Of all drives of the server together.
    pub scrub_bytes_per_sec: u64,
    /// Regions of one learner being filled at once.
    pub fill_window: usize,
    /// Learners that a server fills at once; others wait.
    pub fills_max: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            member_silence: Duration::from_secs(2),
            learner_silence: Duration::from_secs(5),
            hand_over_limit: Duration::from_secs(1),
            beat: Duration::from_millis(500),
            scrub_period: Duration::from_secs(14 * 24 * 3600),
            scrub_bytes_per_sec: 8 << 20,
            fill_window: 4,
            fills_max: 8,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    DriveRead {
        drive: DriveName,
        token: IoToken,
        result: Result<Bytes, DriveError>,
    },
    DriveWritten {
        drive: DriveName,
        token: IoToken,
        result: Result<(), DriveError>,
    },
    DriveFlushed {
        drive: DriveName,
        token: IoToken,
        result: Result<(), DriveError>,
    },
    /// A message on an inbound connection, after the shell has checked its `Hello`.
    MessageReceived {
        conn: ConnId,
        message: DataMessage,
    },
    ConnClosed {
        conn: ConnId,
    },
    /// The outbound link to a server is up (again); what was sent before may be lost.
    LinkUp {
        server: ServerId,
    },
    LinkDown {
        server: ServerId,
    },
    /// A message on the outbound link: acknowledgements, digests, images.
    LinkReceived {
        server: ServerId,
        message: DataMessage,
    },
    ManagerLinkUp,
    ManagerLinkDown,
    ManagerSent {
        message: FromManager,
    },
    /// `Server::deadline` has come.
    TimeReached,
}

/// What was found out about a block of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    pub volume: VolumeId,
    pub replica: ReplicaId,
    pub drive: DriveName,
    /// Within the volume.
    pub offset: u64,
    pub finding: Finding,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    ReadDrive {
        drive: DriveName,
        device: Device,
        token: IoToken,
        offset: u64,
        length: u32,
    },
    WriteDrive {
        drive: DriveName,
        device: Device,
        token: IoToken,
        offset: u64,
        data: Vec<Bytes>,
        durability: Durability,
        urgency: Urgency,
    },
    FlushDrive {
        drive: DriveName,
        device: Device,
        token: IoToken,
    },
    /// See the engine's action of this name. Of the drive alone, never of a journal apart.
    PrepareDrive {
        drive: DriveName,
        token: IoToken,
        offset: u64,
        length: u32,
    },
    /// Answer on an inbound connection; dropped when it has closed.
    Reply {
        conn: ConnId,
        message: DataMessage,
    },
    /// Send on the outbound link to a server. The shell dials when there is none, keeps trying
    /// while `Connect` stands, and drops messages while the link is down.
    Send {
        server: ServerId,
        message: DataMessage,
    },
    /// Keep a link to this server at this address.
    Connect {
        server: ServerId,
        address: SocketAddr,
    },
    Disconnect {
        server: ServerId,
    },
    /// Dropped while the manager's link is down; the machine registers again on `ManagerLinkUp`.
    SendManager {
        message: ToManager,
    },
    /// Something that people should know of.
    Note(Incident),
    /// People should know of this too, of what was lost above all.
    DriveOpened {
        drive: DriveName,
        /// It was blank.
        formatted: bool,
        replicas: usize,
        /// Of them, those that may miss acknowledged changes, because recovery found damage.
        stale: usize,
    },
    /// All drives are open: the shell may accept connections and dial the manager.
    Ready,
}
