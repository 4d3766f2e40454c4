//! Attackers: strangers without a token, and thieves of five tokens, in every way at once, from addresses of their own.
//!
//! - [`socket`]: connections as attackers use them; [`strangers`], [`thieves`]: what they do over them
//! - this file: who does what, how often, and the thread in which all of them run

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::history::AttackKind;
use crate::rng::Rng;

mod socket;
mod strangers;
mod thieves;

pub(super) use socket::raise_descriptors;
use socket::{AttackOrigin, AttackSocket};
pub(super) use thieves::GHOST;

/// Between two attempts of one attacker.
const PAUSE_MS: (u64, u64) = (50, 400);
/// How often the open sockets are counted.
const COUNT: Duration = Duration::from_millis(100);
/// Counts after which more attackers make up for those that hold nothing.
const OPENING: usize = 10;
/// Attackers are other machines: here they give way to the nodes and the honest devices.
const NICE: i32 = 10;

/// The stolen tokens and whose they are.
#[derive(Clone, Debug)]
pub(super) struct Stolen {
    pub tills: [DeviceToken; 2],
    pub manager: DeviceToken,
    pub warehouse: DeviceToken,
    /// It only looks.
    pub onlooker: DeviceToken,
}

#[derive(Clone, Debug)]
pub(super) struct DeviceToken {
    pub device: String,
    pub token: String,
}

/// One node, as attackers know it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Victim {
    pub gateway: SocketAddr,
    pub raft: SocketAddr,
}

/// What all attackers share.
pub(super) struct AttackGround {
    pub victims: Vec<Victim>,
    pub stolen: Stolen,
    /// Sockets that are open now.
    pub open: Arc<AtomicU64>,
    tally: Mutex<BTreeMap<&'static str, Tally>>,
    /// Numbers for what must be new each time.
    pub next: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    attempts: u64,
    answered: u64,
    ended: u64,
}

/// What came of one attempt. `None`: no connection, or nothing could be sent.
pub(super) type AttemptResult = Option<socket::AttackReply>;

/// Kinds of attacks, with their share of a thousand sockets.
const STRANGERS: [(strangers::StrangerAttack, u64); 14] = [
    (strangers::StrangerAttack::Idle, 240),
    (strangers::StrangerAttack::HalfRequest, 130),
    (strangers::StrangerAttack::SlowHeaders, 110),
    (strangers::StrangerAttack::BigHeaders, 30),
    (strangers::StrangerAttack::SlowBody, 90),
    (strangers::StrangerAttack::PostsOnOneSid, 70),
    (strangers::StrangerAttack::Http2, 40),
    (strangers::StrangerAttack::TlsGarbage, 40),
    (strangers::StrangerAttack::EngineIoOpens, 90),
    (strangers::StrangerAttack::WrongTokens, 40),
    (strangers::StrangerAttack::Pairing, 10),
    (strangers::StrangerAttack::RaftIdle, 20),
    (strangers::StrangerAttack::RaftGarbage, 15),
    (strangers::StrangerAttack::RaftTlsHello, 15),
];
const THIEVES: [(thieves::ThiefAttack, u64); 14] = [
    (thieves::ThiefAttack::Tables, 3),
    (thieves::ThiefAttack::Devices, 2),
    (thieves::ThiefAttack::Conflicts, 2),
    (thieves::ThiefAttack::CriticalEvents, 3),
    (thieves::ThiefAttack::FloodOfRequests, 3),
    (thieves::ThiefAttack::FloodOfBytes, 2),
    (thieves::ThiefAttack::Elections, 2),
    (thieves::ThiefAttack::RolesOverRest, 1),
    (thieves::ThiefAttack::Listings, 20),
    (thieves::ThiefAttack::Streams, 6),
    (thieves::ThiefAttack::Opens, 6),
    (thieves::ThiefAttack::SidsOfOthers, 2),
    (thieves::ThiefAttack::Resumes, 4),
    (thieves::ThiefAttack::SlowReaders, 4),
];

/// An attack under way; it ends with this.
pub(super) struct RunningAttack {
    ground: Arc<AttackGround>,
    sockets: u64,
    /// The most sockets that were open.
    most: Arc<AtomicU64>,
    least: BTreeMap<&'static str, u64>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Vec<u64>>>,
}

/// What came of an attack.
pub(super) struct AttackOutcome {
    pub kinds: Vec<AttackKind>,
    pub most: u64,
    pub mean: u64,
}

