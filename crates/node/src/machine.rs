//! The machine of a node manager: hands each event to the attachment it is for, and keeps the
//! link to the manager.
//!
//! Invariants: one attachment per volume; a configuration or generation older than the one held
//! changes nothing; attachments are served whether or not the manager can be reached.

use std::{collections::BTreeMap, net::SocketAddr};

use format::{
    ctl::{Attach, FromManager, RegisterNode, ToManager},
    data::DataMessage,
};
use model::{
    epoch::AttachGeneration,
    id::{GroupId, ServerId, VolumeId},
    time::Instant,
};

use crate::{
    api::{Action, Event, GuestError, GuestReply, NodeParams, Timing},
    attachment::Attachment,
    links::Links,
    session::Reply,
};

/// What happened since the start, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests sent to primaries, those sent again included.
    pub sent: u64,
    /// Answers or requests that were damaged in transit, and asked for again.
    pub damaged: u64,
}

/// What attachments work with.
#[derive(Debug)]
pub struct Context<'a> {
    pub now: Instant,
    pub timing: &'a Timing,
    pub links: &'a Links,
    /// Up to which revision the cache is durable.
    pub saved_revision: u64,
    pub counters: &'a mut Counters,
    pub out: &'a mut Vec<Action>,
}

#[derive(Debug)]
pub struct Node {
    params: NodeParams,
    random: u64,
    attachments: BTreeMap<VolumeId, Attachment>,
    volumes: BTreeMap<GroupId, VolumeId>,
    /// The last generation of each volume that ended here: what comes of it later is too late.
    /// A few bytes for each volume that was ever attached here since the start.
    ended: BTreeMap<VolumeId, AttachGeneration>,
    links: Links,
    cache: Cache,
    next_beat: Option<Instant>,
    counters: Counters,
}

/// The durable list of attachments. One save at a time is under way.
#[derive(Debug, Default)]
struct Cache {
    /// Grows with each change.
    revision: u64,
    saving: Option<u64>,
    saved: u64,
}

