//! The eBPF toolchain: a rustc that can compile `core` for the bpf target, and a bpf-linker of the same LLVM.
//!
//! A linker of another LLVM than the compiler's fails in the best case; in the worst it writes an object whose BTF is
//! broken. So both say which LLVM they carry, and a pair that differs is refused.
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the eBPF programs are compiled for: little-endian BPF, as every host that Tandem runs on.
pub const BPF_TARGET: &str = "bpfel-unknown-none";

/// The linker's version that `cargo xtask setup` installs.
pub const LINKER_VERSION: &str = "0.13.0";

/// A compiler and a linker that fit together.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// Compiles for [`BPF_TARGET`].
    pub compiler: Compiler,
    /// Links what the compiler made.
    pub linker: Linker,
}

/// A rustc that has, or can build, `core` for the bpf target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// The executable itself, never rustup's proxy.
    pub rustc: PathBuf,
    /// As in `rustc -vV`, for example `1.96.0`.
    pub release: String,
    /// Major version of its LLVM.
    pub llvm: u32,
    /// Where `core` comes from.
    pub core: Core,
}

/// Where a compiler has `core` for the bpf target from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// Compiled by the distribution.
    Prebuilt,
    /// Compiled with the programs (`-Z build-std`), from rustup's component rust-src.
    FromSource,
}

/// A bpf-linker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    /// The executable.
    pub path: PathBuf,
    /// Major version of its LLVM.
    pub llvm: u32,
}

/// Why there is no toolchain. The text says what is missing in one line; whoever prints it adds the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No rustc has `core` for the bpf target.
    Compiler,
    /// There is a compiler, but no bpf-linker.
    Linker(Compiler),
    /// There are both, but of different LLVMs.
    Mismatch(Compiler, Linker),
}

/// Looks for a compiler and a linker of one LLVM, and takes the first pair.
///
/// Compilers are the distribution's, then rustup's nightly; linkers are the one in [`tools_dir`], then those in `PATH`.
/// Looks only: installs nothing, uses no network, takes a fraction of a second.
pub fn find(root: &Path) -> Result<Toolchain, Missing> {
    pair(compilers(), linkers(root))
}

/// Where the workspace's own tools are installed: below `target`, so that a clone leaves nothing behind elsewhere.
pub fn tools_dir(root: &Path) -> PathBuf {
    root.join("target").join("tools")
}

/// Every rustc on this machine that can build for the bpf target, the preferred one first.
pub fn compilers() -> Vec<Compiler> {
    let distribution = Compiler::inspect(Path::new("/usr/bin/rustc"));
    let nightly = answer(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]))
        .and_then(|path| Compiler::inspect(Path::new(path.trim())));
    distribution.into_iter().chain(nightly).collect()
}

fn linkers(root: &Path) -> Vec<Linker> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(tools_dir(root).join("bin")).chain(env::split_paths(&path));
    folders.filter_map(|folder| Linker::inspect(&folder.join("bpf-linker"))).collect()
}

fn pair(compilers: Vec<Compiler>, linkers: Vec<Linker>) -> Result<Toolchain, Missing> {
    for compiler in &compilers {
        if let Some(linker) = linkers.iter().find(|linker| linker.llvm == compiler.llvm) {
            return Ok(Toolchain { compiler: compiler.clone(), linker: linker.clone() });
        }
    }
    let compiler = compilers.into_iter().next().ok_or(Missing::Compiler)?;
    match linkers.into_iter().next() {
        Some(linker) => Err(Missing::Mismatch(compiler, linker)),
        None => Err(Missing::Linker(compiler)),
    }
}

