//! Waiting before something that failed is tried again: ever longer, up to a second.

use std::time::Duration;

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(1);

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The first wait is `first`; each further one is twice as long as the one before.
    pub(crate) fn new(first: Duration) -> Self {
        Self { next: first }
    }

    /// Waits.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(LONGEST);
    }
}
