//! One attached volume, from `Attach` to `Detached`.
//!
//! Decides: when its export is opened, resized and closed, and what the manager is told of it.
//! Invariants:
//! - a new size is shown only after the primary has adopted the configuration that brings it
//!   (after a restart the cached size is shown at once, and requests wait for the primary);
//! - `Attached` is reported when programs can use the device and the cache that names it is
//!   durable;
//! - `Detached` is reported once nothing of the attachment is in flight here, and nothing will
//!   be; after a forced detach what had been sent is fenced by its generation.

use format::{ctl::Attach, ctl::ToManager};
use model::{
    epoch::AttachGeneration,
    id::{ServerId, VolumeId},
    time::Instant,
    units::ByteCount,
};

use crate::{
    api::{Action, GuestError, GuestReply, GuestRequest, GuestToken},
    machine::Context,
    requests::{Effects, Requests},
    session::{Outcome, Reply, Session},
};

/// Before an export that could not be opened or resized is tried again.
const EXPORT_RETRY: std::time::Duration = std::time::Duration::from_secs(2);

#[derive(Debug)]
pub struct Attachment {
    attach: Attach,
    phase: Phase,
    export: Export,
    session: Session,
    requests: Requests,
    /// What programs may address: the size under the last configuration that the primary adopted.
    size: u64,
    /// The revision of the cache that first names this attachment.
    revision: u64,
    /// A newer attachment of the same volume, which waits until this one's export is closed.
    next: Option<Attach>,
}