impl Compiler {
    /// Asks the rustc at `path` what it is. `None` if it is not there or cannot build for the bpf target.
    fn inspect(path: &Path) -> Option<Self> {
        let sysroot = PathBuf::from(answer(Command::new(path).args(["--print", "sysroot"]))?.trim());
        let rustlib = sysroot.join("lib").join("rustlib");
        let core = if rustlib.join(BPF_TARGET).join("lib").is_dir() {
            Core::Prebuilt
        } else if rustlib.join("src/rust/library/core").is_dir() {
            Core::FromSource
        } else {
            return None;
        };
        let version = answer(Command::new(path).arg("-vV"))?;
        let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let release = field("release:")?.to_owned();
        let llvm = major(field("LLVM version:")?)?;
        Some(Self { rustc: path.to_path_buf(), release, llvm, core })
    }

    /// True if the distribution's package manager owns it, false if rustup does.
    pub fn is_packaged(&self) -> bool {
        self.core == Core::Prebuilt
    }

    /// A program that came with this compiler, such as its cargo or its clippy-driver.
    pub fn sibling(&self, name: &str) -> PathBuf {
        self.rustc.with_file_name(name)
    }
}

impl Linker {
    /// Asks the bpf-linker at `path` for its LLVM.
    ///
    /// Its own `--version` names only bpf-linker, but LLVM's option parser, to which it hands `--llvm-args`, prints
    /// LLVM's version before it looks at any input.
    fn inspect(path: &Path) -> Option<Self> {
        if !path.is_file() {
            return None;
        }
        let said = answer(Command::new(path).args(["--target", "bpfel", "--llvm-args=--version"]).args([
            "--output",
            "/dev/null",
            "/dev/null",
        ]))?;
        let (_, version) = said.split_once("LLVM version ")?;
        Some(Self { path: path.to_path_buf(), llvm: major(version)? })
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.compiler, self.linker)
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (LLVM {})", self.rustc.display(), self.release, self.llvm)
    }
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (LLVM {})", self.path.display(), self.llvm)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler => write!(f, "no rustc with `core` for {BPF_TARGET} was found"),
            Self::Linker(compiler) => write!(f, "no bpf-linker was found for {compiler}"),
            Self::Mismatch(compiler, linker) => write!(f, "{linker} does not fit {compiler}"),
        }
    }
}

impl std::error::Error for Missing {}

/// What a command prints on stdout, or `None` if it cannot be started or fails.
fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `22` of `22.1.8`.
fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(llvm: u32) -> Compiler {
        let rustc = PathBuf::from(format!("/{llvm}/rustc"));
        Compiler { rustc, release: "1.96.0".into(), llvm, core: Core::Prebuilt }
    }

    fn linker(llvm: u32) -> Linker {
        Linker { path: PathBuf::from(format!("/{llvm}/bpf-linker")), llvm }
    }

    #[test]
    fn a_pair_is_of_one_llvm_even_if_it_is_not_the_preferred_one() {
        let found = pair(vec![compiler(22), compiler(23)], vec![linker(21), linker(23)]).unwrap();
        assert_eq!((found.compiler, found.linker), (compiler(23), linker(23)));
    }

    #[test]
    fn a_linker_of_another_llvm_is_refused_and_both_versions_are_named() {
        let refused = pair(vec![compiler(22)], vec![linker(21)]).unwrap_err();
        assert_eq!(refused, Missing::Mismatch(compiler(22), linker(21)));
        assert!(refused.to_string().contains("LLVM 21") && refused.to_string().contains("LLVM 22"));
    }

    #[test]
    fn what_is_missing_is_said_in_one_line() {
        assert_eq!(pair(vec![], vec![linker(22)]).unwrap_err(), Missing::Compiler);
        assert_eq!(pair(vec![compiler(22)], vec![]).unwrap_err(), Missing::Linker(compiler(22)));
        for missing in [Missing::Compiler, Missing::Linker(compiler(22)), Missing::Mismatch(compiler(22), linker(21))] {
            assert_eq!(missing.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn major_versions_are_read_from_what_the_tools_print() {
        assert_eq!(major("22.1.8\n  Optimized build."), Some(22));
        assert_eq!(major("23.0.0-rust-dev"), Some(23));
        assert_eq!(major("unknown"), None);
    }
}
