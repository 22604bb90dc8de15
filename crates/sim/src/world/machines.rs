//! Feeds the machines and carries out what they decide.

use bds::api as bds_api;
use control::machine as control_api;
use engine::api::{Device, DriveError, Durability};
use format::ctl::ToManager;
use model::id::{NodeId, ServerId};
use node::api as node_api;

use super::{Answered, Fed, Happening, Moment, World};
use crate::{drive::zeros, network::Process};

impl World {
    pub(super) fn feed_manager(&mut self, event: control_api::Event) {
        if let Some(missed) = self.paused.get_mut(&Process::Manager) {
            return missed.push(Fed::Manager(event));
        }
        let (now, wall) = (self.local(&Process::Manager), self.wall());
        let Some(machine) = &mut self.manager.machine else { return };
        self.watch.manager_handles(self.now, &event);
        let mut out = Vec::new();
        machine.handle(now, wall, event, &mut out);
        self.act_manager(out);
        self.schedule_wake(&Process::Manager);
    }

    pub(super) fn act_manager(&mut self, actions: Vec<control_api::Action>) {
        for action in actions {
            match action {
                control_api::Action::Send { link, message } => {
                    let conn = bds_api::ConnId(link.0);
                    let Some(to) = self.network.by_conn(&Process::Manager, conn) else { continue };
                    let delay = self.travel(&Process::Manager, &to, (50, 500));
                    self.trace(|| format!("manager -> {to:?}: {message:?}"));
                    let sent = self.network.send(&to, &Process::Manager, false, self.now, delay);
                    let (at, life) = sent.expect("found by its connection");
                    self.schedule_at(at, Happening::FromManager { to, life, message });
                }
                control_api::Action::Report { text } => self.trace(|| format!("manager: {text}")),
                control_api::Action::CloseLink { link } => {
                    let conn = bds_api::ConnId(link.0);
                    if let Some(from) = self.network.by_conn(&Process::Manager, conn) {
                        let broken = self.network.break_link(&from, &Process::Manager);
                        self.tell_broken(broken);
                    }
                }
                control_api::Action::Commit { commit, writes } => {
                    assert!(self.manager.pending.is_none(), "two commits in flight");
                    self.trace(|| format!("manager commits {writes:?}"));
                    self.watch.manager_decides(self.now);
                    self.manager.pending = Some((commit, writes));
                    let delay = self.random.micros(300, 4_000);
                    let life = self.manager.life;
                    self.schedule(delay, Happening::Committed { life, commit });
                }
                control_api::Action::AnswerHttp { call, response } => {
                    self.http.insert(call.0, response);
                }
            }
        }
    }

    pub(super) fn feed_server(&mut self, id: &ServerId, event: bds_api::Event) {
        let this = Process::Server(id.clone());
        if let Some(missed) = self.paused.get_mut(&this) {
            return missed.push(Fed::Server(event));
        }
        let now = self.local(&this);
        let server = self.servers.get_mut(id).expect("known");
        let Some(machine) = &mut server.machine else { return };
        self.watch.server_handles(id, self.now, &event);
        let mut out = Vec::new();
        machine.handle(now, event, &mut out);
        self.act_server(id, out);
        self.schedule_wake(&this);
    }

    pub(super) fn act_server(&mut self, id: &ServerId, actions: Vec<bds_api::Action>) {
        let this = Process::Server(id.clone());
        for action in actions {
            let life = self.servers[id].life;
            self.watch.server_acts((id, life), self.now, &action);
            let server = id.clone();
            match action {
                bds_api::Action::ReadDrive { drive, device, token, offset, length } => {
                    let process = self.servers.get_mut(id).expect("known");
                    let disk = process.disk(&drive, device);
                    let result = disk.carry_out_read(offset, length).map_err(DriveError::Io);
                    let delay = self.drive_time(id, (20, 400));
                    let read = Happening::DriveRead { server, life, drive, token, result };
                    self.schedule(delay, read);
                }
                bds_api::Action::WriteDrive {
                    drive,
                    device,
                    token,
                    offset,
                    data,
                    durability,
                    ..
                } => {
                    let process = self.servers.get_mut(id).expect("known");
                    let ticket = process.disk(&drive, device).begin_write(offset, &data);
                    let delay = self.drive_time(id, (20, 600));
                    let written = Happening::DriveWritten {
                        server,
                        life,
                        drive,
                        device,
                        token,
                        ticket,
                        durability,
                    };
                    self.schedule(delay, written);
                }
                bds_api::Action::PrepareDrive { drive, token, offset, length } => {
                    let process = self.servers.get_mut(id).expect("known");
                    let disk = process.disk(&drive, Device::Data);
                    let ticket = disk.begin_write(offset, &zeros(length));
                    let delay = self.drive_time(id, (20, 5_000));
                    let written = Happening::DriveWritten {
                        server,
                        life,
                        drive,
                        device: Device::Data,
                        token,
                        ticket,
                        durability: Durability::Later,
                    };
                    self.schedule(delay, written);
                }
                bds_api::Action::FlushDrive { drive, device, token } => {
                    let process = self.servers.get_mut(id).expect("known");
                    let ticket = process.disk(&drive, device).begin_flush();
                    let delay = self.drive_time(id, (50, 600));
                    let flushed =
                        Happening::DriveFlushed { server, life, drive, device, token, ticket };
                    self.schedule(delay, flushed);
                }
                bds_api::Action::Reply { conn, message } => {
                    if let Some(from) = self.network.by_conn(&this, conn) {
                        self.send_data(&from, &this, false, message);
                    }
                }
                bds_api::Action::Send { server, message } => {
                    self.send_data(&this, &Process::Server(server), true, message);
                }
                bds_api::Action::Connect { server, .. } => {
                    self.dial(&this, &Process::Server(server))
                }
                bds_api::Action::Disconnect { server } => {
                    self.disconnect(&this, &Process::Server(server))
                }
                bds_api::Action::SendManager { message } => {
                    self.moments.extend(moment(&message).map(|moment| (id.clone(), moment)));
                    self.send_manager(&this, message);
                }
                bds_api::Action::Note(_) | bds_api::Action::DriveOpened { .. } => {}
                bds_api::Action::Ready => {
                    self.servers.get_mut(id).expect("known").ready = true;
                    self.dial(&this, &Process::Manager);
                }
            }
        }
    }

