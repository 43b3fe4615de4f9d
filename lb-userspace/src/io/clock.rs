//! The monotonic clock, and an alarm on it.

use std::io;

use rustix::{
    io::Errno,
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
        timerfd_settime,
    },
};
use tokio::io::unix::AsyncFd;

/// Nanoseconds of `CLOCK_MONOTONIC`: the clock of `bpf_ktime_get_ns`.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A timer that goes off at an absolute time.
///
/// A timerfd rather than the runtime's timer: that one counts whole milliseconds, and the probes
/// of a 10 ms round should not wander by a tenth of it.
pub struct Alarm {
    timer: AsyncFd<rustix::fd::OwnedFd>,
    set_to_ns: Option<u64>,
}

impl Alarm {
    /// An alarm that is not set. Needs a running runtime.
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // SAFETY: the OwnedFd always answers with the descriptor it owns, and keeps it open until the AsyncFd drops it.
        let timer = unsafe { AsyncFd::register(timer) }?;
        Ok(Self { timer, set_to_ns: None })
    }

    /// Sets the alarm to `at_ns`, which may lie in the past; `None` never goes off.
    pub fn set(&mut self, at_ns: Option<u64>) -> io::Result<()> {
        if self.set_to_ns == at_ns {
            return Ok(());
        }
        // A zero would disarm the timer.
        let at = at_ns.map_or(Timespec { tv_sec: 0, tv_nsec: 0 }, |ns| Timespec {
            tv_sec: (ns.max(1) / 1_000_000_000) as i64,
            tv_nsec: (ns.max(1) % 1_000_000_000) as i64,
        });
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::ABSTIME, &once)?;
        self.set_to_ns = at_ns;
        Ok(())
    }

    /// Waits until the alarm goes off. Cancel-safe: an alarm that nobody waited for stays pending.
    pub async fn ring(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.timer.readable().await?;
            let mut expirations = [0; 8];
            match rustix::io::read(guard.get_inner(), &mut expirations) {
                Ok(_) => {
                    self.set_to_ns = None;
                    return Ok(());
                }
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn rings_for_a_time_in_the_past_and_not_before_one_in_the_future() {
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Some(now_ns() - 1)).unwrap();
        alarm.ring().await.unwrap();

        let due = now_ns() + 5_000_000;
        alarm.set(Some(due)).unwrap();
        alarm.ring().await.unwrap();
        assert!(now_ns() >= due);
    }
}
