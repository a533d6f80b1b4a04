//! The search for an order that explains a register.
//!
//! The algorithm of Wing and Gong (Testing and Verifying Concurrent Objects, 1993) with the cache of Lowe (Testing for
//! Linearizability, 2017): take the operations one after the other, each only while none that is left has ended before it began, and
//! go back where that leads nowhere; what was done and the state that it led to is never tried twice.

use std::collections::HashSet;

/// Configurations that are tried before the search is given up. Bounds time, and is the same on every machine.
const LIMIT: usize = 1_000_000;
/// Numbers that are kept to know configurations again: bounds memory, to 256 MiB.
const LIMIT_KEPT: usize = 64 << 20;

/// What an operation does to a register, or saw of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Set(u32),
    Get(u32),
    Cas(u32, u32),
}

impl Effect {
    /// The state after it, if it can happen.
    fn apply(self, state: u32) -> Option<u32> {
        match self {
            Self::Set(value) => Some(value),
            Self::Get(value) => (value == state).then_some(state),
            Self::Cas(from, to) => (from == state).then_some(to),
        }
    }
}

/// An operation.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub effect: Effect,
    /// The entry that begins it.
    pub from: usize,
    /// The entry that ends it; none if it may happen at any time, or never.
    pub to: Option<usize>,
}

/// What the search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is an order.
    Linearizable,
    /// There is none: whatever comes before, this call fits nowhere. The last one that fitted is told, too.
    Stuck { call: usize, before: Option<usize> },
    /// Nobody knows.
    TooLong,
}

#[derive(Clone, Copy)]
enum Event {
    Call(usize),
    Return(usize),
}

/// Looks for an order of `calls` on a register that holds `state` at first.
pub fn linearize(calls: &[Call], state: u32) -> Answer {
    linearize_within(calls, state, LIMIT)
}

fn linearize_within(calls: &[Call], state: u32, limit: usize) -> Answer {
    let used = observable(calls);
    let mut search = Search::new(used.iter().map(|call| calls[*call]).collect(), state);
    let mut at = search.first();
    let mut steps = 0;
    let mut deepest = (0, Answer::Linearizable);
    while search.required > 0 {
        steps += 1;
        if steps > limit.saturating_mul(50) || search.tried.len() > limit || search.kept > LIMIT_KEPT {
            return Answer::TooLong;
        }
        match search.events[at] {
            Event::Call(call) => {
                at = match search.take(call) {
                    true => search.first(),
                    false => search.next[at],
                };
            }
            Event::Return(call) => {
                let depth = search.taken.len();
                if depth >= deepest.0 {
                    let before = search.taken.last().map(|(before, _)| used[*before]);
                    deepest = (
                        depth,
                        Answer::Stuck {
                            call: used[call],
                            before,
                        },
                    );
                }
                match search.give_back() {
                    Some(event) => at = search.next[event],
                    None => return deepest.1,
                }
            }
        }
    }
    Answer::Linearizable
}

/// Which calls matter. A value that nobody can have seen need not have been written, if nobody knows whether it was: without it the
/// search is the same and much shorter.
fn observable(calls: &[Call]) -> Vec<usize> {
    let seen: HashSet<u32> = calls
        .iter()
        .filter_map(|call| match call.effect {
            Effect::Get(value) | Effect::Cas(value, _) => Some(value),
            Effect::Set(_) => None,
        })
        .collect();
    let matters = |call: &Call| match call.effect {
        Effect::Set(value) | Effect::Cas(_, value) => call.to.is_some() || seen.contains(&value),
        Effect::Get(_) => true,
    };
    (0..calls.len()).filter(|at| matters(&calls[*at])).collect()
}

struct Search {
    calls: Vec<Call>,
    events: Vec<Event>,
    /// The events that are left, as a list through both; its head is behind the last event.
    next: Vec<usize>,
    previous: Vec<usize>,
    call_event: Vec<usize>,
    return_event: Vec<Option<usize>>,
    state: u32,
    done: Vec<u64>,
    /// Calls in the order in which they were taken, with the state before each.
    taken: Vec<(usize, u32)>,
    tried: HashSet<(Vec<u32>, u32)>,
    /// How many numbers those are.
    kept: usize,
    /// Calls that must be taken and are not.
    required: usize,
}

