use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;

use super::*;
use crate::operator::access::{Means, Role};
use crate::store::memory::MemoryStore;

fn somebody(name: &str) -> Principal {
    Principal { name: name.to_owned(), role: Role::Admin, means: Means::Socket { uid: 0 } }
}

fn with_key(key: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(HEADER, key.parse().unwrap());
    headers
}

fn created(body: &str) -> Answer {
    Answer { status: 201, headers: vec![("etag".to_owned(), "\"v1\"".to_owned())], body: body.to_owned() }
}

async fn body_of(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

type Done = Pin<Box<dyn Future<Output = Result<Answer, Problem>> + Send>>;

/// What a handler does: the change and its answer in one batch.
fn work(
    store: &Arc<MemoryStore>,
    done: &Arc<AtomicU32>,
) -> impl FnOnce(Option<Ticket>) -> Done + Send + 'static + use<> {
    let (store, done) = (Arc::clone(store), Arc::clone(done));
    move |ticket| {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let answer = created(&done.fetch_add(1, Ordering::Relaxed).to_string());
            let changes = ticket.iter().map(|ticket| ticket.keep(&answer)).collect();
            store
                .commit(changes)
                .map_err(|error| Problem::new(ProblemKind::Unavailable, error.to_string()))?;
            Ok(answer)
        })
    }
}

fn reopened(store: &Arc<MemoryStore>) -> Arc<Keys> {
    Arc::new(Keys::new(store.load().unwrap().answers, Arc::clone(store) as _, Clock::start()))
}

#[tokio::test]
async fn the_same_request_is_done_once_also_at_the_same_time() {
    let (store, done) = (Arc::new(MemoryStore::new()), Arc::<AtomicU32>::default());
    let keys = reopened(&store);
    let (principal, headers) = (somebody("ann"), with_key("k1"));
    let once = || keys.once(&principal, &headers, b"{}", work(&store, &done));
    let (first, second) = tokio::join!(once(), once());
    for response in [first, second, once().await] {
        assert_eq!(body_of(response).await, (201, "0".to_owned()));
    }
    let another = keys.once(&principal, &headers, b"{\"x\":1}", work(&store, &done)).await;
    assert_eq!(another.status(), StatusCode::UNPROCESSABLE_ENTITY);
    // Somebody else's key is another key, and without one everything is done.
    let others = keys.once(&somebody("bob"), &headers, b"{}", work(&store, &done)).await;
    assert_eq!(body_of(others).await.1, "1");
    let without = keys.once(&principal, &HeaderMap::new(), b"{}", work(&store, &done)).await;
    assert_eq!(body_of(without).await.1, "2");
}

#[tokio::test]
async fn an_answer_outlives_a_restart_and_whoever_hung_up() {
    let (store, done) = (Arc::new(MemoryStore::new()), Arc::<AtomicU32>::default());
    let (principal, headers) = (somebody("ann"), with_key("k1"));
    let keys = reopened(&store);
    {
        let first = keys.once(&principal, &headers, b"{}", work(&store, &done));
        // Polled once, and given up: the connection is gone.
        tokio::pin!(first);
        assert!(polled_once(first.as_mut()).await.is_none());
    }
    let again = keys.once(&principal, &headers, b"{}", work(&store, &done)).await;
    assert_eq!(body_of(again).await, (201, "0".to_owned()));

    let refuse = |_| async { Err(Problem::new(ProblemKind::Conflict, "the name is taken")) };
    let refused = body_of(keys.once(&principal, &with_key("k2"), b"{}", refuse).await).await;
    assert_eq!(refused.0, 409);

    let keys = reopened(&store);
    let kept = keys.once(&principal, &headers, b"{}", work(&store, &done)).await;
    assert_eq!(kept.headers().get("etag").unwrap(), "\"v1\"");
    assert_eq!(body_of(kept).await, (201, "0".to_owned()));
    assert_eq!(keys.once(&principal, &headers, b"{ }", work(&store, &done)).await.status(), 422);
    let still = keys.once(&principal, &with_key("k2"), b"{}", work(&store, &done)).await;
    assert_eq!(body_of(still).await, refused);
    assert_eq!(done.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_is_too_old_is_done_anew_and_dropped() {
    let (store, done) = (Arc::new(MemoryStore::new()), Arc::<AtomicU32>::default());
    let (principal, headers) = (somebody("ann"), with_key("k1"));
    reopened(&store).once(&principal, &headers, b"{}", work(&store, &done)).await;
    let mut kept = store.load().unwrap().answers;
    kept[0].kept_until = Clock::start().now().minus(Duration::from_secs(1));
    let keys = Arc::new(Keys::new(kept, Arc::clone(&store) as _, Clock::start()));
    let other = keys.once(&principal, &with_key("k2"), b"{}", work(&store, &done)).await;
    assert_eq!(body_of(other).await.1, "1");
    let left: Vec<String> = store.load().unwrap().answers.into_iter().map(|kept| kept.key.key).collect();
    assert_eq!(left, ["k2"]);
}

#[tokio::test]
async fn a_failure_of_ours_may_be_tried_again_and_keys_are_bounded() {
    let (store, done) = (Arc::new(MemoryStore::new()), Arc::<AtomicU32>::default());
    let (keys, principal) = (reopened(&store), somebody("ann"));
    let headers = with_key("k");
    store.fail_next_commits(1);
    assert_eq!(keys.once(&principal, &headers, b"", work(&store, &done)).await.status(), 503);
    assert_eq!(keys.once(&principal, &headers, b"", work(&store, &done)).await.status(), 201);
    for number in 0..KEYS_MAX + 10 {
        keys.once(&principal, &with_key(&number.to_string()), b"", work(&store, &done)).await;
    }
    let (slots, ages) = {
        let book = keys.lock();
        (book.slots.len(), book.by_age.len())
    };
    assert!(slots <= KEYS_MAX && ages == slots);
    assert_eq!(store.load().unwrap().answers.len(), slots);
    let too_long = with_key(&"x".repeat(KEY_BYTES_MAX + 1));
    assert_eq!(keys.once(&principal, &too_long, b"", work(&store, &done)).await.status(), 400);
}

/// One turn of a future; `None` if it is not through.
async fn polled_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}
