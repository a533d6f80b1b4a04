//! One shard of a writer: batches in order, numbered, sent ahead, sent again until they are answered.
//!
//! Why a row is written once. Within a writer and a shard every row has a number, and the leader takes a number once, in
//! order, without gaps. A batch keeps its number for as long as it may have been taken: it is sent again as it was. It gets
//! another number only when the leader has said that it was not taken, and nothing behind it, or under another writer.
//! Where neither is known the rows are given up as [`WriteError::Unknown`], and what follows goes on as another writer.

use super::batch::{Batch, Item};
use super::{Shared, WriteError};
use crate::client::Client;
use prost::Message;
use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tidemill_proto::api::write_detail::Reason;
use tidemill_proto::api::writes_client::WritesClient;
use tidemill_proto::api::{Acks, PassGapRequest, WriteDetail, WriteReply, WriteRequest};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// How many batches are on their way at a time.
const AHEAD: usize = 8;
/// The first pause before another attempt; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a leader may take to take a stream.
const BEGIN: Duration = Duration::from_secs(2);
/// How long rows that were acknowledged by a leader's log and are missing are waited for: they come back with its node.
const GAP: Duration = Duration::from_secs(10);
/// How long closing waits for rows that were acknowledged before they were committed.
const SETTLE: Duration = Duration::from_secs(30);

/// Where a lane writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub shard: u32,
    pub writer: u64,
}

/// How far a writer came in a shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed {
    pub shard: u32,
    pub writer: u64,
    pub acknowledged: u64,
    /// Whether all of that is committed, or written down as lost.
    pub settled: bool,
}

/// A stream to the leader.
struct Link {
    address: String,
    requests: mpsc::Sender<WriteRequest>,
    replies: Streaming<WriteReply>,
}

pub(super) struct Lane {
    shared: Arc<Shared>,
    place: Place,
    /// Everything below is acknowledged.
    acknowledged: u64,
    rows: mpsc::Receiver<Item>,
    ended: bool,
    /// Not numbered yet.
    open: Option<Batch>,
    /// Numbered without gaps; of these the first `under_way` are on the link.
    queue: VecDeque<Batch>,
    under_way: usize,
    link: Option<Link>,
    /// Where the leader is said to be.
    hint: Option<String>,
    pause: Duration,
    again_at: Instant,
    /// What went wrong last.
    trouble: String,
    /// The number of the first row that was acknowledged and is missing, and since when that is known.
    gap: Option<(u64, Instant)>,
    /// Another writer has to be opened before anything is sent.
    orphaned: bool,
    /// By what it is asked for.
    token: Option<u128>,
    former: Vec<Closed>,
}

/// What a lane wakes up for.
enum Woken {
    Reply(Result<Option<WriteReply>, Status>),
    Row(Option<Item>),
    Seal,
    Connect,
    Expire,
}

impl Lane {
    pub fn new(shared: Arc<Shared>, place: Place, rows: mpsc::Receiver<Item>) -> Self {
        Self {
            shared,
            place,
            acknowledged: 0,
            rows,
            ended: false,
            open: None,
            queue: VecDeque::new(),
            under_way: 0,
            link: None,
            hint: None,
            pause: FIRST_PAUSE,
            again_at: Instant::now(),
            trouble: "no answer".to_owned(),
            gap: None,
            orphaned: false,
            token: None,
            former: Vec::new(),
        }
    }

