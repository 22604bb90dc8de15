//! Control links: framed messages from servers and node managers, and to them.
//!
//! Invariants: what is malformed, silent or too slow to read ends its own link and no other; a
//! link that the machine closed is not heard of again; a link's queue is bounded.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use control::machine::{Event, LinkId};
use format::{
    ctl::{self, CtlError, FromManager, ToManager},
    frame::{self, FrameError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{
        Semaphore,
        mpsc::{self, error::TrySendError},
    },
    time::timeout,
};

use super::Input;
use crate::net::patience;

/// Links open at once; more wait in the kernel's queue.
const LINKS_MAX: usize = 8192;
/// Messages that wait for one peer to read them.
const OUTBOX_MAX: usize = 4096;
const READ_BYTES: usize = 64 << 10;
/// Peers beat every second: a link that says nothing for so long is dead.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How long a closed link is read on, so that its last message is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a link's task tells the task that owns the machine.
#[derive(Debug)]
pub(super) enum LinkInput {
    Opened(mpsc::Sender<Bytes>),
    Received(ToManager),
    Closed,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("closed by the peer")]
    Closed,
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("malformed frame: {0}")]
    Frame(#[from] FrameError),
    #[error("malformed message: {0}")]
    Message(#[from] CtlError),
    #[error("silent for {SILENCE_MAX:?}")]
    Silent,
    #[error("does not read what is sent to it")]
    Stuck,
    /// Our machine closed it, or this manager stops.
    #[error("closed here")]
    ClosedHere,
}

/// The open links, as the machine knows them.
#[derive(Debug, Default)]
pub(super) struct Links {
    outboxes: BTreeMap<LinkId, mpsc::Sender<Bytes>>,
}

impl Links {
    pub(super) fn event_of(&mut self, link: LinkId, input: LinkInput) -> Option<Event> {
        match input {
            LinkInput::Opened(outbox) => {
                self.outboxes.insert(link, outbox);
                Some(Event::LinkOpened { link })
            }
            LinkInput::Received(message) => {
                if let ToManager::MemberDiffers { group, member, offset, .. } = &message {
                    tracing::error!(%group, %member, offset,
                        "a mirror holds other data than its primary; it is filled again");
                }
                self.outboxes.contains_key(&link).then_some(Event::LinkReceived { link, message })
            }
            LinkInput::Closed => self.outboxes.remove(&link).map(|_| Event::LinkClosed { link }),
        }
    }

    /// A peer that lets its outbox fill is cut off by its own task's write limit, and registers
    /// again; what it missed is then sent again, so it may be dropped here.
    pub(super) fn send(&self, link: LinkId, message: &FromManager) {
        let Some(outbox) = self.outboxes.get(&link) else { return };
        // Closed: the link has ended, and its task is about to say so.
        if let Err(TrySendError::Full(_)) = outbox.try_send(ctl::encode(message).encode()) {
            tracing::warn!(link = link.0, "a control link does not take its messages");
        }
    }

    /// The link's task sends what is queued, then closes it.
    pub(super) fn close(&mut self, link: LinkId) {
        drop(self.outboxes.remove(&link));
    }
}

/// Accepts links until dropped.
pub(super) async fn accept(listener: TcpListener, inputs: mpsc::Sender<Input>) {
    let open = Arc::new(Semaphore::new(LINKS_MAX));
    let mut last = 0;
    loop {
        let permit = Arc::clone(&open).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                last += 1;
                let link = LinkId(last);
                let inputs = inputs.clone();
                drop(tokio::spawn(async move {
                    let fault = run(link, stream, &inputs).await;
                    tracing::info!(link = link.0, %peer, "control link ended: {fault}");
                    drop(permit);
                }));
                tracing::debug!(link = link.0, %peer, "control link");
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control link");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn run(link: LinkId, stream: TcpStream, inputs: &mpsc::Sender<Input>) -> Fault {
    let (outbox, queued) = mpsc::channel(OUTBOX_MAX);
    if let Err(error) = stream.set_nodelay(true).and_then(|()| patience::limit(&stream)) {
        return error.into();
    }
    if inputs.send(Input::Link(link, LinkInput::Opened(outbox))).await.is_err() {
        return Fault::ClosedHere;
    }
    let (mut reading, writing) = stream.into_split();
    let fault = tokio::select! {
        fault = read(link, &mut reading, inputs) => fault,
        fault = write(writing, queued) => fault,
    };
    if matches!(fault, Fault::ClosedHere) {
        // Whatever comes now is for nobody.
        let mut nobody = tokio::io::sink();
        drop(timeout(LINGER, tokio::io::copy(&mut reading, &mut nobody)).await);
    }
    // The machine's task is gone only when the whole process stops.
    drop(inputs.send(Input::Link(link, LinkInput::Closed)).await);
    fault
}

async fn read(link: LinkId, stream: &mut OwnedReadHalf, inputs: &mpsc::Sender<Input>) -> Fault {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        let message = match next(stream, &mut buffer).await {
            Ok(message) => message,
            Err(fault) => return fault,
        };
        if inputs.send(Input::Link(link, LinkInput::Received(message))).await.is_err() {
            return Fault::ClosedHere;
        }
    }
}

async fn next(stream: &mut OwnedReadHalf, buffer: &mut BytesMut) -> Result<ToManager, Fault> {
    loop {
        if let Some(frame) = frame::decode(buffer)? {
            return Ok(ctl::decode(&frame)?);
        }
        buffer.reserve(READ_BYTES);
        match timeout(SILENCE_MAX, stream.read_buf(buffer)).await {
            Ok(Ok(0)) => return Err(Fault::Closed),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(Fault::Silent),
        }
    }
}

async fn write(mut stream: OwnedWriteHalf, mut queued: mpsc::Receiver<Bytes>) -> Fault {
    while let Some(message) = queued.recv().await {
        match timeout(WRITE_LIMIT, stream.write_all(&message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return Fault::Stuck,
        }
    }
    drop(stream.shutdown().await);
    Fault::ClosedHere
}
