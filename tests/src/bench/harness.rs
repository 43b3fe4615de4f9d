//! The harness in the kernel: sends packets to a program, and tells what they took.

use std::{os::fd::AsFd as _, path::Path};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions,
    maps::{Array, Map, MapData, PerCpuArray, PerCpuValues, ProgramArray},
    programs::{ProgramFd, Xdp},
    util::nr_cpus,
};
use lb_common::bench::{Course, TURN, TURNS_MAX, Tunnel};

use super::packets::Packet;
use crate::passthrough::{self, Idle};

/// A place in the harness's table of programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Costs nothing itself: what remains is the harness.
    Nothing,
    /// Adds an IPv4 header.
    FloorV4,
    /// Adds an IPv6 header.
    FloorV6,
    /// Tandem's `balancer`, whose table is full.
    Balancer,
    /// Tandem's `balancer`, whose table is empty.
    EmptyBalancer,
    /// Tandem's `decap`.
    Decap,
    /// The other program.
    Against,
}

/// Verdicts of XDP programs (linux/bpf.h).
pub(crate) const XDP_ABORTED: u32 = 0;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;

/// The order in which tables are filled, and the one in which they are used: elements that were made one after the
/// other lie side by side in memory, which real packets have no reason to follow.
pub(crate) const FILLING: u32 = 0x9e37_79b1;
pub(crate) const USING: u32 = 0x85eb_ca6b;

/// The packets that one of the two courses consists of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shot<'p> {
    /// Which program gets them.
    pub(crate) target: Target,
    /// What they look like.
    pub(crate) packet: &'p Packet,
    /// How many clients send them, a power of two.
    pub(crate) clients: u32,
    /// The first client.
    pub(crate) base: u32,
    /// The order of the clients.
    pub(crate) stride: u32,
    /// How many packets of the same course were sent before.
    pub(crate) sent: u32,
    /// Where live frames leave.
    pub(crate) ifindex: u32,
}

/// What a packet took, in nanoseconds: one figure for each turn of either course.
#[derive(Debug)]
pub(crate) struct Took {
    pub(crate) first: Vec<f64>,
    pub(crate) second: Vec<f64>,
}

/// The harness, and the programs that it calls.
///
/// Nothing is pinned: this process holds everything, so that nothing outlives it.
pub(crate) struct Harness {
    ebpf: Ebpf,
    courses: Array<MapData, Course>,
    position: PerCpuArray<MapData, u32>,
    stamps: Array<MapData, u64>,
    targets: ProgramArray<MapData>,
    arrived: PerCpuArray<MapData, u64>,
    cpus: usize,
    /// What `BPF_PROG_TEST_RUN` runs.
    _attached: [Idle; 2],
}

