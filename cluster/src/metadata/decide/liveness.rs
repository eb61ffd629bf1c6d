//! Which brokers live, as the active controller sees it: (state, event, now) → effects.
//!
//! A broker says that it lives by its heartbeats (KIP-631). One that is silent for a session is
//! fenced. One whose process has died is noticed earlier: its connections end, it is probed once,
//! and when nothing listens there any more it is fenced at once. Each start of a broker has an
//! epoch of its own; what an earlier start says counts no more.
//!
//! Only the leader keeps this, and only in memory: what was decided is in the image, and a new
//! leader gives every broker a whole session to be heard from, or the broker's own where that is
//! longer.

use std::collections::{BTreeMap, BTreeSet};

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};

use crate::metadata::MetadataImage;

/// How long a broker that is dead waits for others that may be, before it is fenced without them.
const DIE_TOGETHER_MS: Millis = 200;

/// A point of monotonic time, in milliseconds from anywhere.
pub type Millis = u64;

/// What is known of the brokers.
#[derive(Debug)]
pub struct Liveness {
    session_ms: Millis,
    brokers: BTreeMap<BrokerId, Session>,
    /// Brokers that are behind: when they lacked most, and how many bytes that was.
    behind: BTreeMap<BrokerId, (Millis, u64)>,
}

/// One start of one broker.
#[derive(Debug)]
struct Session {
    epoch: i64,
    /// As the newest image has it.
    is_fenced: bool,
    /// When it was last known to live; later, where it leads for longer than a session of here.
    heard: Millis,
    /// Since when it is known to be dead, whatever its session is.
    dead_since: Option<Millis>,
    /// It is being probed.
    is_probed: bool,
    /// How much of the metadata log it has applied, as it said last.
    applied_index: u64,
    /// It is about to stop, and the metadata shows at that index that it has nothing left that
    /// another broker could take.
    left: Option<u64>,
    /// See [`Heartbeat::behind`], as it said last.
    behind: BTreeMap<BrokerId, Behind>,
}

impl Session {
    fn hear(&mut self, now: Millis) {
        (self.heard, self.dead_since, self.is_probed) = (self.heard.max(now), None, false);
    }
}

/// What a broker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Which broker.
    pub id: BrokerId,
    /// Which start of it.
    pub epoch: i64,
    /// How much of the metadata log it has applied.
    pub applied_index: u64,
    /// It does not want to serve.
    pub wants_fence: bool,
    /// It wants to stop (KIP-841). An earlier version does not ask.
    #[serde(default)]
    pub wants_stop: bool,
    /// What other brokers have yet to copy of the partitions that it leads and in which they are
    /// not in sync. An earlier version does not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<(BrokerId, Behind)>,
}

/// What a broker has yet to copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// In how many partitions it is not in sync.
    pub partitions: usize,
    /// About how many bytes of them it lacks.
    pub bytes: u64,
}

impl std::ops::AddAssign for Behind {
    fn add_assign(&mut self, other: Self) {
        self.partitions = self.partitions.saturating_add(other.partitions);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// What a broker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// Whether it has applied its own registration.
    pub is_caught_up: bool,
    /// Whether it is fenced: it leads nothing and counts nowhere.
    pub is_fenced: bool,
    /// Whether it may stop as it wants: nothing is left that another broker could take, and every
    /// live broker knows. An earlier version does not say.
    #[serde(default)]
    pub may_stop: bool,
    /// How much of the metadata log the controller has applied that answers.
    #[serde(default)]
    pub applied_index: u64,
    /// For so long after it was heard the broker is not fenced for its silence, by this controller
    /// or one that leads later. 0 while it is being fenced; an earlier version does not say.
    #[serde(default)]
    pub session_ms: Millis,
}

/// How far behind each broker is; one that lacks nothing is absent.
pub type Lags = BTreeMap<BrokerId, Lag>;

/// How far behind a broker is, as those say that lead what it copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// What it has yet to copy, as far as the leaders have said since this node leads.
    pub behind: Behind,
    /// How many bytes it has caught up with per second since it lacked most; `None` while it does
    /// not.
    pub bytes_per_second: Option<u64>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The brokers of these epochs are fenced, all at once. Said again at every tick until the
    /// image has it.
    Fence(Vec<(BrokerId, i64)>),
    /// Its fence is lifted.
    Unfence(BrokerId, i64),
    /// It is about to stop, and leaves its partitions.
    Stop(BrokerId, i64),
    /// It is connected to, once.
    Probe(BrokerId, i64),
}

