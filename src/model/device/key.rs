/// Opens the fields of [`Meta`](crate::proto::Meta) that devices alone may write.
pub(in crate::model) struct DeviceKey(());

pub(super) const KEY: DeviceKey = DeviceKey(());
