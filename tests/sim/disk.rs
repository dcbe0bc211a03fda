//! A store whose disk can be slow, full, failing or torn, and that forgets what was not synced when the power goes.
//!
//! ```text
//!   submit ─► written (in order, unsynced) ── sync ─► synced (a model of the store) ─ when_durable(Ok)
//!                  │                            └──── fails: when_durable(Err), and on disk or not
//!                  └── power cut: the transaction under way is there whole, or not at all; the rest is lost
//! ```
//!
//! What SQLite promises is kept: a transaction is atomic, and the order of transactions is the order of batches. What
//! it does not promise is used: a commit that was told to have failed may be found on the disk afterwards, since its
//! frames can have reached the log before the sync failed.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use farrier::clock::Timestamp;
use farrier::dhcp::lease::BindingState;
use farrier::net::MacAddr;
use farrier::store::memory::MemoryStore;
use farrier::store::{Change, CommitError, LoadError, Snapshot, Store, WhenDurable};

/// Batches that may wait. Few, so that seeds meet the bound.
pub const QUEUE_MAX: usize = 64;

/// What becomes of the transaction under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Synced,
    /// No room, or an error before anything reached the log.
    Refused,
    /// The sync failed. `kept`: what was written is there all the same when the file is opened again.
    SyncFailed {
        kept: bool,
    },
}

/// How far a call on another thread has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Submitted,
    Ended,
}

pub struct Disk {
    state: Mutex<State>,
    /// Calls that wait for the disk run on threads of their own; the simulation's is this one.
    main: ThreadId,
}

#[derive(Default)]
struct State {
    synced: Arc<MemoryStore>,
    written: VecDeque<(Vec<Change>, WhenDurable)>,
    closed: bool,
    /// Told of each batch that comes from another thread than the simulation's.
    caller: Option<Sender<Progress>>,
    /// The latest end of a lease that was ever on disk.
    leases: HashMap<(Ipv4Addr, MacAddr), Timestamp>,
    most_waiting: usize,
}

impl Disk {
    pub fn new(synced: Arc<MemoryStore>) -> Disk {
        let state = State { synced, ..State::default() };
        Disk { state: Mutex::new(state), main: thread::current().id() }
    }

    /// What is found when the power is back.
    pub fn reopened(&self) -> Disk {
        let state = self.lock();
        let again =
            State { synced: Arc::clone(&state.synced), leases: state.leases.clone(), ..State::default() };
        Disk { state: Mutex::new(again), main: self.main }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics holding it")
    }

    /// What a reader finds who opens the file now.
    pub fn snapshot(&self) -> Snapshot {
        let synced = Arc::clone(&self.lock().synced);
        synced.load().expect("a model can be read")
    }

    /// Whether a lease of this address that ends no earlier has ever been on disk.
    pub fn held(&self, address: Ipv4Addr, mac: MacAddr, until: Timestamp) -> bool {
        self.lock().leases.get(&(address, mac)).is_some_and(|end| *end >= until)
    }

    pub fn waiting(&self) -> usize {
        self.lock().written.len()
    }

    pub fn most_waiting(&self) -> usize {
        self.lock().most_waiting
    }

    /// Tells of batches that calls on other threads hand in.
    pub fn watch_calls(&self, caller: Option<Sender<Progress>>) {
        self.lock().caller = caller;
    }

    /// Ends the transaction with all that is written. The callbacks run here, as they do on the store's thread.
    pub fn sync(&self, fate: Fate) {
        let (group, synced) = {
            let mut state = self.lock();
            (state.written.drain(..).collect::<Vec<_>>(), Arc::clone(&state.synced))
        };
        let kept = match fate {
            Fate::Synced => true,
            Fate::Refused => false,
            Fate::SyncFailed { kept } => kept,
        };
        if kept {
            for (changes, _) in &group {
                self.apply(&synced, changes);
            }
        }
        for (_, when_durable) in group {
            when_durable(match fate {
                Fate::Synced => Ok(()),
                Fate::Refused => Err(CommitError::Write { reason: "no space left on device".to_owned() }),
                Fate::SyncFailed { .. } => {
                    Err(CommitError::Write { reason: "input/output error".to_owned() })
                }
            });
        }
    }

    /// The power goes. The first `survive` batches are found again: as many as the transaction under way had.
    pub fn cut(&self, survive: usize) {
        let (group, synced) = {
            let mut state = self.lock();
            state.closed = true;
            (state.written.drain(..).collect::<Vec<_>>(), Arc::clone(&state.synced))
        };
        for (changes, _) in group.iter().take(survive) {
            self.apply(&synced, changes);
        }
        // Callbacks die with their process.
    }

    fn apply(&self, synced: &MemoryStore, changes: &[Change]) {
        for change in changes {
            if let Change::PutBinding(binding) = change
                && binding.state == BindingState::Bound
            {
                let mut state = self.lock();
                let end = state.leases.entry((binding.address, binding.mac)).or_default();
                *end = binding.expires_at.max(*end);
            }
        }
        synced.commit(changes.to_vec()).expect("a model takes everything");
    }
}

impl Store for Disk {
    fn load(&self) -> Result<Snapshot, LoadError> {
        Ok(self.snapshot())
    }

    fn submit(&self, changes: Vec<Change>, when_durable: WhenDurable) {
        let error = {
            let mut state = self.lock();
            if state.closed {
                CommitError::Closed
            } else if state.written.len() >= QUEUE_MAX {
                CommitError::QueueFull { waiting: state.written.len() }
            } else {
                state.written.push_back((changes, when_durable));
                state.most_waiting = state.most_waiting.max(state.written.len());
                if let Some(caller) = state.caller.as_ref().filter(|_| thread::current().id() != self.main) {
                    let _ = caller.send(Progress::Submitted);
                }
                return;
            }
        };
        when_durable(Err(error));
    }
}