    /// Runs until there are no more rows to come and all are settled; says how far each of its writers came.
    pub async fn run(mut self) -> Vec<Closed> {
        while !(self.ended && self.open.is_none() && self.queue.is_empty()) {
            match self.wait().await {
                Woken::Reply(Ok(Some(reply))) => self.acknowledge(reply.end),
                Woken::Reply(Ok(None)) => self.disconnect("the node has ended the stream"),
                Woken::Reply(Err(status)) => self.refused(&status),
                Woken::Row(Some(item)) => self.gather(item),
                Woken::Row(None) => self.ended = true,
                Woken::Seal => self.seal(),
                Woken::Connect => self.connect().await,
                Woken::Expire => self.expire(),
            }
            if self.ended {
                self.seal();
            }
            self.send();
        }
        let mut all = std::mem::take(&mut self.former);
        all.push(self.closed());
        if self.shared.options.acks != Acks::All {
            for closed in &mut all {
                (self.place.writer, self.acknowledged) = (closed.writer, closed.acknowledged);
                (self.gap, self.orphaned) = (None, false);
                closed.settled = closed.acknowledged == 0 || self.settle().await;
            }
        }
        all
    }

    fn closed(&self) -> Closed {
        Closed {
            shard: self.place.shard,
            writer: self.place.writer,
            acknowledged: self.acknowledged,
            // With acks = all, what is acknowledged is committed.
            settled: self.shared.options.acks == Acks::All,
        }
    }

    async fn wait(&mut self) -> Woken {
        let options = &self.shared.options;
        let may_take = self.queue.len() < AHEAD;
        let oldest = self.queue.front().and_then(Batch::since);
        let expires = oldest.map(|since| since + options.delivery_timeout);
        let seals = self
            .open
            .as_ref()
            .and_then(Batch::since)
            .map(|since| since + options.linger);
        let connects = (self.link.is_none() && !self.queue.is_empty()).then_some(self.again_at);
        let at = |time: Option<Instant>| sleep_until(time.unwrap_or_else(Instant::now));
        tokio::select! {
            biased;
            reply = reply_of(&mut self.link), if self.link.is_some() => Woken::Reply(reply),
            () = at(expires), if expires.is_some() => Woken::Expire,
            () = at(connects), if connects.is_some() => Woken::Connect,
            () = at(seals), if seals.is_some() && may_take => Woken::Seal,
            row = self.rows.recv(), if !self.ended && may_take => Woken::Row(row),
        }
    }

    /// Puts a row, and those that wait behind it, into batches.
    fn gather(&mut self, first: Item) {
        let mut next = Some(first);
        while let Some(item) = next {
            let most = self.shared.options.batch_bytes;
            match &mut self.open {
                Some(open) if open.has_room_for(&item, most) => open.push(item),
                _ => {
                    self.seal();
                    self.open = Some(Batch::of(item));
                }
            }
            next = match self.queue.len() < AHEAD {
                true => self.rows.try_recv().ok(),
                false => None,
            };
        }
    }

    fn seal(&mut self) {
        if let Some(mut batch) = self.open.take() {
            batch.sequence = self.queue.back().map_or(self.acknowledged, Batch::end);
            self.queue.push_back(batch);
        }
    }

    fn send(&mut self) {
        let Some(link) = &self.link else { return };
        while let Some(batch) = self.queue.get_mut(self.under_way) {
            // There is room for all that may be on their way; if the stream has ended, that is heard of by its replies.
            if link
                .requests
                .try_send(batch.request(self.place.writer, self.place.shard))
                .is_err()
            {
                return;
            }
            batch.sent = true;
            self.under_way += 1;
        }
    }

    fn acknowledge(&mut self, end: u64) {
        self.gap = None;
        while self.queue.front().is_some_and(|batch| batch.end() <= end) {
            if let Some(batch) = self.queue.pop_front() {
                self.acknowledged = batch.end();
                self.under_way = self.under_way.saturating_sub(1);
                batch.deliver(self.place.shard);
            }
        }
        self.pause = FIRST_PAUSE;
    }

