//! Pages of a list, in the API's manner: a limit, and the id of the last item already seen.

use futures::{Stream, TryStreamExt};
use sqlx::AssertSqlSafe;

use crate::error::Result;

/// Items of a page that may be large one by one: the page ends early above so many bytes.
const PAGE_BYTES: usize = 8 << 20;

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    pub data: Vec<T>,
    pub has_more: bool,
}

/// Which page.
#[derive(Debug, Clone)]
pub struct PageQuery {
    /// Items after this id, in the order of the list. An unknown id gives an empty page.
    pub after: Option<String>,
    /// At least 1; the caller has applied its default and its maximum.
    pub limit: u32,
    pub order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    Oldest,
    #[default]
    Newest,
}

impl PageQuery {
    /// The newest `limit` items.
    pub fn newest(limit: u32) -> Self {
        Self { after: None, limit, order: Order::Newest }
    }

    /// A statement for this page's order: `{after}` becomes the comparison with the cursor's row, `{way}`
    /// the direction of sorting.
    pub(crate) fn sql(&self, template: &'static str) -> AssertSqlSafe<String> {
        self.fill(template)
    }

    /// [`Self::sql`], of a template that was put together from constants.
    pub(crate) fn fill(&self, template: &str) -> AssertSqlSafe<String> {
        let (after, way) = match self.order {
            Order::Newest => ("<", "desc"),
            Order::Oldest => (">", "asc"),
        };
        // Safe: both the template and what is put into it are our own constants.
        AssertSqlSafe(template.replace("{after}", after).replace("{way}", way))
    }

    /// One more row than asked for tells whether there are more.
    pub(crate) fn fetch_limit(&self) -> i64 {
        i64::from(self.limit.max(1)) + 1
    }
}

impl<T> Page<T> {
    /// From the rows of a query that asked for one row too many.
    pub(crate) fn from_rows(mut data: Vec<T>, query: &PageQuery) -> Self {
        let limit = query.limit.max(1) as usize;
        let has_more = data.len() > limit;
        data.truncate(limit);
        Self { data, has_more }
    }

    /// From a stream of rows that may be large: stops at the limit, and above [`PAGE_BYTES`] too, since a page is
    /// in memory as a whole. A page has at least one item if there is any.
    pub(crate) async fn gather<R: Into<T>>(
        rows: impl Stream<Item = sqlx::Result<R>> + Unpin,
        query: &PageQuery,
        size: impl Fn(&R) -> usize,
    ) -> Result<Self> {
        let limit = query.limit.max(1) as usize;
        let mut rows = rows;
        let (mut data, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.try_next().await? {
            if data.len() == limit || bytes > PAGE_BYTES {
                return Ok(Self { data, has_more: true });
            }
            bytes += size(&row);
            data.push(row.into());
        }
        Ok(Self { data, has_more: false })
    }
}