impl Node {
    /// Starts, and begins to serve what the cache names. `seed` must differ between starts: the
    /// numbers of sessions come from it.
    pub fn new(mut params: NodeParams, seed: u64, now: Instant, out: &mut Vec<Action>) -> Self {
        let cached = std::mem::take(&mut params.cached);
        let mut node = Self {
            params,
            random: seed,
            attachments: BTreeMap::new(),
            volumes: BTreeMap::new(),
            ended: BTreeMap::new(),
            links: Links::default(),
            cache: Cache::default(),
            next_beat: None,
            counters: Counters::default(),
        };
        for attach in cached {
            if attach.config.check().is_ok() && attach.config.volume == attach.volume {
                node.begin(now, attach, true, out);
            }
        }
        node
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// When to call with [`Event::TimeReached`], at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let attachments = self.attachments.values().filter_map(Attachment::deadline);
        attachments.chain(self.next_beat).min()
    }

    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::GuestRequested { volume, token, request } => {
                if !self.with(now, volume, out, |a, cx| a.request(token, request, cx)) {
                    let reply = GuestReply::Failed(GuestError::Gone);
                    out.push(Action::ReplyGuest { volume, token, reply });
                }
            }
            Event::GuestGone { volume, tokens } => {
                self.with(now, volume, out, |a, cx| a.forget(&tokens, cx));
            }
            Event::LinkUp { server } => {
                self.links.set_up(&server);
                self.with_users(now, &server, out, Attachment::link_up);
            }
            Event::LinkDown { server } => {
                self.links.set_down(&server);
                self.with_users(now, &server, out, Attachment::link_down);
            }
            Event::LinkReceived { server, message } => self.received(now, &server, message, out),
            Event::ManagerLinkUp => self.register(now, out),
            Event::ManagerLinkDown => self.next_beat = None,
            Event::ManagerSent { message } => self.manager_sent(now, message, out),
            Event::ExportOpened { volume, nbd_uris, device } => {
                self.with(now, volume, out, |a, cx| a.export_opened(nbd_uris, device, cx));
            }
            Event::ExportFailed { volume, reason } => {
                self.with(now, volume, out, |a, cx| a.export_failed(reason, cx));
            }
            Event::ExportClosed { volume } => {
                self.with(now, volume, out, Attachment::export_closed);
            }
            Event::ExportResized { volume, size } => {
                self.with(now, volume, out, |a, cx| a.export_resized(size, cx));
            }
            Event::AttachmentsSaved => self.saved(now, out),
            Event::TimeReached => self.time_reached(now, out),
        }
    }

    /// Lets an attachment act. Returns whether there is one.
    fn with(
        &mut self,
        now: Instant,
        volume: VolumeId,
        out: &mut Vec<Action>,
        act: impl FnOnce(&mut Attachment, &mut Context<'_>),
    ) -> bool {
        let Some(attachment) = self.attachments.get_mut(&volume) else { return false };
        let was_kept = attachment.is_kept();
        let mut cx = Context {
            now,
            timing: &self.params.timing,
            links: &self.links,
            saved_revision: self.cache.saved,
            counters: &mut self.counters,
            out,
        };
        act(attachment, &mut cx);
        if was_kept && !attachment.is_kept() {
            self.over(volume, out);
        }
        self.remove_if_finished(now, volume, out);
        true
    }

    fn with_users(
        &mut self,
        now: Instant,
        server: &ServerId,
        out: &mut Vec<Action>,
        act: impl Fn(&mut Attachment, &mut Context<'_>),
    ) {
        for volume in self.links.users(server) {
            self.with(now, volume, out, &act);
        }
    }

    fn received(
        &mut self,
        now: Instant,
        server: &ServerId,
        message: DataMessage,
        out: &mut Vec<Action>,
    ) {
        self.links.note_heard(server, now);
        // Whatever else a server might say is not for a node manager.
        let DataMessage::Reply { group, id, status, crcs, data, .. } = message else { return };
        let Some(&volume) = self.volumes.get(&group) else { return };
        let reply = Reply { id, status, crcs, data };
        self.with(now, volume, out, |a, cx| a.receive(server, reply, cx));
    }

    fn manager_sent(&mut self, now: Instant, message: FromManager, out: &mut Vec<Action>) {
        match message {
            FromManager::Attach(attach) => self.attach(now, attach, out),
            FromManager::Detach { volume, attach_generation, force } => {
                self.detach(now, volume, attach_generation, force, out);
            }
            // For servers; and what follows a rejection is the link's end.
            FromManager::CreateReplica { .. }
            | FromManager::RemoveReplica { .. }
            | FromManager::Prepare { .. }
            | FromManager::Configure { .. }
            | FromManager::HandOver { .. }
            | FromManager::Scrub { .. }
            | FromManager::Rejected { .. } => {}
        }
    }

    fn attach(&mut self, now: Instant, attach: Attach, out: &mut Vec<Action>) {
        let volume = attach.volume;
        if let Err(error) = attach.config.check() {
            let reason = error.to_string();
            let message = ToManager::DeviceFailed { volume, reason };
            out.push(Action::SendManager { message });
            return;
        }
        let generation = attach.config.attach_generation;
        if self.ended.get(&volume).is_some_and(|&ended| generation <= ended) {
            return;
        }
        let Some(attachment) = self.attachments.get_mut(&volume) else {
            self.begin(now, attach, false, out);
            self.save(out);
            return;
        };
        let held = attachment.generation();
        if generation > held {
            // The one held is over, whether or not we were told.
            attachment.set_next(attach);
            self.with(now, volume, out, |a, cx| {
                if a.is_kept() {
                    a.end(held, cx);
                }
            });
        } else if generation == held {
            self.reconfigure(now, attach, out);
        }
    }

    fn reconfigure(&mut self, now: Instant, attach: Attach, out: &mut Vec<Action>) {
        let volume = attach.volume;
        let attachment = &self.attachments[&volume];
        let old = attachment.primary().clone();
        let newer = attach.config.epoch > attachment.attach().config.epoch;
        let primary = attach.config.primary();
        let new = primary.server.clone();
        if newer && attachment.is_kept() {
            self.want_link(now, volume, &new, primary.address, out);
        }
        let mut changed = false;
        self.with(now, volume, out, |a, cx| changed = a.reconfigure(attach, cx));
        let moved = self.attachments.get(&volume).is_some_and(|a| *a.primary() != old);
        if moved {
            self.links.release(volume, &old, out);
        }
        if changed {
            self.save(out);
        }
    }

    fn detach(
        &mut self,
        now: Instant,
        volume: VolumeId,
        generation: AttachGeneration,
        force: bool,
        out: &mut Vec<Action>,
    ) {
        let held = self.attachments.get(&volume).map(Attachment::generation);
        if held.is_some_and(|held| held <= generation) {
            self.with(now, volume, out, |a, cx| a.detach(generation, force, cx));
            return;
        }
        // Never known here, or long over.
        let message = ToManager::Detached { volume, attach_generation: generation };
        out.push(Action::SendManager { message });
    }

    fn begin(&mut self, now: Instant, attach: Attach, cached: bool, out: &mut Vec<Action>) {
        let volume = attach.volume;
        let primary = attach.config.primary();
        let (server, address) = (primary.server.clone(), primary.address);
        self.want_link(now, volume, &server, address, out);
        self.volumes.insert(attach.config.group, volume);
        let session = self.random_number();
        let revision = if cached { 0 } else { self.cache.revision + 1 };
        let mut cx = Context {
            now,
            timing: &self.params.timing,
            links: &self.links,
            saved_revision: self.cache.saved,
            counters: &mut self.counters,
            out,
        };
        let attachment = Attachment::new(attach, session, cached, revision, &mut cx);
        self.attachments.insert(volume, attachment);
    }

    fn want_link(
        &mut self,
        now: Instant,
        volume: VolumeId,
        server: &ServerId,
        address: SocketAddr,
        out: &mut Vec<Action>,
    ) {
        if self.links.want(volume, server, address, out) {
            self.with_users(now, server, out, Attachment::link_down);
        }
    }

    /// The attachment has ended, though its export may still have to close.
    fn over(&mut self, volume: VolumeId, out: &mut Vec<Action>) {
        let attachment = &self.attachments[&volume];
        let server = attachment.primary().clone();
        self.ended.insert(volume, attachment.generation());
        self.volumes.remove(&attachment.attach().config.group);
        self.links.release(volume, &server, out);
        self.save(out);
    }

    fn remove_if_finished(&mut self, now: Instant, volume: VolumeId, out: &mut Vec<Action>) {
        if !self.attachments[&volume].is_finished() {
            return;
        }
        let attachment = self.attachments.remove(&volume);
        if let Some(next) = attachment.and_then(|mut a| a.take_next()) {
            self.begin(now, next, false, out);
            self.save(out);
        }
    }

    fn register(&mut self, now: Instant, out: &mut Vec<Action>) {
        let kept = self.attachments.values().filter(|a| a.is_kept());
        let attachments = kept.map(|a| (a.attach().volume, a.generation())).collect();
        let message = ToManager::RegisterNode(RegisterNode {
            cluster: self.params.cluster.clone(),
            node: self.params.node.clone(),
            boot: self.params.boot,
            zone: self.params.zone.clone(),
            account: self.params.account,
            instances: self.params.instances.clone(),
            attachments,
        });
        out.push(Action::SendManager { message });
        self.next_beat = Some(now + self.params.timing.beat);
        for volume in self.volumes_held() {
            self.with(now, volume, out, |a, cx| a.report(cx));
        }
    }

    /// The cache has changed: saves it, or does so once the save under way is done.
    fn save(&mut self, out: &mut Vec<Action>) {
        self.cache.revision += 1;
        self.save_next(out);
    }

    fn save_next(&mut self, out: &mut Vec<Action>) {
        if self.cache.saving.is_some() || self.cache.saved == self.cache.revision {
            return;
        }
        self.cache.saving = Some(self.cache.revision);
        let kept = self.attachments.values().filter(|a| a.is_kept());
        let attachments = kept.map(|a| a.attach().clone()).collect();
        out.push(Action::SaveAttachments { attachments });
    }

    fn saved(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(revision) = self.cache.saving.take() else { return };
        let before = std::mem::replace(&mut self.cache.saved, revision);
        for volume in self.volumes_held() {
            self.with(now, volume, out, |a, cx| a.saved(before, revision, cx));
        }
        self.save_next(out);
    }

    fn time_reached(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.next_beat.is_some_and(|at| now >= at) {
            self.next_beat = Some(now + self.params.timing.beat);
            out.push(Action::SendManager { message: ToManager::Beat { replicas: Vec::new() } });
        }
        for volume in self.volumes_held() {
            if self.attachments[&volume].deadline().is_some_and(|at| now >= at) {
                self.with(now, volume, out, Attachment::time_reached);
            }
        }
    }

    fn volumes_held(&self) -> Vec<VolumeId> {
        self.attachments.keys().copied().collect()
    }

    /// SplitMix64.
    fn random_number(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
