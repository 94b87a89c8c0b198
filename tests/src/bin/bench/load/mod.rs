//! The loads, one a file. Each leads the way that its round says.

pub(crate) mod bulk;
pub(crate) mod grpc;
pub(crate) mod kept;
pub(crate) mod memory;
pub(crate) mod new;
pub(crate) mod paced;
