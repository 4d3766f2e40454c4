//! The endpoints: the router is made from their table, and so is `/openapi.json`.

mod table;

use std::sync::Arc;

use axum::routing::MethodRouter;

pub use table::ENDPOINTS;

use crate::gateway::Gateway;
use crate::gateway::protocol::schema::FieldDescription;
use crate::model::error::Code;

/// What an answer is.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// A JSON object with these fields.
    Json(&'static [FieldDescription]),
    /// The same, or a stream of server-sent events if the client accepts that.
    Feed(&'static [FieldDescription]),
    /// A JSON document of a standard's.
    Document,
    Page,
    /// Lines of plain text.
    Text,
    /// Bytes of our own form.
    Bytes,
    /// The connection becomes another protocol's.
    Upgrade,
}

/// What an endpoint needs, and so which of the common errors it can answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    Token,
    /// A token, and a quorum of the cluster.
    Quorum,
}

pub struct Endpoint {
    pub method: &'static str,
    pub path: &'static str,
    pub group: &'static str,
    pub about: &'static str,
    /// The document knows it.
    pub documented: bool,
    pub needs: Needs,
    pub query: &'static [FieldDescription],
    pub body: Option<&'static [FieldDescription]>,
    pub answers: &'static [(u16, Content)],
    /// Beside the errors that come with `needs`, `query`, `body` and the path.
    pub refuses: &'static [(u16, Code)],
    pub handler: fn() -> MethodRouter<Arc<Gateway>>,
}

const FORBIDDEN: (u16, Code) = (403, Code::Forbidden);
/// What every path may answer to a wrong value in it, in the query or in the body.
const BAD: (u16, Code) = (400, Code::InvalidData);
const TOO_LARGE: (u16, Code) = (413, Code::InvalidData);
const TOO_SLOW: (u16, Code) = (408, Code::InvalidData);

impl Endpoint {
    /// `get_device_roles_device_id`: its operation id, and the name of its test.
    pub fn id(&self) -> String {
        let words = self.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
        let method = self.method.to_lowercase();
        std::iter::once(method.as_str()).chain(words).collect::<Vec<_>>().join("_")
    }

    /// The names in braces.
    pub fn in_path(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }

    /// Every way in which it refuses, each once, by status.
    pub fn refusals(&self) -> Vec<(u16, Code)> {
        let mut all = self.refuses.to_vec();
        if self.needs != Needs::Nothing {
            // 5003: over the rate that a device may ask at.
            all.extend([(401, Code::Credentials), (401, Code::TokenExpired), (503, Code::Unavailable)]);
            // Its device is suspended.
            all.push(FORBIDDEN);
        }
        if self.needs == Needs::Quorum {
            all.extend([(500, Code::Storage), (500, Code::Internal), (503, Code::NoMaster)]);
            all.push((504, Code::Timeout));
        }
        if self.in_path().next().is_some() || !self.query.is_empty() || self.body.is_some() {
            all.push(BAD);
        }
        if self.body.is_some() {
            all.extend([TOO_LARGE, TOO_SLOW]);
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}
