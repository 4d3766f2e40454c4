//! The devices, as their rows say, and what is counted of them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::Arc;

use super::present_on;
use crate::ids::{DeviceNumber, NodeId};
use crate::model::row_pages::RowPages;
use crate::model::tables::{RowKey, TablesError, TablesRead};
use crate::model::txn::Txn;
use crate::proto::Device;

#[derive(Debug, Default)]
pub(in crate::model) struct Devices {
    by_id: BTreeMap<String, Arc<Device>>,
    active: usize,
    /// How many devices are present on each node.
    present_on: BTreeMap<NodeId, u32>,
    /// How many devices each token's subject registered for others.
    registered_by: BTreeMap<String, u32>,
    /// Device ids by number, from 1.
    names: Vec<Arc<str>>,
}

impl Devices {
    /// `numbers`: how many were ever given.
    pub(in crate::model) fn load(rows: &dyn TablesRead, numbers: u32) -> Result<Self, TablesError> {
        let mut devices = Self { names: vec![Arc::from(""); numbers as usize], ..Self::default() };
        for row in RowPages::<Device>::new(rows, RowKey::Device(String::new()), |k| matches!(k, RowKey::Device(_))) {
            let (_, device) = row?;
            devices.load_name(DeviceNumber(device.number), &device.device_id);
            devices.count(&device);
            devices.count_registered(&device);
            devices.by_id.insert(device.device_id.clone(), Arc::new(device));
        }
        Ok(devices)
    }

    /// The name of a number, from a row.
    pub(in crate::model) fn load_name(&mut self, number: DeviceNumber, device_id: &str) {
        if let Some(name) = self.names.get_mut(number.place()) {
            *name = Arc::from(device_id);
        }
    }

    pub(in crate::model) fn get(&self, id: &str) -> Option<&Arc<Device>> {
        self.by_id.get(id)
    }

    pub(in crate::model) fn contains(&self, id: &str) -> bool {
        self.by_id.contains_key(id)
    }

    /// All devices, by id.
    pub(in crate::model) fn iter(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.by_id.values()
    }

    /// Those after this id; all of them without one.
    pub(super) fn iter_after(&self, id: Option<&str>) -> impl Iterator<Item = &Arc<Device>> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_id.range::<str, _>((from, Bound::Unbounded)).map(|(_, device)| device)
    }

    /// The id of the device with this number.
    pub(super) fn name(&self, number: DeviceNumber) -> Option<&str> {
        self.names.get(number.place()).map(|name| &**name)
    }

    pub(super) fn active(&self) -> usize {
        self.active
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.present_on.iter().filter(|(_, count)| **count > 0).map(|(node, _)| *node)
    }

    /// How many devices this token's subject registered for others.
    pub(in crate::model) fn registered_by(&self, subject: &str) -> u32 {
        self.registered_by.get(subject).copied().unwrap_or_default()
    }

    /// The name of the next number.
    pub(super) fn add_name(&mut self, device_id: &str) {
        self.names.push(Arc::from(device_id));
    }

    pub(super) fn save(&mut self, txn: &mut Txn, device: Device) {
        txn.put(RowKey::Device(device.device_id.clone()), &device);
        let device = Arc::new(device);
        self.count(&device);
        let Some(before) = self.by_id.insert(device.device_id.clone(), device.clone()) else {
            self.count_registered(&device);
            return;
        };
        self.active -= usize::from(before.is_active);
        for there in present_on(&before) {
            if let Some(count) = self.present_on.get_mut(&NodeId(there.node)) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// The device is forgotten, but for its number: whoever registered it may register another one.
    pub(super) fn forget(&mut self, txn: &mut Txn, id: &str) {
        let Some(device) = self.by_id.remove(id) else { return };
        if let Entry::Occupied(mut of) = self.registered_by.entry(device.registered_by.clone()) {
            *of.get_mut() -= 1;
            if *of.get() == 0 {
                of.remove();
            }
        }
        txn.delete(RowKey::Device(id.to_owned()));
    }

    #[cfg(test)]
    pub(in crate::model) fn shares(&self) -> &BTreeMap<String, u32> {
        &self.registered_by
    }

    fn count(&mut self, device: &Device) {
        self.active += usize::from(device.is_active);
        for there in present_on(device) {
            *self.present_on.entry(NodeId(there.node)).or_default() += 1;
        }
    }

    fn count_registered(&mut self, device: &Device) {
        if !device.registered_by.is_empty() {
            *self.registered_by.entry(device.registered_by.clone()).or_default() += 1;
        }
    }
}