    fn disconnect(&mut self, why: &str) {
        tracing::debug!(shard = self.place.shard, why, "the stream to the leader has ended");
        why.clone_into(&mut self.trouble);
        self.link = None;
        self.under_way = 0;
        self.again_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// The leader, or somebody else, said no.
    fn refused(&mut self, status: &Status) {
        let detail = WriteDetail::decode(status.details()).unwrap_or_default();
        let words = match status.message().is_empty() {
            true => status.code().description(),
            false => status.message(),
        };
        if status.source().is_some()
            && let Some(link) = &self.link
        {
            self.shared.client.nodes().forget(&link.address);
        }
        self.hint = (!detail.leader.is_empty()).then(|| detail.leader.clone());
        match detail.reason() {
            Reason::Invalid => self.give_up_row(&detail, words),
            // What this writer was told to be there is not: it went with a leader. Nothing behind it was taken.
            Reason::Gap if detail.expected < self.acknowledged => {
                let since = self.gap.map_or_else(Instant::now, |(_, since)| since);
                self.gap = Some((detail.expected, since));
            }
            Reason::NoWriter => {
                self.give_up_sent(words);
                self.orphaned = true;
            }
            Reason::Unspecified | Reason::Retry | Reason::NotLeader | Reason::Gap => {}
        }
        self.disconnect(words);
        if detail.reason() == Reason::Invalid {
            self.again_at = Instant::now();
        }
    }

    /// A row is none of the table. It was not taken, and nothing behind it: what follows gets other numbers.
    fn give_up_row(&mut self, detail: &WriteDetail, why: &str) {
        let Some(at) = self.queue.iter().position(|batch| batch.sequence == detail.sequence) else {
            return;
        };
        for item in self.queue[at].take(detail.row) {
            self.fail(item, WriteError::Invalid(why.to_owned()));
        }
        self.queue.retain(|batch| !batch.items.is_empty());
        self.renumber();
    }

    fn renumber(&mut self) {
        let mut next = self.acknowledged;
        for batch in &mut self.queue {
            batch.sequence = next;
            next = batch.end();
        }
    }

    /// Gives up what may have been written.
    fn give_up_sent(&mut self, why: &str) {
        while self.queue.front().is_some_and(|batch| batch.sent) {
            for item in self.queue.pop_front().into_iter().flat_map(|batch| batch.items) {
                self.fail(item, WriteError::Unknown(why.to_owned()));
            }
        }
    }

    fn fail(&self, item: Item, error: WriteError) {
        self.shared.failed().get_or_insert_with(|| error.clone());
        // Whoever does not want to know has dropped the other end.
        _ = item.done.send(Err(error));
    }

    /// The first batch has waited for too long.
    fn expire(&mut self) {
        let why = format!(
            "not answered within {:?}: {}",
            self.shared.options.delivery_timeout, self.trouble
        );
        if self.queue.front().is_some_and(|batch| batch.sent) {
            // Under their numbers they may still be taken, so that nothing else must go by those.
            self.give_up_sent(&why);
            self.orphaned = true;
            self.disconnect(&why);
            return;
        }
        for item in self.queue.pop_front().into_iter().flat_map(|batch| batch.items) {
            self.fail(item, WriteError::NotWritten(why.clone()));
        }
        self.renumber();
    }

    async fn connect(&mut self) {
        if self.orphaned && !self.reopen().await {
            return;
        }
        let connected = async {
            let (address, channel) = self.find_leader().await?;
            self.pass_gap(&channel).await?;
            self.begin(address, channel).await
        };
        match connected.await {
            Ok(link) => self.link = Some(link),
            Err(why) => self.disconnect(&why),
        }
    }

    /// Goes on as another writer. What was acknowledged as the one before is accounted for when this is closed.
    async fn reopen(&mut self) -> bool {
        let shared = self.shared.clone();
        // One wish until it is answered: a repetition must not open another.
        let token = *self.token.get_or_insert_with(rand::random);
        let opened = shared
            .client
            .open_writer(&shared.table_name, shared.options.acks, token);
        match opened.await {
            Ok(opened) if opened.table == shared.table => {
                self.former.push(self.closed());
                self.place.writer = opened.writer;
                self.token = None;
                self.acknowledged = 0;
                self.orphaned = false;
                for batch in &mut self.queue {
                    batch.sent = false;
                }
                self.renumber();
                true
            }
            Ok(_) => {
                self.disconnect("the table was dropped, and another has its name");
                false
            }
            Err(error) => {
                self.disconnect(&error.to_string());
                false
            }
        }
    }

    async fn find_leader(&mut self) -> Result<(String, Channel), String> {
        let shared = self.shared.clone();
        let address = match self.hint.take() {
            Some(address) => address,
            None => {
                let leaders = shared
                    .client
                    .find_leaders(shared.table)
                    .await
                    .map_err(|e| e.to_string())?;
                let leader = leaders.into_iter().nth(self.place.shard as usize).unwrap_or_default();
                match leader.is_empty() {
                    true => return Err(format!("shard {} has no leader at the moment", self.place.shard)),
                    false => leader,
                }
            }
        };
        let channel = shared.client.nodes().at(&address).await;
        let channel = channel.map_err(|why| format!("{address}: {why}"))?;
        Ok((address, channel))
    }

    /// Gives up rows that are missing, once they were waited for: the cluster writes them down as lost, and goes on behind them.
    /// The rows behind keep their numbers, so that wherever they are found again they are known.
    async fn pass_gap(&mut self, channel: &Channel) -> Result<(), String> {
        let Some((expected, since)) = self.gap else {
            return Ok(());
        };
        if self.shared.options.acks == Acks::Leader && since.elapsed() < GAP {
            return Ok(());
        }
        // Whether it is taken or not, who leads is asked again for the next number.
        self.gap = None;
        let request = PassGapRequest {
            writer: self.place.writer,
            shard: self.place.shard,
            expected,
            to: self.acknowledged,
        };
        let passed = Client::pass_gap(channel.clone(), request).await;
        passed.map_err(|status| format!("lost rows are not passed over yet: {}", status.message()))?;
        tracing::warn!(
            shard = self.place.shard,
            rows = self.acknowledged - expected,
            "rows that were acknowledged before they were committed were lost with a leader"
        );
        Ok(())
    }

    async fn begin(&self, address: String, channel: Channel) -> Result<Link, String> {
        let nodes = self.shared.client.nodes();
        let (requests, sending) = mpsc::channel(AHEAD + 1);
        let mut client = WritesClient::new(channel);
        let begun = timeout(BEGIN, client.write(ReceiverStream::new(sending))).await;
        let failed = |why: String| {
            nodes.forget(&address);
            format!("{address}: {why}")
        };
        let replies = match begun {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(failed(status.to_string())),
            Err(_) => return Err(failed(format!("no answer within {BEGIN:?}"))),
        };
        Ok(Link {
            address,
            requests,
            replies,
        })
    }

    /// Waits until everything that was acknowledged is committed, or written down as lost; returns whether that is so.
    async fn settle(&mut self) -> bool {
        let until = Instant::now() + SETTLE;
        while Instant::now() < until && !self.orphaned {
            if self.link.is_none() {
                sleep_until(self.again_at).await;
                self.connect().await;
            }
            let Some(link) = &mut self.link else { continue };
            let barrier = WriteRequest {
                writer: self.place.writer,
                shard: self.place.shard,
                sequence: self.acknowledged,
                rows: 0,
                body: None,
            };
            if link.requests.send(barrier).await.is_err() {
                self.disconnect("the stream has ended");
                continue;
            }
            match timeout(until.saturating_duration_since(Instant::now()), link.replies.message()).await {
                Ok(Ok(Some(_))) => return true,
                Ok(Ok(None)) => self.disconnect("the node has ended the stream"),
                Ok(Err(status)) => self.refused(&status),
                Err(_) => return false,
            }
        }
        // A writer that is not there any more has been accounted for.
        self.orphaned
    }
}

/// The next reply; pending without a link.
async fn reply_of(link: &mut Option<Link>) -> Result<Option<WriteReply>, Status> {
    match link {
        Some(link) => link.replies.message().await,
        None => std::future::pending().await,
    }
}
