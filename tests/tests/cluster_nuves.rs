//! Two NUVE nodes are one: whoever is asked, a room has one EC, and what one made the other knows.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::{StreamExt, stream};
use roomlog_tests::cluster::{Cluster, Shape};
use serde_json::Value;

/// Tokens asked for at once, for so many rooms.
const TOKENS: usize = 500;
const ROOMS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_first_tokens_through_both_name_one_ec_for_each_room() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::start(Shape { eas: vec![1], ..Shape::default() }).await? else {
        return Ok(());
    };
    let tokens: Vec<anyhow::Result<(usize, Value)>> = stream::iter(0..TOKENS)
        .map(|i| {
            let cluster = &cluster;
            async move {
                let token = cluster.token_at(i % 2, &format!("r{}", i / 2 % ROOMS), &format!("u{i}")).await?;
                Ok((i / 2 % ROOMS, token))
            }
        })
        .buffer_unordered(TOKENS)
        .collect()
        .await;
    let mut named: BTreeMap<usize, BTreeSet<(String, String, String)>> = BTreeMap::new();
    for token in tokens {
        let (room, token) = token?;
        let text = |name: &str| token[name].as_str().unwrap_or_default().to_owned();
        let claims = text("token").split('.').nth(1).unwrap_or_default().to_owned();
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
        let ec = claims["ec"].as_str().unwrap_or_default().to_owned();
        named.entry(room).or_default().insert((text("roomId"), text("wsUrl"), ec));
    }
    assert_eq!(named.len(), ROOMS);
    let mut ecs = BTreeSet::new();
    for (room, named) in &named {
        assert_eq!(named.len(), 1, "room {room}: {named:?}");
        ecs.extend(named.iter().map(|(_, _, ec)| ec.clone()));
    }
    assert_eq!(ecs.len(), 2, "both ECs have rooms");

    // What one made, the other has at once.
    for turn in 0..20 {
        let body = serde_json::json!({ "name": format!("made{turn}") });
        let made = roomlog_tests::http::call_ok(
            &cluster.nuves[turn % 2].origin,
            "POST",
            "/v1/rooms",
            Some(&cluster.secret),
            Some(&body),
        )
        .await?;
        let id = made["roomId"].as_str().or(made["id"].as_str()).unwrap_or_default().to_owned();
        let other = &cluster.nuves[(turn + 1) % 2].origin;
        let path = format!("/v1/rooms/{id}");
        roomlog_tests::http::call_ok(other, "GET", &path, Some(&cluster.secret), None).await?;
        cluster.token_at((turn + 1) % 2, &format!("made{turn}"), "Ann").await?;
    }
    cluster.log_is_clean().await
}