/// ```text
/// Serving ──Detach──► Draining ──all answered before──► Closing ──closed, empty──► removed
///    └──forced, Fenced──────────────────────────────────► Over ─────closed────────► removed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Detaching: what had arrived before `mark` is finished while the export is still open.
    Draining {
        mark: u64,
        generation: AttachGeneration,
    },
    /// Detaching: the export closes.
    Closing {
        generation: AttachGeneration,
    },
    /// Nothing is answered but with `Gone`; reported already.
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Export {
    /// Not wanted yet: the session has never been open.
    Unwanted,
    Opening {
        size: u64,
    },
    Open(Shown),
    Closing,
    Closed,
    /// Could not be opened; tried again at this time.
    Failed {
        retry_at: Instant,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    nbd_uris: Vec<String>,
    device: Option<String>,
    /// What programs see.
    size: u64,
    /// A larger size that a front was asked to show.
    wanted: Option<u64>,
    retry_at: Option<Instant>,
}

impl Attachment {
    /// Begins to serve. A cached attachment was exported before: programs may be waiting for it,
    /// so its export is opened at once.
    pub fn new(
        attach: Attach,
        session_number: u64,
        cached: bool,
        revision: u64,
        cx: &mut Context<'_>,
    ) -> Self {
        let session = Session::new(&attach.config, session_number, cx);
        let mut attachment = Self {
            size: attach.config.size.get(),
            attach,
            phase: Phase::Serving,
            export: Export::Unwanted,
            session,
            requests: Requests::default(),
            revision,
            next: None,
        };
        if cached {
            attachment.open_export(cx);
        }
        attachment
    }

    pub fn attach(&self) -> &Attach {
        &self.attach
    }

    pub fn generation(&self) -> AttachGeneration {
        self.attach.config.attach_generation
    }

    pub fn primary(&self) -> &ServerId {
        self.session.primary()
    }

    /// Whether it is to be served again after a restart.
    pub fn is_kept(&self) -> bool {
        self.phase != Phase::Over
    }

    /// Whether nothing of it is left; then the next attachment of the volume, if there is one,
    /// may begin.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Over && matches!(self.export, Export::Closed | Export::Unwanted)
    }

    pub fn take_next(&mut self) -> Option<Attach> {
        self.next.take()
    }

    /// The attachment that follows this one, unless a newer one is known already.
    pub fn set_next(&mut self, attach: Attach) {
        let order = |a: &Attach| (a.config.attach_generation, a.config.epoch);
        if self.next.as_ref().is_none_or(|known| order(known) < order(&attach)) {
            self.next = Some(attach);
        }
    }

    /// `Attach` of the same generation. Returns whether the cache must be written again.
    pub fn reconfigure(&mut self, attach: Attach, cx: &mut Context<'_>) -> bool {
        let newer = attach.config.epoch > self.attach.config.epoch;
        let changed = attach != self.attach;
        if attach.config.epoch < self.attach.config.epoch || !self.is_kept() {
            return false;
        }
        if newer {
            self.session.reconfigure(&attach.config, cx);
        }
        if newer || attach.config == self.attach.config {
            self.attach = attach;
        }
        self.report_attached(cx);
        changed
    }

    pub fn detach(&mut self, generation: AttachGeneration, force: bool, cx: &mut Context<'_>) {
        self.next.take_if(|next| next.config.attach_generation <= generation);
        if self.phase == Phase::Over {
            self.report_detached(generation, cx);
        } else if force {
            self.end(generation, cx);
        } else if self.phase == Phase::Serving {
            self.phase = Phase::Draining { mark: self.requests.mark(), generation };
            self.advance(cx);
        }
    }

    /// Drops everything at once.
    pub fn end(&mut self, generation: AttachGeneration, cx: &mut Context<'_>) {
        let mut effects = Effects::default();
        self.requests.abandon(&mut effects);
        self.session.abandon();
        self.apply(effects, cx);
        self.phase = Phase::Over;
        self.close_export(cx);
        self.report_detached(generation, cx);
    }

    pub fn request(&mut self, token: GuestToken, request: GuestRequest, cx: &mut Context<'_>) {
        if self.phase == Phase::Over {
            let reply = GuestReply::Failed(GuestError::Gone);
            cx.out.push(Action::ReplyGuest { volume: self.volume(), token, reply });
            return;
        }
        let mut effects = Effects::default();
        self.requests.start(token, request, self.size, &mut effects);
        self.apply(effects, cx);
    }

    pub fn forget(&mut self, tokens: &[GuestToken], cx: &mut Context<'_>) {
        let mut effects = Effects::default();
        self.requests.forget(tokens, &mut effects);
        self.apply(effects, cx);
        self.advance(cx);
    }

    pub fn link_up(&mut self, cx: &mut Context<'_>) {
        if self.is_kept() {
            self.session.link_up(cx);
        }
    }

    pub fn link_down(&mut self, cx: &mut Context<'_>) {
        if self.is_kept() {
            self.session.link_down(cx);
        }
    }

    pub fn receive(&mut self, server: &ServerId, reply: Reply, cx: &mut Context<'_>) {
        if !self.is_kept() {
            return;
        }
        match self.session.receive(server, reply, cx) {
            Outcome::Nothing => {}
            Outcome::Opened => self.opened(cx),
            Outcome::Completed { part, result } => {
                let mut effects = Effects::default();
                self.requests.complete(part, result, &mut effects);
                self.apply(effects, cx);
                self.advance(cx);
            }
            Outcome::Fenced => self.end(self.generation(), cx),
        }
    }

    /// Tells a manager that has just been reached how things stand.
    pub fn report(&self, cx: &mut Context<'_>) {
        if self.is_kept() {
            self.report_attached(cx);
        }
    }

    pub fn export_opened(
        &mut self,
        nbd_uris: Vec<String>,
        device: Option<String>,
        cx: &mut Context<'_>,
    ) {
        let Export::Opening { size } = self.export else { return };
        let shown = Shown { nbd_uris, device, size, wanted: None, retry_at: None };
        self.export = Export::Open(shown);
        self.report_attached(cx);
        self.resize_export(cx);
    }

    pub fn export_resized(&mut self, size: ByteCount, cx: &mut Context<'_>) {
        let Export::Open(shown) = &mut self.export else { return };
        shown.size = size.get();
        shown.wanted = None;
        let message = ToManager::SizeShown { volume: self.attach.volume, size };
        cx.out.push(Action::SendManager { message });
        self.resize_export(cx);
    }

    pub fn export_failed(&mut self, reason: String, cx: &mut Context<'_>) {
        let retry_at = cx.now + EXPORT_RETRY;
        match &mut self.export {
            Export::Opening { .. } => self.export = Export::Failed { retry_at },
            Export::Open(shown) => {
                shown.wanted = None;
                shown.retry_at = Some(retry_at);
            }
            Export::Unwanted | Export::Closing | Export::Closed | Export::Failed { .. } => return,
        }
        let message = ToManager::DeviceFailed { volume: self.attach.volume, reason };
        cx.out.push(Action::SendManager { message });
    }

    pub fn export_closed(&mut self, cx: &mut Context<'_>) {
        match (&self.export, self.phase) {
            (Export::Unwanted | Export::Closed, _) => {}
            // Its front lost it, or never opened it.
            (Export::Opening { .. } | Export::Open(_) | Export::Failed { .. }, _) => {
                self.export = Export::Unwanted;
                self.open_export(cx);
            }
            (Export::Closing, _) => {
                self.export = Export::Closed;
                self.advance(cx);
            }
        }
    }

    /// The cache is durable up to `revision`.
    pub fn saved(&self, before: u64, now_saved: u64, cx: &mut Context<'_>) {
        if self.is_kept() && (before + 1..=now_saved).contains(&self.revision) {
            self.report_attached(cx);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        let export = match &self.export {
            Export::Failed { retry_at } => Some(*retry_at),
            Export::Open(shown) => shown.retry_at,
            Export::Unwanted | Export::Opening { .. } | Export::Closing | Export::Closed => None,
        };
        [export, self.session.deadline()].into_iter().flatten().min()
    }

    pub fn time_reached(&mut self, cx: &mut Context<'_>) {
        if self.is_kept() {
            self.session.time_reached(cx);
        }
        let due = |at: Instant| cx.now >= at;
        match &mut self.export {
            Export::Failed { retry_at } if due(*retry_at) => self.open_export(cx),
            Export::Open(shown) if shown.retry_at.is_some_and(due) => {
                shown.retry_at = None;
                self.resize_export(cx);
            }
            _ => {}
        }
    }

    fn volume(&self) -> VolumeId {
        self.attach.volume
    }

    /// The primary acts under the configuration.
    fn opened(&mut self, cx: &mut Context<'_>) {
        self.size = self.attach.config.size.get();
        match self.export {
            Export::Unwanted => self.open_export(cx),
            Export::Open(_) => self.resize_export(cx),
            Export::Opening { .. } | Export::Closing | Export::Closed | Export::Failed { .. } => {}
        }
    }

    fn open_export(&mut self, cx: &mut Context<'_>) {
        if !matches!(self.phase, Phase::Serving | Phase::Draining { .. }) {
            return;
        }
        self.export = Export::Opening { size: self.size };
        cx.out.push(Action::OpenExport {
            volume: self.volume(),
            size: ByteCount::new(self.size),
            kernel_device: self.attach.kernel_device,
        });
    }

    fn resize_export(&mut self, cx: &mut Context<'_>) {
        let Export::Open(shown) = &mut self.export else { return };
        if shown.size == self.size || shown.wanted.is_some() {
            return;
        }
        shown.wanted = Some(self.size);
        shown.retry_at = None;
        let (volume, size) = (self.attach.volume, ByteCount::new(self.size));
        cx.out.push(Action::ResizeExport { volume, size });
    }

    fn close_export(&mut self, cx: &mut Context<'_>) {
        match self.export {
            Export::Opening { .. } | Export::Open(_) => {
                self.export = Export::Closing;
                cx.out.push(Action::CloseExport { volume: self.volume() });
            }
            Export::Unwanted | Export::Failed { .. } => self.export = Export::Closed,
            Export::Closing | Export::Closed => {}
        }
    }

    /// Takes a graceful detach as far as it goes now.
    fn advance(&mut self, cx: &mut Context<'_>) {
        if let Phase::Draining { mark, generation } = self.phase
            && self.requests.is_answered_before(mark)
        {
            self.phase = Phase::Closing { generation };
            self.close_export(cx);
        }
        if let Phase::Closing { generation } = self.phase
            && self.export == Export::Closed
            && self.requests.is_empty()
        {
            self.session.abandon();
            self.phase = Phase::Over;
            self.report_detached(generation, cx);
        }
    }

    fn apply(&mut self, effects: Effects, cx: &mut Context<'_>) {
        for (part, operation) in effects.submit {
            self.session.submit(part, operation, cx);
        }
        for (token, reply) in effects.replies {
            cx.out.push(Action::ReplyGuest { volume: self.attach.volume, token, reply });
        }
    }

    fn report_attached(&self, cx: &mut Context<'_>) {
        let Export::Open(shown) = &self.export else { return };
        if cx.saved_revision < self.revision {
            return;
        }
        let volume = self.volume();
        let message = ToManager::Attached {
            volume,
            attach_generation: self.generation(),
            nbd_uris: shown.nbd_uris.clone(),
            device: shown.device.clone(),
        };
        cx.out.push(Action::SendManager { message });
        let message = ToManager::SizeShown { volume, size: ByteCount::new(shown.size) };
        cx.out.push(Action::SendManager { message });
    }

    fn report_detached(&self, attach_generation: AttachGeneration, cx: &mut Context<'_>) {
        let message = ToManager::Detached { volume: self.volume(), attach_generation };
        cx.out.push(Action::SendManager { message });
    }
}
