//! The node role: feeds the node machine with what guests, servers, the manager and the kernel
//! do, and carries out what it decides.
//!
//! One thread runs the machine and every socket. Threads beside it wait for what may take long:
//! the disk that keeps the record of attachments, and the kernel that binds devices. A guest's
//! request is never behind them.

mod config;
mod record;

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use format::data::{Hello, Peer};
use model::{
    id::{BootId, VolumeId},
    time::Instant,
    units::ByteCount,
};
use node::{
    Node,
    api::{Action, Event, GuestError, GuestReply, GuestToken, NodeParams, Timing},
};

use self::{config::NodeConfig, record::Saver};
use crate::{
    clock::{Clock, random},
    front::{
        Tokens,
        fuse::{Answer, FuseEvent, KernelDevices},
        nbd::{NbdAddresses, NbdFront},
    },
    net::{NetEvent, Reactor},
};

/// How long the release of kernel devices may hold up a stop. It needs answers from servers, if
/// a device has something to flush.
const STOP_LIMIT: Duration = Duration::from_secs(5);

pub fn run(config: &Path) -> anyhow::Result<()> {
    let config = NodeConfig::load(config)?;
    fs::create_dir_all(&config.dir)
        .with_context(|| format!("cannot make {}", config.dir.display()))?;
    let mut role = NodeRole::start(config)?;
    role.serve()
}

/// What other threads tell the loop.
enum Posted {
    Fuse(FuseEvent),
    Saved(io::Result<()>),
}

/// What programs can open.
struct Export {
    nbd_uris: Vec<String>,
    device: Device,
}

/// The export's kernel device.
enum Device {
    None,
    /// `ExportOpened` waits for it.
    Opening,
    Open,
    /// `ExportClosed` waits for it.
    Closing,
}

struct NodeRole {
    reactor: Reactor<Posted>,
    machine: Node,
    nbd: NbdFront,
    devices: Option<KernelDevices>,
    saver: Saver,
    exports: BTreeMap<VolumeId, Export>,
    /// The kernel's requests that wait for the machine.
    answers: BTreeMap<GuestToken, (VolumeId, Answer)>,
    tokens: Tokens,
    /// For the machine, in order.
    events: VecDeque<Event>,
    actions: Vec<Action>,
    /// A stop was asked for; at that time it happens whatever else.
    stop_at: Option<Instant>,
    stopped: bool,
    socket: Option<PathBuf>,
}

impl NodeRole {
    fn start(config: NodeConfig) -> anyhow::Result<Self> {
        let hello = Hello { cluster: config.cluster.clone(), peer: Peer::Node(config.id.clone()) };
        let mut reactor = Reactor::new(Clock::start(), hello)?;
        reactor.watch_signals()?;
        let addresses = NbdAddresses { socket: config.nbd_socket.clone(), tcp: config.nbd_listen };
        let nbd = NbdFront::listen(&mut reactor, &addresses).context("cannot listen for NBD")?;
        let devices = start_devices(&config, &reactor)?;
        let poster = reactor.poster();
        let post = move |result| poster.post(Posted::Saved(result));
        let saver = Saver::start(config.dir.clone(), post)?;
        let cached = record::load(&config.dir).context("cannot read the record of attachments")?;
        let params = NodeParams {
            cluster: config.cluster,
            node: config.id,
            boot: BootId::from_random(random()?),
            zone: config.zone,
            account: config.account,
            instances: config.instances,
            timing: Timing::default(),
            cached,
        };
        tracing::info!(node = %params.node, boot = %params.boot, cached = params.cached.len(),
            "node manager started");
        let seed = u64::try_from(random()? & u128::from(u64::MAX)).expect("masked");
        let mut actions = Vec::new();
        let machine = Node::new(params, seed, reactor.now(), &mut actions);
        reactor.connect_manager(config.manager);
        Ok(Self {
            reactor,
            machine,
            nbd,
            devices,
            saver,
            exports: BTreeMap::new(),
            answers: BTreeMap::new(),
            tokens: Tokens::default(),
            events: VecDeque::new(),
            actions,
            stop_at: None,
            stopped: false,
            socket: config.nbd_socket,
        })
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        let mut happened = Vec::new();
        self.act();
        while !self.stopped {
            let deadline = [self.machine.deadline(), self.stop_at].into_iter().flatten().min();
            self.reactor.turn(deadline, &mut happened)?;
            for event in happened.drain(..) {
                self.take_in(event)?;
            }
            let now = self.reactor.now();
            if self.machine.deadline().is_some_and(|at| at <= now) {
                self.events.push_back(Event::TimeReached);
            }
            if self.stop_at.is_some_and(|at| at <= now) {
                tracing::warn!("kernel devices are still in use; stopping without them");
                self.stopped = true;
            }
            self.run_machine();
        }
        if let Some(socket) = &self.socket
            && let Err(error) = fs::remove_file(socket)
        {
            tracing::warn!(socket = %socket.display(), %error, "cannot remove the socket");
        }
        tracing::info!("node manager stopped");
        Ok(())
    }

