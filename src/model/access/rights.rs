//! What a class of tokens may do.

use std::collections::BTreeMap;

use crate::ids::UnixMs;
use crate::proto::{ClassAccess, TableAccess, TableRight};

/// The classes of tokens, in the order of their numbers.
pub(crate) const CLASSES: [&str; 5] =
    ["admin", "manager", "assistant_manager", "inventory_assistant", "sales_assistant"];

/// The name that stands for all tables that are not named.
pub(crate) const OTHERS: &str = "*";

/// A class of tokens by its number, from 1. 0 stands for no class: the cluster itself, or a node of an older version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClassNumber(pub(super) u8);

impl ClassNumber {
    /// The number, if there is such a class.
    pub fn of(number: u32) -> Option<Self> {
        (1..=CLASSES.len() as u32).contains(&number).then_some(Self(number as u8))
    }

    pub fn named(name: &str) -> Option<Self> {
        let at = CLASSES.iter().position(|class| *class == name)?;
        Self::of(at as u32 + 1)
    }

    pub fn number(self) -> u32 {
        u32::from(self.0)
    }

    pub fn name(self) -> &'static str {
        self.index().and_then(|at| CLASSES.get(at)).copied().unwrap_or_default()
    }

    pub(super) fn index(self) -> Option<usize> {
        usize::from(self.0).checked_sub(1)
    }
}

/// What may be done with a table; each right holds the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    None,
    Read,
    Write,
}

impl Right {
    pub const ALL: [Self; 3] = [Self::None, Self::Read, Self::Write];

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.name() == name)
    }

    pub(super) fn of(row: TableRight) -> Option<Self> {
        match row {
            TableRight::Unset => None,
            TableRight::None => Some(Self::None),
            TableRight::Read => Some(Self::Read),
            TableRight::Write => Some(Self::Write),
        }
    }

    pub fn row(self) -> TableRight {
        match self {
            Self::None => TableRight::None,
            Self::Read => TableRight::Read,
            Self::Write => TableRight::Write,
        }
    }
}

/// The classes that may read something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readers(pub(super) u8);

impl Readers {
    pub const ALL: Self = Self(u8::MAX);

    pub fn includes(self, class: ClassNumber) -> bool {
        self.0 & (1 << class.0) != 0
    }

    /// Only this class.
    pub fn only(class: ClassNumber) -> Self {
        Self(1 << class.0)
    }
}

/// What one class may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassRights {
    pub(super) tables: BTreeMap<String, Right>,
    pub(super) others: Right,
    pub(super) creates_tables: bool,
    pub(super) granted_seq: u64,
    pub(super) at_ms: UnixMs,
    pub(super) by: String,
}

impl ClassRights {
    pub(super) fn of(row: ClassAccess) -> Self {
        let right = |t: &TableAccess| Right::of(t.right()).unwrap_or(Right::Write);
        Self {
            others: Right::of(row.others()).unwrap_or(Right::Write),
            creates_tables: !row.no_new_tables,
            granted_seq: row.granted_seq,
            at_ms: UnixMs(row.at_ms),
            tables: row.tables.iter().map(|t| (t.table_name.clone(), right(t))).collect(),
            by: row.by,
        }
    }

    pub fn right(&self, table: &str) -> Right {
        self.tables.get(table).copied().unwrap_or(self.others)
    }

    /// The tables that were named, and their rights.
    pub fn tables(&self) -> impl Iterator<Item = (&str, Right)> {
        self.tables.iter().map(|(name, right)| (name.as_str(), *right))
    }

    /// The right to every table that is not named.
    pub fn others(&self) -> Right {
        self.others
    }

    pub fn creates_tables(&self) -> bool {
        self.creates_tables
    }

    /// When it was set, and by whom.
    pub fn set(&self) -> (UnixMs, &str) {
        (self.at_ms, &self.by)
    }
}
