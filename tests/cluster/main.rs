//! Clusters of real agents and datapaths under real traffic, in network namespaces. Needs root.
//!
//! Run with `--test-threads=1`: each test uses the whole machine.

mod lab;
