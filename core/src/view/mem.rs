//! A catalog in memory.

use super::{CatalogView, DIGEST_KEY, Kept, Kind, Raw, ViewError, Visit, VisitRaw, WriteSet, entry_hash};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

type Entries = BTreeMap<Arc<[u8]>, Arc<Kept>>;

/// A catalog in memory, for tests and simulation. A copy shares with the original what neither has changed since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemView {
    kinds: [Arc<Entries>; Kind::ALL.len()],
}

impl MemView {
    /// Makes the changes.
    pub fn write(&mut self, writes: WriteSet) {
        for ((kind, key), value) in writes {
            let Some(entries) = self.kinds.get_mut(kind as usize).map(Arc::make_mut) else {
                continue;
            };
            match value {
                Some(value) => entries.insert(key.into(), Arc::new(Kept::new(value))),
                None => entries.remove(key.as_slice()),
            };
        }
    }

    /// Whether both have the very same entries of `kind`, neither changed since one was copied from the other.
    pub fn shares(&self, other: &Self, kind: Kind) -> bool {
        match (self.kinds.get(kind as usize), other.kinds.get(kind as usize)) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// The digest computed anew from all entries; equal to [`super::CatalogRead::digest`] if apply kept it well.
    pub fn recomputed_digest(&self) -> u128 {
        let mut digest = 0;
        for (kind, entries) in Kind::ALL.iter().zip(&self.kinds) {
            for (key, value) in entries.iter() {
                if (*kind, &**key) != (Kind::Meta, DIGEST_KEY) {
                    digest ^= entry_hash(*kind, key, value.bytes());
                }
            }
        }
        digest
    }

    fn entries(&self, kind: Kind) -> Option<&Entries> {
        self.kinds.get(kind as usize).map(|entries| &**entries)
    }
}

impl CatalogView for MemView {
    fn get_bytes(&self, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError> {
        let found = self.entries(kind).and_then(|entries| entries.get(key));
        Ok(found.map(|kept| kept.bytes().to_vec()))
    }

    fn scan_bytes(&self, kind: Kind, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), ViewError> {
        self.scan_raw(kind, prefix, &mut |key, raw| visit(key, raw.bytes()))
    }

    fn get_raw(&self, kind: Kind, key: &[u8], visit: &mut VisitRaw<'_>) -> Result<(), ViewError> {
        match self.entries(kind).and_then(|entries| entries.get(key)) {
            Some(kept) => visit(key, Raw::Kept(kept)),
            None => Ok(()),
        }
    }

    fn scan_raw(&self, kind: Kind, prefix: &[u8], visit: &mut VisitRaw<'_>) -> Result<(), ViewError> {
        let Some(entries) = self.entries(kind) else {
            return Ok(());
        };
        if prefix.is_empty() {
            return entries.iter().try_for_each(|(key, kept)| visit(key, Raw::Kept(kept)));
        }
        let from = (Bound::Included(prefix), Bound::Unbounded);
        for (key, kept) in entries.range::<[u8], _>(from) {
            if !key.starts_with(prefix) {
                break;
            }
            visit(key, Raw::Kept(kept))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CatalogRead, Overlay};
    use super::*;
    use crate::catalog::{Name, TableName};
    use crate::ids::TableId;

    fn put(state: &mut MemView, id: u64) {
        let base = state.clone();
        let mut draft = Overlay::new(&base);
        draft.put(&Name("t".into()), &TableName(TableId(id))).unwrap();
        state.write(draft.into_writes());
    }

    #[test]
    fn a_copy_shares_what_is_not_changed_and_sees_nothing_of_what_is() {
        let mut state = MemView::default();
        put(&mut state, 1);
        let copy = state.clone();
        let find = |state: &MemView| state.find::<TableName>(&Name("t".into())).unwrap().unwrap();
        let before = find(&copy);
        assert!(Arc::ptr_eq(&before, &find(&state)), "it is decoded once, for both");
        put(&mut state, 2);
        assert!(!state.shares(&copy, Kind::TableName));
        assert!(state.shares(&copy, Kind::Table));
        assert_eq!((find(&state).0, find(&copy).0), (TableId(2), TableId(1)));
        assert_ne!(state, copy);
        put(&mut state, 1);
        assert_eq!(state, copy, "what was written counts, not who wrote it");
    }
}