impl Liveness {
    /// For a node that begins to lead: every broker of `image` is taken to live now.
    #[must_use]
    pub fn new(session_ms: Millis, image: &MetadataImage, now: Millis) -> Self {
        let mut this = Self { session_ms, brokers: BTreeMap::new(), behind: BTreeMap::new() };
        this.take(image, now);
        this
    }

    /// Takes over what `image` says: who is registered, in which epoch, and who is fenced.
    pub fn take(&mut self, image: &MetadataImage, now: Millis) {
        self.brokers.retain(|id, _| image.brokers.contains_key(id));
        for (id, registration) in &*image.brokers {
            let (epoch, is_fenced) = (registration.epoch, registration.fenced);
            match self.brokers.get_mut(id).filter(|session| session.epoch == epoch) {
                Some(session) => {
                    session.dead_since = session.dead_since.filter(|_| !is_fenced);
                    session.is_fenced = is_fenced;
                }
                None => {
                    // It may lead for so long by what another controller has answered.
                    let more_ms = registration.session_ms.saturating_sub(self.session_ms);
                    let session = Session {
                        epoch,
                        is_fenced,
                        heard: now.saturating_add(more_ms),
                        dead_since: None,
                        is_probed: false,
                        applied_index: 0,
                        left: None,
                        behind: BTreeMap::new(),
                    };
                    self.brokers.insert(*id, session);
                }
            }
        }
    }

    /// A broker says that it lives.
    ///
    /// # Errors
    /// BROKER_ID_NOT_REGISTERED; STALE_BROKER_EPOCH for an earlier start.
    pub fn heartbeat(
        &mut self,
        heartbeat: Heartbeat,
        now: Millis,
    ) -> Result<(HeartbeatAnswer, Option<Effect>), ErrorCode> {
        let Heartbeat { id, epoch, applied_index, wants_fence, wants_stop, behind } = heartbeat;
        let session = self.brokers.get_mut(&id).ok_or(ErrorCode::BrokerIdNotRegistered)?;
        if session.epoch != epoch {
            return Err(ErrorCode::StaleBrokerEpoch);
        }
        session.hear(now);
        session.applied_index = applied_index;
        self.note_behind(id, behind, now);
        let session = self.brokers.get(&id).ok_or(ErrorCode::BrokerIdNotRegistered)?;
        let is_caught_up =
            u64::try_from(epoch).is_ok_and(|registered_at| applied_index >= registered_at);
        let effect = match (session.is_fenced, wants_fence) {
            (true, false) if is_caught_up && !wants_stop => Some(Effect::Unfence(id, epoch)),
            (false, true) => Some(Effect::Fence(vec![(id, epoch)])),
            (false, false) if wants_stop && session.left.is_none() => Some(Effect::Stop(id, epoch)),
            _ => None,
        };
        let (is_fenced, left) = (session.is_fenced, session.left);
        let may_stop = wants_stop && (is_fenced || left.is_some_and(|at| self.knows_each(id, at)));
        let (session_ms, applied_index) = (self.session_ms, 0);
        let answer =
            HeartbeatAnswer { is_caught_up, is_fenced, may_stop, applied_index, session_ms };
        Ok((answer, effect))
    }

    /// A leader has said how far others are.
    fn note_behind(&mut self, leader: BrokerId, behind: Vec<(BrokerId, Behind)>, now: Millis) {
        let is_known = |(id, _): &(BrokerId, Behind)| self.brokers.contains_key(id);
        let new: BTreeMap<_, _> = behind.into_iter().filter(is_known).collect();
        let Some(session) = self.brokers.get_mut(&leader) else { return };
        let before = std::mem::replace(&mut session.behind, new);
        let ids: BTreeSet<_> = before.keys().chain(session.behind.keys()).copied().collect();
        for id in ids {
            let Behind { partitions, bytes } = self.sum_behind(id);
            if partitions == 0 {
                self.behind.remove(&id);
                continue;
            }
            let most = self.behind.entry(id).or_insert((now, bytes));
            if bytes > most.1 {
                *most = (now, bytes);
            }
        }
    }

