//! Replicated parts: the disks of the other nodes, where files are and shall be, and the keeper that
//! copies, verifies and tidies up what is on this node's disk.

mod keeper;
mod places;
pub(crate) mod remote;
mod state;

pub use keeper::{Keeper, KeeperConfig};
pub use places::{ClusterDisks, Damaged};
pub use remote::RemoteDisk;
pub use state::KeeperState;
