//! Units of virtual time.

/// Nanoseconds since the simulation began, on nobody's clock.
pub(crate) type Ns = u64;

/// A microsecond.
pub(crate) const US: Ns = 1_000;
/// A millisecond.
pub(crate) const MS: Ns = 1_000_000;
/// A second.
pub(crate) const S: Ns = 1_000_000_000;
