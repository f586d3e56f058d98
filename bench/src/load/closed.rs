//! Closed loops: each connection sends its next request when the last one is answered.

use std::time::{Duration, Instant};

use crate::load::{Connection, Target};
use crate::machine;
use crate::stats::percentile;

/// A load to apply for a while.
pub struct ClosedLoop {
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// How long before measuring.
    pub warm_up: Duration,
    /// How long to measure.
    pub duration: Duration,
}

/// What a closed loop saw.
#[derive(Debug, Clone, Copy)]
pub struct Throughput {
    /// Answers per second.
    pub per_second: f64,
    /// Half of the answers took less, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 answers took less, in microseconds.
    pub p99_us: f64,
    /// CPU that the subject used per answer, in microseconds.
    pub cpu_us: f64,
}

impl ClosedLoop {
    /// Applies the load to `target`, whose process is `pid`.
    ///
    /// # Errors
    /// When any request fails: a figure with failures in it would mean nothing.
    pub async fn run(&self, target: &Target, pid: u32) -> anyhow::Result<Throughput> {
        let begin = Instant::now() + self.warm_up;
        let end = begin + self.duration;
        let mut loops = Vec::new();
        for _ in 0..self.connections {
            let connection = Connection::open(target.address).await?;
            loops.push(tokio::spawn(one_loop(connection, target.clone(), begin, end)));
        }
        tokio::time::sleep_until(begin.into()).await;
        let cpu = machine::cpu_ns(pid);
        tokio::time::sleep_until(end.into()).await;
        let cpu = machine::cpu_between(&cpu, &machine::cpu_ns(pid));
        let mut latencies = Vec::new();
        for task in loops {
            latencies.extend(task.await??);
        }
        Ok(summary(latencies, cpu, self.duration))
    }
}

/// Latencies in nanoseconds of the requests that began and ended between `begin` and `end`.
async fn one_loop(
    mut connection: Connection,
    target: Target,
    begin: Instant,
    end: Instant,
) -> anyhow::Result<Vec<u64>> {
    let mut latencies = Vec::new();
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(latencies);
        }
        connection.call(&target.path, target.body.clone()).await?;
        if sent >= begin && Instant::now() <= end {
            latencies.push(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }
}

fn summary(mut latencies: Vec<u64>, cpu_ns: u64, duration: Duration) -> Throughput {
    let count = latencies.len().max(1) as f64;
    Throughput {
        per_second: latencies.len() as f64 / duration.as_secs_f64(),
        p50_us: percentile(&mut latencies, 0.5) as f64 / 1e3,
        p99_us: percentile(&mut latencies, 0.99) as f64 / 1e3,
        cpu_us: cpu_ns as f64 / 1e3 / count,
    }
}
