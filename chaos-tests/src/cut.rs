//! Cutting a node off: every packet that a user's processes send is dropped, answers and acknowledgements among them, so
//! that nothing gets through in either direction; or those to one port. For nodes that run as users of their own.

use crate::world::output;
use std::process::Command;

/// Ends the cut when it is dropped.
#[derive(Debug)]
pub struct Cut {
    table: String,
}

impl Cut {
    /// Cuts `user` off. Needs root and nft.
    pub fn off(user: u32) -> anyhow::Result<Self> {
        Self::drop_packets(user, "")
    }

    /// Cuts `user` off from what listens at `port` of this machine, and from nothing else. Needs root and nft.
    pub fn off_from(user: u32, port: u16) -> anyhow::Result<Self> {
        Self::drop_packets(user, &format!("tcp dport {port} "))
    }

    fn drop_packets(user: u32, which: &str) -> anyhow::Result<Self> {
        let cut = Self {
            table: format!("tidemill_cut_{}_{user}", std::process::id()),
        };
        let table = &cut.table;
        let rules = format!(
            "table inet {table} {{\nchain out {{\ntype filter hook output priority 0; policy accept;\nmeta skuid {user} {which}drop\n}}\n}}"
        );
        output(Command::new("nft").arg(rules))?;
        Ok(cut)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let mended = output(Command::new("nft").args(["delete", "table", "inet", &self.table]));
        if let Err(error) = mended {
            eprintln!("the cut cannot be mended: {error:#}");
        }
    }
}
