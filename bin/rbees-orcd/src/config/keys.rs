//! Every key of the configuration: its name, what it may hold, its default.

/// What a key may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text; empty means not set.
    Text,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A whole number in this range.
    Number(i64, i64),
    /// A list of texts; on the command line and in the environment separated by commas.
    List,
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name in the file; in the environment `RBEES_` and upper case.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// What it is when nobody sets it, as it would stand in the environment.
    pub default: &'static str,
    /// One line for people.
    pub help: &'static str,
}

impl Kind {
    /// Whether this text is one that it may hold.
    pub fn takes(self, text: &str) -> bool {
        match self {
            Self::Text | Self::List => true,
            Self::OneOf(words) => words.contains(&text),
            Self::Number(low, high) => text.parse::<i64>().is_ok_and(|n| (low..=high).contains(&n)),
        }
    }
}

impl Key {
    /// What it may hold, in words.
    pub fn allowed(&self) -> String {
        match self.kind {
            Kind::Text => "allowed is a text".to_owned(),
            Kind::List => "allowed is a list of texts".to_owned(),
            Kind::OneOf(words) => format!("allowed are {}", words.join(", ")),
            Kind::Number(low, high) => format!("allowed is a whole number from {low} to {high}"),
        }
    }
}

const fn key(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Key {
    Key { name, kind, default, help }
}

/// All of them.
pub const KEYS: &[Key] = &[
    key("bind", Kind::Text, "127.0.0.1:8080", "address and port to listen on; port 0 takes a free one"),
    key("home", Kind::Text, "", "the state root; $RBEES_HOME, else $XDG_DATA_HOME/rbees"),
    key(
        "allowed_hosts",
        Kind::List,
        "",
        "names that the Host header may hold beside loopback and the bound address",
    ),
    key("token_file", Kind::Text, "", "file with the bearer token that every route but health asks for"),
    key(
        "tls",
        Kind::OneOf(&["off", "terminated-by-proxy"]),
        "off",
        "who does TLS on a bind that is not loopback",
    ),
    key("url", Kind::Text, "", "the URL at which workers reach this orchestrator; from bind when empty"),
    key("body_limit_bytes", Kind::Number(1_024, 1 << 32), "8388608", "largest request body"),
    key(
        "max_connections",
        Kind::Number(1, 1_000_000),
        "4096",
        "connections at once; more are answered TOO_MANY_STREAMS, and so are more than half of the open files allow",
    ),
    key("header_timeout_ms", Kind::Number(1, 600_000), "10000", "until a request's headers are there"),
    key("body_timeout_ms", Kind::Number(1, 600_000), "30000", "until a request's body is there"),
    key(
        "silent_client_ms",
        Kind::Number(1_000, 600_000),
        "15000",
        "until a client is cut that takes nothing; it may come back and resume. One that is gone without a word is \
         noticed within so much and 15 s",
    ),
    key("queue_capacity", Kind::Number(-1, 10_000_000), "1000", "jobs that may wait; -1 is without bound"),
    key("full_policy", Kind::OneOf(&["reject", "drop-oldest-batch"]), "reject", "what a full queue does"),
    key(
        "quotas.default.concurrency",
        Kind::Number(-1, 1_000_000),
        "-1",
        "jobs of a tenant that workers may hold at one time; more wait; -1 is without bound",
    ),
    key(
        "quotas.default.queued",
        Kind::Number(-1, 10_000_000),
        "-1",
        "jobs of a tenant that may wait; more are refused; -1 is without bound",
    ),
    key(
        "quotas.default.tokens_per_minute",
        Kind::Number(-1, 1_000_000_000),
        "-1",
        "tokens of prompts (at most one per byte until counted) and answers of a tenant per minute; -1 is without bound",
    ),
    key("quotas.default.weight", Kind::Number(1, 1_000), "1", "a tenant's share of a contended queue"),
    key("session_ttl_ms", Kind::Number(1_000, 604_800_000), "600000", "how long an unused session is kept"),
    key(
        "session_token_budget",
        Kind::Number(-1, 1_000_000_000_000),
        "-1",
        "tokens that one session may take, each byte of a prompt being one until counted; -1 is without bound",
    ),
    key("session_capacity", Kind::Number(1, 1_000_000), "10000", "unused sessions that are kept at most"),
    key("policy_file", Kind::Text, "", "a policy script that is live from the start; else the last one set"),
    key(
        "utc_offset_minutes",
        Kind::Number(-840, 840),
        "0",
        "minutes your clocks are ahead of UTC, for the hour that policies see",
    ),
    key(
        "pool_labels",
        Kind::List,
        "",
        "what you say of pools, for policies, each as POOL:NAME=VALUE (for example shelf:watts=15)",
    ),
    key("worker_labels", Kind::List, "", "the same for single workers, each as WORKER:NAME=VALUE"),
    key("job_time_limit_ms", Kind::Number(1_000, 1_800_000), "300000", "how long one attempt may run"),
    key(
        "first_token_timeout_ms",
        Kind::Number(100, 1_800_000),
        "120000",
        "a worker's silence before the first token",
    ),
    key("stall_timeout_ms", Kind::Number(100, 1_800_000), "60000", "a worker's silence between two events"),
    key(
        "spawn_on_demand",
        Kind::OneOf(&["on", "off"]),
        "on",
        "whether pools are asked for workers when jobs wait for a model that none serves",
    ),
    key(
        "keep_alive_ms",
        Kind::Number(-1, 31_536_000_000),
        "300000",
        "how long an evictable worker is kept without a job; 0 ends it at once, -1 never",
    ),
    key("keep_alive_models", Kind::List, "", "the same for single models, each as MODEL=MILLISECONDS"),
    key("pinned_models", Kind::List, "", "models whose workers are never unloaded"),
    key(
        "min_residency_ms",
        Kind::Number(0, 3_600_000),
        "10000",
        "how long a worker serves at least before it gives way to a model that waits for its memory",
    ),
    key(
        "swap_patience_ms",
        Kind::Number(0, 3_600_000),
        "30000",
        "how long a model waits before busy workers take no new job for its sake",
    ),
    key("retry_attempts", Kind::Number(1, 1_000), "5", "attempts that a job may have in all"),
    key(
        "retry_backoff_first_ms",
        Kind::Number(0, 3_600_000),
        "1000",
        "pause before the second attempt; doubles with each further one",
    ),
    key(
        "retry_backoff_max_ms",
        Kind::Number(0, 3_600_000),
        "60000",
        "the longest pause between two attempts",
    ),
    key(
        "retry_poison_after",
        Kind::Number(1, 1_000),
        "2",
        "workers that a job may lose before it is failed as poison",
    ),
    key(
        "retry_budget",
        Kind::Number(0, 1_000_000),
        "100",
        "retries of all jobs together that may happen at once; one a second comes back",
    ),
    key(
        "retry_budget_percent",
        Kind::Number(0, 1_000),
        "20",
        "retries that come back for each hundred jobs that are let in",
    ),
    key(
        "protocol_errors_allowed",
        Kind::Number(1, 1_000_000),
        "3",
        "protocol errors after which a worker is quarantined: it gets no new job for a while",
    ),
    key("quarantine_ms", Kind::Number(0, 86_400_000), "300000", "how long a quarantine lasts"),
    key(
        "spawn_tries",
        Kind::Number(1, 1_000),
        "3",
        "failed spawns of a model in one pool after which jobs do not wait for it any more",
    ),
    key(
        "spawn_backoff_first_ms",
        Kind::Number(0, 3_600_000),
        "2000",
        "pause after a failed spawn; doubles with each further one",
    ),
    key("spawn_backoff_max_ms", Kind::Number(0, 3_600_000), "60000", "the longest pause between two spawns"),
    key(
        "spawn_timeout_ms",
        Kind::Number(1_000, 86_400_000),
        "600000",
        "how long a pool may take to have a worker ready; then the spawn is called off",
    ),
    key(
        "stop_timeout_ms",
        Kind::Number(1_000, 3_600_000),
        "120000",
        "how long a pool may take to stop a worker; then it is asked again",
    ),
    key(
        "batch_ageing_ms",
        Kind::Number(1_000, 604_800_000),
        "300000",
        "how long a batch job waits until it may go before interactive ones",
    ),
    key(
        "batch_aged_share",
        Kind::Number(1, 1_000),
        "4",
        "of this many placements at most one goes to an aged batch job while interactive ones wait",
    ),
    key("retention_hours", Kind::Number(1, 87_600), "168", "how long ended jobs are kept"),
    key(
        "keep_prompts",
        Kind::OneOf(&["on", "off"]),
        "off",
        "whether the prompts of durable jobs stay when those end, and are shown, as long as the jobs are kept; \
         off erases each at the end of its job, but none that was kept before",
    ),
    key(
        "journal_snapshot_bytes",
        Kind::Number(65_536, 1 << 32),
        "16777216",
        "bytes of journal after which it begins anew with a snapshot of the state (about 1 KB for each job \
         that has not ended), but never before as many as the last snapshot took",
    ),
    key(
        "pool_interval_ms",
        Kind::Number(100, 3_600_000),
        "30000",
        "how often pools are asked for their state",
    ),
];

/// The key of this name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The known name that is most like `name`, when one is close.
pub fn nearest(name: &str) -> Option<&'static str> {
    KEYS.iter().map(|key| (distance(key.name, name), key.name)).min().filter(|(d, _)| *d <= 3).map(|(_, n)| n)
}

/// Letters to insert, delete or replace to get from one text to the other.
pub fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (b, above) in to.iter().zip(row.iter_mut().skip(1)) {
            let best = (*above + 1).min(left + 1).min(diagonal + usize::from(a != *b));
            diagonal = *above;
            *above = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}
