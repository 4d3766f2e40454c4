//! The rows of one kind, page by page: what rooms are read from.

use prost::Message;

use super::tables::{RowKey, TablesError, TablesRead, decode};

const PAGE: usize = 1_024;

/// The rows of one kind, in the order of their keys, read in pages.
pub(super) struct RowPages<'a, M> {
    tables: &'a dyn TablesRead,
    /// The last key given, or where to begin.
    from: RowKey,
    begun: bool,
    inside: fn(&RowKey) -> bool,
    page: std::vec::IntoIter<(RowKey, bytes::Bytes)>,
    more: bool,
    kind: std::marker::PhantomData<M>,
}

impl<'a, M> RowPages<'a, M> {
    pub(super) fn new(tables: &'a dyn TablesRead, from: RowKey, inside: fn(&RowKey) -> bool) -> Self {
        Self { tables, from, begun: false, inside, page: Vec::new().into_iter(), more: true, kind: Default::default() }
    }
}

impl<M: Message + Default> Iterator for RowPages<'_, M> {
    type Item = Result<(RowKey, M), TablesError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.page.next() {
                if !(self.inside)(&key) {
                    self.more = false;
                    self.page = Vec::new().into_iter();
                    return None;
                }
                // A page begins with the row that the one before ended with.
                if self.begun && key == self.from {
                    continue;
                }
                self.begun = true;
                self.from = key.clone();
                return Some(decode(&key, value).map(|row| (key, row)));
            }
            if !self.more {
                return None;
            }
            match self.tables.range(&self.from, &RowKey::end(), PAGE, false) {
                Ok(rows) => {
                    self.more = rows.len() == PAGE;
                    self.page = rows.into_iter();
                }
                Err(error) => {
                    self.more = false;
                    return Some(Err(error));
                }
            }
        }
    }
}
