//! What a volume may be asked for: EC2's limits, defaults and refusals for CreateVolume and
//! ModifyVolume. Pure.
//!
//! Does not: know capacity, or who asks.

use format::record::Parameters;
use model::{
    id::Zone,
    limits::{RateRule, derived_rate, io_throughput, type_limits},
    units::{Gib, Iops, MibPerSec, Rate},
    volume::{Stripes, VolumeType},
};

use crate::api::{ApiError, ModifyVolume};

/// What gp3 gets when a caller names no throughput.
const GP3_THROUGHPUT_DEFAULT: MibPerSec = MibPerSec::new(125);
/// IOPS that io1, io2 and gp3 get when a modification changes to them and names none.
const IOPS_ON_TYPE_CHANGE: Iops = Iops::new(3_000);

fn invalid(message: String) -> ApiError {
    ApiError::new("InvalidParameterValue", message)
}

fn combination(message: String) -> ApiError {
    ApiError::new("InvalidParameterCombination", message)
}

pub fn volume_type(text: Option<&str>) -> Result<VolumeType, ApiError> {
    let Some(text) = text else { return Ok(VolumeType::Gp2) };
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        let message = format!("Unsupported volume type '{shown}' for volume creation.");
        ApiError::new("UnknownVolumeType", message)
    })
}

/// Native API only.
pub fn stripes(asked: Option<u32>) -> Result<Option<Stripes>, ApiError> {
    let stripes = asked.map(Stripes::try_from).transpose();
    stripes.map_err(|error| invalid(format!("The parameter stripes is not possible: {error}.")))
}

pub fn check_size(volume_type: VolumeType, size: Gib) -> Result<(), ApiError> {
    let limits = type_limits(volume_type);
    if size > limits.size_max {
        return Err(invalid(format!(
            "Volume of {size}GiB is too large for volume type {volume_type}; maximum is {}GiB",
            limits.size_max
        )));
    }
    if size < limits.size_min {
        return Err(invalid(format!(
            "Volume of {size}GiB is too small for volume type {volume_type}; minimum is {}GiB",
            limits.size_min
        )));
    }
    Ok(())
}

/// The rate of a volume of this type and size, given what the caller asked for. `size` has been
/// checked.
pub fn rate(
    volume_type: VolumeType,
    size: Gib,
    iops: Option<Iops>,
    throughput: Option<MibPerSec>,
) -> Result<Rate, ApiError> {
    if throughput.is_some() && type_limits(volume_type).throughput.is_none() {
        return Err(combination(format!(
            "The throughput parameter is not supported for {volume_type} volumes."
        )));
    }
    let iops = match type_limits(volume_type).iops {
        RateRule::Derived => {
            if iops.is_some() {
                return Err(combination(format!(
                    "The parameter iops is not supported for {volume_type} volumes."
                )));
            }
            return Ok(derived_rate(volume_type, size));
        }
        RateRule::Optional { default, min, max } => {
            check_iops(volume_type, size, iops.unwrap_or(default), min, max)?
        }
        RateRule::Required { min, max } => {
            let iops = iops.ok_or_else(|| {
                combination(format!(
                    "The parameter iops must be specified for {volume_type} volumes."
                ))
            })?;
            check_iops(volume_type, size, iops, min, max)?
        }
    };
    let throughput = match type_limits(volume_type).throughput {
        None => io_throughput(volume_type, iops),
        Some((min, max)) => {
            check_throughput(throughput.unwrap_or(GP3_THROUGHPUT_DEFAULT), iops, min, max)?
        }
    };
    Ok(Rate { iops, throughput })
}