    fn sum_behind(&self, id: BrokerId) -> Behind {
        let mut sum = Behind::default();
        self.unfenced()
            .filter_map(|(_, session)| session.behind.get(&id))
            .for_each(|told| sum += *told);
        sum
    }

    /// How far behind brokers are.
    #[must_use]
    pub fn lags(&self, now: Millis) -> Lags {
        let lag = |(id, (since, most)): (&BrokerId, &(Millis, u64))| {
            let behind = self.sum_behind(*id);
            let caught_up = most.saturating_sub(behind.bytes).saturating_mul(1_000);
            let rate = caught_up.checked_div(now.saturating_sub(*since));
            (*id, Lag { behind, bytes_per_second: rate.filter(|rate| *rate > 0) })
        };
        self.behind.iter().map(lag).collect()
    }

    /// A broker that is about to stop has nothing left that another could take, as the metadata
    /// shows at `index`.
    pub fn has_left(&mut self, id: BrokerId, epoch: i64, index: u64) {
        if let Some(session) = self.session(id, epoch) {
            session.left = Some(index);
        }
    }

    /// Whether every live broker but `stopping` has applied the metadata up to `index`. One that
    /// does not get there is not heard from either, and is fenced.
    fn knows_each(&self, stopping: BrokerId, index: u64) -> bool {
        let others =
            self.brokers.iter().filter(|(id, session)| **id != stopping && !session.is_fenced);
        others.map(|(_, session)| session).all(|session| session.applied_index >= index)
    }

    /// Every connection of a broker has ended.
    pub fn connections_ended(&mut self, id: BrokerId, epoch: i64) -> Option<Effect> {
        let session = self.session(id, epoch)?;
        let is_new = !session.is_fenced && !std::mem::replace(&mut session.is_probed, true);
        is_new.then_some(Effect::Probe(id, epoch))
    }

    /// What came of a probe. One that was not refused says nothing: the session goes on. Whoever
    /// is dead is fenced when no other probe is under way, or a little later: brokers often die
    /// together.
    pub fn probed(
        &mut self,
        id: BrokerId,
        epoch: i64,
        was_refused: bool,
        now: Millis,
    ) -> Option<Effect> {
        let session = self.session(id, epoch)?;
        let is_news = std::mem::take(&mut session.is_probed) && !session.is_fenced;
        // It may have been heard from since.
        if is_news && was_refused {
            session.dead_since = Some(now);
        }
        let is_probing = self.unfenced().any(|(_, session)| session.is_probed);
        if !is_news || is_probing {
            return None;
        }
        self.fence(|session| session.dead_since.is_some())
    }

    fn unfenced(&self) -> impl Iterator<Item = (&BrokerId, &Session)> {
        self.brokers.iter().filter(|(_, session)| !session.is_fenced)
    }

    fn fence(&self, whom: impl Fn(&Session) -> bool) -> Option<Effect> {
        let them = self.unfenced().filter(|(_, session)| whom(session));
        let them: Vec<_> = them.map(|(id, session)| (*id, session.epoch)).collect();
        (!them.is_empty()).then_some(Effect::Fence(them))
    }

    /// Who keeps this was stopped itself and could hear nobody: everybody has a whole session anew.
    pub fn hear_all(&mut self, now: Millis) {
        self.brokers.values_mut().for_each(|session| session.heard = session.heard.max(now));
    }

    /// Time has passed: who is to be fenced.
    #[must_use]
    pub fn tick(&self, now: Millis) -> Option<Effect> {
        if self.next_end().is_none_or(|end| end > now) {
            return None;
        }
        self.fence(|session| session.dead_since.is_some() || self.end(session) <= now)
    }

    /// When the next session ends.
    #[must_use]
    pub fn next_end(&self) -> Option<Millis> {
        self.unfenced().map(|(_, session)| self.end(session)).min()
    }

    fn end(&self, session: &Session) -> Millis {
        match session.dead_since {
            Some(since) => since.saturating_add(DIE_TOGETHER_MS),
            None => session.heard.saturating_add(self.session_ms),
        }
    }

    fn session(&mut self, id: BrokerId, epoch: i64) -> Option<&mut Session> {
        self.brokers.get_mut(&id).filter(|session| session.epoch == epoch)
    }
}
