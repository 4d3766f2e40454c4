//! Who is master: orders, elections, and a master that leaves.

use serde_json::json;

use super::WorkloadDevice;
use crate::clients::client::{ClientAnswer, ClientTalk, refuses};
use crate::clients::{Connection, ConnectionLost, ReceivedEvent, Testbed};

impl<T: Testbed> WorkloadDevice<T> {
    /// An order by hand: it moves the role whatever the priorities.
    pub(super) async fn claim_the_role(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        let ask = json!({ "device_id": self.client.name, "new_role": "master", "reason": "drill" });
        talk.link.send("role_change", &ask).await?;
        let is_it = |event: &ReceivedEvent| event.name == "role_change_ack" || refuses(event, "role_change");
        match self.client.answer(talk, is_it).await? {
            ClientAnswer::Event(_) => Ok(()),
            ClientAnswer::Silence => Err(ConnectionLost),
        }
    }

    /// Its answer is the election, which all hear of.
    pub(super) async fn call_for_an_election(&self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        talk.link.send("master_election", &json!({ "reason": "manual", "initiated_by": self.client.name })).await
    }

    /// Says that it shuts down, hears of the next master if it was one, and is away for a while.
    pub(super) async fn shut_down(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        talk.link.send("device_shutdown", &json!({ "device_id": self.client.name, "reason": "closing" })).await?;
        let is_it = |event: &ReceivedEvent| {
            (event.name == "acknowledged" && event.data["event"] == json!("device_shutdown"))
                || refuses(event, "device_shutdown")
        };
        self.client.answer(talk, is_it).await?;
        self.away = self.client.rng.millis(0, 400);
        Err(ConnectionLost)
    }
}
