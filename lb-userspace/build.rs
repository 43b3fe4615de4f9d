//! Builds the XDP programs that the agent carries; `OUT_DIR/lb-ebpf` is the object.
fn main() -> std::process::ExitCode {
    xtask::ebpf::build_script()
}
