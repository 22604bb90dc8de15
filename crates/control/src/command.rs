//! Commands of callers: who may, and which rule carries them out.
//!
//! Decides: ownership, dry runs.
//! Does not: parse or print; know what a command means beyond its module's answer.
//! Invariants: a refused command and a dry run write nothing; what another account owns does not
//! exist for the caller.

use format::record::{Attachment, Instance, Volume};
use model::{
    id::{AccountId, InstanceId, VolumeId},
    time::{Instant, WallTime},
};

use crate::{
    account,
    api::{ApiError, Caller, Command, CommandKind, Done},
    attachment, creation, duty,
    live::Live,
    machine::ManagerParams,
    modification,
    random::Random,
    scrub,
    state::{State, Write},
    tags,
};

/// What the rules for commands may look at.
pub struct Desk<'a> {
    pub state: &'a State,
    pub live: &'a Live,
    pub params: &'a ManagerParams,
    pub now: Instant,
    pub wall: WallTime,
    pub random: &'a mut Random,
}

/// What a command comes to: the writes that must be durable before it is answered so.
pub type Outcome = Result<(Vec<Write>, Done), ApiError>;

pub fn execute(desk: &mut Desk<'_>, caller: &Caller, command: Command) -> Outcome {
    let outcome = match command.kind {
        CommandKind::CreateVolume(request) => creation::create(desk, caller, request),
        CommandKind::DeleteVolume { volume } => creation::delete(desk, caller, volume),
        CommandKind::ModifyVolume(request) => modification::modify(desk, caller, &request),
        CommandKind::AttachVolume(request) => attachment::attach(desk, caller, request),
        CommandKind::DetachVolume(request) => attachment::detach(desk, caller, &request),
        CommandKind::ScrubVolume { volume } => scrub::begin(desk, caller, volume),
        CommandKind::CreateTags { resources, tags } => {
            tags::create(desk, caller, &resources, &tags)
        }
        CommandKind::DeleteTags { resources, tags } => {
            tags::delete(desk, caller, &resources, tags.as_ref())
        }
        CommandKind::CreateAccount { name } => account::create(desk, caller, name),
        CommandKind::SetDuty { server, duty } => duty::set(desk, caller, &server, duty),
    };
    if command.dry_run && outcome.is_ok() {
        return Err(ApiError::new(
            "DryRunOperation",
            "Request would have succeeded, but DryRun flag is set.",
        ));
    }
    outcome
}

impl<'a> Desk<'a> {
    pub fn volume(&self, account: AccountId, volume: VolumeId) -> Result<&'a Volume, ApiError> {
        self.state.volumes.get(&volume).filter(|v| v.account == account).ok_or_else(|| {
            let message = format!("The volume '{volume}' does not exist.");
            ApiError::new("InvalidVolume.NotFound", message)
        })
    }

    pub fn instance(
        &self,
        account: AccountId,
        instance: InstanceId,
    ) -> Result<&'a Instance, ApiError> {
        self.state.instances.get(&instance).filter(|i| i.account == account).ok_or_else(|| {
            let message = format!("The instance ID '{instance}' does not exist");
            ApiError::new("InvalidInstanceID.NotFound", message)
        })
    }

    pub fn attachments(&self, volume: VolumeId) -> Vec<&'a Attachment> {
        self.state.attachments_of(volume).collect()
    }
}