    fn run_machine(&mut self) {
        while let Some(event) = self.events.pop_front() {
            self.machine.handle(self.reactor.now(), event, &mut self.actions);
            self.act();
        }
    }

    fn take_in(&mut self, event: NetEvent<Posted>) -> anyhow::Result<()> {
        match event {
            NetEvent::LinkUp { server } => self.events.push_back(Event::LinkUp { server }),
            NetEvent::LinkDown { server } => self.events.push_back(Event::LinkDown { server }),
            NetEvent::LinkReceived { server, message } => {
                self.events.push_back(Event::LinkReceived { server, message });
            }
            NetEvent::ManagerLinkUp => self.events.push_back(Event::ManagerLinkUp),
            NetEvent::ManagerLinkDown => self.events.push_back(Event::ManagerLinkDown),
            NetEvent::ManagerSent { message } => {
                self.events.push_back(Event::ManagerSent { message });
            }
            NetEvent::RawOpened { conn, .. } => self.nbd.connected(&mut self.reactor, conn),
            NetEvent::RawReceived { conn } | NetEvent::RawDrained { conn } => {
                let (reactor, tokens) = (&mut self.reactor, &mut self.tokens);
                self.nbd.received(reactor, conn, tokens, &mut self.events);
            }
            NetEvent::RawClosed { conn } => self.nbd.disconnected(conn, &mut self.events),
            NetEvent::Posted(Posted::Fuse(event)) => self.take_in_fuse(event),
            NetEvent::Posted(Posted::Saved(result)) => {
                // Serving on without a record would strand volumes at the next start.
                result.context("cannot save the record of attachments")?;
                self.events.push_back(Event::AttachmentsSaved);
            }
            NetEvent::StopRequested => self.stop(),
            NetEvent::ConnOpened { .. }
            | NetEvent::ConnReceived { .. }
            | NetEvent::ConnClosed { .. } => unreachable!("a node manager accepts no data links"),
        }
        Ok(())
    }

    fn stop(&mut self) {
        match &mut self.devices {
            Some(devices) if self.stop_at.is_none() => {
                devices.shut_down();
                self.stop_at = Some(self.reactor.now() + STOP_LIMIT);
            }
            // A second signal does not wait.
            _ => self.stopped = true,
        }
    }

    // The kernel's side.

    fn take_in_fuse(&mut self, event: FuseEvent) {
        match event {
            FuseEvent::Requested { volume, request, answer } => {
                let token = self.tokens.next();
                self.answers.insert(token, (volume, answer));
                self.events.push_back(Event::GuestRequested { volume, token, request });
            }
            FuseEvent::Opened { volume, device } => {
                self.device_opened(volume, Some(device.display().to_string()));
            }
            FuseEvent::OpenFailed { volume, reason } => {
                self.device_opened(volume, None);
                self.device_failed(volume, reason);
            }
            FuseEvent::Resized { volume, size } => {
                self.events.push_back(Event::ExportResized { volume, size });
            }
            FuseEvent::ResizeFailed { volume, reason } => self.device_failed(volume, reason),
            FuseEvent::Closed { volume } => self.device_closed(volume),
            FuseEvent::ShutDown => self.stopped = true,
        }
    }

    fn device_opened(&mut self, volume: VolumeId, device: Option<String>) {
        let Some(export) = self.exports.get_mut(&volume) else { return };
        if !matches!(export.device, Device::Opening) {
            return;
        }
        export.device = if device.is_some() { Device::Open } else { Device::None };
        let nbd_uris = export.nbd_uris.clone();
        self.events.push_back(Event::ExportOpened { volume, nbd_uris, device });
    }

