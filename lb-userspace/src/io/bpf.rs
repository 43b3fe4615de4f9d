//! What aya 0.14 lacks of bpf(2): reading a map in batches or as bytes, writing maps into a map at once, and what a pinned link is about.

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::maps::MapData;
use aya_obj::generated::{
    bpf_attr, bpf_attr__bindgen_ty_2, bpf_attr__bindgen_ty_2__bindgen_ty_1, bpf_attr__bindgen_ty_3,
    bpf_attr__bindgen_ty_5, bpf_attr__bindgen_ty_9, bpf_attr__bindgen_ty_16, bpf_cmd, bpf_link_info,
};
use zerocopy::FromBytes;

/// Reads a HASH or ARRAY map a batch at a time (Linux 5.6, commit cb4d03ab499d), from its beginning to its end.
///
/// Keys and values are in the same order. Elements that come or go meanwhile may be missed or, when a
/// hash bucket is read again, seen twice.
pub struct Batches<K, V> {
    map: OwnedFd,
    position: Option<u32>,
    keys: Vec<K>,
    values: Vec<V>,
    ended: bool,
    _map: PhantomData<(K, V)>,
}

impl<K: FromBytes + Copy, V: FromBytes + Copy> Batches<K, V> {
    /// Reads `map` in batches of `size`, which must be able to hold the fullest hash bucket.
    ///
    /// # Errors
    ///
    /// The map's keys or values are not of the size of `K` and `V`, or its descriptor cannot be duplicated.
    pub fn of(map: &MapData, size: usize) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        // The kernel writes elements of its own idea of their size.
        if (info.key_size() as usize, info.value_size() as usize) != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::other("the map's elements have another size"));
        }
        let map = map.fd().as_fd().try_clone_to_owned()?;
        let (keys, values) = (vec![K::new_zeroed(); size], vec![V::new_zeroed(); size]);
        Ok(Self { map, position: None, keys, values, ended: false, _map: PhantomData })
    }

    /// Starts again at the map's beginning.
    pub fn rewind(&mut self) {
        (self.position, self.ended) = (None, false);
    }

    /// How far reading has come: in a HASH the first bucket that was not read, of as many as the capacity's next power of two.
    pub fn position(&self) -> Option<u32> {
        self.position
    }

    /// The next batch, which may be empty; `None` after the last.
    pub fn read(&mut self) -> io::Result<Option<(&[K], &[V])>> {
        if self.ended {
            return Ok(None);
        }
        let mut next_position = 0_u32;
        // SAFETY: all fields are integers. The kernel wants everything beyond the `batch` part to be zero.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        attr.batch = bpf_attr__bindgen_ty_3 {
            in_batch: self.position.as_ref().map_or(0, |position| std::ptr::from_ref(position) as u64),
            out_batch: std::ptr::from_mut(&mut next_position) as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: self.keys.len() as u32,
            map_fd: self.map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `attr` is a bpf_attr of which the kernel reads the `batch` part and writes `count`. It
        // writes at most `count` keys and values of the sizes checked in `of`, into vectors of that length; any bytes
        // are a valid `K` and `V`. The position is four bytes: bucket number or array index.
        match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => {}
            // The end; the elements before it are delivered.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.ended = true,
            Err(error) => return Err(error),
        }
        self.position = Some(next_position);
        // SAFETY: the kernel leaves the `batch` part in place.
        let count = (unsafe { attr.batch.count } as usize).min(self.keys.len());
        Ok(Some((&self.keys[..count], &self.values[..count])))
    }
}

/// Writes maps into the ARRAY_OF_MAPS `outer`, in this order. The kernel waits once until no program uses those of before any more, and
/// not once for each, which is tens of milliseconds on a busy machine.
///
/// # Errors
///
/// Those of the kernel; older ones than Linux 5.14 have no batches here. Some may be written then.
pub fn put_maps(outer: BorrowedFd<'_>, inner: &[(u32, BorrowedFd<'_>)]) -> io::Result<()> {
    let (keys, fds): (Vec<u32>, Vec<i32>) = inner.iter().map(|(index, map)| (*index, map.as_raw_fd())).unzip();
    // SAFETY: all fields are integers. The kernel wants everything beyond the `batch` part to be zero.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.batch = bpf_attr__bindgen_ty_3 {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: fds.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: outer.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads `count` keys and descriptors of four bytes each, from vectors of that length, and writes `count`.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) }.map(drop)
}

