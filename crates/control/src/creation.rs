//! A volume's beginning and end: CreateVolume, DeleteVolume, and what follows from each.
//!
//! Decides: whether a volume may be made or deleted, and when it has been.
//! Does not: choose drives (`placement`); say what may be asked for (`parameters`).
//! Invariants: a volume is `available` only when every replica exists and the primary acts under
//! its configuration; its records go only when its space is free, or its servers are away, and
//! then the group's record stays until they have freed it.

use std::collections::{BTreeMap, BTreeSet};

use format::record::{ClientToken, Group, Parameters, Record, Volume};
use model::{
    epoch::{AttachGeneration, Epoch},
    group::{GroupConfig, Member, Role},
    id::{AccountId, DriveId, GroupId, ReplicaId, VolumeId, Zone},
    state::VolumeState,
    time::WallTime,
};
use sha2::{Digest, Sha256};

use crate::{
    api::{ApiError, Caller, CreateVolume, Done, Place, ZoneChoice},
    case::{Case, Decision},
    command::{Desk, Outcome},
    ledger::Claim,
    live::GroupLive,
    parameters,
    placement::{Refusal, Wish, ZoneRule, choose},
    random::Random,
    replacing,
    state::{State, Write},
    tags,
};

const CLIENT_TOKEN_CHARS_MAX: usize = 64;
const VOLUMES_PER_ACCOUNT_MAX: usize = 20_000;
/// A volume that has found no room for so long after its servers failed is given up.
const CREATION_LIMIT_MS: u64 = 60_000;
/// A client token is remembered for a day.
const CLIENT_TOKEN_KEPT_MS: u64 = 24 * 3_600_000;
const EXPIRED_AT_ONCE: usize = 100;

pub fn create(desk: &mut Desk<'_>, caller: &Caller, request: CreateVolume) -> Outcome {
    let parameters = checked(desk, &request)?;
    if let Some(token) = &request.client_token
        && let Some(known) = known_token(desk.state, caller.account, token, &request)?
    {
        return Ok((Vec::new(), Done::Volume(Box::new(known.clone()))));
    }
    let owned = desk.state.volumes.values().filter(|v| v.account == caller.account).count();
    if owned >= VOLUMES_PER_ACCOUNT_MAX {
        let message = format!("An account has at most {VOLUMES_PER_ACCOUNT_MAX} volumes.");
        return Err(ApiError::new("VolumeLimitExceeded", message));
    }
    let places = place(desk, &parameters)
        .map_err(|refusal| ApiError::new("InsufficientVolumeCapacity", refusal.to_string()))?;
    let volume = Volume {
        volume: unused(desk.random, VolumeId::from_random, |v| desk.state.volumes.contains_key(v)),
        account: caller.account,
        state: VolumeState::Creating,
        zone: parameters.zone.clone(),
        parameters,
        multi_attach: false,
        created: desk.wall,
        tags: request.tags.clone(),
        group: unused(desk.random, GroupId::from_random, |g| desk.state.groups.contains_key(g)),
        attach_generation: AttachGeneration::default(),
        error: None,
    };
    let group = first_group(desk, &volume, &places);
    let mut writes =
        vec![Write::Put(Record::Volume(volume.clone())), Write::Put(Record::Group(group))];
    if let Some(token) = &request.client_token {
        writes.push(Write::Put(Record::ClientToken(ClientToken {
            account: caller.account,
            token: token.clone(),
            request_digest: digest(&request),
            volume: volume.volume,
            used: desk.wall,
        })));
    }
    Ok((writes, Done::Volume(Box::new(volume))))
}

/// An id that nothing has yet.
fn unused<T>(random: &mut Random, make: impl Fn(u128) -> T, taken: impl Fn(&T) -> bool) -> T {
    loop {
        let id = make(random.wide());
        if !taken(&id) {
            return id;
        }
    }
}

