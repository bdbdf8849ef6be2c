//! What a bus must do.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{PATIENCE, QUIET, expectations, soon};
use crate::{
    bus::{Bus, Headers, Message, RequestError, SUBSCRIPTION_QUEUE, Subscription, respond},
    commit::MAX_COMMIT_BYTES,
    subject::{Pattern, Subject},
};

/// Runs all expectations, each on a bus that `make` gives; one may be shared with earlier ones.
pub async fn bus_suite<F: Future<Output = Arc<dyn Bus>>>(make: impl Fn() -> F) {
    expectations!(
        make,
        a_message_arrives_as_it_was_sent,
        a_message_of_a_whole_commit_arrives,
        every_subscriber_gets_every_message,
        a_star_stands_for_one_token_and_an_arrow_for_the_rest,
        messages_on_one_subject_keep_their_order,
        a_queue_group_shares_the_messages,
        queue_groups_and_others_do_not_share_with_each_other,
        a_request_is_answered,
        requests_find_their_own_answers,
        a_request_nobody_listens_to_fails_at_once,
        a_request_nobody_answers_times_out,
        a_dropped_subscription_is_over,
        a_slow_subscriber_holds_up_nobody,
    );
}

type Engine = Arc<dyn Bus>;

fn subject(text: &str) -> Subject {
    Subject::new(text).expect("a subject")
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a pattern")
}

fn message(on: &str, payload: impl Into<Bytes>) -> Message {
    Message { subject: subject(on), reply: None, headers: Headers::new(), payload: payload.into() }
}

async fn publish(bus: &Engine, on: &str, payload: impl Into<Bytes>) {
    bus.publish(message(on, payload)).await.expect("published");
}

async fn subscribe(bus: &Engine, on: &str, queue: Option<&str>) -> Subscription {
    bus.subscribe(pattern(on), queue).await.expect("subscribed")
}

async fn next(subscription: &mut Subscription) -> Message {
    soon("a message", subscription.next()).await.expect("the subscription goes on")
}

async fn nothing(subscription: &mut Subscription) {
    if let Ok(message) = tokio::time::timeout(QUIET, subscription.next()).await {
        panic!("nothing should come, this did: {message:?}");
    }
}

fn number(message: &Message) -> u32 {
    std::str::from_utf8(&message.payload).ok().and_then(|text| text.parse().ok()).expect("a number")
}

async fn a_message_arrives_as_it_was_sent(bus: Engine) {
    let mut got = subscribe(&bus, "sent.as.is", None).await;
    let headers: Headers =
        vec![("Roomlog-Type".into(), "RoomCreated,ClientJoined".into()), ("X-Two".into(), "b".into())];
    let payload = Bytes::from_static(&[0, 255, 13, 10, 0, 42]);
    let sent = Message { headers: headers.clone(), ..message("sent.as.is", payload.clone()) };
    bus.publish(sent).await.expect("published");
    let got = next(&mut got).await;
    assert_eq!(got.subject, subject("sent.as.is"));
    assert_eq!((got.payload, got.headers), (payload, headers));
    assert!(got.reply.is_none(), "no answer was wanted");
}

async fn a_message_of_a_whole_commit_arrives(bus: Engine) {
    let mut got = subscribe(&bus, "large.one", None).await;
    let payload: Vec<u8> = (0..MAX_COMMIT_BYTES).map(|i| i as u8).collect();
    publish(&bus, "large.one", payload.clone()).await;
    assert!(next(&mut got).await.payload == payload, "the content differs");
}

async fn every_subscriber_gets_every_message(bus: Engine) {
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(subscribe(&bus, "to.all", None).await);
    }
    publish(&bus, "to.all", "1").await;
    publish(&bus, "to.others", "2").await;
    for subscription in &mut all {
        assert_eq!(number(&next(subscription).await), 1);
    }
    for subscription in &mut all {
        nothing(subscription).await;
    }
}

async fn a_star_stands_for_one_token_and_an_arrow_for_the_rest(bus: Engine) {
    let mut star = subscribe(&bus, "wild.*.end", None).await;
    let mut arrow = subscribe(&bus, "wild.>", None).await;
    for (i, on) in ["wild", "wild.a.end", "wild.a.b.end", "wild.b.end", "wild.a"].into_iter().enumerate() {
        publish(&bus, on, i.to_string()).await;
    }
    for expected in [1, 3] {
        assert_eq!(number(&next(&mut star).await), expected);
    }
    for expected in [1, 2, 3, 4] {
        assert_eq!(number(&next(&mut arrow).await), expected);
    }
    nothing(&mut star).await;
    nothing(&mut arrow).await;
}

async fn messages_on_one_subject_keep_their_order(bus: Engine) {
    const MESSAGES: u32 = 1_000;
    let mut got = subscribe(&bus, "order.*", None).await;
    let senders: Vec<_> = (0..4)
        .map(|s| {
            let bus = bus.clone();
            tokio::spawn(async move {
                for i in 0..MESSAGES {
                    publish(&bus, &format!("order.{s}"), i.to_string()).await;
                }
            })
        })
        .collect();
    let mut expected = [0; 4];
    for _ in 0..4 * MESSAGES {
        let message = next(&mut got).await;
        let sender: usize =
            message.subject.as_str().rsplit('.').next().and_then(|s| s.parse().ok()).expect("0 to 3");
        assert_eq!(number(&message), expected[sender], "out of order on {}", message.subject);
        expected[sender] += 1;
    }
    for sender in senders {
        sender.await.expect("sent");
    }
}

