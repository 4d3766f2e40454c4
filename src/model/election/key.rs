/// Opens the fields of [`Meta`](crate::proto::Meta) that elections alone may write.
pub(in crate::model) struct ElectionKey(());

pub(super) const KEY: ElectionKey = ElectionKey(());
