//! The rows: what load goes the way of each column.

use clap::ValueEnum;

use crate::{
    load::{bulk, grpc, kept, new, paced},
    round::Round,
    table::Figure,
};

/// A load, and what is measured of it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, ValueEnum)]
pub(crate) enum Row {
    /// Requests, one at a time, on one kept connection
    #[value(name = "kept-1")]
    Kept1,
    /// Requests on 16 kept connections, with their latencies
    #[value(name = "kept-16")]
    Kept16,
    /// Requests on 128 kept connections
    #[value(name = "kept-128")]
    Kept128,
    /// A new connection for each request, one by one
    #[value(name = "new-1")]
    New1,
    /// A new connection for each request, 32 at once
    #[value(name = "new-32")]
    New32,
    /// One upload
    #[value(name = "bulk-1")]
    Bulk1,
    /// Eight uploads at once
    #[value(name = "bulk-8")]
    Bulk8,
    /// gRPC's unary calls, 16 at once on one connection
    GrpcUnary,
    /// gRPC's messages to and fro in 16 streams of one connection
    GrpcStream,
    /// 1,000 requests a second, whatever becomes of them
    Paced,
    /// Memory of each agent with idle connections, and after them
    Memory,
}

impl Row {
    /// What one round shows.
    pub(crate) async fn measure(self, round: &Round<'_>) -> anyhow::Result<Vec<Figure>> {
        match self {
            Self::Kept1 => kept::measure(round, 1).await,
            Self::Kept16 => kept::measure(round, 16).await,
            Self::Kept128 => kept::measure(round, 128).await,
            Self::New1 => new::measure(round, 1).await,
            Self::New32 => new::measure(round, 32).await,
            Self::Bulk1 => bulk::measure(round, 1).await,
            Self::Bulk8 => bulk::measure(round, 8).await,
            Self::GrpcUnary => grpc::unary(round).await,
            Self::GrpcStream => grpc::streaming(round).await,
            Self::Paced => paced::measure(round).await,
            // Once, before the rounds: `load::memory`.
            Self::Memory => Ok(Vec::new()),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kept1 => "1 kept connection",
            Self::Kept16 => "16 kept connections",
            Self::Kept128 => "128 kept connections",
            Self::New1 => "new connections, one by one",
            Self::New32 => "new connections, 32 at once",
            Self::Bulk1 => "1 upload",
            Self::Bulk8 => "8 uploads",
            Self::GrpcUnary => "gRPC unary, 16 at once",
            Self::GrpcStream => "gRPC streaming, 16 streams",
            Self::Paced => "1,000 requests/s",
            Self::Memory => "memory",
        }
    }
}
