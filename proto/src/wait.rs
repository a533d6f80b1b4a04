//! What tasks wait for, on the wire and in the core.

use crate::api::Wait;
use tidemill_core::wait::WaitKind;

impl From<Option<WaitKind>> for Wait {
    fn from(kind: Option<WaitKind>) -> Self {
        match kind {
            None => Wait::Nothing,
            Some(WaitKind::Broker) => Wait::Broker,
            Some(WaitKind::Transaction) => Wait::Transaction,
            Some(WaitKind::Memory) => Wait::Memory,
            Some(WaitKind::Turn) => Wait::Turn,
            Some(WaitKind::PartStore) => Wait::PartStore,
            Some(WaitKind::Client) => Wait::Client,
            Some(WaitKind::Assignment) => Wait::Assignment,
            Some(WaitKind::Operator) => Wait::Operator,
            Some(WaitKind::Done) => Wait::Done,
        }
    }
}

impl From<Wait> for Option<WaitKind> {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::Nothing => None,
            Wait::Broker => Some(WaitKind::Broker),
            Wait::Transaction => Some(WaitKind::Transaction),
            Wait::Memory => Some(WaitKind::Memory),
            Wait::Turn => Some(WaitKind::Turn),
            Wait::PartStore => Some(WaitKind::PartStore),
            Wait::Client => Some(WaitKind::Client),
            Wait::Assignment => Some(WaitKind::Assignment),
            Wait::Operator => Some(WaitKind::Operator),
            Wait::Done => Some(WaitKind::Done),
        }
    }
}
