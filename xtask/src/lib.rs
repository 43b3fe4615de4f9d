//! Finds or installs the eBPF toolchain, and builds the eBPF programs.
