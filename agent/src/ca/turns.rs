//! Whose token the API server is asked about next.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::listen::Source;

/// Hands out turns, to one address after the other: who asks a lot waits behind themselves.
pub(super) struct Turns {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Turns at a time.
    pub(super) at_once: usize,
    /// Turns of one address at a time, so that others need not wait for slow answers.
    pub(super) per_source: usize,
    /// How many of one address may wait.
    pub(super) waiting: usize,
}

#[derive(Default)]
struct State {
    under_way: HashMap<Source, usize>,
    count: usize,
    /// Addresses in the order they come to their turn, with those who wait.
    waiting: VecDeque<(Source, VecDeque<oneshot::Sender<Turn>>)>,
}

/// A turn, for as long as it is held.
pub(super) struct Turn {
    turns: Option<Arc<Turns>>,
    source: Source,
}

/// As many of this address wait as may.
#[derive(Debug)]
pub(super) struct TooMany;

impl Turns {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    /// Waits for a turn.
    pub(super) async fn turn(self: &Arc<Self>, source: Source) -> Result<Turn, TooMany> {
        let turn = {
            let mut state = self.lock();
            let (turn, receiver) = oneshot::channel();
            match state.waiting.iter_mut().find(|(other, _)| *other == source) {
                Some((_, queue)) => {
                    // Who has given up holds no place.
                    queue.retain(|turn| !turn.is_closed());
                    if queue.len() >= self.limits.waiting {
                        return Err(TooMany);
                    }
                    queue.push_back(turn);
                }
                None => state.waiting.push_back((source, VecDeque::from([turn]))),
            }
            self.hand_out(&mut state);
            receiver
        };
        Ok(turn.await.expect("whoever takes a sender off the queue uses it"))
    }

    /// Gives every turn there is to who is next.
    fn hand_out(self: &Arc<Self>, state: &mut State) {
        while state.count < self.limits.at_once {
            let State { under_way, count, waiting } = &mut *state;
            let may = |source| under_way.get(source).is_none_or(|n| *n < self.limits.per_source);
            let Some(next) = waiting.iter().position(|(source, _)| may(source)) else { return };
            let Some((source, mut queue)) = waiting.remove(next) else { return };
            let mut given = false;
            while !given && let Some(waits) = queue.pop_front() {
                let turn = Turn { turns: Some(self.clone()), source };
                given = match waits.send(turn) {
                    Ok(()) => true,
                    Err(mut turn) => {
                        // Who waited has given up; the turn does not count yet.
                        turn.turns = None;
                        false
                    }
                };
            }
            if given {
                *under_way.entry(source).or_default() += 1;
                *count += 1;
            }
            if !queue.is_empty() {
                waiting.push_back((source, queue));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.turns.take() else { return };
        let mut state = turns.lock();
        state.count -= 1;
        if let Some(count) = state.under_way.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                state.under_way.remove(&self.source);
            }
        }
        turns.hand_out(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const LIMITS: Limits = Limits { at_once: 4, per_source: 2, waiting: 3 };

    fn source(last: u8) -> Source {
        Source::of([10, 0, 0, last].into())
    }

    #[tokio::test]
    async fn an_address_has_its_turns_and_the_rest_is_for_others() {
        let turns = Turns::new(LIMITS);
        let crowd = [turns.turn(source(1)).await.unwrap(), turns.turn(source(1)).await.unwrap()];
        let mut third = Box::pin(turns.turn(source(1)));
        assert!((&mut third).now_or_never().is_none());
        let _other = turns.turn(source(2)).now_or_never().expect("a turn at once").unwrap();
        drop(crowd);
        assert!((&mut third).now_or_never().is_some());
    }

    #[tokio::test]
    async fn addresses_come_to_their_turn_one_after_the_other() {
        let turns = Turns::new(Limits { at_once: 1, per_source: 1, waiting: 9 });
        let first = turns.turn(source(1)).await.unwrap();
        let mut crowd: Vec<_> = (0..5).map(|_| Box::pin(turns.turn(source(1)))).collect();
        for waits in &mut crowd {
            assert!(waits.now_or_never().is_none());
        }
        let mut alone = Box::pin(turns.turn(source(2)));
        assert!((&mut alone).now_or_never().is_none());
        drop(first);
        let second = crowd.remove(0).now_or_never().expect("who came first").unwrap();
        drop(second);
        // Not behind the four that came before it.
        assert!((&mut alone).now_or_never().is_some());
    }

    #[tokio::test]
    async fn only_so_many_of_an_address_wait_and_who_gives_up_does_not() {
        let turns = Turns::new(Limits { at_once: 1, per_source: 1, waiting: 3 });
        let held = turns.turn(source(1)).await.unwrap();
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(turns.turn(source(1)))).collect();
        for waits in &mut waiting {
            assert!(waits.now_or_never().is_none());
        }
        assert!(turns.turn(source(1)).now_or_never().unwrap().is_err());
        waiting.truncate(1);
        let mut late = Box::pin(turns.turn(source(1)));
        assert!((&mut late).now_or_never().is_none());
        drop(held);
        let first = waiting.remove(0).now_or_never().unwrap().unwrap();
        drop(first);
        assert!(late.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_turn_that_nobody_takes_is_not_lost() {
        let turns = Turns::new(Limits { at_once: 1, per_source: 1, waiting: 3 });
        let held = turns.turn(source(1)).await.unwrap();
        let mut gives_up = Box::pin(turns.turn(source(2)));
        assert!((&mut gives_up).now_or_never().is_none());
        // It has been given its turn, and ends before it looks.
        drop(held);
        drop(gives_up);
        assert!(turns.turn(source(3)).now_or_never().is_some());
        assert!(turns.lock().under_way.is_empty());
    }
}
