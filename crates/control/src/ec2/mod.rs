//! The EC2 Query wire form: parameters in, XML out.
//!
//! Decides: which action a call names, what its parameters say, what a caller is shown.
//! Does not: change anything; know a rule of volumes.
//! Invariants: a caller is shown only what its account owns; another account's volume does not
//! exist.

mod command;
mod filter;
mod form;
mod ids;
mod instances;
mod modifications;
mod page;
mod places;
mod status;
mod tags;
mod volumes;
pub(crate) mod xml;

use format::record::{Attachment, Instance, Volume};
use model::{
    id::{InstanceId, VolumeId, Zone},
    state::{AttachmentState, VolumeState},
};

use filter::Filters;
pub use form::{Form, quoted};
use page::{Bounds, Page};
use xml::Xml;

use crate::{
    api::{ApiError, Caller, Command, Done, View},
    http::{HttpRequest, HttpResponse},
};

const NAMESPACE: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";
const CONTENT_TYPE: &str = "text/xml;charset=UTF-8";

/// A call, understood.
#[derive(Debug)]
pub enum Call {
    /// A read, with its answer.
    Answered(HttpResponse),
    Command(Command, Shape),
}

/// How a command's answer is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    action: String,
}

pub fn receive(view: &View<'_>, caller: &Caller, request: &HttpRequest) -> Result<Call, ApiError> {
    let mut form = Form::parse(request)?;
    let action = form.take("Action").filter(|action| !action.is_empty()).ok_or_else(|| {
        ApiError::new("MissingAction", "The request must contain the parameter Action")
    })?;
    // One version is served; a client that names another most likely agrees on what it uses.
    form.take("Version");
    if let Some(command) = command::decode(&action, &mut form) {
        return Ok(Call::Command(command?, Shape { action }));
    }
    let read = read_of(&action).ok_or_else(|| {
        ApiError::new(
            "InvalidAction",
            format!("The action {} is not valid for this web service", quoted(&action)),
        )
    })?;
    let scope = Scope { view, caller };
    let body = read(&scope, &mut form)?;
    Ok(Call::Answered(success(view, &action, body)))
}

/// What a read prints between the request id and the end of the root element.
type Body = Box<dyn FnOnce(&mut Xml)>;
type Read = fn(&Scope<'_>, &mut Form) -> Result<Body, ApiError>;

fn read_of(action: &str) -> Option<Read> {
    Some(match action {
        "DescribeVolumes" => volumes::describe,
        "DescribeVolumeStatus" => status::describe,
        "DescribeVolumesModifications" => modifications::describe,
        "DescribeTags" => tags::describe,
        "DescribeInstances" => instances::describe,
        "DescribeAvailabilityZones" => places::describe_zones,
        "DescribeRegions" => places::describe_regions,
        _ => return None,
    })
}

impl Shape {
    pub fn print(&self, view: &View<'_>, done: Done) -> HttpResponse {
        let zones = Zones::of(view);
        success(
            view,
            &self.action,
            Box::new(move |xml| match done {
                Done::Volume(volume) => volumes::print_created(xml, &zones, &volume),
                Done::Modification(modification) => {
                    xml.element("volumeModification", |xml| {
                        modifications::print(xml, &modification);
                    });
                }
                Done::Attachment(attachment) => volumes::print_attachment(xml, &attachment),
                Done::Account { .. } | Done::Scrub(_) | Done::Server(_) | Done::Nothing => {
                    xml.value("return", true)
                }
            }),
        )
    }
}

fn success(view: &View<'_>, action: &str, body: Body) -> HttpResponse {
    let text = Xml::document(&format!("{action}Response"), Some(NAMESPACE), |xml| {
        xml.value("requestId", view.request_id);
        body(xml);
    });
    response(view, 200, text)
}

pub fn failure(view: &View<'_>, error: &ApiError) -> HttpResponse {
    let text = Xml::document("Response", None, |xml| {
        xml.element("Errors", |xml| {
            xml.element("Error", |xml| {
                xml.value("Code", error.code);
                xml.value("Message", &error.message);
            });
        });
        xml.value("RequestID", view.request_id);
    });
    response(view, error.status, text)
}

pub(crate) fn response(view: &View<'_>, status: u16, text: String) -> HttpResponse {
    HttpResponse {
        status,
        content_type: CONTENT_TYPE,
        headers: vec![("x-amzn-requestid".to_owned(), view.request_id.to_owned())],
        body: text.into_bytes(),
    }
}

/// What one caller may see.
struct Scope<'a> {
    view: &'a View<'a>,
    caller: &'a Caller,
}

