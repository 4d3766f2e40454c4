/// Opens the fields of [`Meta`](crate::proto::Meta) that conflicts alone may write.
pub(in crate::model) struct ConflictKey(());

pub(super) const KEY: ConflictKey = ConflictKey(());
