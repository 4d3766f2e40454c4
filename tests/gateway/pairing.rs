//! A device without a token shows a code, and a person lets it in.

use serde_json::{Value, json};
use tillsync::cluster::Cluster;
use tillsync::gateway::GatewaySettings;
use tillsync::ids::UnixMs;
use tillsync::limits;
use tillsync::token::Class;

use crate::door::metric;
use crate::harness::Server;

async fn ask(server: &Server, body: Value) -> Value {
    let (status, asked) = server.rest_as("", "POST", "/device/pair", Some(body)).await;
    assert_eq!(status, 200, "{asked}");
    asked
}

async fn poll(server: &Server, code: &Value, secret: &Value) -> (u16, Value) {
    let path = format!("/device/pair/{}", code.as_str().unwrap());
    server.rest_as(secret.as_str().unwrap(), "GET", &path, None).await
}

#[tokio::test]
async fn a_new_device_is_let_in_once_by_a_person() {
    let server = Server::start().await;
    let asked = ask(&server, json!({"device_id": "till-9", "name": "by the door"})).await;
    let (code, secret) = (&asked["code"], &asked["secret"]);
    assert_eq!(poll(&server, code, secret).await.1["status"], "waiting");
    let manager = server.token("m", Class::Manager);
    let (_, listed) = server.rest_as(&manager, "GET", "/device/pairings", None).await;
    let row = &listed["pairings"][0];
    assert_eq!((&row["code"], &row["device_id"], &row["name"]), (code, &json!("till-9"), &json!("by the door")));
    assert_eq!((&row["address"], &row["known"]), (&json!("127.0.0.1"), &json!(false)));
    assert!(!listed.to_string().contains(secret.as_str().unwrap()));
    let approve = format!("/device/pairings/{}/approve", code.as_str().unwrap());
    let admin = Some(json!({"class": "admin"}));
    let (status, error) = server.rest_as(&manager, "POST", &approve, admin).await;
    assert_eq!((status, &error["error_code"], &error["field"]), (403, &json!("3003"), &json!("class")));
    let class = || Some(json!({"class": "sales_assistant"}));
    let till = server.token("t", Class::SalesAssistant);
    assert_eq!(server.rest_as(&till, "POST", &approve, class()).await.0, 403);
    assert_eq!(server.rest_as(&manager, "POST", &approve, class()).await.0, 200);
    // Who only saw the code gets nothing.
    assert_eq!(poll(&server, code, &json!("0".repeat(64))).await.0, 404);
    let (status, given) = poll(&server, code, secret).await;
    assert_eq!((status, &given["status"], &given["class"]), (200, &json!("approved"), &json!("sales_assistant")));
    let (_, again) = poll(&server, code, secret).await;
    assert_eq!((&again["status"], &again["token"]), (&json!("claimed"), &Value::Null));
    let token = given["token"].as_str().unwrap();
    server.ws(token).await.online("till-9").await;
    let claims = server.keys.verify(token, server.cluster.clock().now_ms()).unwrap();
    assert!(claims.exp <= server.cluster.clock().now_ms().seconds() + limits::PAIRED_TOKEN.as_secs());
    // The log knows the secret by its hash alone.
    let rows = server
        .cluster
        .replica()
        .state()
        .pairings(UnixMs(0))
        .into_iter()
        .map(|row| format!("{row:?}"))
        .collect::<String>();
    assert!(!rows.contains(secret.as_str().unwrap()));
    let (_, logs) = server.rest("GET", "/sync/audit-logs?event_type=device_pair", None).await;
    assert_eq!((&logs["logs"][1]["device_id"], &logs["pagination"]["total"]), (&json!("m"), &json!(2)));
}

#[tokio::test]
async fn a_revoked_till_is_paired_again() {
    let server = Server::start().await;
    server.device("till").await;
    server.rest("POST", "/device/till/revoke", None).await;
    let asked = ask(&server, json!({})).await;
    let approve = format!("/device/pairings/{}/approve", asked["code"].as_str().unwrap());
    let (status, error) = server.rest("POST", &approve, Some(json!({"class": "manager"}))).await;
    assert_eq!((status, &error["field"]), (400, &json!("device_id")));
    let body = Some(json!({"class": "sales_assistant", "device_id": "till"}));
    assert_eq!(server.rest("POST", &approve, body).await.1["device_id"], "till");
    let (_, given) = poll(&server, &asked["code"], &asked["secret"]).await;
    server.ws(given["token"].as_str().unwrap()).await.online("till").await;
    // And this one is taken back as well, in the same second.
    server.rest("POST", "/device/till/revoke", None).await;
    assert!(server.try_ws(given["token"].as_str().unwrap()).await.is_err());
}

