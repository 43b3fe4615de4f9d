//! The eBPF object that the build script made.

/// The ELF file with the programs `balancer` and `decap` and the definitions of their maps.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));
