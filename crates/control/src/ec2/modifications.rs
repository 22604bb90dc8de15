//! DescribeVolumesModifications: the most recent modification of each volume.

use format::record::Modification;

use super::{
    Body, Scope, end_of_checks,
    filter::Filters,
    form::Form,
    page::{Bounds, Page},
    volumes::shown_rate,
    xml::Xml,
};
use crate::api::ApiError;

const FILTERS: [&str; 11] = [
    "modification-state",
    "original-iops",
    "original-size",
    "original-volume-type",
    "originalMultiAttachEnabled",
    "start-time",
    "target-iops",
    "target-size",
    "target-volume-type",
    "targetMultiAttachEnabled",
    "volume-id",
];

pub fn describe(scope: &Scope<'_>, form: &mut Form) -> Result<Body, ApiError> {
    let bounds = Bounds { min: 1, max: 500, clamp: false };
    let page = Page::take(form, scope.caller.account, "DescribeVolumesModifications", bounds)?;
    let dry_run = form.flag("DryRun")?.unwrap_or(false);
    let filters = Filters::take(form, &FILTERS)?;
    let ids = form.list("VolumeId");
    let chosen = scope.chosen_volumes(&ids)?;
    let latest = |volume| scope.view.state.latest_modification(volume);
    if !ids.is_empty()
        && let Some(volume) = chosen.iter().find(|v| latest(v.volume).is_none())
    {
        return Err(ApiError::new(
            "InvalidVolumeModification.NotFound",
            format!("Modification for volume '{}' does not exist.", volume.volume),
        ));
    }
    end_of_checks(form, dry_run)?;
    let found = chosen
        .iter()
        .filter_map(|volume| latest(volume.volume).map(|m| (m, volume.multi_attach)))
        .filter(|(m, multi_attach)| filters.accept(|name| values(m, *multi_attach, name)))
        .map(|(m, multi_attach)| (m.volume.to_string(), (m.clone(), multi_attach)));
    let (found, token) = page.cut(found);
    Ok(Box::new(move |xml| {
        xml.list("volumeModificationSet", &found, |xml, (modification, multi_attach)| {
            print(xml, modification);
            xml.value("originalMultiAttachEnabled", multi_attach);
            xml.value("targetMultiAttachEnabled", multi_attach);
        });
        xml.optional("nextToken", token);
    }))
}

fn values(modification: &Modification, multi_attach: bool, filter: &str) -> Vec<String> {
    let (original, target) = (&modification.original, &modification.target);
    let number = |n: Option<u32>| n.map(|n| n.to_string()).into_iter().collect();
    match filter {
        "modification-state" => vec![modification.state.to_string()],
        "original-iops" => number(shown_rate(original).0),
        "original-size" => vec![original.size.to_string()],
        "original-volume-type" => vec![original.volume_type.to_string()],
        "start-time" => vec![modification.started.to_string()],
        "target-iops" => number(shown_rate(target).0),
        "target-size" => vec![target.size.to_string()],
        "target-volume-type" => vec![target.volume_type.to_string()],
        "originalMultiAttachEnabled" | "targetMultiAttachEnabled" => {
            vec![multi_attach.to_string()]
        }
        "volume-id" => vec![modification.volume.to_string()],
        _ => Vec::new(),
    }
}

pub fn print(xml: &mut Xml, modification: &Modification) {
    let (original, target) = (&modification.original, &modification.target);
    let ((original_iops, original_throughput), (target_iops, target_throughput)) =
        (shown_rate(original), shown_rate(target));
    xml.value("volumeId", modification.volume);
    xml.value("modificationState", modification.state);
    xml.optional("statusMessage", modification.status_message.as_ref());
    xml.value("targetSize", target.size);
    xml.optional("targetIops", target_iops);
    xml.value("targetVolumeType", target.volume_type);
    xml.optional("targetThroughput", target_throughput);
    xml.value("originalSize", original.size);
    xml.optional("originalIops", original_iops);
    xml.value("originalVolumeType", original.volume_type);
    xml.optional("originalThroughput", original_throughput);
    xml.value("progress", modification.progress_percent);
    xml.value("startTime", modification.started);
    xml.optional("endTime", modification.ended);
}
