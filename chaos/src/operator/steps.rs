//! The steps of a drill: what each breaks, in plain words, and how it is done and undone.

use std::time::Duration;

use super::PATIENCE;
use super::cluster::OperatedCluster;
use super::hooks::Hook;
use super::inject::{go_on, restart};
use super::local::LocalNode;
use super::shell;

pub(super) struct DrillStep {
    pub name: String,
    pub title: String,
    /// What is to be expected, for who watches.
    pub explained: String,
    /// Writes must go on.
    pub majority: bool,
    pub lasts: Duration,
    pub act: Act,
}

#[derive(Clone, Debug)]
pub(super) enum Act {
    Nothing,
    /// Of the node that leads, of one that does not, of all.
    KillLeader,
    KillFollower,
    KillAll,
    FreezeLeader,
    FreezeMost,
    /// To another node.
    Transfer,
    Rolling,
    Hook(Hook),
}

/// The steps of a drill on a cluster of this machine's.
pub(super) fn shop(slot: Duration) -> Vec<DrillStep> {
    let step = |name: &str, title: &str, explained: &str, majority, lasts: Duration, act| DrillStep {
        name: name.into(),
        title: title.into(),
        explained: explained.into(),
        majority,
        lasts: lasts.min(slot / 3),
        act,
    };
    let (none, short) = (Duration::ZERO, Duration::from_secs(8));
    vec![
        step(
            "quiet",
            "An ordinary day",
            "The tills sell, and nothing is broken. This is what to compare with.",
            true,
            none,
            Act::Nothing,
        ),
        step(
            "kill the leader",
            "The leading machine dies",
            "Now the node that leads is killed. Tills keep selling; the pause should be under a second.",
            true,
            none,
            Act::KillLeader,
        ),
        step(
            "kill another",
            "Another machine dies",
            "Now a node that does not lead is killed. Its tills go on at another node; the others should notice nothing.",
            true,
            none,
            Act::KillFollower,
        ),
        step(
            "freeze the leader",
            "The leading machine hangs",
            "Now the node that leads stands still without a word. The others have to find that out by themselves; the pause should be under a few seconds.",
            true,
            short,
            Act::FreezeLeader,
        ),
        step(
            "handover",
            "A planned handover",
            "Now leadership is handed to another node, as before maintenance. Hardly any pause is to be expected.",
            true,
            none,
            Act::Transfer,
        ),
        step(
            "rolling restart",
            "An upgrade",
            "Now all nodes are restarted, one after the other, as in an upgrade. The tills should hardly notice.",
            true,
            none,
            Act::Rolling,
        ),
        step(
            "freeze most",
            "Most machines hang",
            "Now two of three nodes stand still. Nothing can be sold until one of them is back: better that than to lose a sale.",
            false,
            short,
            Act::FreezeMost,
        ),
        step(
            "kill all",
            "The power fails",
            "Now all nodes are killed at once, and come back. Every sale that was confirmed must be there.",
            false,
            none,
            Act::KillAll,
        ),
    ]
}

/// The steps on a cluster of somebody's: what can be done over REST, and the hooks.
pub(super) fn elsewhere(handover: bool, hooks: Vec<Hook>) -> Vec<DrillStep> {
    let mut steps = vec![DrillStep {
        name: "quiet".into(),
        title: "An ordinary day".into(),
        explained: "The tills sell, and nothing is broken. This is what to compare with.".into(),
        majority: true,
        lasts: Duration::ZERO,
        act: Act::Nothing,
    }];
    if handover {
        steps.push(DrillStep {
            name: "handover".into(),
            title: "A planned handover".into(),
            explained: "Now leadership is handed to another node, as before maintenance.".into(),
            majority: true,
            lasts: Duration::ZERO,
            act: Act::Transfer,
        });
    }
    steps.extend(hooks.into_iter().map(|hook| DrillStep {
        name: hook.name.clone(),
        title: hook.name.clone(),
        explained: hook.explained.clone(),
        majority: hook.majority,
        lasts: Duration::from_secs(hook.lasts),
        act: Act::Hook(hook),
    }));
    steps
}

/// What steps act on.
pub(super) struct DrillScene {
    pub cluster: OperatedCluster,
    /// The nodes, if they run on this machine.
    pub nodes: Vec<LocalNode>,
}

