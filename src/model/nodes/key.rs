/// Opens the fields of [`Meta`](crate::proto::Meta) that the list of nodes alone may write.
pub(in crate::model) struct NodesKey(());

pub(super) const KEY: NodesKey = NodesKey(());
