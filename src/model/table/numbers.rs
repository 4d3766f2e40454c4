//! The tables by their numbers, as their rows say, and the newest change of each.

use std::collections::HashMap;

use crate::ids::{Seq, TableId};
use crate::model::row_pages::RowPages;
use crate::model::tables::{RowKey, TablesError, TablesRead};
use crate::model::txn::Txn;
use crate::proto::{TableName, TableRemoval};

#[derive(Debug, Default)]
pub(in crate::model) struct TableNumbers {
    /// By number, from 1. Those that were removed have no name.
    rows: Vec<TableName>,
    by_name: HashMap<String, TableId>,
    /// The newest change of each table, by number from 1; 0: none yet.
    heads: Vec<Seq>,
}

impl TableNumbers {
    /// `numbers`: how many were ever given.
    pub(in crate::model) fn load(rows: &dyn TablesRead, numbers: u32) -> Result<Self, TablesError> {
        let mut tables: Vec<TableName> = Vec::new();
        for row in RowPages::<TableName>::new(rows, RowKey::Table(TableId(0)), |k| matches!(k, RowKey::Table(_))) {
            let (key, row) = row?;
            let number = if let RowKey::Table(number) = key { number } else { TableId(0) };
            if !(1..=numbers).contains(&number.get()) {
                return Err(TablesError::Corrupt(key));
            }
            // Between the numbers there are those of tables that were removed.
            tables.resize(number.place(), TableName::default());
            tables.push(row);
        }
        tables.resize(numbers as usize, TableName::default());
        let heads = tables.iter().map(|table| Seq(table.compacted_head)).collect();
        let named = tables.iter().zip((1..).map(TableId)).filter(|(table, _)| !table.name.is_empty());
        let by_name = named.map(|(table, number)| (table.name.clone(), number)).collect();
        Ok(Self { rows: tables, by_name, heads })
    }

    pub(super) fn number(&self, name: &str) -> Option<TableId> {
        self.by_name.get(name).copied()
    }

    /// Those that were removed have no name.
    pub(super) fn all(&self) -> &[TableName] {
        &self.rows
    }

    /// A table by its number; `None` once it was removed.
    pub(super) fn get(&self, number: TableId) -> Option<&TableName> {
        self.rows.get(number.place()).filter(|table| !table.name.is_empty())
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.by_name.len()
    }

    /// The table with the next number.
    pub(super) fn add(&mut self, txn: &mut Txn, number: TableId, row: TableName) {
        txn.put(RowKey::Table(number), &row);
        self.by_name.insert(row.name.clone(), number);
        self.rows.push(row);
        self.heads.push(Seq(0));
    }

    /// The row of a table that has its name already.
    pub(super) fn save(&mut self, txn: &mut Txn, number: TableId, row: TableName) {
        txn.put(RowKey::Table(number), &row);
        if let Some(table) = self.rows.get_mut(number.place()) {
            *table = row;
        }
    }

    /// The table's name is free, its number is not. A row without a name says that rows of its records are left.
    pub(super) fn take(&mut self, txn: &mut Txn, number: TableId, name: &str) {
        let row = TableName { removal: Some(TableRemoval::default()), ..TableName::default() };
        self.save(txn, number, row);
        if let Some(head) = self.heads.get_mut(number.place()) {
            *head = Seq(0);
        }
        self.by_name.remove(name);
    }

    /// Nothing is left of a table that was removed.
    pub(super) fn drop_row(&mut self, txn: &mut Txn, number: TableId) {
        txn.delete(RowKey::Table(number));
        if let Some(table) = self.rows.get_mut(number.place()) {
            *table = TableName::default();
        }
    }

    /// The table has a newer change; the one before it, or 0.
    pub(in crate::model) fn advance_head(&mut self, number: TableId, seq: Seq) -> Seq {
        self.heads.get_mut(number.place()).map_or(Seq(0), |head| std::mem::replace(head, seq))
    }

    /// A change is dropped: if it is the table's newest one, the next one must still know its seq.
    pub(in crate::model) fn outlive_head(&mut self, txn: &mut Txn, number: TableId, seq: Seq) {
        if self.heads.get(number.place()) != Some(&seq) {
            return;
        }
        if let Some(row) = self.rows.get_mut(number.place()) {
            row.compacted_head = seq.get();
            txn.put(RowKey::Table(number), row);
        }
    }

    #[cfg(test)]
    pub(in crate::model) fn heads(&self) -> &[Seq] {
        &self.heads
    }
}