/// What the kernel says of a pinned XDP link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// The program that it runs.
    pub program_id: u32,
    /// Index of the interface that it is on; 0 when the interface or its namespace is gone.
    pub ifindex: u32,
}

/// What the XDP link pinned at `pin` is about.
pub fn link_facts(pin: &Path) -> io::Result<LinkFacts> {
    let link = open_pin(pin)?;
    // SAFETY: integers and unions of integers.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.info = bpf_attr__bindgen_ty_9 {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<bpf_link_info>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    // SAFETY: an XDP link has this part; of another one it is some number.
    Ok(LinkFacts { program_id: info.prog_id, ifindex: unsafe { info.__bindgen_anon_1.xdp.ifindex } })
}

/// Index of the interface that the XDP link pinned at `pin` is on; 0 when the interface or its namespace is gone.
pub fn link_ifindex(pin: &Path) -> io::Result<u32> {
    Ok(link_facts(pin)?.ifindex)
}

/// Takes the link pinned at `pin` off its interface, whoever else holds it; when this returns, it is off. The pin stays.
pub fn detach_link(pin: &Path) -> io::Result<()> {
    let link = open_pin(pin)?;
    // SAFETY: all fields are integers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.link_detach = bpf_attr__bindgen_ty_16 { link_fd: link.as_raw_fd() as u32 };
    // SAFETY: the kernel reads a descriptor's number.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// The bytes of the first element of an ARRAY that is not per CPU, such as a program's constants.
pub fn first_value(map: &MapData) -> io::Result<Vec<u8>> {
    let info = map.info().map_err(io::Error::other)?;
    let (key, mut value) = (0_u32, vec![0; info.value_size() as usize]);
    // SAFETY: all fields are integers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_2 = bpf_attr__bindgen_ty_2 {
        map_fd: map.fd().as_fd().as_raw_fd() as u32,
        key: std::ptr::from_ref(&key) as u64,
        __bindgen_anon_1: bpf_attr__bindgen_ty_2__bindgen_ty_1 { value: value.as_mut_ptr() as u64 },
        flags: 0,
    };
    // SAFETY: the kernel reads a key of four bytes and writes as many bytes as it says that a value has.
    unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) }?;
    Ok(value)
}

fn open_pin(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // SAFETY: all fields are integers. The kernel wants everything beyond the part in use to be zero.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_4 =
        bpf_attr__bindgen_ty_5 { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0, path_fd: 0 };
    // SAFETY: the kernel reads the path, a string that ends with a zero byte.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the call has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
///
/// What `attr` points to must be valid for what `command` reads and writes.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    let size = size_of::<bpf_attr>();
    // SAFETY: `attr` is a whole bpf_attr; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attr), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

#[cfg(test)]
mod tests {
    use aya::maps::{HashMap, IterableMap as _};

    use super::*;

    /// Needs CAP_BPF; without it there is nothing to test.
    #[test]
    fn every_element_is_read_once() {
        let Ok(mut map) = HashMap::<MapData, u32, u64>::create(10_000, 0) else {
            eprintln!("skipped: cannot create a map; run as root");
            return;
        };
        for key in 0..5_000_u32 {
            map.insert(key, u64::from(key) * 3, 0).unwrap();
        }
        let mut batches = Batches::<u32, u64>::of(map.map(), 512).unwrap();
        for _ in 0..2 {
            let mut seen = std::collections::BTreeSet::new();
            while let Some((keys, values)) = batches.read().unwrap() {
                for (key, value) in keys.iter().zip(values) {
                    assert_eq!(u64::from(*key) * 3, *value);
                    assert!(seen.insert(*key));
                }
            }
            assert_eq!(seen.len(), 5_000);
            batches.rewind();
        }
        assert!(Batches::<u64, u64>::of(map.map(), 512).is_err());
    }
}
