//! Rows on their way, put together to batches.

use super::{Delivered, WriteError};
use tidemill_proto::api::WriteRequest;
use tidemill_proto::api::write_request::Body;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

/// What is written: one row, or a batch that stays one.
pub(super) enum Payload {
    Json(Vec<u8>),
    Arrow(Vec<u8>),
}

impl Payload {
    /// How much room it takes; nothing takes none.
    pub fn bytes(&self) -> usize {
        match self {
            Payload::Json(bytes) | Payload::Arrow(bytes) => bytes.len() + 1,
        }
    }
}

/// Rows with somebody who wants to know what becomes of them.
pub(super) struct Item {
    pub payload: Payload,
    pub rows: u32,
    pub since: Instant,
    pub done: oneshot::Sender<Result<Delivered, WriteError>>,
    /// Room in the buffer, given back with the item.
    pub _room: OwnedSemaphorePermit,
}

/// Items that are sent together.
pub(super) struct Batch {
    pub items: Vec<Item>,
    /// The number of its first row.
    pub sequence: u64,
    /// Whether it was ever on its way, so that it may have been written.
    pub sent: bool,
    bytes: usize,
}

impl Batch {
    pub fn of(item: Item) -> Self {
        let mut batch = Self {
            items: Vec::new(),
            sequence: 0,
            sent: false,
            bytes: 0,
        };
        batch.push(item);
        batch
    }

    /// Whether `item` may be sent with these.
    pub fn has_room_for(&self, item: &Item, most: usize) -> bool {
        let json = |item: &Item| matches!(item.payload, Payload::Json(_));
        self.items.iter().all(json) && json(item) && self.bytes + item.payload.bytes() <= most
    }

    pub fn push(&mut self, item: Item) {
        self.bytes += item.payload.bytes();
        self.items.push(item);
    }

    /// Since when its oldest row waits.
    pub fn since(&self) -> Option<Instant> {
        self.items.first().map(|item| item.since)
    }

    pub fn rows(&self) -> u64 {
        self.items.iter().map(|item| u64::from(item.rows)).sum()
    }

    pub fn end(&self) -> u64 {
        self.sequence + self.rows()
    }

    pub fn request(&self, writer: u64, shard: u32) -> WriteRequest {
        let mut lines = Vec::with_capacity(self.bytes);
        let mut body = None;
        for item in &self.items {
            match &item.payload {
                Payload::Json(line) => {
                    lines.extend_from_slice(line);
                    lines.push(b'\n');
                }
                Payload::Arrow(ipc) => body = Some(Body::ArrowIpc(ipc.clone().into())),
            }
        }
        WriteRequest {
            writer,
            shard,
            sequence: self.sequence,
            rows: self.rows() as u32,
            body: Some(body.unwrap_or(Body::JsonLines(lines.into()))),
        }
    }

    /// Says of all rows that they are written.
    pub fn deliver(self, shard: u32) {
        let mut sequence = self.sequence;
        for item in self.items {
            // Whoever does not want to know has dropped the other end.
            _ = item.done.send(Ok(Delivered { shard, sequence }));
            sequence += u64::from(item.rows);
        }
    }

    /// Takes out the item of row `row`, counted from the first; all if it is not said which.
    pub fn take(&mut self, row: Option<u32>) -> Vec<Item> {
        let all_are_rows = self.items.len() as u64 == self.rows();
        let taken = match row.map(|row| row as usize) {
            Some(row) if all_are_rows && row < self.items.len() => vec![self.items.remove(row)],
            _ => std::mem::take(&mut self.items),
        };
        self.bytes = self.items.iter().map(|item| item.payload.bytes()).sum();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    fn item(text: &str) -> (Item, oneshot::Receiver<Result<Delivered, WriteError>>) {
        let (done, delivery) = oneshot::channel();
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let item = Item {
            payload: Payload::Json(text.as_bytes().to_vec()),
            rows: 1,
            since: Instant::now(),
            done,
            _room: room,
        };
        (item, delivery)
    }

    #[test]
    fn a_bad_row_leaves_alone_and_the_others_are_renumbered() {
        let ((a, mut a_done), (b, mut b_done), (c, mut c_done)) = (item("a"), item("b"), item("c"));
        let mut batch = Batch::of(a);
        assert!(batch.has_room_for(&b, 4) && !batch.has_room_for(&b, 3));
        batch.push(b);
        batch.push(c);
        batch.sequence = 7;
        assert_eq!((batch.rows(), batch.end()), (3, 10));
        let bad = batch.take(Some(1));
        assert_eq!((bad.len(), batch.end()), (1, 9));
        assert_eq!(batch.request(1, 0).body, Some(Body::JsonLines((&b"a\nc\n"[..]).into())));
        batch.deliver(2);
        let delivered = |sequence| Ok(Ok(Delivered { shard: 2, sequence }));
        assert_eq!(a_done.try_recv(), delivered(7));
        assert_eq!(c_done.try_recv(), delivered(8));
        assert!(b_done.try_recv().is_err());
    }

    #[test]
    fn a_request_that_cannot_be_read_fails_as_a_whole() {
        let ((a, _), (b, _)) = (item("a"), item("b"));
        let mut batch = Batch::of(a);
        batch.push(b);
        assert_eq!(batch.take(None).len(), 2);
        assert_eq!(batch.rows(), 0);
    }
}
