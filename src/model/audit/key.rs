/// Opens the fields of [`Meta`](crate::proto::Meta) that the audit log alone may write.
pub(in crate::model) struct AuditKey(());

pub(super) const KEY: AuditKey = AuditKey(());
