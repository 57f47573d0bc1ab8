//! Socket storage, from any program that holds a socket.
//!
//! The library offers these calls to connect hooks only; the kernel offers them
//! to all of ours.

use core::ptr::{self, NonNull};

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};

/// The value kept on the socket.
#[inline(always)]
pub fn get<T: Copy>(map: &'static SkStorage<T>, sk: NonNull<bpf_sock>) -> Option<T> {
    // SAFETY: the address of the static is the map, to the loader; `sk` is a
    // socket of this run's context.
    let value = unsafe { bpf_sk_storage_get(as_map(map), sk.as_ptr().cast(), ptr::null_mut(), 0) };
    // SAFETY: the helper returns null or a pointer to a value that lives as long
    // as this run.
    unsafe { value.cast::<T>().as_ref() }.copied()
}

/// Keeps a value on the socket; `false` where there is no memory for it.
#[inline(always)]
pub fn set<T: Copy>(map: &'static SkStorage<T>, sk: NonNull<bpf_sock>, value: &T) -> bool {
    let initial = ptr::from_ref(value).cast_mut().cast();
    // SAFETY: as in `get`; the helper only reads `initial`.
    let kept = unsafe {
        bpf_sk_storage_get(
            as_map(map),
            sk.as_ptr().cast(),
            initial,
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
    // SAFETY: the helper returns null or a pointer to the value; only the context
    // that owns the socket writes it.
    match unsafe { kept.cast::<T>().as_mut() } {
        Some(kept) => {
            *kept = *value;
            true
        }
        None => false,
    }
}

/// Forgets the value; `false` where there was none.
#[inline(always)]
pub fn delete<T>(map: &'static SkStorage<T>, sk: NonNull<bpf_sock>) -> bool {
    // SAFETY: as in `get`.
    unsafe { bpf_sk_storage_delete(as_map(map), sk.as_ptr().cast()) == 0 }
}

#[inline(always)]
fn as_map<T>(map: &'static SkStorage<T>) -> *mut core::ffi::c_void {
    ptr::from_ref(map).cast_mut().cast()
}
