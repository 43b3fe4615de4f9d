//! Golden packets: which programs pass them.

use std::fs;

use lb_userspace::io::{
    datapath::OBJECT,
    rehearsal::{RehearsalError, rehearse},
};
use tests::variant::Variant;

fn object(variant: Variant) -> Vec<u8> {
    fs::read(variant.object().unwrap()).unwrap()
}

#[test]
fn this_versions_programs_pass() {
    let report = rehearse(OBJECT, None).unwrap();
    println!("{} packets in {:?}: {:?}", report.cases, report.took, report.reasons);
    let unseen = report.unseen();
    assert!(unseen.len() < 4, "golden packets never see {unseen:?}");
}

#[test]
fn other_instructions_that_do_the_same_pass() {
    rehearse(&object(Variant::OtherVersion), None).unwrap();
}

#[test]
fn a_program_that_drops_what_it_should_forward_fails() {
    let error = rehearse(&object(Variant::DefectSeen), None).unwrap_err();
    let RehearsalError::Differs(difference) = &error else { panic!("{error}") };
    assert!(difference.contains("the kernel's drop_malformed"), "{difference}");
}

#[test]
fn a_program_that_the_verifier_refuses_fails() {
    let error = rehearse(&object(Variant::DefectRefused), None).unwrap_err();
    assert!(matches!(error, RehearsalError::Failed(_)) && error.to_string().contains("refuses"), "{error}");
}

#[test]
fn a_defect_of_real_interfaces_only_is_not_seen_here() {
    rehearse(&object(Variant::DefectUnseen), None).unwrap();
}
