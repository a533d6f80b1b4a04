//! `tidemill node join`: the configuration of a node that joins a cluster, which is written the first time, and found as it is
//! every other time. So one command lets a machine join, and starts its node again after a crash or a reboot, also while the
//! rest of the cluster is down.

use super::Connect;
use super::init::{Joining, Place};
use anyhow::bail;
use std::path::PathBuf;

/// Which node joins which cluster
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The name of the node; no other node of the cluster has it
    #[arg(long, value_name = "NAME")]
    name: String,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    place: Place,
}

/// The configuration that the node is to run with.
///
/// # Errors
/// When one is there and says otherwise, or none can be written.
pub async fn configuration(args: Args) -> anyhow::Result<PathBuf> {
    let addresses = args.connect.addresses();
    let joining = Joining {
        addresses: &addresses,
        name: &args.name,
        place: &args.place,
    };
    let path = joining.path();
    if !path.exists() {
        let written = joining.write().await?;
        let (name, path) = (&args.name, written.path.display());
        println!(
            "Node '{name}' is configured to join cluster '{}': {path}",
            written.cluster
        );
        return Ok(written.path);
    }
    let differences = joining.differences(&path)?;
    if !differences.is_empty() {
        let path = path.display();
        bail!(
            "{path} is there and differs from what was said here:\n  {}\ntidemill node --config {path} starts the node as it \
             is configured there; with the file deleted, this command configures it anew",
            differences.join("\n  ")
        );
    }
    Ok(path)
}
