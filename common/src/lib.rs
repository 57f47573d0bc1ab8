//! The ABI between kernel and agent.
#![no_std]
