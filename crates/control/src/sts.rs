//! The one call of AWS's Security Token Service that clients make before all others: who am I?

use crate::{
    api::{ApiError, Caller, View},
    ec2::{Form, quoted, response, xml::Xml},
    http::{HttpRequest, HttpResponse},
};

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

pub fn receive(
    view: &View<'_>,
    caller: &Caller,
    request: &HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let mut form = Form::parse(request)?;
    form.take("Version");
    match form.take("Action").as_deref() {
        None | Some("") => {
            Err(ApiError::new("MissingAction", "The request must contain the parameter Action"))
        }
        Some("GetCallerIdentity") => {
            form.finish()?;
            Ok(caller_identity(view, caller))
        }
        Some(action) => Err(ApiError::new(
            "InvalidAction",
            format!("Could not find operation {} for version 2011-06-15", quoted(action)),
        )),
    }
}

fn caller_identity(view: &View<'_>, caller: &Caller) -> HttpResponse {
    let text = Xml::document("GetCallerIdentityResponse", Some(NAMESPACE), |xml| {
        xml.element("GetCallerIdentityResult", |xml| {
            xml.value("Arn", arn(caller));
            xml.value("UserId", caller.account);
            xml.value("Account", caller.account);
        });
        xml.element("ResponseMetadata", |xml| xml.value("RequestId", view.request_id));
    });
    response(view, 200, text)
}

/// There are accounts, no users in them: whoever calls is the account itself.
pub fn arn(caller: &Caller) -> String {
    format!("arn:aws:iam::{}:root", caller.account)
}

pub fn failure(view: &View<'_>, error: &ApiError) -> HttpResponse {
    let text = Xml::document("ErrorResponse", Some(NAMESPACE), |xml| {
        xml.element("Error", |xml| {
            xml.value("Type", if error.status >= 500 { "Receiver" } else { "Sender" });
            xml.value("Code", error.code);
            xml.value("Message", &error.message);
        });
        xml.value("RequestId", view.request_id);
    });
    response(view, error.status, text)
}