impl Harness {
    /// Loads the object at `path`.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let object = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut ebpf = EbpfLoader::new().btf(None).load(&object).context("the harness does not load")?;
        for name in ["harness", "nothing", "floor_v4", "floor_v6", "generate", "sink"] {
            let program: &mut Xdp = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("the kernel refuses {name}"))?;
        }
        let mut tunnel: Array<MapData, Tunnel> = take(&mut ebpf, "tunnel")?;
        tunnel.set(0, FLOOR_TUNNEL, 0)?;
        let attached = ["harness", "generate"].map(|name| {
            let program: &Xdp = ebpf.program(name).context(name)?.try_into()?;
            passthrough::attach_idle(program.fd()?.as_fd())
        });
        let [harness, generate] = attached;
        let mut harness = Self {
            _attached: [harness?, generate?],
            courses: take(&mut ebpf, "courses")?,
            position: take(&mut ebpf, "position")?,
            stamps: take(&mut ebpf, "stamps")?,
            targets: take(&mut ebpf, "targets")?,
            arrived: take(&mut ebpf, "arrived")?,
            cpus: nr_cpus().map_err(|(_, error)| error)?,
            ebpf,
        };
        for (name, target) in
            [("nothing", Target::Nothing), ("floor_v4", Target::FloorV4), ("floor_v6", Target::FloorV6)]
        {
            let program: &Xdp = harness.ebpf.program(name).context(name)?.try_into()?;
            harness.targets.set(target as u32, program.fd()?, 0)?;
        }
        Ok(harness)
    }

    /// Puts a program into its place.
    pub(crate) fn set_target(&mut self, target: Target, program: &ProgramFd) -> Result<()> {
        self.targets.set(target as u32, program, 0).context("the kernel does not let the harness call the program")
    }

    /// Sends packets of two courses in turns, so many of each.
    pub(crate) fn fire(&mut self, courses: [Shot<'_>; 2], turns: u32) -> Result<Took> {
        ensure!(turns * 2 <= TURNS_MAX, "{turns} turns are more than the harness can time");
        self.set_courses(&courses)?;
        self.set_position(0)?;
        // The last packet only stops the clock.
        self.run(courses[0].packet, turns * 2 * TURN + 1)?;
        let mut took = Took { first: Vec::new(), second: Vec::new() };
        let mut began_ns = self.stamps.get(&0, 0)?;
        for turn in 0..turns * 2 {
            let ended_ns = self.stamps.get(&(turn + 1), 0)?;
            let figures = if turn % 2 == 0 { &mut took.first } else { &mut took.second };
            figures.push((ended_ns - began_ns) as f64 / f64::from(TURN));
            began_ns = ended_ns;
        }
        Ok(took)
    }

    /// Sends the next packet: the verdict, and the frame afterwards.
    pub(crate) fn sample(&mut self, shot: &Shot<'_>) -> Result<(u32, Vec<u8>)> {
        self.courses.set(0, shot.course(), 0)?;
        // Not at the beginning of a turn, where the harness reads the clock.
        self.set_position(1)?;
        self.run(shot.packet, 1)
    }

    /// What the CPUs' generators send, by CPU number modulo two.
    pub(crate) fn set_courses(&mut self, courses: &[Shot<'_>; 2]) -> Result<()> {
        for (index, shot) in courses.iter().enumerate() {
            self.courses.set(index as u32, shot.course(), 0)?;
        }
        Ok(())
    }

    /// Sends real frames from this thread's CPU and namespace.
    pub(crate) fn send_live(&self, packet: &Packet, packets: u32, batch: u32) -> Result<()> {
        self.program("generate")?.test_run(TestRunOptions {
            data_in: Some(&packet.frame),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::new()
        })?;
        Ok(())
    }

    /// Frames that came back so far.
    pub(crate) fn arrived(&self) -> Result<u64> {
        Ok(self.arrived.get(&0, 0)?.iter().sum())
    }

    /// A program of the harness's object.
    pub(crate) fn program(&self, name: &'static str) -> Result<&Xdp> {
        Ok(self.ebpf.program(name).context(name)?.try_into()?)
    }

    fn set_position(&mut self, position: u32) -> Result<()> {
        Ok(self.position.set(0, PerCpuValues::try_from(vec![position; self.cpus])?, 0)?)
    }

    fn run(&self, packet: &Packet, repeat: u32) -> Result<(u32, Vec<u8>)> {
        let mut frame = vec![0; packet.frame.len() + 256];
        let result = self.program("harness")?.test_run(TestRunOptions {
            data_in: Some(&packet.frame),
            data_out: Some(&mut frame),
            repeat,
            ..TestRunOptions::new()
        })?;
        frame.truncate(result.data_size_out as usize);
        ensure!(result.return_value != XDP_ABORTED, "the harness could not lay a packet or call the program");
        Ok((result.return_value, frame))
    }
}

impl Shot<'_> {
    fn course(&self) -> Course {
        Course {
            target: self.target as u32,
            sent: self.sent,
            flow_mask: self.clients - 1,
            base: self.base,
            stride: self.stride,
            ifindex: self.ifindex,
            ..self.packet.course()
        }
    }
}

fn take<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T> {
    let map = ebpf.take_map(name).with_context(|| format!("the harness has no map {name}"))?;
    T::try_from(map).map_err(|_other| anyhow::anyhow!("the harness's map {name} has another shape"))
}

const FLOOR_TUNNEL: Tunnel = Tunnel {
    macs: [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1],
    source_v4: [10, 0, 1, 11],
    destination_v4: [10, 0, 2, 11],
    source_v6: [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    destination_v6: [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
};
