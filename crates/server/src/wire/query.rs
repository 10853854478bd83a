//! Parameters that several calls share, for the description of the API; `extract::page` reads them.

#![expect(dead_code, reason = "only their descriptions are used")]

use utoipa::IntoParams;

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageParams {
    /// The id of the last item that is known: the page begins behind it.
    after: Option<String>,
    /// Items of the page; 0 means the list's default, and more than its maximum means that.
    #[param(minimum = 0)]
    limit: Option<i64>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct OrderParam {
    /// `asc`, `desc`, `ascending` or `descending`. By the time of creation.
    order: Option<String>,
}
