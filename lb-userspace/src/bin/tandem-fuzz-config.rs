//! The fuzzer of the configuration's reader; `cargo xtask fuzz --what configuration` builds it with coverage and starts it.
//!
//! Writes seeds into the folder that `TANDEM_SEEDS` names before the engine reads its corpora.
#![no_main]

use std::{env, fs, path::PathBuf, sync::LazyLock};

use lb_userspace::{
    config::{Config, Host, Key, Names},
    identity::{KEY_FILE, MemberKey},
};
use libfuzzer_sys::fuzz_target;

/// A directory with a secret and a member's key, so that a file can be valid: beside the seeds, so that nothing is left elsewhere.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = env::var_os("TANDEM_SEEDS")
        .map_or_else(|| env::temp_dir().join("tandem-fuzz-keys"), |seeds| PathBuf::from(seeds).join("../keys"));
    fs::create_dir_all(&directory).expect("a folder for keys");
    Key::generate().and_then(|key| key.write(&directory.join("hash.key"), true)).expect("a secret");
    MemberKey::from_seed(&[1; 32]).write(&directory.join(KEY_FILE), true).expect("a key");
    directory
});

fuzz_target!(
    init: {
        if let Some(folder) = env::var_os("TANDEM_SEEDS").map(PathBuf::from) {
            let own = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/broken");
            let files = fs::read_dir(own).expect("broken files").map(|file| file.expect("an entry").path());
            for file in files.filter(|file| file.extension().is_some_and(|extension| extension == "toml")) {
                let name = file.file_name().expect("a file").to_owned();
                fs::copy(file, folder.join(name)).expect("a folder for seeds");
            }
            let installed = include_str!("../../../etc/tandem.toml").replace("/etc/tandem/", "");
            fs::write(folder.join("installed"), installed).expect("a folder for seeds");
        }
    },
    |input: &[u8]| {
        let Ok(text) = str::from_utf8(input) else { return };
        check(text);
    }
);

/// Whatever the text: an answer, never a panic; and what a valid one is shown as means the same.
fn check(text: &str) {
    let path = DIRECTORY.join("tandem.toml");
    let host = Host {
        node: None,
        interfaces: &[],
        state: &DIRECTORY,
        interface_exists: &|name| name == "eth0",
        host_name: &|| "lb1".to_owned(),
    };
    Names::parse(text);
    if let Err(error) = Config::check_text(text, &path) {
        assert!(!error.render(true).is_empty());
    }
    match Config::parse(text, &path, &host) {
        Ok(config) => {
            let shown = Config::effective(text, &path, &host).expect("it is valid").to_toml();
            let again = Config::parse(&shown, &path, &host);
            assert_eq!(again.as_ref(), Ok(&config), "{shown}");
        }
        Err(error) => assert!(!error.render(false).is_empty()),
    }
}
