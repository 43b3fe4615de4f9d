//! Planted faults: each breaks one law in the simulator's shell around the core and `steer`, and must be caught.

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Nothing.
    #[default]
    None,
    /// A packet from the tunnel is taken for one from the wire, and may be handed off again.
    HandsOffTunnelPackets,
    /// Records of peers are not written into the flow table.
    ForgetsPeersRecords,
    /// What XDP sees never reaches the core: nothing is replicated.
    ObservesNothing,
    /// A member finds only the flows that it has recorded itself.
    HidesPeersRecords,
    /// A newcomer takes the place of an entry when the table is full.
    EvictsForNewcomers,
    /// A frame in five is lost on its way, and nobody is told.
    LosesFrames,
    /// No sweep but the first, so that an event the ring lost stays lost.
    NeverSweeps,
    /// A FIN deletes the flow's entry.
    FinDeletes,
    /// A RST deletes the flow's entry.
    RstDeletes,
    /// A SYN for a known flow places it anew.
    SynPlacesAnew,
    /// Every member counts as eligible, ready or not.
    AllEligible,
    /// The lease never lapses: a dead agent's promises are kept by nobody.
    EternalLease,
    /// When the primary is not forwarding, the backend is picked again.
    RepicksOnFailover,
    /// Dead members count as forwarding.
    AllForwarding,
    /// Each sweep ends a flow, whoever it is.
    ExpiresEarly,
    /// What goes on a connection for bulk is lost, and acknowledged.
    LosesBulk,
    /// What came on a connection for bulk is not acknowledged.
    MutesBulk,
    /// Bytes count as gone before they went.
    DrainsAtOnce,
    /// One member numbers its ring otherwise.
    TurnsOneRing,
    /// One member answers no probes.
    NeverAnswersProbes,
    /// One member drops the packets of flows that it knows.
    LosesKnownPackets,
    /// One member hands off what it knows, though it should deliver that.
    ForgetsDirect,
    /// A flow that has ended elsewhere is deleted here, though packets have passed since.
    ExpiresUnasked,
    /// The sweep does not show that packets have passed.
    HidesTraffic,
    /// What a member forges in another's name counts as relayed.
    BelievesForgeries,
    /// A marked packet is handed on.
    OverlooksMarks,
    /// An ICMP error counts as a packet of the flow that it quotes.
    TakesQuotesForPackets,
    /// What members say of epochs is lost: each changes its servers by itself, without acknowledgements.
    LosesStandings,
    /// What members say of servers' conditions is lost.
    LosesConditions,
    /// What members say of their checks is lost.
    LosesOpinions,
    /// After a change of servers unknown flows that go on follow the new ones at once.
    ForgetsGrace,
    /// Whoever is silent for a moment loses its flows.
    TakesOverAtOnce,
    /// One member's entries get other owners without another term.
    KeepsTerms,
    /// Members that are to give their flows away do not.
    DrainsNothing,
    /// Members that are to give their flows away go on taking new ones.
    DrainsInWordsOnly,
}
