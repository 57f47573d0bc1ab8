//! The ABI between Fairlead's eBPF programs and its agent, and what they decide.
//!
//! [`abi`] has the keys and values of the maps and the events of the ring
//! buffer: integers and byte arrays in a fixed layout. [`decide`] has every
//! decision of the hooks as a pure function, so that it is tested on the host
//! and compiled for the kernel from the same source. Nothing here allocates,
//! does I/O or depends on anything.
#![no_std]
#![expect(
    clippy::inline_always,
    reason = "a hook is one function to the verifier; calls between functions cost its patience"
)]

pub mod abi;
pub mod decide;
