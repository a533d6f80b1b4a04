//! `tidemill node list`, `drain`, `resume`, `remove` and `replace`. Each asks the cluster for what is wanted and then watches: the
//! cluster goes on by itself when this program is ended, and asking again changes nothing.

use super::table::Table;
use super::{Connect, exit_code};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tidemill_client::{Client, ClientError, ClusterStatusReply, Intent, NodeReply};

/// How often the progress is asked for.
const ASK: Duration = Duration::from_millis(300);

/// What to do with nodes.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Show all nodes: where each is in its life and which part it has in the Raft group
    List(Connect),
    /// Let a node give up its shards; it stays a member
    Drain(Args),
    /// Let a node work again that was drained, or call off a removal that is not done yet
    Resume(Args),
    /// Remove a node for good: others copy its parts, it gives up its shards and its vote, and its process ends
    Remove(Args),
    /// Let a new node take the place of another, which is removed; the new one may be started before or after
    Replace(ReplaceArgs),
}

/// Which node, and how long to watch.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The name of the node
    name: String,
    /// How many seconds to watch until it is done; 0 to ask only
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    wait: u64,
    #[command(flatten)]
    connect: Connect,
}

/// Which node takes whose place, and how long to watch.
#[derive(Clone, Debug, clap::Args)]
pub struct ReplaceArgs {
    /// The name of the node that goes; its machine may be gone already
    #[arg(long, value_name = "NAME")]
    old: String,
    /// The name of the node that comes
    #[arg(long, value_name = "NAME")]
    new: String,
    /// How many seconds to watch until it is done
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    wait: u64,
    #[command(flatten)]
    connect: Connect,
}

/// Does it; exits with 0 when it is done, 1 when it was refused or is not done yet, 2 if no node answers.
///
/// # Errors
/// When the output cannot be written.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = match &command {
        Command::List(connect) => match connect.status().await {
            Ok(status) => {
                return list(&status, &mut io::stdout().lock())
                    .map(|()| ExitCode::SUCCESS)
                    .map_err(Into::into);
            }
            Err(error) => Err(error),
        },
        Command::Drain(args) => change(args, Intent::Drain).await,
        Command::Resume(args) => change(args, Intent::Serve).await,
        Command::Remove(args) => change(args, Intent::Leave).await,
        Command::Replace(args) => replace(args).await,
    };
    Ok(done.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        exit_code(&error)
    }))
}

async fn change(args: &Args, intent: Intent) -> Result<ExitCode, ClientError> {
    let client: Client = args.connect.client()?;
    // From here on by id: another node may get the name while this one leaves.
    let found = client.find_node(&args.name).await?;
    watch(&client, found.node, intent, args.wait).await
}

/// Waits until the new node is there, and removes the old one: its parts are copied to where they are missing then.
async fn replace(args: &ReplaceArgs) -> Result<ExitCode, ClientError> {
    let client: Client = args.connect.client()?;
    let old = client.find_node(&args.old).await?;
    let until = Instant::now() + Duration::from_secs(args.wait);
    let mut asked = false;
    loop {
        let why = match client.find_node(&args.new).await {
            Ok(new) if new.done => break,
            Ok(new) => format!("node '{}' is {}", new.name, new.state),
            Err(error @ ClientError::Server { .. }) => error.to_string(),
            Err(error) => return Err(error),
        };
        if !asked {
            println!("waiting for node '{}' to join: start it ({why})", args.new);
            asked = true;
        }
        if Instant::now() >= until {
            eprintln!("node '{}' did not join; nothing was changed", args.new);
            return Ok(ExitCode::from(1));
        }
        tokio::time::sleep(ASK).await;
    }
    println!("node '{}' is there and takes the place of '{}'", args.new, args.old);
    let left = until.saturating_duration_since(Instant::now()).as_secs();
    watch(&client, old.node, Intent::Leave, left.max(1)).await
}

/// Asks for what is wanted, and watches for so many seconds.
async fn watch(client: &Client, node: u64, intent: Intent, wait: u64) -> Result<ExitCode, ClientError> {
    let until = Instant::now() + Duration::from_secs(wait);
    let mut said = String::new();
    loop {
        let reply = client.set_intent(node, intent).await?;
        let line = progress(&reply, intent);
        if line != said {
            println!("{line}");
            said = line;
        }
        if reply.done {
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() >= until {
            if wait > 0 {
                eprintln!("not done after {wait} s; the cluster goes on with it");
            }
            return Ok(if wait > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS });
        }
        tokio::time::sleep(ASK).await;
    }
}

/// How far a node is, in a line.
fn progress(reply: &NodeReply, intent: Intent) -> String {
    let name = &reply.name;
    let (done, under_way) = match intent {
        Intent::Drain => ("has given up its shards", "gives up its shards"),
        Intent::Leave => ("was removed from the cluster", "is leaving"),
        Intent::Serve | Intent::Unspecified => ("works", "is to work again"),
    };
    if reply.done {
        format!("node '{name}' ({}) {done}", reply.node)
    } else {
        format!(
            "node '{name}' ({}) {under_way}; waiting for {}",
            reply.node, reply.waiting_for
        )
    }
}

fn list(status: &ClusterStatusReply, out: &mut impl Write) -> io::Result<()> {
    let mut nodes = Table::new(&["node", ">id", "state", "role", ">shards", "raft", "api"]);
    for node in &status.nodes {
        nodes.row([
            node.name.clone(),
            node.id.to_string(),
            node.state.clone(),
            node.role.clone(),
            node.shards.to_string(),
            node.raft.clone(),
            node.api.clone(),
        ]);
    }
    nodes.write(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_what_is_waited_for() {
        let mut reply = NodeReply {
            node: 3,
            name: "n3".into(),
            shards: 2,
            waiting_for: "2 shards to move".into(),
            ..NodeReply::default()
        };
        let text = progress(&reply, Intent::Leave);
        assert_eq!(text, "node 'n3' (3) is leaving; waiting for 2 shards to move");
        reply.done = true;
        assert_eq!(progress(&reply, Intent::Drain), "node 'n3' (3) has given up its shards");
        assert_eq!(progress(&reply, Intent::Serve), "node 'n3' (3) works");
    }

    #[test]
    fn every_node_is_listed_with_its_role() {
        let node = |id: u64, state: &str, role: &str| tidemill_client::NodeStatus {
            id,
            name: format!("n{id}"),
            state: state.into(),
            role: role.into(),
            ..Default::default()
        };
        let status = ClusterStatusReply {
            nodes: vec![node(1, "Ready", "leader"), node(2, "Removed", "removed")],
            ..Default::default()
        };
        let mut out = Vec::new();
        list(&status, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.lines().any(|line| line.contains("n1") && line.contains("leader")),
            "{text}"
        );
        assert!(
            text.lines().any(|line| line.contains("n2") && line.contains("removed")),
            "{text}"
        );
    }
}
