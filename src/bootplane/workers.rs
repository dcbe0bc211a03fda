//! The threads that serve connections: one per processor, each with a runtime of its own.
//!
//! A download gives up its turn some thousand times a second. On a runtime with several threads each of these turns
//! wakes another thread, which takes the connection over: more work than sending it. Here a connection stays with
//! its thread, and yielding costs nothing; what evens out the load is that a new one goes where fewest are open.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

/// Two saturate a 10 Gbit/s link; beyond this many it is the link that is short, not the processors.
const WORKERS_MAX: usize = 8;

/// Tasks run between two looks at the sockets: after every other turn of a download, not the usual 61.
const EVENT_INTERVAL: u32 = 4;

/// Tasks run between two looks at what comes from other threads: new connections, and answers that waited for the disk.
/// After the usual 31 a script would stand behind as many turns of downloads.
const ARRIVAL_INTERVAL: u32 = 1;

/// So long a worker answers one request after the other before it lets others run. Its own client may be waiting for this
/// very processor, often until the kernel's next tick, which comes every 4 ms on many systems.
const SPELL_MAX: Duration = Duration::from_millis(1);

thread_local! {
    /// Since when this thread has had work without a break.
    static BUSY_SINCE: Cell<Instant> = Cell::new(Instant::now());
}

/// Dropping it ends the threads and whatever still runs there.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// One clone for every open connection; how many there are is the worker's load.
    load: Arc<()>,
    /// The one permit that this worker's downloads pass around.
    turns: Arc<Semaphore>,
    /// Dropped to end the thread.
    _running: oneshot::Sender<()>,
}

/// Lets others have the processor if this thread has been busy for long. To be called between two pieces of work.
pub fn give_way(now: Instant) {
    if now.saturating_duration_since(BUSY_SINCE.get()) >= SPELL_MAX {
        thread::yield_now();
        BUSY_SINCE.set(Instant::now());
    }
}

impl Workers {
    pub fn start() -> io::Result<Workers> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        let workers = (0..count).map(|_| Worker::start()).collect::<io::Result<_>>()?;
        Ok(Workers { workers })
    }

    /// Has the least busy worker serve a connection, as a task of `connections`. `serve` is not called if the socket
    /// cannot be handed over, which takes a kernel out of memory.
    pub fn serve<F: Future<Output = ()> + Send + 'static>(
        &self,
        socket: TcpStream,
        connections: &mut JoinSet<()>,
        serve: impl FnOnce(TcpStream, Arc<Semaphore>) -> F + Send + 'static,
    ) -> io::Result<()> {
        let Some(worker) = self.workers.iter().min_by_key(|worker| Arc::strong_count(&worker.load)) else {
            return Err(io::Error::other("no worker"));
        };
        let socket = socket.into_std()?;
        let socket = {
            // The worker's poller is to know the socket, not this thread's.
            let _entered = worker.runtime.enter();
            TcpStream::from_std(socket)?
        };
        let (load, turns) = (Arc::clone(&worker.load), Arc::clone(&worker.turns));
        let task = async move {
            serve(socket, turns).await;
            drop(load);
        };
        connections.spawn_on(task, &worker.runtime);
        Ok(())
    }
}

impl Worker {
    fn start() -> io::Result<Worker> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .event_interval(EVENT_INTERVAL)
            .global_queue_interval(ARRIVAL_INTERVAL)
            .on_thread_unpark(|| BUSY_SINCE.set(Instant::now()))
            .build()?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel::<()>();
        thread::Builder::new().name("farrier-http".to_owned()).spawn(move || {
            crate::net::sys::run_like_others();
            // Nothing is ever sent: the sender goes, and this ends.
            let _ = runtime.block_on(ended);
            // An agent's call may still wait for the disk.
            runtime.shutdown_background();
        })?;
        Ok(Worker {
            runtime: handle,
            load: Arc::default(),
            turns: Arc::new(Semaphore::new(1)),
            _running: running,
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connections_spread_over_the_workers_and_leave_them_again() {
        let workers = Workers { workers: vec![Worker::start().unwrap(), Worker::start().unwrap()] };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut connections, mut peers) = (JoinSet::new(), Vec::new());
        for _ in 0..6 {
            let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (socket, _) = listener.accept().await.unwrap();
            let echo = |mut socket: TcpStream, _| async move {
                while let Ok(byte) = socket.read_u8().await {
                    socket.write_u8(byte).await.unwrap();
                }
            };
            workers.serve(socket, &mut connections, echo).unwrap();
            peer.write_u8(7).await.unwrap();
            assert_eq!(peer.read_u8().await.unwrap(), 7);
            peers.push(peer);
        }
        let loads = || workers.workers.iter().map(|worker| Arc::strong_count(&worker.load) - 1);
        assert_eq!(loads().collect::<Vec<_>>(), [3, 3]);
        drop(peers);
        while connections.join_next().await.is_some() {}
        assert_eq!(loads().sum::<usize>(), 0);
    }

    #[test]
    fn who_gives_way_begins_a_new_spell_and_who_was_not_busy_long_goes_on() {
        let now = Instant::now();
        let since = now.checked_sub(SPELL_MAX / 2).unwrap();
        BUSY_SINCE.set(since);
        give_way(now);
        assert_eq!(BUSY_SINCE.get(), since);
        give_way(since + SPELL_MAX);
        assert!(BUSY_SINCE.get() >= now);
    }

    #[tokio::test]
    async fn a_worker_that_has_slept_begins_a_new_spell() {
        let worker = Worker::start().unwrap();
        let slept = async {
            let before = Instant::now();
            BUSY_SINCE.set(before);
            tokio::time::sleep(SPELL_MAX).await;
            BUSY_SINCE.get() > before
        };
        assert!(worker.runtime.spawn(slept).await.unwrap());
    }

    #[tokio::test]
    async fn what_runs_on_workers_ends_with_them() {
        let workers = Workers::start().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let mut connections = JoinSet::new();
        let forever = |socket: TcpStream, _| async move {
            std::future::pending::<()>().await;
            drop(socket);
        };
        workers.serve(socket, &mut connections, forever).unwrap();
        drop(workers);
        assert!(connections.join_next().await.unwrap().unwrap_err().is_cancelled());
        assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
    }
}