#[tokio::test]
async fn strangers_ask_little_and_seldom() {
    let server = Server::start().await;
    let large = json!({"name": "x".repeat(limits::PAIR_BODY)});
    assert_eq!(server.rest_as("", "POST", "/device/pair", Some(large)).await.0, 413);
    for (body, field) in
        [(json!({"device_id": "a\n"}), "device_id"), (json!({"name": "\u{7}"}), "name"), (json!({"name": 1}), "name")]
    {
        let (status, error) = server.rest_as("", "POST", "/device/pair", Some(body)).await;
        assert_eq!((status, &error["field"]), (400, &json!(field)));
    }
    let mut asked = 0;
    let refused = loop {
        let (status, answer) = server.rest_as("", "POST", "/device/pair", Some(json!({}))).await;
        if status != 200 {
            break answer;
        }
        asked += 1;
    };
    assert_eq!(refused["error_code"], "5003");
    assert!(refused["retry_after_ms"].as_u64().unwrap() > 0);
    assert!(asked <= limits::PAIRINGS_OF_ADDRESS, "{asked}");
    assert_eq!(server.rest_as("", "GET", "/device/pair/nonsense", None).await.0, 404);
}

#[tokio::test]
async fn guessing_a_secret_is_counted_and_slow_and_keeps_no_device_waiting() {
    let server = Server::start().await;
    let asked = ask(&server, json!({"device_id": "till"})).await;
    let (code, secret) = (&asked["code"], &asked["secret"]);
    let before = metric(&server, "tillsync_refused_tokens_total").await;
    // A wrong secret of a right code, and a wrong code: nobody can tell one from the other.
    let (status, wrong_secret) = poll(&server, code, &json!("0".repeat(64))).await;
    let (same, wrong_code) = poll(&server, &json!("22222222"), secret).await;
    assert_eq!((status, same, &wrong_secret["error"]), (404, 404, &wrong_code["error"]));
    assert!(metric(&server, "tillsync_refused_tokens_total").await >= before + 2);
    let mut guesses = 2;
    let refused = loop {
        let (status, answer) = poll(&server, code, &json!(format!("{guesses:064}"))).await;
        if status != 404 {
            break answer;
        }
        guesses += 1;
        assert!(guesses < 1_000, "they are never slowed down");
    };
    assert_eq!(refused["error_code"], "5003", "{refused}");
    assert!(refused["retry_after_ms"].as_u64().unwrap() > 0);
    // The device asks from the same address.
    assert_eq!(poll(&server, code, secret).await.1["status"], "waiting");
}

#[tokio::test]
async fn a_paired_devices_token_lives_for_as_long_as_is_set() {
    let paired_token = std::time::Duration::from_secs(7 * 3_600);
    let server = Server::with(GatewaySettings { paired_token, ..GatewaySettings::default() }).await;
    let now_s = || server.cluster.clock().now_ms().seconds();
    let begun = now_s();
    let asked = ask(&server, json!({"device_id": "till"})).await;
    let approve = format!("/device/pairings/{}/approve", asked["code"].as_str().unwrap());
    server.rest("POST", &approve, Some(json!({"class": "sales_assistant"}))).await;
    let (_, given) = poll(&server, &asked["code"], &asked["secret"]).await;
    let token = given["token"].as_str().unwrap().to_owned();
    // One that is renewed lives no longer, also in place of one that was made for longer.
    let (long, _) = server.keys.issue("office", Class::Admin, UnixMs(begun * 1_000), 30 * 86_400).unwrap();
    let mut tokens = vec![token.clone()];
    for renewed in [token, long] {
        let (_, answer) = server.rest_as(&renewed, "POST", "/token/renew", None).await;
        tokens.push(answer["token"].as_str().unwrap().to_owned());
    }
    for token in tokens {
        let claims = server.keys.verify(&token, server.cluster.clock().now_ms()).unwrap();
        assert!(
            (begun + paired_token.as_secs()..=now_s() + paired_token.as_secs()).contains(&claims.exp),
            "{claims:?}"
        );
    }
}
