//! Query strings of lists: `after`, `limit`, `order`, `purpose`, and `metadata[key]=value` filters.

use std::marker::PhantomData;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;

use store::Order;

use super::path::without_nul;
use crate::error::{ApiError, ApiResult};
use crate::state::AppState;

/// A page of a list. Unknown parameters are ignored, as proxies and clients add their own.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub after: Option<String>,
    limit: Option<u32>,
    pub ascending: bool,
    pub purpose: Option<String>,
    pub project_id: Option<String>,
    pub status: Option<String>,
    pub order_by: Option<String>,
    has_order: bool,
    /// `stream=true`: not a page, but everything as it happens.
    pub stream: bool,
}

impl Page {
    /// The page's size: `default` when none (or zero) is asked for, never above `maximum`.
    pub(crate) fn limit(&self, default: u32, maximum: u32) -> u32 {
        self.limit.filter(|&limit| limit > 0).unwrap_or(default).min(maximum)
    }

    /// The order that was asked for, or that of the list.
    pub(crate) fn order_or(&self, default: Order) -> Order {
        match self.has_order {
            true if self.ascending => Order::Oldest,
            true => Order::Newest,
            false => default,
        }
    }
}

impl FromRequestParts<AppState> for Page {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        let mut page = Self::default();
        for (key, value) in pairs(parts)? {
            match key.as_str() {
                "after" if !value.is_empty() => page.after = Some(value),
                "limit" if !value.is_empty() => page.limit = Some(parse_limit(&value)?),
                "order" => {
                    page.ascending = parse_order(&value)?;
                    page.has_order = !value.is_empty();
                }
                "status" if !value.is_empty() => page.status = Some(value),
                "order_by" if !value.is_empty() => page.order_by = Some(value),
                "stream" => page.stream = parse_stream(&value)?,
                "purpose" if !value.is_empty() => page.purpose = Some(value),
                "project_id" if !value.is_empty() => page.project_id = Some(value),
                _ => {}
            }
        }
        Ok(page)
    }
}

fn parse_limit(text: &str) -> ApiResult<u32> {
    match text.parse::<i64>() {
        Ok(limit) if limit >= 0 => Ok(u32::try_from(limit).unwrap_or(u32::MAX)),
        Ok(limit) => Err(ApiError::Parameter {
            code: Some("integer_below_min_value"),
            param: "limit".to_owned(),
            message: format!(
                "Invalid 'limit': integer below minimum value. Expected a value >= 0, but got \
                 {limit} instead."
            ),
        }),
        Err(_) => Err(ApiError::invalid_type("limit", "an integer", "a string")),
    }
}

fn parse_order(text: &str) -> ApiResult<bool> {
    match text {
        "asc" | "ascending" => Ok(true),
        "desc" | "descending" | "" => Ok(false),
        other => Err(ApiError::unsupported_value("order", other, &["asc", "desc"])),
    }
}

fn parse_stream(text: &str) -> ApiResult<bool> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" | "" => Ok(false),
        _ => Err(ApiError::invalid_type("stream", "a boolean", "a string")),
    }
}

/// The `metadata` filter of the list of jobs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum Filters {
    #[default]
    All,
    /// `metadata=null`: only jobs without metadata.
    NoMetadata,
    /// `metadata[k]=v`, all of them.
    Metadata(Vec<(String, String)>),
}

impl FromRequestParts<AppState> for Filters {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        let mut wanted = Vec::new();
        for (key, value) in pairs(parts)? {
            if key == "metadata" && value == "null" {
                return Ok(Self::NoMetadata);
            }
            let name = key.strip_prefix("metadata[").and_then(|rest| rest.strip_suffix(']'));
            if let Some(name) = name {
                wanted.push((name.to_owned(), value));
            }
        }
        Ok(if wanted.is_empty() { Self::All } else { Self::Metadata(wanted) })
    }
}

/// A parameter that says yes or no.
pub(crate) struct Flag<N> {
    pub is_set: bool,
    name: PhantomData<N>,
}

/// The name of a [`Flag`].
pub(crate) trait FlagName {
    const NAME: &'static str;
}

impl<N: FlagName> FromRequestParts<AppState> for Flag<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        let given = pairs(parts)?.into_iter().rev().find(|(key, _)| key == N::NAME);
        let is_set = match given.as_ref().map(|(_, value)| value.as_str()) {
            None | Some("false" | "0" | "") => false,
            Some("true" | "1") => true,
            Some(other) => {
                return Err(ApiError::unsupported_value(N::NAME, other, &["true", "false"]));
            }
        };
        Ok(Self { is_set, name: PhantomData })
    }
}

fn pairs(parts: &Parts) -> ApiResult<Vec<(String, String)>> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
        .map_err(|error| ApiError::BadRequest(format!("The query string is malformed: {error}")))?;
    Ok(pairs.into_iter().map(|(k, v)| (without_nul(k), without_nul(v))).collect())
}