    /// What is still unanswered is answered now: nobody may wait for a volume that is gone.
    fn device_closed(&mut self, volume: VolumeId) {
        let of_volume = |(token, (of, _)): (&GuestToken, &(VolumeId, Answer))| {
            (*of == volume).then_some(*token)
        };
        let tokens: Vec<GuestToken> = self.answers.iter().filter_map(of_volume).collect();
        for token in tokens {
            let (_, answer) = self.answers.remove(&token).expect("it was just found");
            answer.send(GuestReply::Failed(GuestError::Gone));
        }
        // At a stop all devices are closed, though the volumes stay attached.
        let closing = |export: &Export| matches!(export.device, Device::Closing);
        if self.exports.get(&volume).is_some_and(closing) {
            self.exports.remove(&volume);
            self.events.push_back(Event::ExportClosed { volume });
        }
    }

    fn device_failed(&mut self, volume: VolumeId, reason: String) {
        tracing::warn!(%volume, %reason, "no kernel device");
        self.events.push_back(Event::ExportFailed { volume, reason });
    }

    // What the machine decided.

    fn act(&mut self) {
        // Carrying out an action makes events, never actions.
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::ReplyGuest { token, reply, .. } => self.reply(token, reply),
                Action::Connect { server, address } => self.reactor.connect(server, address),
                Action::Disconnect { server } => self.reactor.disconnect(&server),
                Action::Send { server, message } => self.reactor.send_link(&server, message),
                Action::SendManager { message } => self.reactor.send_manager(&message),
                Action::OpenExport { volume, size, kernel_device } => {
                    self.open_export(volume, size, kernel_device);
                }
                Action::ResizeExport { volume, size } => self.resize_export(volume, size),
                Action::CloseExport { volume } => self.close_export(volume),
                Action::SaveAttachments { attachments } => self.saver.save(attachments),
            }
        }
        self.actions = actions;
    }

    fn reply(&mut self, token: GuestToken, reply: GuestReply) {
        if let Some((_, answer)) = self.answers.remove(&token) {
            return answer.send(reply);
        }
        let (reactor, tokens) = (&mut self.reactor, &mut self.tokens);
        self.nbd.reply(reactor, token, reply, tokens, &mut self.events);
    }

    fn open_export(&mut self, volume: VolumeId, size: ByteCount, kernel_device: bool) {
        let nbd_uris = self.nbd.open_export(volume, size);
        let uris = nbd_uris.clone();
        self.exports.insert(volume, Export { nbd_uris, device: Device::None });
        let failure = match &mut self.devices {
            _ if !kernel_device => None,
            None => Some("kernel devices are off on this node".to_owned()),
            Some(devices) => match devices.open(volume, size) {
                // `Opened` or `OpenFailed` follows.
                Ok(()) => return self.set_device(volume, Device::Opening),
                Err(error) => Some(format!("cannot start a thread: {error}")),
            },
        };
        let event = Event::ExportOpened { volume, nbd_uris: uris, device: None };
        self.events.push_back(event);
        if let Some(reason) = failure {
            self.device_failed(volume, reason);
        }
    }

    fn set_device(&mut self, volume: VolumeId, device: Device) {
        self.exports.get_mut(&volume).expect("it was just opened").device = device;
    }

    fn resize_export(&mut self, volume: VolumeId, size: ByteCount) {
        self.nbd.resize_export(volume, size);
        let device = self.exports.get(&volume).map(|export| &export.device);
        match (device, &self.devices) {
            (Some(Device::Open | Device::Opening), Some(devices)) => devices.resize(volume, size),
            _ => self.events.push_back(Event::ExportResized { volume, size }),
        }
    }

    fn close_export(&mut self, volume: VolumeId) {
        self.nbd.close_export(&mut self.reactor, volume);
        let has_device = self.devices.as_mut().is_some_and(|devices| devices.close(volume));
        match self.exports.get_mut(&volume) {
            Some(export) if has_device => export.device = Device::Closing,
            _ => {
                self.exports.remove(&volume);
                self.events.push_back(Event::ExportClosed { volume });
            }
        }
    }
}

fn start_devices(
    config: &NodeConfig,
    reactor: &Reactor<Posted>,
) -> anyhow::Result<Option<KernelDevices>> {
    if !config.kernel_devices {
        return Ok(None);
    }
    let poster = reactor.poster();
    let post = Arc::new(move |event| poster.post(Posted::Fuse(event)));
    let dir = config.dir.join("devices");
    let devices = KernelDevices::start(&dir, post)
        .with_context(|| format!("cannot mount {} for kernel devices", dir.display()))?;
    Ok(Some(devices))
}
