//! Elections among few and among many registered devices.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::journal::Times;
use super::shutdown::MasterClient;
use super::{FailoverArgs, MeasuredCluster};
use crate::cli::CliResult;
use crate::cli::bench::clients::{event_name, refused};
use crate::client::frame::ws_frame;
use crate::client::ws::WsSocket;
use crate::client::{ClientError, ClusterTarget};

/// Devices that one session speaks for.
const A_SESSION: u32 = 1_000;
/// Registrations under way on one session.
const AT_ONCE: u32 = 32;
const ELECTIONS: usize = 40;

pub(super) async fn run(args: &FailoverArgs, stage: &MeasuredCluster) -> CliResult<Vec<Value>> {
    let (mut sessions, mut registered, mut results) = (JoinSet::new(), 0, Vec::new());
    for count in args.devices.iter().copied().filter(|count| *count > 0) {
        while registered < count {
            let upto = count.min(registered + A_SESSION);
            let mut socket = register(&stage.target, registered, upto).await?;
            // Pings are answered while it is read.
            sessions.spawn(async move { while socket.next().await.is_ok() {} });
            registered = upto;
        }
        let (first, second) = (&stage.target.nodes[0], &stage.target.nodes[1]);
        let token = &stage.target.token;
        let mut one = MasterClient::come(first, token, "chief-1", r#","priority":100,"role":"master""#).await?;
        let mut two = MasterClient::come(second, token, "chief-2", r#","priority":99"#).await?;
        let (mut here, mut there) = (Times::default(), Times::default());
        for _ in 0..ELECTIONS {
            here.add(one.call("master_election", r#"{"reason":"manual"}"#, "master_elected").await?);
        }
        for _ in 0..ELECTIONS / 4 {
            for chief in [&mut two, &mut one] {
                let data = format!(r#"{{"device_id":"{}","new_role":"master","reason":"bench"}}"#, chief.id);
                there.add(chief.call("role_change", &data, "role_change_ack").await?);
            }
        }
        one.close().await;
        two.close().await;
        args.say(&format!("{count} devices: an election {here} ms; one that moves to another node {there} ms"));
        results.push(json!({"devices": count, "election": here.json(), "with_handover": there.json()}));
    }
    Ok(results)
}

/// Devices on a session of their own; they are online while it lives.
async fn register(target: &ClusterTarget, from: u32, upto: u32) -> Result<WsSocket, ClientError> {
    let node = &target.nodes[2 % target.nodes.len()];
    let mut socket = WsSocket::connect(node, &target.token).await?;
    let (mut sent, mut done) = (from, from);
    while done < upto {
        while sent < upto && sent < done + AT_ONCE {
            let ask = format!(r#"{{"device_id":"many-{sent}","subscribe":[]}}"#);
            socket.feed(ws_frame("device_online", &ask)).await?;
            sent += 1;
        }
        socket.flush().await?;
        let text = socket.next().await?;
        match event_name(&text) {
            "device_online_ack" => done += 1,
            "error" => return Err(refused(node, &text)),
            _ => {}
        }
    }
    Ok(socket)
}