async fn a_queue_group_shares_the_messages(bus: Engine) {
    const MESSAGES: u32 = 300;
    let mut members = Vec::new();
    for _ in 0..3 {
        members.push(subscribe(&bus, "work.to.do", Some("workers")).await);
    }
    for i in 0..MESSAGES {
        publish(&bus, "work.to.do", i.to_string()).await;
    }
    let mut seen = BTreeSet::new();
    let mut shares = Vec::new();
    for member in &mut members {
        let mut share = 0;
        while let Ok(Some(message)) = tokio::time::timeout(QUIET * 5, member.next()).await {
            assert!(seen.insert(number(&message)), "{} came twice", number(&message));
            share += 1;
        }
        shares.push(share);
    }
    assert_eq!(seen.len() as u32, MESSAGES, "each message goes to one member");
    assert!(shares.iter().all(|share| *share > 0), "shares are {shares:?}: somebody got nothing");
}

async fn queue_groups_and_others_do_not_share_with_each_other(bus: Engine) {
    let mut first = subscribe(&bus, "shared.out", Some("first")).await;
    let mut second = subscribe(&bus, "shared.*", Some("second")).await;
    let mut alone = subscribe(&bus, "shared.>", None).await;
    for i in 0..10 {
        publish(&bus, "shared.out", i.to_string()).await;
    }
    for subscription in [&mut first, &mut second, &mut alone] {
        for i in 0..10 {
            assert_eq!(number(&next(subscription).await), i);
        }
    }
}

/// Answers each request with its payload and `mark`.
async fn responder(bus: &Engine, on: &str, queue: Option<&str>, mark: &'static str) {
    let mut requests = subscribe(bus, on, queue).await;
    let bus = bus.clone();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let mut answer = request.payload.to_vec();
            answer.extend_from_slice(mark.as_bytes());
            if respond(&*bus, &request, answer.into()).await.is_err() {
                return;
            }
        }
    });
}

async fn a_request_is_answered(bus: Engine) {
    responder(&bus, "ask.me", None, "!").await;
    let answer = bus.request(subject("ask.me"), "hello".into(), PATIENCE).await.expect("answered");
    assert_eq!(answer.payload, "hello!");
}

async fn requests_find_their_own_answers(bus: Engine) {
    responder(&bus, "ask.many", Some("q"), "").await;
    responder(&bus, "ask.many", Some("q"), "").await;
    let asking = (0..200).map(|i: u32| {
        let bus = bus.clone();
        tokio::spawn(async move {
            let answer =
                bus.request(subject("ask.many"), i.to_string().into(), PATIENCE).await.expect("answered");
            assert_eq!(number(&answer), i);
        })
    });
    for asked in asking.collect::<Vec<_>>() {
        asked.await.expect("each got its own answer");
    }
}

async fn a_request_nobody_listens_to_fails_at_once(bus: Engine) {
    let asked = Instant::now();
    let answer = bus.request(subject("nobody.here"), Bytes::new(), PATIENCE).await;
    assert!(
        matches!(&answer, Err(RequestError::NoResponders(on)) if *on == subject("nobody.here")),
        "{answer:?}"
    );
    assert!(asked.elapsed() < PATIENCE / 2, "it took {:?}", asked.elapsed());
}

async fn a_request_nobody_answers_times_out(bus: Engine) {
    let _silent = subscribe(&bus, "silent.one", None).await;
    let timeout = Duration::from_millis(150);
    let asked = Instant::now();
    let answer = bus.request(subject("silent.one"), Bytes::new(), timeout).await;
    assert!(matches!(&answer, Err(RequestError::Timeout { timeout: t, .. }) if *t == timeout), "{answer:?}");
    assert!(asked.elapsed() >= timeout);
}

async fn a_dropped_subscription_is_over(bus: Engine) {
    let subscription = subscribe(&bus, "gone.soon", Some("q")).await;
    let mut stays = subscribe(&bus, "gone.not", None).await;
    drop(subscription);
    let since = Instant::now();
    // A server may still be told; but soon it knows.
    loop {
        match bus.request(subject("gone.soon"), Bytes::new(), QUIET).await {
            Err(RequestError::NoResponders(_)) => break,
            other => assert!(since.elapsed() < PATIENCE, "still listens: {other:?}"),
        }
    }
    publish(&bus, "gone.not", "1").await;
    assert_eq!(number(&next(&mut stays).await), 1);
}

async fn a_slow_subscriber_holds_up_nobody(bus: Engine) {
    let messages = SUBSCRIPTION_QUEUE as u32 + 1_000;
    let _slow = subscribe(&bus, "fast.enough", None).await;
    let mut fast = subscribe(&bus, "fast.enough", None).await;
    let sender = {
        let bus = bus.clone();
        tokio::spawn(async move {
            for i in 0..messages {
                publish(&bus, "fast.enough", i.to_string()).await;
                if i % 256 == 0 {
                    tokio::task::yield_now().await; // the reader's turn, also on one core
                }
            }
        })
    };
    for i in 0..messages {
        assert_eq!(number(&next(&mut fast).await), i, "the reader that keeps up misses nothing");
    }
    soon("the sender", sender).await.expect("it was not held up");
}
