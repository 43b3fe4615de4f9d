//! Putting a program where packets leave an interface (tc), for as long as its link lives.

use aya::{
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
    },
    util::KernelVersion,
};

/// Attaches `program` to what leaves `interface`; dropping the answer detaches it.
///
/// Since Linux 6.6 by a link of its own (tcx), which the kernel removes when this process ends, however it ends, and as
/// the first one: others may end a packet's way. Before, by a filter of the interface's clsact qdisc, which is left
/// in place: somebody else may have come to use it.
pub fn attach(program: &mut SchedClassifier, interface: &str) -> Result<SchedClassifierLink, ProgramError> {
    let options = if has_links() {
        TcAttachOptions::TcxOrder(LinkOrder::first())
    } else {
        add_clsact(interface)?;
        TcAttachOptions::Netlink(NlOptions::default())
    };
    let id = program.attach_with_options(interface, TcAttachType::Egress, options)?;
    program.take_link(id)
}

fn has_links() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// One that is there serves as well.
fn add_clsact(interface: &str) -> Result<(), TcError> {
    match tc::qdisc_add_clsact(interface) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}
