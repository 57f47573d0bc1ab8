//! Fairlead's eBPF programs: one file per hook.
//!
//! An entry point reads its context ([`ctx`]), asks `fairlead_common::decide`
//! and does what that says with the maps ([`maps`]). Nothing runs per packet:
//! only connects, the first and last moments of a connection, listening sockets
//! and calls of getpeername.
//!
//! Only contexts and maps of the stable kernel interface are used: no BTF of
//! the running kernel, no relocations.
#![no_std]
#![no_main]
// The compiler counts this target's assembly as an experiment.
#![feature(asm_experimental_arch)]

mod connect;
mod connect4;
mod connect6;
mod count;
mod ctx;
mod getpeername4;
mod getpeername6;
mod maps;
mod probe;
mod sk_lookup;
mod sock_ops;
mod storage;

/// The helpers that hand out kernel sockets are for programs under the GPL or
/// a licence that goes with it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
