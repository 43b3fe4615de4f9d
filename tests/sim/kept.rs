//! Seeds that once failed, and what they found. They run for ever.
//!
//! A seed is a point in the simulator's choices: when the simulator learns another fault it means another run. What was found has a
//! test of its own beside the code that was wrong; this list keeps the neighbourhoods in which something was.

use crate::{
    campaign::attempt,
    mutation::Mutation,
    plan::Scale::{self, Small},
};

/// Scale, seed, and what it found.
const KEPT: [(Scale, u64, &str); 46] = [
    (Small, 22, "a marked packet went to a member whose agent had just started"),
    (Small, 77, "a member without an agent heard a peer whose maps were empty"),
    (Small, 84, "a marked packet went to a member whose agent was dead"),
    (Small, 103, "a marked packet was answered from an old ring"),
    (Small, 119, "a joiner counted a snapshot that was sent before its sender was ready"),
    (Small, 158, "each change made the wait for a silent member's acknowledgement of the last one longer"),
    (Small, 340, "a member without an agent heard a peer whose maps were empty"),
    (Small, 400, "a record told in a member's last moments, and a second failure"),
    (Small, 510, "a member that became ready while a peer greeted it waited for ever"),
    (Small, 534, "a dead agent's last probes hid that its program was detached"),
    (Small, 591, "a member that became ready while a peer greeted it waited for ever"),
    (Small, 1022, "a record told in a member's last moments, and a second failure"),
    (Small, 2037, "what two records made together was told to the sender only"),
    (Small, 20333, "a queue that overflowed while a new session's digests left ended that session, again and again"),
    (Small, 100064, "a look at all tables now and then took what had come and was raised since for another's"),
    (Small, 100668, "a change of servers before the first masks were written came without a grace time"),
    (Small, 100713, "links that lose packets hid from a member who else was ready"),
    (Small, 101931, "a change of servers before the first masks were written came without a grace time"),
    (Small, 102353, "a look at all tables now and then took what had come and was raised since for another's"),
    (Small, 102831, "a packet that waited in a member's NIC outlived the member"),
    (Small, 103568, "links that lose packets hid from a member who else was ready"),
    (Small, 1000517, "a flow that had ended and came back from a peer was taken for one whose owners were changed"),
    (Small, 1001373, "a pause within a pause ended both for who judges them"),
    (Small, 1002794, "two members had placed a flow anew, the one whose word counts on a server that was then removed"),
    (Small, 1003111, "a flow that had just ended at the last member that knew it was taken for known"),
    (Small, 1004407, "two members had placed a flow anew, the one whose word counts on a server that was then removed"),
    (Small, 1005580, "a member that was reloaded into a cluster which had yet to hear of it placed flows anew"),
    (Small, 1201487, "two members had placed a flow anew, the one whose word counts on a server that was then removed"),
    (Small, 1204438, "a member whose NIC stood still knew of a flow, and could tell nobody"),
    (Small, 1303209, "a member that had stood still heard what it had missed over links that lost packets"),
    (Small, 1305304, "a member that had crashed was asked for the packets that it had seen before"),
    (Small, 1402821, "a second change made the wait for the first one longer, by another silent member's"),
    (Small, 1403106, "a member without an agent was to hear a peer that no longer had it configured"),
    (Small, 1406089, "a member without room for a flow delivered it elsewhere than its record says, to the end"),
    (Small, 1412107, "a member without room for a flow delivered it elsewhere than its record says, to the end"),
    (Small, 1416948, "a member without room for a flow delivered it elsewhere than its record says, to the end"),
    (Small, 1419582, "flows that had ended and came back from a peer found room in a full table"),
    (Small, 1420604, "a peer told of more ends between two rounds than there was room for"),
    (Small, 1424635, "a member without room for a flow delivered it elsewhere than its record says, to the end"),
    (Small, 1432279, "a second change made the wait for the first one longer, by another silent member's"),
    (Small, 1435613, "parked records that took each other's places made a bucket differ at every other look, for ever"),
    (
        Small,
        2501486,
        "a member that had stood still was to hand new flows to a peer whose echoes it had heard for less than a second",
    ),
    (Small, 2503112, "a probe that was lost on its way, and sent again by who saw it, was to count for nothing"),
    (Small, 2505229, "over links that lost packets members were to change their servers as fast as if all were well"),
    (Small, 2510753, "the agent's write hid the only packet of a flow that had been idle, by its member's word"),
    (Small, 2530237, "what a peer said of a server before it was configured here was forgotten, and never said again"),
];

#[test]
fn kept_seeds_hold() {
    for (scale, seed, found) in KEPT {
        let violation = attempt(seed, scale, Mutation::None).map(|outcome| outcome.violation);
        assert_eq!(violation, Ok(None), "{scale:?} seed {seed}, kept since it found: {found}");
    }
}
