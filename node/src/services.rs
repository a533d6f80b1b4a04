//! The gRPC services of a node.

mod api;
mod fresh;
mod manager;

pub use api::{ApiService, KEEPALIVE};
pub use fresh::FreshService;
pub use manager::ManagerService;
