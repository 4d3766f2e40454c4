/// Opens the field of [`Meta`](crate::proto::Meta) that holds the cluster's version.
pub(in crate::model) struct VersionKey(());

pub(super) const KEY: VersionKey = VersionKey(());
