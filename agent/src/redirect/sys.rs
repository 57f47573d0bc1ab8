//! The unsafe calls of the agent, and the one unsafe promise about its types.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fairlead_common::abi::Shared;
use tokio::io::unix::AsyncFd;

/// A value of a map, for the loader's library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Abi<T>(pub(super) T);

// SAFETY: `Shared` promises what the library asks for: no padding, any bit
// pattern is a value; the wrapper is transparent.
#[expect(unsafe_code, reason = "passes on the promise of the shared types")]
unsafe impl<T: Shared> aya::Pod for Abi<T> {}

/// `SO_NETNS_COOKIE`, since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the namespace that a socket is in.
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: `cookie` and `length` are valid for writes, and `length` is the size
    // of `cookie`.
    #[expect(unsafe_code, reason = "no crate carries this socket option")]
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What the kernel tells of a TCP socket. A kernel that knows less leaves the rest zero.
pub(super) fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or_default();
    // SAFETY: `info` is valid for writes of `length` bytes.
    #[expect(unsafe_code, reason = "no crate carries this socket option")]
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all of it was zeroed, and integers have no invalid bit pattern.
    #[expect(unsafe_code, reason = "the kernel filled it in")]
    Ok(unsafe { info.assume_init() })
}

/// Bytes of a TCP socket that its peer has not acknowledged, sent or not, and one for
/// a FIN (tcp(7), SIOCOUTQ).
pub(super) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: `bytes` is valid for the write of an int, which this request makes.
    #[expect(unsafe_code, reason = "no crate carries this request")]
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 {
        Ok(u32::try_from(bytes).unwrap_or(0))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The part of `union bpf_attr` that the map commands use.
#[repr(C)]
struct MapElement {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
/// For hash maps since Linux 5.14.
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;

/// The value of a key, `None` where there is none. The library's own calls want
/// the map for themselves; connections share it.
///
/// The caller has checked that the map's key and value have these sizes.
pub(super) fn map_get<K: Shared, V: Shared>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    map_read(BPF_MAP_LOOKUP_ELEM, map, key)
}

/// Removes a key and returns its value, in one step. The same conditions hold as for
/// [`map_get`].
pub(super) fn map_take<K: Shared, V: Shared>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    map_read(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

/// A command that returns the value of a key.
fn map_read<K: Shared, V: Shared>(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    match map_command(command, map, key, value.as_mut_ptr().cast()) {
        Ok(()) => {
            // SAFETY: the kernel has written the whole value.
            #[expect(unsafe_code, reason = "the kernel fills the value")]
            let value = unsafe { value.assume_init() };
            Ok(Some(value))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets the value of a key. The same conditions hold as for [`map_get`].
pub(super) fn map_set<K: Shared, V: Shared>(
    map: BorrowedFd<'_>,
    key: &K,
    mut value: V,
) -> io::Result<()> {
    map_command(BPF_MAP_UPDATE_ELEM, map, key, (&raw mut value).cast())
}

/// Removes a key; `false` where there was none.
pub(super) fn map_remove<K: Shared>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    match map_command(BPF_MAP_DELETE_ELEM, map, key, std::ptr::null_mut()) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn map_command<K: Shared>(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    key: &K,
    value: *mut u8,
) -> io::Result<()> {
    let element = MapElement {
        map: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value as u64,
        flags: 0,
    };
    // SAFETY: the attribute outlives the call, and the command reads no more of it
    // than its size; `key` and `value` have the sizes that the map was made with.
    #[expect(unsafe_code, reason = "the library has no shared access to a map")]
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const element,
            size_of::<MapElement>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes a pinned link out of force, whoever else holds it.
pub(super) fn detach_link(pin: &Path) -> io::Result<()> {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
    /// The part of `union bpf_attr` that opening a pin uses.
    #[repr(C)]
    struct Pinned {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let pinned = Pinned {
        path: path.as_ptr() as u64,
        descriptor: 0,
        flags: 0,
    };
    let size = size_of::<Pinned>();
    // SAFETY: the attribute and the path outlive the call.
    #[expect(unsafe_code, reason = "the library can't detach a link")]
    let opened = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const pinned, size) };
    let Ok(descriptor) = u32::try_from(opened) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: the kernel has just given this process the descriptor.
    #[expect(unsafe_code, reason = "the descriptor is a system call's result")]
    let link = unsafe { OwnedFd::from_raw_fd(descriptor.cast_signed()) };
    let target = link.as_raw_fd().cast_unsigned();
    // SAFETY: the attribute is one descriptor, and outlives the call.
    #[expect(unsafe_code, reason = "the library can't detach a link")]
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_DETACH,
            &raw const target,
            size_of::<u32>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets an integer option of a socket.
pub(super) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: `value` is valid for reads of `length` bytes.
    #[expect(unsafe_code, reason = "no crate carries this socket option")]
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the runtime wait for a descriptor.
pub(super) fn async_fd<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: both types that come here are library wrappers of one ring buffer,
    // which they own, and whose descriptor they give out until they are dropped.
    #[expect(unsafe_code, reason = "the owner's descriptor has to stay the same")]
    let registered = unsafe { AsyncFd::register(owner) };
    registered.map_err(|error| error.into_parts().1)
}