impl RunningAttack {
    pub(super) fn start(sockets: u64, victims: Vec<Victim>, stolen: Stolen, seed: u64) -> Result<Self, String> {
        let (open, tally) = (Arc::default(), Mutex::default());
        let ground = Arc::new(AttackGround { victims, stolen, open, tally, next: AtomicU64::new(1) });
        let share = |of: u64| (sockets * of).div_ceil(1_000).max(1);
        let names = STRANGERS.iter().map(|(kind, of)| (kind.name(), share(*of)));
        let least = names.chain(THIEVES.iter().map(|(kind, of)| (kind.name(), share(*of)))).collect();
        let (stop, stopped) = watch::channel(false);
        let (shared, most) = (ground.clone(), Arc::new(AtomicU64::new(0)));
        let highest = most.clone();
        let begin = move || {
            socket::be_nice(NICE);
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return Vec::new();
            };
            // Dropping the runtime drops every attacker with its sockets.
            runtime.block_on(all(shared, (sockets, highest), stopped, Rng::new(seed)))
        };
        let thread = std::thread::Builder::new().name("attackers".into()).spawn(begin);
        let thread = thread.map_err(|error| format!("the attackers cannot start: {error}"))?;
        Ok(Self { ground, sockets, most, least, stop, thread: Some(thread) })
    }

    /// Every kind was tried as often as it must be, and all sockets were open.
    pub(super) fn is_busy(&self) -> bool {
        let tally = self.ground.tally.lock();
        let tried = |(name, least): (&&'static str, &u64)| tally.get(name).is_some_and(|of| of.attempts >= *least);
        self.most.load(Ordering::Relaxed) >= self.sockets && self.least.iter().all(tried)
    }

    /// Ends it and closes all of its sockets.
    pub(super) fn stop(mut self) -> AttackOutcome {
        self.stop.send_replace(true);
        let counts = self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let tally = self.ground.tally.lock();
        let kinds = self.least.iter().map(|(name, least)| {
            let Tally { attempts, answered, ended } = tally.get(name).copied().unwrap_or_default();
            AttackKind { name: (*name).to_owned(), attempts, answered, ended, least: *least }
        });
        // Before that they were still being opened.
        let reached = counts.iter().position(|open| *open >= self.sockets).unwrap_or(0);
        let after = counts.get(reached..).unwrap_or_default();
        let mean = after.iter().sum::<u64>() / (after.len() as u64).max(1);
        AttackOutcome { kinds: kinds.collect(), most: counts.iter().copied().max().unwrap_or(0), mean }
    }
}

impl Drop for RunningAttack {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// All attackers until they are stopped; how many sockets were open, again and again.
async fn all(
    ground: Arc<AttackGround>,
    (sockets, most): (u64, Arc<AtomicU64>),
    mut stopped: watch::Receiver<bool>,
    mut rng: Rng,
) -> Vec<u64> {
    for (kind, of) in STRANGERS {
        for number in 0..(sockets * of).div_ceil(1_000).max(1) {
            tokio::spawn(stranger(ground.clone(), kind, number, rng.fork()));
        }
    }
    for (kind, of) in THIEVES {
        for number in 0..(sockets * of).div_ceil(1_000).max(1) {
            tokio::spawn(thief(ground.clone(), kind, number, rng.fork()));
        }
    }
    // Whoever waits for a node's end or pauses holds nothing: more that do nothing make up for them.
    let mut counts = Vec::new();
    let mut fillers = 0;
    loop {
        tokio::select! {
            _ = stopped.changed() => return counts,
            () = sleep(COUNT) => {}
        }
        let open = ground.open.load(Ordering::Relaxed);
        counts.push(open);
        most.fetch_max(open, Ordering::Relaxed);
        for _ in open..sockets {
            // A fifth more at most.
            if counts.len() > OPENING && fillers < sockets / 5 {
                fillers += 1;
                tokio::spawn(stranger(ground.clone(), strangers::StrangerAttack::Idle, fillers, rng.fork()));
            }
        }
    }
}

async fn stranger(ground: Arc<AttackGround>, kind: strangers::StrangerAttack, number: u64, mut rng: Rng) {
    loop {
        let came = kind.attempt(&ground, number, &mut rng).await;
        ground.note(kind.name(), came);
        let pause = rng.millis(PAUSE_MS.0, PAUSE_MS.1);
        sleep(pause).await;
    }
}

async fn thief(ground: Arc<AttackGround>, kind: thieves::ThiefAttack, number: u64, mut rng: Rng) {
    loop {
        let came = kind.attempt(&ground, number, &mut rng).await;
        ground.note(kind.name(), came);
        let pause = rng.millis(PAUSE_MS.0, PAUSE_MS.1);
        sleep(pause).await;
    }
}

impl AttackGround {
    /// A connection for an attempt of this kind.
    pub(super) async fn connect(&self, name: &'static str, from: AttackOrigin, to: SocketAddr) -> Option<AttackSocket> {
        let socket = AttackSocket::connect(&self.open, from, to).await?;
        self.tally.lock().entry(name).or_default().attempts += 1;
        Some(socket)
    }

    fn note(&self, name: &'static str, came: AttemptResult) {
        let Some(seen) = came else { return };
        let mut tally = self.tally.lock();
        let tally = tally.entry(name).or_default();
        tally.answered += u64::from(seen.bytes > 0);
        tally.ended += u64::from(seen.ended);
    }

    pub(super) fn victim(&self, number: u64) -> Option<Victim> {
        self.victims.get((number % self.victims.len().max(1) as u64) as usize).copied()
    }

    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_of_a_thousand_sockets() {
        let strangers: u64 = STRANGERS.iter().map(|(_, share)| share).sum();
        let thieves: u64 = THIEVES.iter().map(|(_, share)| share).sum();
        assert_eq!(strangers + thieves, 1_000);
    }

    /// A node that takes connections and says nothing.
    #[test]
    fn attackers_hold_their_sockets_and_are_gone_afterwards() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let keep = taken.clone();
        std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| keep.lock().push(stream)));
        let token = |device: &str| DeviceToken { device: device.into(), token: "stolen".into() };
        let stolen = Stolen {
            tills: [token("a"), token("b")],
            manager: token("c"),
            warehouse: token("d"),
            onlooker: token("e"),
        };
        let attack = RunningAttack::start(60, vec![Victim { gateway: at, raft: at }], stolen, 1).unwrap();
        let open = attack.ground.open.clone();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while open.load(Ordering::Relaxed) < 60 {
            assert!(std::time::Instant::now() < end, "{} sockets only", open.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(10));
        }
        let outcome = attack.stop();
        assert_eq!(open.load(Ordering::Relaxed), 0, "sockets stay behind");
        assert_eq!(outcome.kinds.len(), STRANGERS.len() + THIEVES.len());
        assert!(outcome.most <= taken.lock().len() as u64);
    }
}