/// Everything that can be refused before capacity is looked at.
fn checked(desk: &Desk<'_>, request: &CreateVolume) -> Result<Parameters, ApiError> {
    let volume_type = parameters::volume_type(request.volume_type.as_deref())?;
    if request.size.is_none() && request.snapshot_id.is_none() {
        return Err(ApiError::new(
            "MissingParameter",
            "The request must contain the parameter size/snapshot",
        ));
    }
    if let Some(size) = request.size {
        parameters::check_size(volume_type, size)?;
    }
    let size = request.size.unwrap_or(model::limits::type_limits(volume_type).size_min);
    let rate = parameters::rate(volume_type, size, request.iops, request.throughput)?;
    check_features(volume_type, request)?;
    tags::check(&request.tags)?;
    if let Some(token) = &request.client_token
        && (token.is_empty() || token.chars().count() > CLIENT_TOKEN_CHARS_MAX || !token.is_ascii())
    {
        let message = format!("A client token has 1 to {CLIENT_TOKEN_CHARS_MAX} ASCII characters.");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    let zone = zone(&desk.params.place, &request.zone)?;
    if let Some(snapshot) = &request.snapshot_id {
        let shown: String = snapshot.chars().take(64).collect();
        let message = format!("The snapshot '{shown}' does not exist.");
        return Err(ApiError::new("InvalidSnapshot.NotFound", message));
    }
    let stripes = parameters::stripes(request.stripes)?.unwrap_or_default();
    Ok(Parameters { volume_type, size, rate, zone, stripes })
}

fn check_features(
    volume_type: model::volume::VolumeType,
    request: &CreateVolume,
) -> Result<(), ApiError> {
    if request.kms_key_id.is_some() && !request.encrypted {
        return Err(ApiError::new(
            "InvalidParameterDependency",
            "The parameter KmsKeyId requires the parameter Encrypted to be set.",
        ));
    }
    if request.encrypted {
        return Err(ApiError::new(
            "EncryptedVolumesNotSupported",
            "Encrypted volumes are not supported here. Leave Encrypted out, and encrypt within \
             the instance.",
        ));
    }
    if request.multi_attach && !model::limits::type_limits(volume_type).multi_attach {
        return Err(ApiError::new(
            "InvalidParameterCombination",
            format!("The parameter MultiAttachEnabled is not supported for {volume_type} volumes."),
        ));
    }
    if request.multi_attach {
        return Err(ApiError::new(
            "UnsupportedOperation",
            "Multi-attach is not supported yet. Leave MultiAttachEnabled out.",
        ));
    }
    Ok(())
}

fn zone(place: &Place, choice: &ZoneChoice) -> Result<Zone, ApiError> {
    let unknown = |name: &str| {
        let shown: String = name.chars().take(64).collect();
        let zones: Vec<_> = place.zones.iter().map(Zone::as_str).collect();
        let message =
            format!("The zone '{shown}' does not exist. The zones here are: {}.", zones.join(", "));
        ApiError::new("InvalidZone.NotFound", message)
    };
    match choice {
        ZoneChoice::Missing => Err(ApiError::new(
            "MissingParameter",
            "The request must contain the parameter AvailabilityZone or AvailabilityZoneId",
        )),
        ZoneChoice::Both => Err(ApiError::new(
            "InvalidParameterCombination",
            "The parameters AvailabilityZone and AvailabilityZoneId cannot be given together.",
        )),
        ZoneChoice::Name(name) => known_zone(place, name).ok_or_else(|| unknown(name)),
        ZoneChoice::Id(id) => {
            let numbered = place.zones.iter().zip(1u32..);
            let matching = |(_, n): &(&Zone, u32)| format!("{}-az{n}", place.region) == *id;
            numbered.into_iter().find(matching).map(|(z, _)| z.clone()).ok_or_else(|| unknown(id))
        }
    }
}

pub fn known_zone(place: &Place, name: &str) -> Option<Zone> {
    place.zones.iter().find(|z| z.as_str() == name).cloned()
}

/// The volume that this token made before, if it did.
fn known_token<'a>(
    state: &'a State,
    account: AccountId,
    token: &str,
    request: &CreateVolume,
) -> Result<Option<&'a Volume>, ApiError> {
    let Some(known) = state.client_tokens.get(&(account, token.to_owned())) else {
        return Ok(None);
    };
    if known.request_digest != digest(request) {
        return Err(ApiError::new(
            "IdempotentParameterMismatch",
            format!("The client token '{token}' was used before, with other parameters."),
        ));
    }
    Ok(state.volumes.get(&known.volume))
}

