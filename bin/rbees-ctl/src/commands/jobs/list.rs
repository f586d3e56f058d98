//! `rbees jobs list`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use cli_kit::{ExitStatus, Table, human_duration};
use llama_orch_sdk::{Error, ListQuery, TaskList, TaskStatus};

use crate::commands::Outcome;
use crate::context::Context;

/// Lists jobs, newest first
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only jobs in this state
    #[arg(long, value_enum)]
    status: Option<StatusArg>,
    /// Only jobs for this model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
    /// The page behind the one that gave this
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StatusArg {
    Queued,
    Dispatched,
    Running,
    Completed,
    Failed,
    Cancelled,
}

/// Runs it.
pub async fn run(context: &Context, args: ListArgs) -> Outcome {
    let query = ListQuery {
        status: args.status.map(Into::into),
        model: args.model,
        limit: Some(args.limit),
        cursor: args.cursor,
    };
    let list = context.client()?.list(&query).await.map_err(Error::into_detail)?;
    context.printer.show(&list, table);
    if let (Some(cursor), false) = (&list.cursor, context.printer.is_json()) {
        context.printer.note(format!("there are more: rbees jobs list --cursor {cursor}"));
    }
    Ok(ExitStatus::Ok)
}

fn table(list: &TaskList) -> Table {
    let mut table = Table::new(["ID", "Status", "Model", "Priority", "Worker", "May end in", "Submitted"])
        .with_summary(format!("Jobs shown: {}", list.tasks.len()));
    for job in &list.tasks {
        let priority = if job.priority == llama_orch_sdk::Priority::Batch { "batch" } else { "interactive" };
        let worker = job.worker_id.as_ref().map_or("-", |worker| worker.as_str());
        let eta =
            job.eta_ms.map_or_else(|| "-".to_owned(), |eta| human_duration(Duration::from_millis(eta.p50)));
        table.row([
            &job.job_id.to_string(),
            job.status.as_str(),
            &job.model,
            priority,
            worker,
            &eta,
            &job.submitted_at,
        ]);
    }
    table
}

impl From<StatusArg> for TaskStatus {
    fn from(arg: StatusArg) -> Self {
        match arg {
            StatusArg::Queued => Self::Queued,
            StatusArg::Dispatched => Self::Dispatched,
            StatusArg::Running => Self::Running,
            StatusArg::Completed => Self::Completed,
            StatusArg::Failed => Self::Failed,
            StatusArg::Cancelled => Self::Cancelled,
        }
    }
}
