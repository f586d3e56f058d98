//! What is told of capacity that is not there: to those who wait, and to those who wait in vain.

use api_types::pool::Fit;
use api_types::{ErrorCode, ErrorDetail};
use serde_json::json;

use super::hope::{Hope, Prospect};
use super::judge::Verdict;
use crate::row::JobRow;
use crate::time::Time;

/// Nothing is left to hope for: the jobs end, unless what rules every pool out is their own demand,
/// which a worker that somebody starts by hand may meet.
pub(super) fn end(all: &[Prospect<'_>], row: &JobRow, now: Time) -> Verdict {
    let final_ones: Vec<&Prospect<'_>> = all.iter().filter(|prospect| prospect.hope.is_final()).collect();
    if final_ones.is_empty() {
        return Verdict::Stuck;
    }
    let too_large = final_ones.iter().all(|prospect| matches!(prospect.hope, Hope::TooLarge(_)));
    let on_gpu = |p: &&Prospect<'_>| matches!(&p.hope, Hope::TooLarge(fit) if !matches!(fit.device.as_str(), "cpu" | "fake"));
    let code = match (too_large, final_ones.iter().any(on_gpu)) {
        (false, _) => ErrorCode::NoCapacity,
        (true, true) => ErrorCode::InsufficientVram,
        (true, false) => ErrorCode::InsufficientMemory,
    };
    let pools: Vec<_> = all.iter().map(|prospect| detail(prospect, now)).collect();
    let words: Vec<String> = all.iter().map(|prospect| told(prospect, now)).collect();
    let message = format!("No worker can be started for the model `{}`: {}.", row.model, words.join("; "));
    let again = final_ones.iter().filter_map(|prospect| match prospect.hope {
        Hope::Exhausted(failures) => Some(failures.not_before.since(now)),
        Hope::TooLarge(_)
        | Hope::Coming(_)
        | Hope::Fits(_)
        | Hope::Asked(_)
        | Hope::Release(..)
        | Hope::Going(_)
        | Hope::Resting(_)
        | Hope::Silent(..)
        | Hope::Taken
        | Hope::Held(_)
        | Hope::Unfit(_) => None,
    });
    let error = ErrorDetail::new(code, message)
        .with_details(json!({ "model": row.model, "pools": pools }))
        .with_hint("Choose a smaller model, start a worker with fewer slots or less context, or look at the pool with `rbees status`.");
    Verdict::Hopeless(match again.min() {
        Some(ms) if !too_large => error.with_retry_after_ms(ms.max(1)),
        Some(_) | None => error,
    })
}

/// One pool in the details of an error.
fn detail(prospect: &Prospect<'_>, now: Time) -> serde_json::Value {
    let pool = prospect.pool_id.as_str();
    match &prospect.hope {
        Hope::TooLarge(fit) => json!({ "pool": pool, "device": fit.device, "needed_bytes": fit.needed_bytes,
            "margin_bytes": fit.margin_bytes, "total_bytes": fit.total_bytes }),
        Hope::Exhausted(failures) => json!({ "pool": pool, "failed_spawns": failures.count,
            "last_error": failures.last.code.as_str(), "message": failures.last.message }),
        Hope::Coming(_)
        | Hope::Fits(_)
        | Hope::Asked(_)
        | Hope::Release(..)
        | Hope::Going(_)
        | Hope::Resting(_)
        | Hope::Silent(..)
        | Hope::Taken
        | Hope::Held(_)
        | Hope::Unfit(_) => json!({ "pool": pool, "reason": told(prospect, now) }),
    }
}

pub(super) fn reason(best: &Prospect<'_>, all: &[Prospect<'_>], row: &JobRow, now: Time) -> String {
    let told: Vec<String> = if best.hope.goes_on() {
        vec![self::told(best, now)]
    } else {
        all.iter().map(|prospect| self::told(prospect, now)).collect()
    };
    format!("No worker serves the model `{}` yet: {}.", row.model, told.join("; "))
}

/// How it looks in one pool, for people.
fn told(prospect: &Prospect<'_>, now: Time) -> String {
    let pool = prospect.pool_id;
    let needs = |fit: &Fit| {
        format!(
            "on `{pool}` it needs {} and {} to spare on {}",
            bytes(fit.needed_bytes),
            bytes(fit.margin_bytes),
            fit.device
        )
    };
    match &prospect.hope {
        Hope::Coming(_) => format!("the pool `{pool}` is starting one"),
        Hope::Fits(_) => format!("the pool `{pool}` is about to be asked for one"),
        Hope::Asked(_) => format!("the pool `{pool}` is being asked what fits"),
        Hope::Going(fit) => {
            format!("{}, where workers are being started or ended just now", needs(fit))
        }
        Hope::Release(from, victims, fit) => {
            let names: Vec<String> = victims.iter().map(|victim| format!("`{victim}`")).collect();
            let ms = from.since(now);
            format!(
                "{}; {} gives way in at most {ms} ms and its running jobs",
                needs(fit),
                names.join(" and ")
            )
        }
        Hope::Resting(failures) => format!(
            "the pool `{pool}` could not start one ({}), and is asked again in {} ms",
            first_line(&failures.last),
            failures.not_before.since(now)
        ),
        Hope::Silent(error, _) => format!("the pool `{pool}` does not answer ({})", first_line(error)),
        Hope::Taken => format!("on the pool `{pool}` another model goes first, which has waited longer"),
        Hope::Held(fit) => format!(
            "{}, {} are free, and the rest is held by pinned workers or other programs",
            needs(fit),
            bytes(fit.free_bytes)
        ),
        Hope::Unfit(reason) => format!("the pool `{pool}` is out, because {reason}"),
        Hope::Exhausted(failures) => format!(
            "the pool `{pool}` could not start one, {} times at least ({})",
            failures.count,
            first_line(&failures.last)
        ),
        Hope::TooLarge(fit) => {
            format!("{}, which has {} in all", needs(fit), bytes(fit.total_bytes))
        }
    }
}

/// A pool's error without the lines of a log that it may carry.
fn first_line(error: &ErrorDetail) -> String {
    format!("{}: {}", error.code, error.message.lines().next().unwrap_or_default())
}

fn bytes(count: u64) -> String {
    const MIB: u64 = 1 << 20;
    if count >= 10 * 1024 * MIB {
        format!("{} GiB", count >> 30)
    } else {
        format!("{} MiB", count.div_ceil(MIB))
    }
}
