/// Opens the fields of [`Meta`](crate::proto::Meta) that an import alone may write.
pub(in crate::model) struct ImportKey(());

pub(super) const KEY: ImportKey = ImportKey(());