impl DrillScene {
    /// Breaks it; what was done, in words.
    pub(super) async fn inject(&self, act: &Act) -> Result<String, String> {
        let (leads, others) = self.nodes_by_role(act).await?;
        match act {
            Act::Nothing => Ok("nothing".into()),
            Act::KillLeader => kill(leads),
            Act::KillFollower => kill(others.into_iter().next()),
            Act::KillAll => {
                self.nodes.iter().try_for_each(|node| node.signal(libc::SIGKILL))?;
                Ok("all nodes were killed".into())
            }
            Act::FreezeLeader => freeze(leads.into_iter()),
            Act::FreezeMost => freeze(leads.into_iter().chain(others.into_iter().take(1))),
            Act::Transfer => {
                let statuses = self.cluster.well(PATIENCE).await?;
                let from = statuses.first().and_then(|status| status.leader).ok_or("no node knows who leads")?;
                let voters = statuses.first().map(|status| status.voters.clone()).unwrap_or_default();
                let to = voters.into_iter().find(|voter| *voter != from).ok_or("there is no other voter")?;
                self.cluster.transfer(to, PATIENCE).await?;
                Ok(format!("leadership went from node {from} to node {to}"))
            }
            Act::Rolling => {
                for node in &self.nodes {
                    restart(node, &self.cluster).await?;
                }
                Ok("every node was restarted, one after the other".into())
            }
            Act::Hook(hook) => self.hook(hook, &hook.inject).await,
        }
    }

    /// Takes it back.
    pub(super) async fn heal(&self, act: &Act) -> Result<(), String> {
        if let Act::Hook(hook) = act {
            self.hook(hook, &hook.heal).await?;
        }
        go_on(&self.nodes).map(drop)
    }

    /// The node that leads and those that do not; none, if the act needs none.
    async fn nodes_by_role(&self, act: &Act) -> Result<(Option<&LocalNode>, Vec<&LocalNode>), String> {
        let needed = matches!(act, Act::KillLeader | Act::KillFollower | Act::FreezeLeader | Act::FreezeMost);
        if !needed {
            return Ok((None, Vec::new()));
        }
        let leader = self.cluster.leader().await.ok_or("no node knows who leads")?;
        let (leads, others): (Vec<_>, Vec<_>) = self.nodes.iter().partition(|node| node.id == leader);
        Ok((leads.into_iter().next(), others))
    }

    async fn hook(&self, hook: &Hook, command: &str) -> Result<String, String> {
        let command = shell::line(command, &self.environment().await);
        let failed = |why: String| format!("the command of {:?}: {why}", hook.name);
        let said = shell::run(command, Duration::from_secs(hook.timeout)).await.map_err(failed)?;
        if said.ok { Ok(hook.name.clone()) } else { Err(failed(format!("{}: {}", said.how, said.last_line()))) }
    }

    /// What a command may want to know.
    async fn environment(&self) -> Vec<(&'static str, String)> {
        let nodes = &self.cluster.target.nodes;
        let statuses = self.cluster.statuses().await;
        let leader = statuses.iter().flatten().max_by_key(|status| (status.quorum, status.term)).and_then(|s| s.leader);
        let place = statuses.iter().position(|status| status.as_ref().is_ok_and(|s| Some(s.node) == leader));
        let url = place.and_then(|place| nodes.get(place)).map(ToString::to_string).unwrap_or_default();
        let other = nodes.iter().enumerate().find(|(at, _)| Some(*at) != place).map(|(_, node)| node.to_string());
        vec![
            ("CHAOS_LEADER", leader.map(|id| id.to_string()).unwrap_or_default()),
            ("CHAOS_LEADER_URL", url),
            ("CHAOS_OTHER_URL", other.unwrap_or_default()),
        ]
    }
}

fn kill(node: Option<&LocalNode>) -> Result<String, String> {
    let node = node.ok_or("there is no such node")?;
    node.signal(libc::SIGKILL)?;
    Ok(format!("node {} was killed", node.id))
}

fn freeze<'a>(nodes: impl Iterator<Item = &'a LocalNode>) -> Result<String, String> {
    let mut frozen = Vec::new();
    for node in nodes {
        node.signal(libc::SIGSTOP)?;
        frozen.push(node.id.to_string());
    }
    Ok(format!("node {} stood still", frozen.join(" and node ")))
}
