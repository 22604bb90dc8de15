//! What goes into a node manager's machine and what comes out of it.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use format::{
    ctl::{Attach, FromManager, ToManager},
    data::DataMessage,
};
use model::{
    id::{AccountId, BootId, InstanceId, NodeId, ServerId, VolumeId, Zone},
    units::ByteCount,
};

/// A guest's request, as the front that took it names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestToken(pub u64);

#[derive(Debug, Clone)]
pub struct NodeParams {
    pub cluster: String,
    pub node: NodeId,
    pub boot: BootId,
    pub zone: Zone,
    pub account: AccountId,
    pub instances: Vec<InstanceId>,
    pub timing: Timing,
    /// Attachments from the node's own cache, to serve before the manager is reached.
    pub cached: Vec<Attach>,
}

#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A primary that has not answered for this long is reported silent.
    pub primary_silence: Duration,
    /// First and longest wait before a refused request is sent again.
    pub retry_min: Duration,
    pub retry_max: Duration,
    pub beat: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            primary_silence: Duration::from_secs(2),
            retry_min: Duration::from_millis(5),
            retry_max: Duration::from_millis(500),
            beat: Duration::from_millis(500),
        }
    }
}

/// What a program asks of its device. Any byte offset and length within the device; the machine
/// turns partial blocks into reads and whole-block writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestRequest {
    Read {
        offset: u64,
        length: u32,
    },
    /// Durable when answered, so FUA asks nothing more.
    Write {
        offset: u64,
        data: Bytes,
    },
    /// Trim: the range may read as zeros afterwards (here it always does, for whole blocks).
    Trim {
        offset: u64,
        length: u64,
    },
    WriteZeroes {
        offset: u64,
        length: u64,
    },
    /// Everything answered before is durable.
    Flush,
    /// Which blocks hold data.
    BlockStatus {
        offset: u64,
        length: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestReply {
    Done,
    Data(Bytes),
    /// Runs of `(length, is_hole)` that cover the range asked for.
    Blocks(Vec<(u32, bool)>),
    /// The only errors a program ever sees.
    Failed(GuestError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    #[error("beyond the end of the device")]
    OutOfRange,
    #[error("no replica holds a good copy of a block in the range")]
    BadBlock,
    /// The attachment is over: detached, or taken over elsewhere.
    #[error("the device is detached")]
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    GuestRequested {
        volume: VolumeId,
        token: GuestToken,
        request: GuestRequest,
    },
    /// The connection or mount that issued these is gone: nobody waits for the answer. Requests
    /// already sent still take their course.
    GuestGone {
        volume: VolumeId,
        tokens: Vec<GuestToken>,
    },
    /// The outbound link to a server is up (again).
    LinkUp {
        server: ServerId,
    },
    LinkDown {
        server: ServerId,
    },
    LinkReceived {
        server: ServerId,
        message: DataMessage,
    },
    ManagerLinkUp,
    ManagerLinkDown,
    ManagerSent {
        message: FromManager,
    },
    /// A front made the export (or kernel device) that `OpenExport` asked for.
    ExportOpened {
        volume: VolumeId,
        nbd_uris: Vec<String>,
        device: Option<String>,
    },
    ExportFailed {
        volume: VolumeId,
        reason: String,
    },
    ExportClosed {
        volume: VolumeId,
    },
    ExportResized {
        volume: VolumeId,
        size: ByteCount,
    },
    /// The cache of attachments that `SaveAttachments` asked for is durable.
    AttachmentsSaved,
    /// `Node::deadline` has come.
    TimeReached,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    ReplyGuest {
        volume: VolumeId,
        token: GuestToken,
        reply: GuestReply,
    },
    Connect {
        server: ServerId,
        address: SocketAddr,
    },
    Disconnect {
        server: ServerId,
    },
    /// Dropped while the link is down; the machine sends again on `LinkUp`.
    Send {
        server: ServerId,
        message: DataMessage,
    },
    SendManager {
        message: ToManager,
    },
    /// Make the export visible to programs.
    OpenExport {
        volume: VolumeId,
        size: ByteCount,
        kernel_device: bool,
    },
    ResizeExport {
        volume: VolumeId,
        size: ByteCount,
    },
    CloseExport {
        volume: VolumeId,
    },
    /// Replace the durable cache of attachments.
    SaveAttachments {
        attachments: Vec<Attach>,
    },
}