/// Tells requests apart: every parameter but the token, each ended by a line break that no value
/// can fake, because values are escaped.
fn digest(request: &CreateVolume) -> String {
    let CreateVolume {
        zone,
        size,
        volume_type,
        iops,
        throughput,
        multi_attach,
        encrypted,
        kms_key_id,
        snapshot_id,
        stripes,
        tags,
        client_token: _,
    } = request;
    let mut text = format!(
        "{zone:?}\n{size:?}\n{volume_type:?}\n{iops:?}\n{throughput:?}\n{multi_attach}\n\
         {encrypted}\n{kms_key_id:?}\n{snapshot_id:?}\n{tags:?}\n"
    );
    // Left out where it is not given, so that tokens of before it existed stay good.
    if let Some(stripes) = stripes {
        text += &format!("stripes {stripes}\n");
    }
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Drives for a primary and a mirror.
fn place(desk: &Desk<'_>, parameters: &Parameters) -> Result<[Vec<DriveId>; 2], Refusal> {
    let fleet = replacing::fleet(desk.state, desk.live, desk.now, &desk.params.timing);
    let nothing = BTreeSet::new();
    let wish = Wish {
        media: parameters.volume_type.media(),
        zone: &parameters.zone,
        zone_rule: ZoneRule::Strict,
        claim: Claim { size: parameters.size, rate: parameters.rate },
        stripes: parameters.stripes,
        stored: 0,
        excluded: &nothing,
        preferred: &nothing,
    };
    let primary = choose(&fleet, &wish)?;
    let excluded = BTreeSet::from([primary[0].server.clone()]);
    let wish = Wish { zone_rule: ZoneRule::WhereZoneHasNone, excluded: &excluded, ..wish };
    let mirror = choose(&fleet, &wish)?;
    Ok([primary, mirror])
}

/// The group of a new volume: all replicas empty, so all in sync.
fn first_group(desk: &mut Desk<'_>, volume: &Volume, places: &[Vec<DriveId>; 2]) -> Group {
    let mut desired = Vec::new();
    let mut members = Vec::new();
    for (drives, role) in places.iter().zip([Role::Primary, Role::Mirror]) {
        let replica = ReplicaId::from_random(desk.random.wide());
        let placed = volume.parameters.placed(replica, drives);
        let drive = &placed.drive;
        let server = desk.state.servers.get(&drive.server);
        let address = server.expect("placement chooses recorded servers").address;
        members.push(Member {
            replica,
            server: drive.server.clone(),
            address,
            drive: drive.drive.clone(),
            role,
        });
        desired.push(placed);
    }
    let config = GroupConfig {
        group: volume.group,
        volume: volume.volume,
        epoch: Epoch::FIRST,
        members,
        size: volume.parameters.size.to_bytes(),
        attach_generation: volume.attach_generation,
        rate: volume.parameters.rate,
        media: volume.parameters.volume_type.media(),
    };
    config.check().expect("a first configuration is well formed");
    let replicas: BTreeMap<_, _> = desired.iter().map(|p| (p.replica, p.clone())).collect();
    let primary_boot = desk.live.servers.get(&places[0][0].server).map(|s| s.boot);
    Group { config, desired, replicas, primary_boot }
}

/// The next step of a volume that is `creating`. Nothing was ever written to it, so any replica
/// may take another's place.
pub fn advance(case: &Case<'_>, facts: &mut GroupLive, random: &mut Random) -> Option<Decision> {
    if let Some(decision) = replace_member(case, facts, random) {
        return Some(decision);
    }
    if case.primary_restarted() && case.is_up(case.config().primary().replica) {
        let mut group = case.group.clone();
        group.config = case.next_config(&case.roles());
        group.primary_boot = case.boot_of(case.config().primary().replica);
        return Some(Decision::of(vec![case.put_group(group)]));
    }
    let all_made = case.group.desired.iter().all(|p| p.created);
    if !all_made || !case.adopted(facts) {
        return None;
    }
    let mut volume = case.volume.clone();
    volume.state = VolumeState::Available;
    Some(Decision::of(vec![Write::Put(Record::Volume(volume))]))
}

/// A replica whose server went away or refused, before the volume was ever used.
fn replace_member(case: &Case<'_>, facts: &mut GroupLive, random: &mut Random) -> Option<Decision> {
    if !facts.placement_pause.over(case.now) {
        return None;
    }
    let refused = |r: ReplicaId| case.live.refused.contains_key(&r);
    let failed = |r: ReplicaId| refused(r) || case.is_gone(r);
    let bad = case.config().members.iter().find(|m| failed(m.replica))?;
    let zone_rule = match bad.role {
        Role::Primary => ZoneRule::Strict,
        Role::Mirror | Role::Learner { .. } => ZoneRule::WhereZoneHasNone,
    };
    let fleet = replacing::fleet(case.state, case.live, case.now, case.timing);
    let replaced = replacing::replaced(case, &fleet, Some(bad.replica), zone_rule, random);
    if let Ok(mut group) = replaced {
        let inner = Case { group: &group, ..*case };
        let roles: Vec<_> = group
            .desired
            .iter()
            .zip(case.roles())
            .map(|(placed, (_, role))| (placed.replica, role))
            .collect();
        let config = inner.next_config(&roles);
        let primary_boot = inner.boot_of(config.primary().replica);
        group.config = config;
        group.primary_boot = primary_boot;
        facts.placement_pause.reset();
        return Some(Decision { writes: vec![case.put_group(group)], placed: true });
    }
    facts.placement_pause.failed(case.now);
    let age = case.wall.as_millis().saturating_sub(case.volume.created.as_millis());
    if age < CREATION_LIMIT_MS {
        return None;
    }
    let mut volume = case.volume.clone();
    volume.state = VolumeState::Error;
    let reason = case.live.refused.get(&bad.replica).map_or("its server is down", String::as_str);
    volume.error = Some(format!("no replica could be made on {}: {reason}", bad.server));
    Some(Decision::of(vec![Write::Put(Record::Volume(volume))]))
}

pub fn delete(desk: &mut Desk<'_>, caller: &Caller, id: VolumeId) -> Outcome {
    let volume = desk.volume(caller.account, id)?;
    if let Some(attachment) = desk.attachments(id).first() {
        let message = format!("Volume {id} is currently attached to {}", attachment.instance);
        return Err(ApiError::new("VolumeInUse", message));
    }
    match volume.state {
        VolumeState::Available | VolumeState::Error => {}
        VolumeState::Deleting | VolumeState::Deleted => {
            let message = format!("The volume '{id}' does not exist.");
            return Err(ApiError::new("InvalidVolume.NotFound", message));
        }
        state @ (VolumeState::Creating | VolumeState::InUse) => {
            let message = format!("Volume '{id}' is in the '{state}' state.");
            return Err(ApiError::new("IncorrectState", message));
        }
    }
    let mut volume = volume.clone();
    volume.state = VolumeState::Deleting;
    Ok((vec![Write::Put(Record::Volume(volume))], Done::Nothing))
}

/// The next step of a volume that is `deleting`: space that has been freed leaves the ledger,
/// then the records go.
pub fn finish(case: &Case<'_>) -> Option<Decision> {
    let mut decision = freed(case.group, &case.live.removed);
    // What is there goes when its server, or the drive, comes back.
    let unreachable = |r: &ReplicaId| case.standing(*r).keeps_it();
    let done = match decision.as_ref().and_then(|d| d.writes.first()) {
        None => case.group.replicas.keys().all(unreachable),
        Some(Write::Delete(_)) => true,
        Some(Write::Put(_)) => false,
    };
    if done {
        let writes = &mut decision.get_or_insert_default().writes;
        writes.push(Write::Delete(Record::Volume(case.volume.clone())));
        writes.extend(records_of(case.state, case.volume.volume));
    }
    decision
}

/// Client tokens that have served their time, a few at a time.
pub fn expired_tokens(state: &State, wall: WallTime) -> Vec<Write> {
    let old = |t: &&ClientToken| {
        wall.as_millis().saturating_sub(t.used.as_millis()) > CLIENT_TOKEN_KEPT_MS
    };
    let expired = state.client_tokens.values().filter(old).take(EXPIRED_AT_ONCE);
    expired.map(|t| Write::Delete(Record::ClientToken(t.clone()))).collect()
}

/// What a volume leaves beside its group.
fn records_of(state: &State, volume: VolumeId) -> Vec<Write> {
    let modifications = state.modifications.range((volume, 0)..=(volume, u32::MAX));
    let tokens = state.client_tokens.values().filter(|t| t.volume == volume);
    modifications
        .map(|(_, m)| Write::Delete(Record::Modification(m.clone())))
        .chain(tokens.map(|t| Write::Delete(Record::ClientToken(t.clone()))))
        .collect()
}

/// A group of a deleted volume without the replicas that are gone; deleted with the last.
pub fn freed(group: &Group, removed: &BTreeSet<ReplicaId>) -> Option<Decision> {
    if group.replicas.is_empty() {
        return Some(Decision::of(vec![Write::Delete(Record::Group(group.clone()))]));
    }
    if !group.replicas.keys().any(|r| removed.contains(r)) {
        return None;
    }
    let mut left = group.clone();
    left.replicas.retain(|r, _| !removed.contains(r));
    left.desired.clear();
    let write = if left.replicas.is_empty() {
        Write::Delete(Record::Group(left))
    } else {
        Write::Put(Record::Group(left))
    };
    Some(Decision::of(vec![write]))
}