    pub(super) fn disconnect(&mut self, from: &Process, to: &Process) {
        let Some(link) = self.network.drop_wanted(from, to) else { return };
        if link.up
            && let Process::Server(s) = to
        {
            self.feed_server(&s.clone(), bds_api::Event::ConnClosed { conn: link.conn });
        }
    }

    pub(super) fn send_manager(&mut self, from: &Process, message: ToManager) {
        let delay = self.travel(from, &Process::Manager, (50, 500));
        let sent = self.network.send(from, &Process::Manager, true, self.now, delay);
        let Some((at, life)) = sent else { return };
        self.trace(|| format!("{from:?} -> manager: {message:?}"));
        self.schedule_at(at, Happening::ToManager { from: from.clone(), life, message });
    }

    pub(super) fn feed_node(&mut self, id: &NodeId, event: node_api::Event) {
        let this = Process::Node(id.clone());
        if let Some(missed) = self.paused.get_mut(&this) {
            return missed.push(Fed::Node(event));
        }
        let now = self.local(&this);
        let node = self.nodes.get_mut(id).expect("known");
        let Some(machine) = &mut node.machine else { return };
        let mut out = Vec::new();
        machine.handle(now, event, &mut out);
        self.act_node(id, out);
        self.schedule_wake(&this);
    }

    pub(super) fn act_node(&mut self, id: &NodeId, actions: Vec<node_api::Action>) {
        let this = Process::Node(id.clone());
        for action in actions {
            match action {
                node_api::Action::ReplyGuest { token, reply, .. } => {
                    self.answered.push(Answered { node: id.clone(), token, reply });
                }
                node_api::Action::Connect { server, .. } => {
                    self.dial(&this, &Process::Server(server))
                }
                node_api::Action::Disconnect { server } => {
                    self.disconnect(&this, &Process::Server(server))
                }
                node_api::Action::Send { server, message } => {
                    self.send_data(&this, &Process::Server(server), true, message);
                }
                node_api::Action::SendManager { message } => self.send_manager(&this, message),
                node_api::Action::OpenExport { volume, size, .. } => {
                    self.exports.insert((id.clone(), volume), size.get());
                    let nbd_uris = vec![format!("nbd://sim/{volume}")];
                    self.export(
                        id,
                        node_api::Event::ExportOpened { volume, nbd_uris, device: None },
                    );
                }
                node_api::Action::ResizeExport { volume, size } => {
                    self.exports.insert((id.clone(), volume), size.get());
                    self.export(id, node_api::Event::ExportResized { volume, size });
                }
                node_api::Action::CloseExport { volume } => {
                    self.exports.remove(&(id.clone(), volume));
                    self.export(id, node_api::Event::ExportClosed { volume });
                }
                node_api::Action::SaveAttachments { attachments } => {
                    self.nodes.get_mut(id).expect("known").cached = attachments;
                    self.export(id, node_api::Event::AttachmentsSaved);
                }
            }
        }
    }

    pub(super) fn export(&mut self, node: &NodeId, event: node_api::Event) {
        let delay = self.random.micros(100, 2_000);
        let life = self.nodes[node].life;
        self.schedule(delay, Happening::Export { node: node.clone(), life, event });
    }
}

fn moment(message: &ToManager) -> Option<Moment> {
    match message {
        ToManager::Promised { .. } => Some(Moment::Promised),
        ToManager::HandedOver { .. } => Some(Moment::HandedOver),
        ToManager::LearnerReady { .. } => Some(Moment::LearnerReady),
        ToManager::Adopted { .. } => Some(Moment::Adopted),
        _ => None,
    }
}