impl<'a> Scope<'a> {
    fn volumes(&self) -> impl Iterator<Item = &'a Volume> {
        let account = self.caller.account;
        self.view
            .state
            .volumes
            .values()
            .filter(move |v| v.account == account && v.state != VolumeState::Deleted)
    }

    fn volume(&self, id: VolumeId) -> Option<&'a Volume> {
        let volume = self.view.state.volumes.get(&id)?;
        (volume.account == self.caller.account && volume.state != VolumeState::Deleted)
            .then_some(volume)
    }

    fn instances(&self) -> impl Iterator<Item = &'a Instance> {
        let account = self.caller.account;
        self.view.state.instances.values().filter(move |i| i.account == account)
    }

    fn attachments(&self, volume: VolumeId) -> Vec<&'a Attachment> {
        self.view
            .state
            .attachments_of(volume)
            .filter(|a| a.state != AttachmentState::Detached)
            .collect()
    }

    fn attachments_to(&self, instance: InstanceId) -> Vec<&'a Attachment> {
        self.view
            .state
            .attachments
            .values()
            .filter(|a| a.instance == instance && a.account == self.caller.account)
            .filter(|a| a.state != AttachmentState::Detached)
            .collect()
    }

    /// The volumes with the given ids, in order, each once; all volumes when none is given.
    fn chosen_volumes(&self, texts: &[String]) -> Result<Vec<&'a Volume>, ApiError> {
        if texts.is_empty() {
            return Ok(self.volumes().collect());
        }
        let ids: Result<std::collections::BTreeSet<VolumeId>, ApiError> =
            texts.iter().map(|text| ids::volume(text)).collect();
        let ids = ids?;
        let missing: Vec<VolumeId> =
            ids.iter().copied().filter(|id| self.volume(*id).is_none()).collect();
        if !missing.is_empty() {
            return Err(ids::volume_not_found(&missing));
        }
        Ok(ids.iter().filter_map(|id| self.volume(*id)).collect())
    }
}

/// What the two reads of volumes take alike.
struct Asked<'a> {
    page: Page,
    filters: Filters,
    volumes: Vec<&'a Volume>,
    zones: Zones,
}

impl<'a> Scope<'a> {
    fn ask_volumes(
        &self,
        form: &mut Form,
        action: &'static str,
        filters: &[&str],
    ) -> Result<Asked<'a>, ApiError> {
        let bounds = Bounds { min: 1, max: 1000, clamp: true };
        let page = Page::take(form, self.caller.account, action, bounds)?;
        let dry_run = form.flag("DryRun")?.unwrap_or(false);
        form.flag("IncludeManagedResources")?;
        let filters = Filters::take(form, filters)?;
        let ids = form.list("VolumeId");
        page.refuse_with_ids(&ids, "volumeSet")?;
        let volumes = self.chosen_volumes(&ids)?;
        end_of_checks(form, dry_run)?;
        Ok(Asked { page, filters, volumes, zones: Zones::of(self.view) })
    }
}

/// Every read takes `DryRun` too. To be called when all else about the call is in order.
fn end_of_checks(form: &Form, dry_run: bool) -> Result<(), ApiError> {
    form.finish()?;
    if dry_run { Err(dry_run_operation()) } else { Ok(()) }
}

fn dry_run_operation() -> ApiError {
    ApiError::new("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
}

/// Zone names and their ids, such as `local-az1`.
#[derive(Debug, Clone)]
struct Zones {
    ids: Vec<(Zone, String)>,
}

impl Zones {
    fn of(view: &View<'_>) -> Self {
        let region = &view.place.region;
        let named = view.place.zones.iter().zip(1..);
        Self { ids: named.map(|(zone, n)| (zone.clone(), format!("{region}-az{n}"))).collect() }
    }

    fn id(&self, zone: &Zone) -> Option<&str> {
        self.ids.iter().find(|(name, _)| name == zone).map(|(_, id)| id.as_str())
    }
}

#[cfg(test)]
mod tests;