fn check_iops(
    volume_type: VolumeType,
    size: Gib,
    iops: Iops,
    min: Iops,
    max: Iops,
) -> Result<Iops, ApiError> {
    if iops > max {
        return Err(invalid(format!("Volume iops of {iops} is too high; maximum is {max}.")));
    }
    if iops < min {
        return Err(invalid(format!("Volume iops of {iops} is too low; minimum is {min}.")));
    }
    let ratio_max = type_limits(volume_type).iops_per_gib_max;
    // A volume at its type's minimum IOPS is legal at any size.
    if iops > min && u64::from(iops.get()) > u64::from(size.get()) * u64::from(ratio_max) {
        return Err(invalid(format!(
            "Iops to volume size ratio of {:.6} is too high; maximum is {ratio_max}",
            f64::from(iops.get()) / f64::from(size.get().max(1))
        )));
    }
    Ok(iops)
}

fn check_throughput(
    throughput: MibPerSec,
    iops: Iops,
    min: MibPerSec,
    max: MibPerSec,
) -> Result<MibPerSec, ApiError> {
    if throughput > max {
        return Err(invalid(format!(
            "Volume throughput of {throughput} is too high; maximum is {max}."
        )));
    }
    if throughput < min {
        return Err(invalid(format!(
            "Volume throughput of {throughput} is too low; minimum is {min}."
        )));
    }
    if u64::from(throughput.get()) * 4 > u64::from(iops.get()) {
        return Err(invalid(format!(
            "Throughput (MiBps) to iops ratio of {:.6} is too high; maximum is 0.250000 MiBps \
             per iops",
            f64::from(throughput.get()) / f64::from(iops.get().max(1))
        )));
    }
    Ok(throughput)
}

/// What a volume with `now` becomes when `request` is carried out: EC2's defaults, then the same
/// checks as at creation.
pub fn modified(
    now: &Parameters,
    request: &ModifyVolume,
    zone: Zone,
) -> Result<Parameters, ApiError> {
    let nothing = request.size.is_none()
        && request.volume_type.is_none()
        && request.iops.is_none()
        && request.throughput.is_none()
        && request.multi_attach.is_none()
        && request.zone.is_none()
        && request.stripes.is_none();
    if nothing {
        return Err(ApiError::new(
            "MissingParameter",
            "Must specify at least one of size, type, iops, throughput or multi-attach",
        ));
    }
    let volume_type = match request.volume_type.as_deref() {
        None => now.volume_type,
        text => volume_type(text)?,
    };
    let size = request.size.unwrap_or(now.size);
    if size < now.size {
        return Err(invalid("New size cannot be smaller than existing size".to_owned()));
    }
    check_size(volume_type, size)?;
    let (iops, throughput) = rate_defaults(now, request, volume_type);
    let rate = rate(volume_type, size, iops, throughput)?;
    let stripes = stripes(request.stripes)?.unwrap_or(now.stripes);
    Ok(Parameters { volume_type, size, rate, zone, stripes })
}

/// What a modification asks for once EC2's defaults are filled in.
fn rate_defaults(
    now: &Parameters,
    request: &ModifyVolume,
    volume_type: VolumeType,
) -> (Option<Iops>, Option<MibPerSec>) {
    if type_limits(volume_type).iops == RateRule::Derived {
        return (request.iops, request.throughput);
    }
    let same_type = volume_type == now.volume_type;
    let from_gp2 = now.volume_type == VolumeType::Gp2 && volume_type == VolumeType::Gp3;
    let iops_default = if same_type {
        now.rate.iops
    } else if from_gp2 {
        now.rate.iops.max(IOPS_ON_TYPE_CHANGE)
    } else {
        IOPS_ON_TYPE_CHANGE
    };
    let throughput_default = if volume_type != VolumeType::Gp3 {
        None
    } else if same_type {
        Some(now.rate.throughput)
    } else if from_gp2 {
        Some(gp2_throughput_kept(now))
    } else {
        Some(GP3_THROUGHPUT_DEFAULT)
    };
    (request.iops.or(Some(iops_default)), request.throughput.or(throughput_default))
}

/// A gp3 volume made of a gp2 one keeps the throughput it had, from gp3's minimum up.
fn gp2_throughput_kept(now: &Parameters) -> MibPerSec {
    now.rate.throughput.max(GP3_THROUGHPUT_DEFAULT)
}
