/// Opens the fields of [`Meta`](crate::proto::Meta) that the applied time alone may write.
pub(in crate::model) struct TimeKey(());

pub(super) const KEY: TimeKey = TimeKey(());
