//! XDP programs on interfaces of the lab; above all one that passes everything, for the far end of a link whose near end
//! answers with XDP_TX.
//!
//! What one end of a veth pair sends by XDP_TX lands in a ring of the other end, and only an XDP
//! program there makes that end empty it. GRO alone also gives it the ring, but XDP_TX then does not
//! wake the reader (`veth_xdp_flush` in drivers/net/veth.c asks for a program): frames wait for the
//! next ordinary packet, and once 256 wait, not even that gets through and the link is dead.

use std::{
    ffi::{CString, c_long},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    thread,
};

use anyhow::{Context, Result, anyhow};

use crate::netns::Namespace;

/// Commands and values of linux/bpf.h and linux/if_link.h.
const BPF_PROG_LOAD: c_long = 5;
const BPF_OBJ_PIN: c_long = 6;
const BPF_LINK_CREATE: c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// It also takes frames in several buffers; without this a veth refuses it with an MTU beyond a page.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// Its index in every namespace.
const LOOPBACK: u32 = 1;

/// `r0 = XDP_PASS; exit`, as two little-endian instructions.
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// The first fields of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u64; 2],
    kern_version: u32,
    prog_flags: u32,
}

/// The first fields of `union bpf_attr` for BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// The first fields of `union bpf_attr` for BPF_OBJ_PIN.
#[repr(C)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Attaches the program to `interface` in `namespace`, for as long as the answer is kept.
pub fn attach(namespace: &Namespace, interface: &str) -> Result<OwnedFd> {
    attach_program(namespace, interface, load().context("cannot load XDP that passes everything")?.as_fd())
}

/// The same with another XDP program.
pub fn attach_program(namespace: &Namespace, interface: &str, program: BorrowedFd<'_>) -> Result<OwnedFd> {
    namespace
        .within(|| attach_here(interface, program))
        .with_context(|| format!("cannot attach XDP to {interface} in {}", namespace.name()))
}

/// A program attached where no packet comes by: the loopback interface, down, of a namespace without a name.
///
/// The kernel calls attached XDP programs directly rather than through a pointer, and patches itself for that.
/// `BPF_PROG_TEST_RUN` has it patched for the time of its run if the program is not attached anywhere, which takes
/// milliseconds twice, for as many packets as take one.
#[derive(Debug)]
pub struct Idle {
    _link: OwnedFd,
    _namespace: File,
}

/// Attaches `program` there, for as long as the answer is kept.
pub fn attach_idle(program: BorrowedFd<'_>) -> Result<Idle> {
    let inside = || {
        // SAFETY: changes only the calling thread's namespace, and the thread ends here.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let namespace = File::open("/proc/thread-self/ns/net")?;
        Ok(Idle { _link: create_link(program, LOOPBACK, XDP_FLAGS_SKB_MODE)?, _namespace: namespace })
    };
    let idle = thread::scope(|scope| scope.spawn(inside).join());
    idle.map_err(|_panic| anyhow!("the thread panicked"))?.context("cannot attach XDP in a new namespace")
}

/// Loads the program that passes everything; not for `BPF_XDP`, but for no kind of attachment in particular.
pub fn load() -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: PASS.len() as u32,
        insns: PASS.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 2],
        kern_version: 0,
        prog_flags: BPF_F_XDP_HAS_FRAGS,
    };
    // SAFETY: the pointers in the attributes are to constants.
    unsafe { bpf(BPF_PROG_LOAD, &load) }
}

/// Pins a link or a program at `path`, which must be in a bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjPin { pathname: path.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, file_flags: 0 };
    // SAFETY: the kernel reads the path, a string with a terminating zero that lives through the call.
    unsafe { call(BPF_OBJ_PIN, &attributes) }.map(drop)
}

fn attach_here(interface: &str, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let name = CString::new(interface)?;
    // SAFETY: a string with a terminating zero that lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    create_link(program, index, XDP_FLAGS_DRV_MODE)
}

fn create_link(program: BorrowedFd<'_>, interface: u32, flags: u32) -> io::Result<OwnedFd> {
    let link =
        LinkCreate { prog_fd: program.as_raw_fd() as u32, target_ifindex: interface, attach_type: BPF_XDP, flags };
    // SAFETY: the attributes hold no pointers.
    unsafe { bpf(BPF_LINK_CREATE, &link) }
}

/// Calls bpf(2) with the attributes' first fields; the kernel takes the rest as zero.
///
/// # Safety
/// `T` is what the command expects, its pointers are valid, and the command answers with a descriptor.
unsafe fn bpf<T>(command: c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let descriptor = unsafe { call(command, attributes) }?;
    // SAFETY: the call answered with a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// # Safety
/// `T` is what the command expects, and its pointers are valid.
unsafe fn call<T>(command: c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a live reference; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
