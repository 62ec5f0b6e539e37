//! Going back: snapshots, rollbacks, and edits of the state that no transaction made.
//!
//! Invariant: after a rewind the store is what it was, in one commit. This is the one way in which a transaction that was acknowledged
//! disappears, and it is asked for. Snapshots live with the process; what they point to is in the store.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};

use crate::chain::{Chain, Writer, locked};
use crate::limits;
use crate::state::{Account, Changes, StateAt};
use crate::store::StoreError;

/// Why the chain did not go back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RewindError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Further back than the first block.
    #[error("rollback depth must not exceed current chain height: current height {height}, depth {depth}")]
    Depth { height: u64, depth: u64 },
    /// Further back than the store can undo.
    #[error("only the last {} blocks and edits can be undone", limits::UNDO_MAX)]
    Forgotten,
}

#[derive(Clone, Copy, Debug)]
struct Snapshot {
    /// How many blocks and edits there had been.
    undo: u64,
    /// What the next transaction's arrival would have been.
    arrival: u64,
    offset: i64,
    next_time: Option<u64>,
    next_base_fee: Option<u64>,
}

/// The snapshots that can still be gone back to.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    kept: BTreeMap<u64, Snapshot>,
    next: u64,
}

impl Chain {
    /// Remembers where the chain is.
    pub(crate) fn snapshot(&self) -> Result<u64, StoreError> {
        let mut writer = locked(&self.writer);
        let terms = self.terms();
        let snapshot = Snapshot {
            undo: self.store.view()?.undo_next()?,
            arrival: locked(&self.pool).next_arrival(),
            offset: terms.offset,
            next_time: terms.next_time,
            next_base_fee: terms.next_base_fee,
        };
        let snapshots = &mut writer.snapshots;
        let id = snapshots.next;
        snapshots.next = id.saturating_add(1);
        snapshots.kept.insert(id, snapshot);
        if snapshots.kept.len() > limits::SNAPSHOTS_MAX {
            snapshots.kept.pop_first();
        }
        Ok(id)
    }

    /// Goes back to a snapshot, which is forgotten with all later ones; false if there is none of this name.
    pub(crate) fn revert(&self, id: u64) -> Result<bool, RewindError> {
        let mut writer = locked(&self.writer);
        let Some(&snapshot) = writer.snapshots.kept.get(&id) else { return Ok(false) };
        self.undo_to(&mut writer, snapshot.undo, snapshot.offset)?;
        writer.snapshots.kept.split_off(&id);
        {
            let mut terms = locked(&self.terms);
            terms.next_time = snapshot.next_time;
            terms.next_base_fee = snapshot.next_base_fee;
        }
        locked(&self.pool).drop_since(snapshot.arrival);
        self.settle_with(&mut writer)?;
        Ok(true)
    }

    /// Takes the last blocks back.
    pub(crate) fn rollback(&self, depth: u64) -> Result<(), RewindError> {
        let mut writer = locked(&self.writer);
        let view = self.store.view()?;
        let height = view.head()?.header.number;
        let target = height.checked_sub(depth).ok_or(RewindError::Depth { height, depth })?;
        let mut sequence = view.undo_next()?;
        while let Some(last) = sequence.checked_sub(1) {
            if view.undo(last)?.ok_or(RewindError::Forgotten)?.number <= target {
                break;
            }
            sequence = last;
        }
        let offset = self.terms().offset;
        self.undo_to(&mut writer, sequence, offset)?;
        self.settle_with(&mut writer)?;
        Ok(())
    }

    fn undo_to(&self, writer: &mut Writer, sequence: u64, offset: i64) -> Result<(), RewindError> {
        let view = self.store.view()?;
        let now = view.undo_next()?;
        // The entry before the first that is undone has to be known too: it says where counting goes on.
        if sequence.checked_sub(1).map(|before| view.undo(before)).transpose()?.flatten().is_none() {
            return Err(RewindError::Forgotten);
        }
        let writing = self.store.write()?;
        for _ in sequence..now {
            writing.undo_last()?.ok_or(RewindError::Forgotten)?;
        }
        writing.set_meta("offset", &offset.to_be_bytes())?;
        writing.commit()?;
        locked(&self.terms).offset = offset;
        writer.snapshots.kept.retain(|_, snapshot| snapshot.undo <= sequence);
        let head = self.store.view()?.head()?.header.number;
        locked(&self.filters).rewound(head);
        Ok(())
    }

    /// Changes an account as no transaction could.
    pub(crate) fn edit_account(
        &self,
        address: Address,
        edit: impl FnOnce(&mut Account),
    ) -> Result<(), StoreError> {
        self.edit(|state, changes| {
            let mut account = state.account(address)?.unwrap_or_default();
            edit(&mut account);
            changes.accounts.insert(address, (account != Account::default()).then_some(account));
            Ok(())
        })
    }

    /// Gives an account other code.
    pub(crate) fn edit_code(&self, address: Address, code: Bytes) -> Result<(), StoreError> {
        self.edit(|state, changes| {
            let code_hash = keccak256(&code);
            let account = Account { code_hash, ..state.account(address)?.unwrap_or_default() };
            changes.accounts.insert(address, (account != Account::default()).then_some(account));
            if !code.is_empty() {
                changes.code.insert(code_hash, code);
            }
            Ok(())
        })
    }

    /// Writes a slot.
    pub(crate) fn edit_slot(&self, address: Address, slot: U256, value: B256) -> Result<(), StoreError> {
        self.edit(|_, changes| {
            changes.storage.insert((address, slot), value.into());
            Ok(())
        })
    }

    fn edit(
        &self,
        make: impl FnOnce(StateAt<'_>, &mut Changes) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut writer = locked(&self.writer);
        let view = self.store.view()?;
        let state = Chain::latest(&view)?;
        let mut changes = Changes::default();
        make(state, &mut changes)?;
        let writing = self.store.write()?;
        writing.edit(state.number, &changes)?;
        writing.commit()?;
        // A balance or a nonce may be what a transaction waited for.
        self.settle_with(&mut writer)
    }

    /// Moves the clock; returns by how much it is off in all.
    pub fn advance(&self, seconds: u64) -> Result<i64, StoreError> {
        let _writer = locked(&self.writer);
        let seconds = i64::try_from(seconds.min(limits::TIME_MAX)).unwrap_or(i64::MAX);
        let offset = self.terms().offset.saturating_add(seconds).min(limits::TIME_MAX.cast_signed());
        let writing = self.store.write()?;
        writing.set_meta("offset", &offset.to_be_bytes())?;
        writing.commit()?;
        locked(&self.terms).offset = offset;
        Ok(offset)
    }
}
