//! Which class of tokens may read and write which table: a replicated matrix (docs/design.md, section 17.1).
//!
//! One question, [`AccessMatrix::right`], is asked at every door: by the gateway for what is read and sent, by `apply`
//! for what is written. A class that nothing was set for may do everything, as documented.

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use self::rights::{CLASSES, OTHERS};
pub(crate) use self::rights::{ClassNumber, ClassRights, Readers, Right};
use super::change::valid_table;
use super::effect::Effect;
use super::error::Code;
use super::refusal::{ApplyError, ApplyResult, refuse_field};
use super::row_pages::RowPages;
use super::state::State;
use super::tables::{RowKey, TablesError, TablesRead};
use crate::ids::Seq;
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{AccessPut, ClassAccess, Empty, TableAccess, TableRight};

pub(super) mod rights;

/// The rights of every class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessMatrix {
    rights: [Option<Arc<ClassRights>>; CLASSES.len()],
}

impl AccessMatrix {
    /// What was set for the class; `None`: nothing, so it may do everything.
    pub fn of(&self, class: ClassNumber) -> Option<&Arc<ClassRights>> {
        self.rights.get(class.index()?)?.as_ref()
    }

    /// What the class may do with the table. Every door asks this.
    pub fn right(&self, class: ClassNumber, table: &str) -> Right {
        self.of(class).map_or(Right::Write, |rights| rights.right(table))
    }

    pub fn may_read(&self, class: ClassNumber, table: &str) -> bool {
        self.right(class, table) >= Right::Read
    }

    fn may_create(&self, class: ClassNumber) -> bool {
        self.of(class).is_none_or(|rights| rights.creates_tables)
    }

    /// The classes that may read the table.
    pub fn readers(&self, table: &str) -> Readers {
        let mut readers = Readers::ALL;
        for (at, rights) in self.rights.iter().enumerate() {
            if rights.as_ref().is_some_and(|rights| rights.right(table) < Right::Read) {
                readers.0 &= !(2 << at);
            }
        }
        readers
    }

    /// The class may read every table.
    pub fn reads_all(&self, class: ClassNumber) -> bool {
        self.of(class).is_none_or(|r| r.others >= Right::Read && r.tables.values().all(|right| *right >= Right::Read))
    }

    /// Whoever has read everything up to `seq` as a member of the class has everything that the class may read by now.
    pub fn is_whole_after(&self, class: ClassNumber, seq: Seq) -> bool {
        seq == Seq(0) || seq > Seq(self.lacks_up_to(class))
    }

    /// A place in the log up to which a reader of this class may lack records that its class was granted since.
    fn lacks_up_to(&self, class: ClassNumber) -> u64 {
        self.of(class).map_or(0, |rights| rights.granted_seq)
    }

    /// Puts the rights of a class in place.
    pub fn put(&mut self, class: ClassNumber, rights: Arc<ClassRights>) {
        if let Some(place) = class.index().and_then(|at| self.rights.get_mut(at)) {
            *place = Some(rights);
        }
    }

    pub(super) fn load(rows: &dyn TablesRead) -> Result<Self, TablesError> {
        let mut access = Self::default();
        for row in RowPages::<ClassAccess>::new(rows, RowKey::Access(0), |k| matches!(k, RowKey::Access(_))) {
            let (_, row) = row?;
            if let Some(class) = ClassNumber::of(row.class) {
                access.put(class, Arc::new(ClassRights::of(row)));
            }
        }
        Ok(access)
    }
}

impl State {
    pub fn access(&self) -> &AccessMatrix {
        &self.access
    }

    /// A write by a token of this class: 3003 if the class may not write the table, or not bring it into being.
    pub(super) fn must_write(&self, class: u32, table: &str) -> Result<(), ApplyError> {
        // A class of a newer version that this one does not know: its own node has looked.
        let class = ClassNumber::of(class).unwrap_or_default();
        self.may_write(class, table).or_else(|why| refuse_field(Code::Forbidden, "table_name", why))
    }

    /// Whether a token of this class may write the table; if not, why.
    pub fn may_write(&self, class: ClassNumber, table: &str) -> Result<(), String> {
        if self.access.right(class, table) < Right::Write {
            return Err(format!("{table:?} is a table that tokens of class {} may not write", class.name()));
        }
        if self.table_number(table).is_none() && !self.access.may_create(class) {
            return Err(format!("{table:?} does not exist, and tokens of class {} may not make tables", class.name()));
        }
        Ok(())
    }

    pub(super) fn access_put(&mut self, c: AccessPut) -> ApplyResult {
        let Some(class) = ClassNumber::of(c.class) else {
            return refuse_field(Code::InvalidData, "class", format!("must be one of {}", CLASSES.join(", ")));
        };
        if c.tables.len() > limits::TABLES as usize {
            return refuse_field(Code::InvalidData, "tables", format!("may name at most {}", limits::TABLES));
        }
        let mut tables = BTreeMap::new();
        for table in &c.tables {
            if !valid_table(&table.table_name) || table.table_name == OTHERS {
                return refuse_field(Code::InvalidData, "tables", "holds a name that no table can have");
            }
            let Some(right) = Right::of(table.right()) else {
                return refuse_field(Code::InvalidData, "tables", "must map each name to none, read or write");
            };
            if tables.insert(table.table_name.clone(), right).is_some() {
                return refuse_field(Code::InvalidData, "tables", format!("names {:?} twice", table.table_name));
            }
        }
        let others = Right::of(c.others()).unwrap_or(Right::Write);
        let right = |name: &str| tables.get(name).copied().unwrap_or(others);
        let (mut forget, mut resync) = (Vec::new(), Vec::new());
        for table in self.tables().iter().filter(|table| !table.name.is_empty()) {
            match (self.access.may_read(class, &table.name), right(&table.name) >= Right::Read) {
                (true, false) => forget.push(table.name.clone()),
                (false, true) => resync.push(table.name.clone()),
                _ => {}
            }
        }
        let before = self.access.lacks_up_to(class);
        let row = ClassAccess {
            class: c.class,
            tables: tables
                .into_iter()
                .map(|(table_name, right)| TableAccess { table_name, right: right.row().into() })
                .collect(),
            others: others.row().into(),
            no_new_tables: c.no_new_tables,
            granted_seq: if resync.is_empty() { before } else { self.meta.head_seq },
            at_ms: self.meta.now_ms,
            by: c.by.clone(),
        };
        self.put(RowKey::Access(c.class), &row);
        let named: Vec<String> =
            row.tables.iter().map(|t| format!("{}: {}", t.table_name, right_name(t.right()))).take(16).collect();
        let more = if row.tables.len() > named.len() { ", …" } else { "" };
        let details = format!(
            "Rights of {}: {}{more}; others: {}{}",
            class.name(),
            named.join(", "),
            others.name(),
            if c.no_new_tables { "; no new tables" } else { "" }
        );
        self.audit("access_change", "put", false, &c.by, details);
        let rights = Arc::new(ClassRights::of(row));
        self.access.put(class, rights.clone());
        let at_ms = self.meta.now();
        self.effect(Effect::AccessChanged { class, rights, forget, resync, at_ms });
        Ok(Reply::Done(Empty {}))
    }
}

fn right_name(row: TableRight) -> &'static str {
    Right::of(row).unwrap_or(Right::Write).name()
}

#[cfg(test)]
mod tests;
