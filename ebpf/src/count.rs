//! Counting and telling.

use fairlead_common::abi::{Counter, Endpoint, Event, EventKind};

use crate::maps::{COUNTERS, EVENTS};

/// Adds one. Programs can't be interrupted by others on their CPU that count
/// the same thing, so that a plain addition is enough.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the map returned the pointer for this CPU and this run.
        unsafe { *value += 1 };
    }
}

/// Puts an event into the ring buffer, or counts that it found no room.
#[inline(always)]
pub fn tell(kind: EventKind, cookie: u64, local: Endpoint, remote: Endpoint) {
    let event = Event {
        cookie,
        kind: kind as u32,
        reserved: 0,
        local,
        remote,
    };
    if EVENTS.output::<Event>(event, 0).is_err() {
        count(Counter::EventsLost);
    }
}
