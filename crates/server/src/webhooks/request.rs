//! The bodies of requests about endpoints → what the store keeps. After this nothing is re-checked.

use secrecy::SecretString;
use store::webhooks::{EVENT_TYPES, EndpointChange, NewEndpoint};

use super::signature;
use crate::egress::Egress;
use crate::error::{ApiError, ApiResult};
use crate::wire::webhook::{CreateWebhookEndpoint, UpdateWebhookEndpoint};

const MAX_NAME_CHARACTERS: usize = 256;
const MAX_URL_CHARACTERS: usize = 2048;

/// An endpoint with a secret of its own.
pub(crate) fn new_endpoint(body: CreateWebhookEndpoint, egress: &Egress) -> ApiResult<NewEndpoint> {
    let secret: SecretString = signature::new_secret();
    Ok(NewEndpoint {
        name: name(body.name)?,
        url: url(&body.url, egress)?,
        event_types: event_types(body.event_types)?,
        secret,
    })
}

pub(crate) fn change(body: UpdateWebhookEndpoint, egress: &Egress) -> ApiResult<EndpointChange> {
    Ok(EndpointChange {
        name: body.name.map(name).transpose()?,
        url: body.url.map(|text| url(&text, egress)).transpose()?,
        event_types: body.event_types.map(event_types).transpose()?,
    })
}

pub(crate) fn event_type<'t>(text: &'t str, path: &str) -> ApiResult<&'t str> {
    match EVENT_TYPES.contains(&text) {
        true => Ok(text),
        false => Err(ApiError::unsupported_value(path, text, &EVENT_TYPES)),
    }
}

fn name(name: String) -> ApiResult<String> {
    let length = name.chars().count();
    match length {
        0 => Err(ApiError::invalid_value("name", "Invalid 'name': it must not be empty.")),
        _ if length > MAX_NAME_CHARACTERS => {
            Err(ApiError::too_long("name", MAX_NAME_CHARACTERS, length))
        }
        _ => Ok(name),
    }
}

/// The URL as it is kept: read once, so that what is checked is what is called.
fn url(text: &str, egress: &Egress) -> ApiResult<String> {
    let length = text.chars().count();
    if length > MAX_URL_CHARACTERS {
        return Err(ApiError::too_long("url", MAX_URL_CHARACTERS, length));
    }
    match egress.check(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(refusal) => Err(ApiError::invalid_value("url", format!("Invalid 'url': {refusal}."))),
    }
}

/// Each once, in the order of the request.
fn event_types(names: Vec<String>) -> ApiResult<Vec<String>> {
    if names.is_empty() {
        return Err(ApiError::Parameter {
            code: Some("empty_array"),
            param: "event_types".to_owned(),
            message:
                "Invalid 'event_types': empty array. Expected an array with minimum length 1, \
                      but got an empty array instead."
                    .to_owned(),
        });
    }
    let mut wanted: Vec<String> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let name = event_type(name, &format!("event_types[{i}]"))?;
        if !wanted.iter().any(|known| known == name) {
            wanted.push(name.to_owned());
        }
    }
    Ok(wanted)
}
