//! Time of day is used nowhere: nothing that decides anything reads it.
//!
//! In the simulation every host has a monotonic clock of its own, that starts anywhere, stops with a suspended host, and goes on
//! where the host's agent did not run; there is no input by which a time of day could reach the core. What is left to show is that
//! neither the edges nor the datapath ask for one.

use std::{fs, path::Path};

/// What reads the time of day, in Rust, in C and in BPF.
const TIMES_OF_DAY: [&str; 6] =
    ["SystemTime", "UNIX_EPOCH", "CLOCK_REALTIME", "ktime_get_real", "ktime_get_tai", "time_of_day"];
/// Files that show dates to people, which decides nothing: those of the kernel's programs, and of events.
const FOR_PEOPLE: [&str; 5] =
    ["inspect/datapath.rs", "io/program.rs", "src/control.rs", "control/api.rs", "control/server.rs"];

#[test]
fn the_time_of_day_decides_nothing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut read = 0;
    for crate_ in ["lb-common", "lb-ebpf", "lb-userspace"] {
        let mut folders = vec![root.join(crate_).join("src")];
        while let Some(folder) = folders.pop() {
            for file in fs::read_dir(&folder).unwrap() {
                let path = file.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap();
                read += 1;
                let found = TIMES_OF_DAY.into_iter().find(|word| text.contains(word));
                let is_excused = FOR_PEOPLE.iter().any(|name| path.ends_with(name));
                assert!(found.is_none() || is_excused, "{} reads the time of day: {found:?}", path.display());
            }
        }
    }
    assert!(read > 50, "only {read} files found");
}
