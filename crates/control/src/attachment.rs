//! AttachVolume and DetachVolume, and what follows from each.
//!
//! ```text
//! attach: generation + 1 ─► primary adopts it ─► node manager attaches ─► attached
//! detach: node manager lets go ─► generation + 1 ─► primary adopts it ─► record removed
//! force:  generation + 1 ─► primary adopts it ─► record removed; the node manager is told
//! ```
//!
//! Decides: who may attach what where, and which of these steps comes next.
//! Does not: serve I/O, or know how a program reaches it.
//! Invariants: a volume is `in-use` as long as it has an attachment; an attachment's record goes
//! only when the primary refuses its generation, so what the node manager may still hold is
//! fenced (10).

use format::record::{Attachment, Record, Volume};
use model::{
    limits::ATTACHMENTS_PER_INSTANCE_MAX,
    state::{AttachmentState, VolumeState},
};

use crate::{
    api::{ApiError, AttachVolume, Caller, DetachVolume, Done},
    case::{Case, Decision},
    command::{Desk, Outcome},
    live::{ExportReport, GroupLive, NodeLive},
    state::Write,
};

const DEVICE_CHARS_MAX: usize = 32;

pub fn attach(desk: &mut Desk<'_>, caller: &Caller, request: AttachVolume) -> Outcome {
    let volume = desk.volume(caller.account, request.volume)?;
    let instance = desk.instance(caller.account, request.instance)?;
    check_device(&request.device)?;
    let id = request.volume;
    check_attachable(volume)?;
    if volume.zone != instance.zone {
        let message = format!(
            "The volume '{id}' is not in the same availability zone as instance '{}'",
            request.instance
        );
        return Err(ApiError::new("InvalidVolume.ZoneMismatch", message));
    }
    check_room(desk, &request)?;
    let mut volume = volume.clone();
    volume.state = VolumeState::InUse;
    volume.attach_generation = volume.attach_generation.next();
    let attachment = Attachment {
        volume: id,
        instance: request.instance,
        account: caller.account,
        device: request.device,
        state: AttachmentState::Attaching,
        attach_generation: volume.attach_generation,
        attached: desk.wall,
        delete_on_termination: false,
        kernel_device_wanted: request.kernel_device,
        nbd_uris: Vec::new(),
        kernel_device: None,
        force: false,
    };
    let writes = vec![
        Write::Put(Record::Volume(volume)),
        Write::Put(Record::Attachment(attachment.clone())),
    ];
    Ok((writes, Done::Attachment(Box::new(attachment))))
}

fn check_attachable(volume: &Volume) -> Result<(), ApiError> {
    let id = volume.volume;
    match volume.state {
        VolumeState::Available => Ok(()),
        VolumeState::InUse => {
            let message = format!("{id} is already attached to an instance");
            Err(ApiError::new("VolumeInUse", message))
        }
        VolumeState::Deleting | VolumeState::Deleted => {
            let message = format!("The volume '{id}' does not exist.");
            Err(ApiError::new("InvalidVolume.NotFound", message))
        }
        state @ (VolumeState::Creating | VolumeState::Error) => {
            let message = format!("Volume '{id}' is in the '{state}' state.");
            Err(ApiError::new("IncorrectState", message))
        }
    }
}

