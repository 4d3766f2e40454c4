/// Opens the fields of [`Meta`](crate::proto::Meta) that changes alone may write.
pub(in crate::model) struct ChangeKey(());

pub(super) const KEY: ChangeKey = ChangeKey(());
