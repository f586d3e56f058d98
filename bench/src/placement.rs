//! `bench placement`: what a decision costs whatever the size of fleet and queue, and what routing by
//! prefixes is worth on a modelled fleet. Everything runs in this process, over the real brain.

mod brain;
mod cost;
mod fleet;
mod load;
mod policies;

use anyhow::ensure;

use crate::machine;
use policies::Routing;

/// Mean time to first token, default over round robin, on conversations.
const BAR_REUSE: f64 = 0.5;
/// The same, default over least loaded, where no prompt repeats.
const BAR_NO_REUSE: f64 = 1.01;

/// Options of `bench placement`.
#[derive(clap::Args)]
pub struct Args {
    /// A tenth of the jobs: shows that everything runs.
    #[arg(long)]
    quick: bool,
    /// Renews the figures in `bench/README.md`.
    #[arg(long)]
    update: bool,
}

/// Measures, prints, and fails when a bar is missed.
///
/// # Errors
/// When a bar is missed, a job of the modelled fleet is refused, or the README cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let scale = if args.quick { 1 } else { 10 };
    let load_before = machine::load_average();
    let mut out = format!("{}; load average before the run {load_before:.1}.\n\n", machine::describe());
    out.push_str(&cost::table(scale));
    out.push('\n');
    let (table, missed) = routing(scale)?;
    out.push_str(&table);
    println!("{out}");
    if args.update {
        crate::report::update_section("placement", &out)?;
    }
    ensure!(missed.is_empty(), "{}", missed.join("; "));
    Ok(())
}

/// Every load under every policy: the table, and the bars that were missed.
fn routing(scale: usize) -> anyhow::Result<(String, Vec<String>)> {
    let mut out = String::from(
        "| load                | policy       | mean TTFT ms | p95 TTFT ms | prompt from cache | refused |\n\
         | ------------------- | ------------ | -----------: | ----------: | ----------------: | ------: |\n",
    );
    let mut ratios = String::from("\n| mean TTFT, this run | ratio |\n| --- | ---: |\n");
    let mut missed = Vec::new();
    for load in [load::Load::Conversations, load::Load::NoReuse, load::Load::SharedStart] {
        let mut means = Vec::new();
        for routing in [Routing::Default, Routing::RoundRobin, Routing::LeastLoaded] {
            let seen = fleet::run(load, routing, 40 * scale);
            ensure!(seen.refused == 0, "{} jobs were refused", seen.refused);
            out.push_str(&format!(
                "| {:<19} | {:<12} | {:>12.1} | {:>11.1} | {:>15.0} % | {:>7} |\n",
                load.name(),
                routing.name(),
                seen.mean_ms(),
                seen.percentile_ms(95),
                seen.cached_percent(),
                seen.refused,
            ));
            means.push(seen.mean_ms());
        }
        let [ours, round_robin, least_loaded] = means[..] else { continue };
        for (other, mean) in [("round robin", round_robin), ("least loaded", least_loaded)] {
            ratios.push_str(&format!("| {}: default / {other} | {:.3} |\n", load.name(), ours / mean));
        }
        if load == load::Load::Conversations && ours > BAR_REUSE * round_robin {
            missed.push(format!(
                "conversations: {:.3} of round robin; the bar is {BAR_REUSE}",
                ours / round_robin
            ));
        }
        if load == load::Load::NoReuse && ours > BAR_NO_REUSE * least_loaded {
            missed.push(format!(
                "no reuse: {:.3} of least loaded; the bar is {BAR_NO_REUSE}",
                ours / least_loaded
            ));
        }
    }
    Ok((out + &ratios, missed))
}
