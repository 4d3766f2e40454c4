//! All that knows openraft: one replicated log of commands, applied to this node's [`replica::Replica`].

pub mod replica;
