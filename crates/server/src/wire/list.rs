//! The list envelope that every collection answers with.

use serde::Serialize;
use utoipa::ToSchema;

/// Objects that a page cursor can name.
pub(crate) trait Identified {
    fn id(&self) -> &str;
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct List<T> {
    /// Always `list`.
    pub object: &'static str,
    pub data: Vec<T>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

impl<T: Identified> List<T> {
    pub(crate) fn new(data: Vec<T>, has_more: bool) -> Self {
        let id_of = |item: Option<&T>| item.map(|item| item.id().to_owned());
        Self {
            object: "list",
            first_id: id_of(data.first()),
            last_id: id_of(data.last()),
            data,
            has_more,
        }
    }
}
