//! `rbees run MODEL [PROMPT]`: one question, the answer as it comes.

use std::io::{IsTerminal, Read};
use std::time::Instant;

use api_types::ErrorDetail;
use clap::Args;
use llama_orch_sdk::{ChatMessage, Error, TaskRequest};

use super::Outcome;
use crate::context::Context;
use crate::detail;
use crate::watch::{self, OnInterrupt, Telling};

/// Asks a model one question and shows the answer as it comes
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  rbees run smollm2-135m \"Why do bees dance?\"\n  git diff | rbees run smollm2-135m --stdin \"Summarise this change:\""
)]
pub struct RunArgs {
    /// The model
    model: String,
    /// The question; read from standard input when absent or `-`
    prompt: Option<String>,
    /// Puts what comes on standard input behind the question
    #[arg(long)]
    stdin: bool,
    /// What the model is told about its role
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: super::jobs::SamplingArgs,
}

/// Runs it.
pub async fn run(context: &Context, args: RunArgs) -> Outcome {
    let content = content(args.prompt.as_deref(), args.stdin)?;
    let message = |role: &str, content: String| ChatMessage { role: role.into(), content };
    let system = args.system.map(|system| message("system", system));
    let request = TaskRequest {
        model: Some(args.model),
        messages: Some(system.into_iter().chain([message("user", content)]).collect()),
        ..TaskRequest::default()
    };
    let client = context.client()?;
    let began = Instant::now();
    let events = client.submit(args.sampling.fill(request)).await.map_err(Error::into_detail)?;
    let watched =
        watch::show(&context.printer, &client, events, Some(began), Telling::All, OnInterrupt::Cancel)
            .await?;
    Ok(watch::status(&watched))
}

/// The argument, standard input, or both in this order.
fn content(prompt: Option<&str>, with_stdin: bool) -> Result<String, ErrorDetail> {
    let prompt = prompt.filter(|prompt| *prompt != "-");
    let mut stdin = std::io::stdin();
    let piped = if with_stdin || (prompt.is_none() && !stdin.is_terminal()) {
        read_text(&mut stdin)?
    } else {
        String::new()
    };
    let parts: Vec<&str> =
        prompt.into_iter().chain([piped.trim_end()]).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(detail::usage("there is no prompt", "rbees run MODEL \"PROMPT\", or pipe it in"));
    }
    Ok(parts.join("\n\n"))
}

/// All of a text input.
pub fn read_text(input: &mut impl Read) -> Result<String, ErrorDetail> {
    let mut text = String::new();
    input.read_to_string(&mut text).map_err(|error| {
        detail::usage(format!("standard input cannot be read as text: {error}"), "give UTF-8 text")
    })?;
    Ok(text)
}
