//! The rows: every path, for both families, several numbers of flows and lengths of frames.

use std::fmt;

use super::{packets::Family, tandem};

/// Numbers of distinct clients.
const FLOWS: [u32; 3] = [1, 4096, tandem::CAPACITY];
/// The same, close enough together for a curve.
const FLOWS_OF_CURVES: [u32; 6] = [1, 16, 256, 4096, 1 << 16, tandem::CAPACITY];
/// Flows that are known already when new ones come: few, or as many as there can be.
const NEW_AMONG: [u32; 2] = [4096, tandem::CAPACITY];
/// Lengths of frames; one that its headers do not fit is as long as they are.
const BYTES: [usize; 2] = [64, 1400];
/// Sizes of the cluster, where they matter.
const MEMBERS: [u8; 3] = [4, 16, 64];
/// The same for a curve.
const MEMBERS_OF_CURVES: [u8; 6] = [2, 4, 8, 16, 32, 64];

/// What happens to the packets of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    /// Sent back as they came; only with live frames.
    Nothing,
    /// Encapsulated, and nothing else: what no balancer can do without.
    Floor,
    /// Of a flow that this member owns.
    Established,
    /// Of a flow that a peer owns.
    HandOff,
    /// Of a flow that this member owns, received from a peer.
    FromPeer,
    /// Of a flow that a peer owns, delivered here all the same.
    Direct,
    /// SYNs, in a cluster of so many members.
    Syn(u8),
    /// The packets that end handshakes and make flows known, in a cluster of so many members.
    New(u8),
    /// Not for a VIP.
    Pass,
    /// Tunnel packets at a server.
    Decap,
    /// The other program.
    Against(Case),
}

/// What the other program is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Case {
    /// Packets of flows that it has seen before.
    Established,
    /// SYNs.
    Syn,
    /// Not for a VIP.
    Pass,
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// What happens to its packets.
    pub(crate) path: Path,
    /// The family of the client's packets.
    pub(crate) family: Family,
    /// Distinct clients; for new flows, the flows that are known already.
    pub(crate) flows: u32,
    /// Length of the frames.
    pub(crate) bytes: usize,
}

/// How much of the matrix.
#[derive(Clone, Debug, Default)]
pub struct Extent {
    /// Small frames only.
    pub quick: bool,
    /// Only paths whose name contains one of these, and the floor; all if there are none.
    pub only: Vec<String>,
    /// With the rows of another program.
    pub against: bool,
    /// With more numbers of flows and members, for small frames.
    pub curves: bool,
}

impl Extent {
    /// The rows, those next to each other that will be compared.
    pub(crate) fn rows(&self) -> Vec<Row> {
        self.rows_of(&paths(if self.curves { &MEMBERS_OF_CURVES } else { &MEMBERS }))
    }

    /// The rows of some paths.
    pub(crate) fn rows_of(&self, paths: &[Path]) -> Vec<Row> {
        let mut rows = Vec::new();
        for family in [Family::V4, Family::V6] {
            for &flows in if self.curves { &FLOWS_OF_CURVES[..] } else { &FLOWS } {
                for bytes in BYTES {
                    rows.extend(paths.iter().map(|&path| Row { path, family, flows, bytes }));
                }
            }
        }
        rows.retain(|row| self.contains(row));
        rows
    }

    fn contains(&self, row: &Row) -> bool {
        let name = row.path.to_string();
        let named = self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()));
        let long = row.bytes != BYTES[0];
        let only_for_curves = !FLOWS.contains(&row.flows)
            || matches!(row.path, Path::Syn(members) | Path::New(members) if !MEMBERS.contains(&members));
        (named || matches!(row.path, Path::Nothing | Path::Floor))
            && (self.against || !matches!(row.path, Path::Against(_)))
            && !((self.quick || only_for_curves) && long)
            // New flows come to a table that is empty or full.
            && (!matches!(row.path, Path::New(_)) || NEW_AMONG.contains(&row.flows))
    }
}

/// What a packet is measured on alone.
fn paths(members: &[u8]) -> Vec<Path> {
    let usual = [
        Path::Floor,
        Path::Established,
        Path::Against(Case::Established),
        Path::HandOff,
        Path::FromPeer,
        Path::Direct,
        Path::Pass,
        Path::Against(Case::Pass),
        Path::Decap,
    ];
    let syn = members.iter().copied().map(Path::Syn).chain([Path::Against(Case::Syn)]);
    usual.into_iter().chain(syn).chain(members.iter().copied().map(Path::New)).collect()
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Floor => f.write_str("floor"),
            Self::Established => f.write_str("established"),
            Self::HandOff => f.write_str("hand-off"),
            Self::FromPeer => f.write_str("from-peer"),
            Self::Direct => f.write_str("direct"),
            Self::Syn(members) => write!(f, "syn-{members}"),
            Self::New(members) => write!(f, "new-{members}"),
            Self::Pass => f.write_str("pass"),
            Self::Decap => f.write_str("decap"),
            Self::Against(Case::Established) => f.write_str("against-established"),
            Self::Against(Case::Syn) => f.write_str("against-syn"),
            Self::Against(Case::Pass) => f.write_str("against-pass"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} flows {} bytes", self.path, self.family, self.flows, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_extent_has_the_floor_that_its_rows_are_compared_with() {
        for extent in [
            Extent::default(),
            Extent { quick: true, ..Extent::default() },
            Extent { curves: true, ..Extent::default() },
            Extent { only: vec!["syn".into()], against: true, ..Extent::default() },
        ] {
            let rows = extent.rows();
            for row in &rows {
                assert!(rows.contains(&Row { path: Path::Floor, ..*row }), "{row}");
            }
        }
    }

    #[test]
    fn only_what_was_asked_for_is_measured() {
        let names = |extent: &Extent| {
            let mut names: Vec<String> = extent.rows().iter().map(|row| row.path.to_string()).collect();
            names.sort();
            names.dedup();
            names
        };
        assert_eq!(names(&Extent { only: vec!["pass".into()], ..Extent::default() }), ["floor", "pass"]);
        let both = Extent { only: vec!["pass".into()], against: true, quick: true, curves: false };
        assert_eq!(names(&both), ["against-pass", "floor", "pass"]);
        assert!(both.rows().iter().all(|row| row.bytes == 64));
    }
}
