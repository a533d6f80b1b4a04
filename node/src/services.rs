//! The gRPC services of a node.

mod api;
mod fresh;
mod manager;
mod membership;
mod parts;
mod stranded;
mod writes;

pub use api::{ApiService, KEEPALIVE, UnderWay};
pub use fresh::FreshService;
pub use manager::ManagerService;
pub use membership::{MembershipService, role};
pub use parts::PartsService;
pub use stranded::{MAX_CHUNK, StrandedService};
pub use writes::{MAX_REQUEST, WritesService};
