//! Which brokers live, as the active controller sees it: (state, event, now) → effects.
//!
//! A broker says that it lives by its heartbeats (KIP-631). One that is silent for a session is
//! fenced. One whose process has died is noticed earlier: its connections end, it is probed once,
//! and when nothing listens there any more it is fenced at once. Each start of a broker has an
//! epoch of its own; what an earlier start says counts no more.
//!
//! Only the leader keeps this, and only in memory: what was decided is in the image, and a new
//! leader gives every broker a whole session to be heard from.

use std::collections::BTreeMap;

use letterbox_protocol::ErrorCode;
use letterbox_protocol::model::BrokerId;
use serde::{Deserialize, Serialize};

use crate::metadata::MetadataImage;

/// A point of monotonic time, in milliseconds from anywhere.
pub type Millis = u64;

/// What is known of the brokers.
#[derive(Debug)]
pub struct Liveness {
    session_ms: Millis,
    brokers: BTreeMap<BrokerId, Session>,
}

/// One start of one broker.
#[derive(Debug)]
struct Session {
    epoch: i64,
    /// As the newest image has it.
    is_fenced: bool,
    /// When it was last known to live.
    heard: Millis,
    /// Whether it shall be fenced, whatever its session is.
    is_dead: bool,
    is_probed: bool,
    /// How much of the metadata log it has applied, as it said last.
    applied_index: u64,
    /// It is about to stop, and the metadata shows at that index that it has nothing left that
    /// another broker could take.
    left: Option<u64>,
}

/// What a broker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The broker of this epoch is fenced. Said again at every tick until the image has it.
    Fence(BrokerId, i64),
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
        let mut this = Self { session_ms, brokers: BTreeMap::new() };
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
                    session.is_dead &= !is_fenced;
                    session.is_fenced = is_fenced;
                }
                None => {
                    let session = Session {
                        epoch,
                        is_fenced,
                        heard: now,
                        is_dead: false,
                        is_probed: false,
                        applied_index: 0,
                        left: None,
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
        let Heartbeat { id, epoch, applied_index, wants_fence, wants_stop } = heartbeat;
        let session = self.brokers.get_mut(&id).ok_or(ErrorCode::BrokerIdNotRegistered)?;
        if session.epoch != epoch {
            return Err(ErrorCode::StaleBrokerEpoch);
        }
        (session.heard, session.is_dead, session.is_probed) = (now, false, false);
        session.applied_index = applied_index;
        let is_caught_up =
            u64::try_from(epoch).is_ok_and(|registered_at| applied_index >= registered_at);
        let effect = match (session.is_fenced, wants_fence) {
            (true, false) if is_caught_up && !wants_stop => Some(Effect::Unfence(id, epoch)),
            (false, true) => Some(Effect::Fence(id, epoch)),
            (false, false) if wants_stop && session.left.is_none() => Some(Effect::Stop(id, epoch)),
            _ => None,
        };
        let (is_fenced, left) = (session.is_fenced, session.left);
        let may_stop = wants_stop && (is_fenced || left.is_some_and(|at| self.knows_each(id, at)));
        Ok((HeartbeatAnswer { is_caught_up, is_fenced, may_stop }, effect))
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

    /// What came of a probe. One that was not refused says nothing: the session goes on.
    pub fn probed(&mut self, id: BrokerId, epoch: i64, was_refused: bool) -> Option<Effect> {
        let session = self.session(id, epoch)?;
        // It was heard from since.
        if !std::mem::take(&mut session.is_probed) || !was_refused || session.is_fenced {
            return None;
        }
        session.is_dead = true;
        Some(Effect::Fence(id, epoch))
    }

    /// Who keeps this was stopped itself and could hear nobody: everybody has a whole session anew.
    pub fn hear_all(&mut self, now: Millis) {
        self.brokers.values_mut().for_each(|session| session.heard = now);
    }

    /// Time has passed: who is to be fenced.
    pub fn tick(&self, now: Millis) -> Vec<Effect> {
        let is_over = |session: &Session| session.is_dead || self.end(session) <= now;
        let all = self.brokers.iter().filter(|(_, session)| !session.is_fenced);
        all.filter(|(_, session)| is_over(session))
            .map(|(id, session)| Effect::Fence(*id, session.epoch))
            .collect()
    }

    /// When the next session ends.
    #[must_use]
    pub fn next_end(&self) -> Option<Millis> {
        let alive = self.brokers.values().filter(|session| !session.is_fenced);
        alive.map(|session| self.end(session)).min()
    }

    fn end(&self, session: &Session) -> Millis {
        session.heard.saturating_add(self.session_ms)
    }

    fn session(&mut self, id: BrokerId, epoch: i64) -> Option<&mut Session> {
        self.brokers.get_mut(&id).filter(|session| session.epoch == epoch)
    }
}