impl Search {
    fn new(calls: Vec<Call>, state: u32) -> Self {
        let mut timed: Vec<(usize, Event)> = Vec::with_capacity(2 * calls.len());
        for (at, call) in calls.iter().enumerate() {
            timed.push((call.from, Event::Call(at)));
            timed.extend(call.to.map(|to| (to, Event::Return(at))));
        }
        timed.sort_by_key(|(entry, _)| *entry);
        let events: Vec<Event> = timed.into_iter().map(|(_, event)| event).collect();
        let (mut call_event, mut return_event) = (vec![0; calls.len()], vec![None; calls.len()]);
        for (at, event) in events.iter().enumerate() {
            match event {
                Event::Call(call) => call_event[*call] = at,
                Event::Return(call) => return_event[*call] = Some(at),
            }
        }
        let head = events.len();
        Self {
            next: (1..=head).chain([0]).collect(),
            previous: [head].into_iter().chain(0..head).collect(),
            events,
            call_event,
            return_event,
            state,
            done: vec![0; calls.len().div_ceil(64)],
            taken: Vec::new(),
            tried: HashSet::new(),
            kept: 0,
            required: calls.iter().filter(|call| call.to.is_some()).count(),
            calls,
        }
    }

    fn first(&self) -> usize {
        self.next[self.events.len()]
    }

    /// Takes a call, unless it cannot happen now or was tried in this place.
    fn take(&mut self, call: usize) -> bool {
        let Some(state) = self.calls[call].effect.apply(self.state) else {
            return false;
        };
        let (word, bit) = (call / 64, 1 << (call % 64));
        self.done[word] |= bit;
        let left_out = self.left_out();
        let numbers = left_out.len();
        if !self.tried.insert((left_out, state)) {
            self.done[word] &= !bit;
            return false;
        }
        self.kept += numbers;
        self.taken.push((call, self.state));
        self.state = state;
        self.unlink(self.call_event[call]);
        if let Some(event) = self.return_event[call] {
            self.unlink(event);
            self.required -= 1;
        }
        true
    }

    /// What was done, in few numbers: the last call that was, and those before it that were not. Calls begin one after the other,
    /// so there are few of these, however long the history is.
    fn left_out(&self) -> Vec<u32> {
        let Some(last_word) = self.done.iter().rposition(|word| *word != 0) else {
            return Vec::new();
        };
        let last = last_word as u32 * 64 + self.done[last_word].ilog2();
        let mut numbers = vec![last];
        for (at, word) in self.done[..=last_word].iter().enumerate() {
            let mut missing = !word;
            while missing != 0 {
                let call = at as u32 * 64 + missing.trailing_zeros();
                if call > last {
                    break;
                }
                numbers.push(call);
                missing &= missing - 1;
            }
        }
        numbers
    }

    /// Undoes the last one, and gives its event.
    fn give_back(&mut self) -> Option<usize> {
        let (call, state) = self.taken.pop()?;
        self.state = state;
        self.done[call / 64] &= !(1 << (call % 64));
        if let Some(event) = self.return_event[call] {
            self.link(event);
            self.required += 1;
        }
        self.link(self.call_event[call]);
        Some(self.call_event[call])
    }

    fn unlink(&mut self, event: usize) {
        let (before, after) = (self.previous[event], self.next[event]);
        self.next[before] = after;
        self.previous[after] = before;
    }

