//! Other versions of the programs, for the tests of upgrades. A build has none of these features.
//!
//! | feature | what differs |
//! |---|---|
//! | `other-version` | the instructions, and nothing that they do |
//! | `defect-seen` | packets of known flows are dropped: golden packets must find it |
//! | `defect-unseen` | the same on every interface but the loopback, where golden packets come from: only traffic can find it |
//! | `defect-refused` | it reads the frame at a place that nobody has checked: the verifier must find it |

use lb_common::reason::{Action, Reason};

use crate::{End, cursor::Cursor};

/// What the version makes of a packet's end.
#[inline(always)]
pub(crate) fn apply(cursor: &Cursor<'_>, end: End) -> End {
    if cfg!(feature = "other-version") {
        core::hint::black_box(0_u32);
    }
    if cfg!(feature = "defect-refused") {
        let context = cursor.context();
        // SAFETY: none: the verifier is to refuse it.
        let byte = unsafe { *((*context).data as *const u8) };
        core::hint::black_box(byte);
    }
    const LOOPBACK: u32 = 1;
    let is_defect = cfg!(feature = "defect-seen") || cfg!(feature = "defect-unseen") && cursor.ingress() != LOOPBACK;
    if is_defect && matches!(end.reason.action_by_table(), Action::Deliver | Action::HandOff) {
        return End { reason: Reason::DropMalformed, way: 0 };
    }
    end
}