/// Whether the instance has the device name and a place left.
fn check_room(desk: &Desk<'_>, request: &AttachVolume) -> Result<(), ApiError> {
    let AttachVolume { instance, device, .. } = request;
    let present = || desk.state.attachments.values().filter(|a| a.instance == *instance);
    if present().any(|a| a.device == *device) {
        let message = format!(
            "Invalid value '{device}' for unixDevice. Attachment point {device} is already in use"
        );
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    if present().count() >= ATTACHMENTS_PER_INSTANCE_MAX {
        let message = format!(
            "Instance {instance} has {ATTACHMENTS_PER_INSTANCE_MAX} volumes attached, which is \
             the limit."
        );
        return Err(ApiError::new("AttachmentLimitExceeded", message));
    }
    Ok(())
}

fn check_device(device: &str) -> Result<(), ApiError> {
    if device.is_empty() {
        let message = "The request must contain the parameter device";
        return Err(ApiError::new("MissingParameter", message));
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"/_-.".contains(&b);
    if device.len() > DEVICE_CHARS_MAX || !device.bytes().all(legal) {
        let shown: String = device.chars().take(DEVICE_CHARS_MAX).collect();
        let message = format!("Value ({shown}) for parameter device is invalid.");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    Ok(())
}

pub fn detach(desk: &mut Desk<'_>, caller: &Caller, request: &DetachVolume) -> Outcome {
    let id = request.volume;
    let volume = desk.volume(caller.account, id)?;
    let attachments = desk.attachments(id);
    if attachments.is_empty() {
        let message = format!("Volume '{id}' is in the '{}' state.", volume.state);
        return Err(ApiError::new("IncorrectState", message));
    }
    if let Some(instance) = request.instance {
        desk.instance(caller.account, instance)?;
    }
    let meant = |a: &&&Attachment| {
        request.instance.is_none_or(|i| i == a.instance)
            && request.device.as_ref().is_none_or(|d| *d == a.device)
    };
    let Some(attachment) = attachments.iter().find(meant) else {
        let message = format!("The volume '{id}' is not attached as the request says.");
        return Err(ApiError::new("InvalidAttachment.NotFound", message));
    };
    let mut attachment = (*attachment).clone();
    let mut writes = Vec::new();
    if request.force && volume.attach_generation == attachment.attach_generation {
        writes.push(fenced(volume));
    }
    attachment.state = AttachmentState::Detaching;
    attachment.force |= request.force;
    writes.push(Write::Put(Record::Attachment(attachment.clone())));
    Ok((writes, Done::Attachment(Box::new(attachment))))
}

/// The volume under its next generation: the one before is refused once the primary adopts it.
fn fenced(volume: &Volume) -> Write {
    let mut volume = volume.clone();
    volume.attach_generation = volume.attach_generation.next();
    Write::Put(Record::Volume(volume))
}

/// The next step of the volume's attachment.
pub fn advance(case: &Case<'_>, facts: &GroupLive) -> Option<Decision> {
    let volume = case.volume;
    case.state.attachments_of(volume.volume).find_map(|attachment| match attachment.state {
        AttachmentState::Attaching | AttachmentState::Attached => exported(case, attachment),
        AttachmentState::Detaching | AttachmentState::Detached => released(case, facts, attachment),
    })
}

/// The node manager of an attachment, as far as it is known.
pub fn node_of<'a>(case: &Case<'a>, attachment: &Attachment) -> Option<&'a NodeLive> {
    let instance = case.state.instances.get(&attachment.instance)?;
    case.live.nodes.get(&instance.node)
}

/// What the node manager says of the export is in the record.
fn exported(case: &Case<'_>, attachment: &Attachment) -> Option<Decision> {
    let report = node_of(case, attachment)?.attached.get(&attachment.volume)?;
    if report.attach_generation != attachment.attach_generation {
        return None;
    }
    let ExportReport { nbd_uris, device } = report.ready.clone()?;
    let mut record = attachment.clone();
    record.state = AttachmentState::Attached;
    record.nbd_uris = nbd_uris;
    record.kernel_device = device;
    let changed = record != *attachment;
    changed.then(|| Decision::of(vec![Write::Put(Record::Attachment(record))]))
}

fn released(case: &Case<'_>, facts: &GroupLive, attachment: &Attachment) -> Option<Decision> {
    let volume = case.volume;
    if volume.attach_generation == attachment.attach_generation {
        let let_go = node_of(case, attachment)
            .and_then(|n| n.detached.get(&attachment.volume))
            .is_some_and(|generation| *generation >= attachment.attach_generation);
        let fence = let_go || attachment.force;
        return fence.then(|| Decision::of(vec![fenced(volume)]));
    }
    let refuses =
        case.config().attach_generation == volume.attach_generation && case.adopted(facts);
    if !refuses {
        return None;
    }
    let mut writes = vec![Write::Delete(Record::Attachment(attachment.clone()))];
    if case.state.attachments_of(volume.volume).count() == 1 {
        let mut volume = volume.clone();
        volume.state = VolumeState::Available;
        writes.push(Write::Put(Record::Volume(volume)));
    }
    Some(Decision::of(writes))
}
