//! How a map type is declared, and the schema hash that guards pinned maps.

/// Declares types that are shared through BPF maps or sent on the wire.
///
/// Each is `repr(C)`, free of padding (zerocopy's `IntoBytes` refuses it otherwise), has the size
/// that is written beside it, and is `aya::Pod` where the `user` feature is on.
#[macro_export]
macro_rules! map_type {
    ($($(#[$meta:meta])* pub struct $name:ident: $size:literal {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
    })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        const _: () = assert!(size_of::<$name>() == $size);

        // SAFETY: the zerocopy derives above prove that every byte of the type is initialised and
        // that every bit pattern is a valid value.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )*};
}

/// Raised by hand when a field changes its meaning but not its size.
const ABI_REVISION: u64 = 3;

/// Identifies the layout of all pinned maps; the agent adopts pinned maps only if `Node::schema` equals it.
///
/// FNV-1a over the ABI revision and the size of every shared map type.
pub const SCHEMA: u64 = {
    let facts = [
        ABI_REVISION,
        size_of::<crate::flow::FlowKeyV4>() as u64,
        size_of::<crate::flow::FlowKeyV6>() as u64,
        size_of::<crate::flow::FlowEntry>() as u64,
        size_of::<crate::flow::Pending>() as u64,
        size_of::<crate::flow::Fragment>() as u64,
        size_of::<crate::flow::EventV4>() as u64,
        size_of::<crate::flow::EventV6>() as u64,
        size_of::<crate::service::ServiceKey>() as u64,
        size_of::<crate::service::Service>() as u64,
        size_of::<crate::service::VipFilter>() as u64,
        size_of::<crate::ring::Ring>() as u64,
        size_of::<crate::target::NextHop>() as u64,
        size_of::<crate::target::Target>() as u64,
        size_of::<crate::node::Node>() as u64,
        size_of::<crate::node::Budget>() as u64,
        size_of::<crate::liveness::Liveness>() as u64,
        size_of::<crate::liveness::Heard>() as u64,
        size_of::<crate::reason::Counter>() as u64,
        size_of::<crate::reason::ServiceCounters>() as u64,
        crate::reason::REASONS as u64,
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut i = 0;
    while i < facts.len() {
        let bytes = facts[i].to_le_bytes();
        let mut j = 0;
        while j < bytes.len() {
            hash = (hash ^ bytes[j] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            j += 1;
        }
        i += 1;
    }
    hash
};
