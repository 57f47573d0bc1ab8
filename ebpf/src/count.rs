//! Counting and telling.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use fairlead_common::abi::{Counter, Endpoint, Event, EventKind, Told};
use fairlead_common::decide;

use crate::maps::{COUNTERS, EVENTS, TOLD};

/// Adds one. Programs can't be interrupted by others on their CPU that count
/// the same thing, so that a plain addition is enough.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the map returned the pointer for this CPU and this run.
        unsafe { *value += 1 };
    }
}

/// Puts an event into the ring buffer, or counts that it found no room or was one of too
/// many of its namespace.
#[inline(always)]
pub fn tell(kind: EventKind, cookie: u64, local: Endpoint, remote: Endpoint) {
    if !may_tell(cookie) {
        count(Counter::EventsLimited);
        return;
    }
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

#[inline(always)]
fn may_tell(cookie: u64) -> bool {
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let none = Told {
        second: 0,
        events: 0,
    };
    // SAFETY: a value that changes meanwhile is as good as the one after it.
    let before = unsafe { TOLD.get(cookie) }.copied().unwrap_or(none);
    let (is_told, told) = decide::tell(before, now);
    // Where there is no memory for it, it is told.
    let _kept = TOLD.insert(cookie, told, 0);
    is_told
}
