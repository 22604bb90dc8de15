//! Tags: limits, and changes of many resources at once.
//!
//! Invariant: a call changes every resource it names or none.

use std::collections::BTreeMap;

use format::record::Record;
use model::limits::{TAG_KEY_CHARS_MAX, TAG_VALUE_CHARS_MAX, TAGS_MAX};

use crate::{
    api::{ApiError, Caller, Done, Resource},
    command::{Desk, Outcome},
    state::Write,
};

/// EC2's limit of resources in one call.
const RESOURCES_MAX: usize = 1_000;

type Tags = BTreeMap<String, String>;

/// Whether these may be the tags of one resource.
pub fn check(tags: &Tags) -> Result<(), ApiError> {
    if tags.len() > TAGS_MAX {
        let message = format!("A resource has at most {TAGS_MAX} tags.");
        return Err(ApiError::new("TagLimitExceeded", message));
    }
    for (key, value) in tags {
        if key.is_empty() || key.chars().count() > TAG_KEY_CHARS_MAX {
            let message = format!("A tag's key has 1 to {TAG_KEY_CHARS_MAX} characters.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        if key.get(..4).is_some_and(|p| p.eq_ignore_ascii_case("aws:")) {
            let message = "Tag keys starting with 'aws:' are reserved for internal use";
            return Err(ApiError::new("InvalidTagKey.Malformed", message));
        }
        if value.chars().count() > TAG_VALUE_CHARS_MAX {
            let message = format!("A tag's value has at most {TAG_VALUE_CHARS_MAX} characters.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
    }
    Ok(())
}

pub fn create(desk: &Desk<'_>, caller: &Caller, resources: &[Resource], tags: &Tags) -> Outcome {
    if tags.is_empty() {
        let message = "The request must contain the parameter Tag";
        return Err(ApiError::new("MissingParameter", message));
    }
    change(desk, caller, resources, |now| {
        now.extend(tags.iter().map(|(k, v)| (k.clone(), v.clone())));
        check(now)
    })
}

pub fn delete(
    desk: &Desk<'_>,
    caller: &Caller,
    resources: &[Resource],
    tags: Option<&BTreeMap<String, Option<String>>>,
) -> Outcome {
    change(desk, caller, resources, |now| {
        let Some(tags) = tags else {
            now.clear();
            return Ok(());
        };
        let named = |key: &str, value: &str| {
            tags.get(key).is_some_and(|wanted| wanted.as_deref().is_none_or(|w| w == value))
        };
        now.retain(|key, value| !named(key, value));
        Ok(())
    })
}

fn change(
    desk: &Desk<'_>,
    caller: &Caller,
    resources: &[Resource],
    apply: impl Fn(&mut Tags) -> Result<(), ApiError>,
) -> Outcome {
    if resources.is_empty() {
        let message = "The request must contain the parameter ResourceId";
        return Err(ApiError::new("MissingParameter", message));
    }
    if resources.len() > RESOURCES_MAX {
        let message = format!("A call changes the tags of at most {RESOURCES_MAX} resources.");
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    let mut writes = Vec::new();
    for resource in resources {
        let record = match resource {
            Resource::Volume(volume) => {
                let mut record = desk.volume(caller.account, *volume)?.clone();
                apply(&mut record.tags)?;
                Record::Volume(record)
            }
            Resource::Instance(instance) => {
                let mut record = desk.instance(caller.account, *instance)?.clone();
                apply(&mut record.tags)?;
                Record::Instance(record)
            }
        };
        writes.push(Write::Put(record));
    }
    Ok((writes, Done::Nothing))
}