    fn link(&mut self, event: usize) {
        let (before, after) = (self.previous[event], self.next[event]);
        self.next[before] = event;
        self.previous[after] = event;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn call(effect: Effect, from: usize, to: usize) -> Call {
        let to = (to > 0).then_some(to);
        Call { effect, from, to }
    }

    #[test]
    fn a_read_that_goes_back_is_found() {
        use Effect::{Cas, Get, Set};
        let good = [
            call(Set(1), 0, 5),
            call(Get(1), 2, 3),
            call(Get(1), 6, 7),
            call(Cas(1, 2), 8, 9),
            call(Get(2), 10, 11),
        ];
        assert_eq!(linearize(&good, 0), Answer::Linearizable);
        let back = [call(Set(1), 0, 5), call(Get(1), 2, 3), call(Get(0), 4, 6)];
        assert_eq!(
            linearize(&back, 0),
            Answer::Stuck {
                call: 2,
                before: Some(1)
            }
        );
        let two_winners = [call(Cas(0, 1), 0, 3), call(Cas(0, 2), 1, 4)];
        assert!(matches!(linearize(&two_winners, 0), Answer::Stuck { .. }));
    }

    #[test]
    fn what_nobody_knows_may_happen_late_or_never() {
        use Effect::{Get, Set};
        let late = [call(Set(1), 0, 0), call(Get(0), 1, 2), call(Get(1), 3, 4)];
        assert_eq!(linearize(&late, 0), Answer::Linearizable);
        let never = [call(Set(1), 0, 0), call(Get(0), 1, 2), call(Get(0), 3, 4)];
        assert_eq!(linearize(&never, 0), Answer::Linearizable);
        let before_it_began = [call(Get(1), 0, 1), call(Set(1), 2, 0)];
        assert!(matches!(linearize(&before_it_began, 0), Answer::Stuck { .. }));
        let once_only = [
            call(Set(1), 0, 0),
            call(Get(1), 1, 2),
            call(Set(2), 3, 4),
            call(Get(1), 5, 6),
        ];
        assert!(matches!(linearize(&once_only, 0), Answer::Stuck { .. }));
    }

    #[test]
    fn a_search_that_takes_too_long_says_so() {
        // Thirty calls at the same time that write what is read, and at last a read of what nobody wrote.
        let mut calls: Vec<Call> = (0..30)
            .map(|n| call(Effect::Set(n % 9 + 1), n as usize, 100 + n as usize))
            .collect();
        calls.extend((0..20).map(|n| call(Effect::Get(n % 9 + 1), 30 + n as usize, 140 + n as usize)));
        calls.push(call(Effect::Get(99), 60, 200));
        assert_eq!(linearize_within(&calls, 0, 1_000), Answer::TooLong);
    }

    /// All orders, one after the other.
    fn by_trying_all(calls: &[Call], left: &mut Vec<usize>, state: u32) -> bool {
        let must = |at: &usize| calls[*at].to.is_some();
        if !left.iter().any(must) {
            return true;
        }
        let first_end = left.iter().filter_map(|at| calls[*at].to).min().unwrap_or(usize::MAX);
        for at in 0..left.len() {
            let call = left[at];
            if calls[call].from > first_end {
                continue;
            }
            let Some(state) = calls[call].effect.apply(state) else {
                continue;
            };
            left.remove(at);
            let found = by_trying_all(calls, left, state);
            left.insert(at, call);
            if found {
                return true;
            }
        }
        false
    }

    #[test]
    fn it_agrees_with_trying_all_orders() {
        let mut chance = StdRng::seed_from_u64(7);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..20_000 {
            let count = chance.random_range(1..7);
            let mut times: Vec<usize> = (0..2 * count).collect();
            for at in (1..times.len()).rev() {
                times.swap(at, chance.random_range(0..=at));
            }
            let calls: Vec<Call> = (0..count)
                .map(|at| {
                    let (a, b) = (times[2 * at], times[2 * at + 1]);
                    let mut value = || chance.random_range(0..3u32);
                    let effect = match value() {
                        0 => Effect::Set(value()),
                        1 => Effect::Get(value()),
                        _ => Effect::Cas(value(), value()),
                    };
                    let known = matches!(effect, Effect::Get(_)) || chance.random_bool(0.7);
                    Call {
                        effect,
                        from: a.min(b),
                        to: known.then_some(a.max(b)),
                    }
                })
                .collect();
            let expected = by_trying_all(&calls, &mut (0..count).collect(), 0);
            let found = linearize(&calls, 0);
            assert_eq!(found == Answer::Linearizable, expected, "{calls:?}: {found:?}");
            *(if expected { &mut good } else { &mut bad }) += 1;
        }
        assert!(
            good > 1_000 && bad > 1_000,
            "{good} good and {bad} bad histories say little"
        );
    }
}
