/// Opens the fields of [`Meta`](crate::proto::Meta) that tables alone may write.
pub(in crate::model) struct TableKey(());

pub(super) const KEY: TableKey = TableKey(());
