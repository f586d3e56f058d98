//! The first question, its answer, and what was measured.

use std::time::Instant;

use api_types::ErrorDetail;
use api_types::pool::WorkerRecord;
use cli_kit::{Printer, human_bytes};
use llama_orch_sdk::{ChatMessage, Client, Error, TaskRequest};
use serde::Serialize;

use crate::watch::{self, OnInterrupt, Telling};

const QUESTION: &str = "What do bees do all day? Answer in one sentence.";
const MAX_TOKENS: u32 = 64;

/// What `rbees up` found out.
#[derive(Debug, Clone, Serialize)]
pub struct FirstAnswer {
    /// Where the orchestrator listens.
    pub url: String,
    /// Base URL of the OpenAI API.
    pub openai_base_url: String,
    /// The model that answered.
    pub model: String,
    /// The answer.
    pub answer: String,
    /// Seconds from the question to the first token.
    pub seconds_to_first_token: Option<f64>,
    /// Decode rate.
    pub tokens_per_second: Option<f64>,
    /// Bytes the fit check predicted.
    pub memory_predicted_bytes: Option<u64>,
    /// Bytes the worker was measured to use.
    pub memory_used_bytes: Option<u64>,
}

/// Asks, and shows the answer as it comes.
pub async fn ask(
    printer: &Printer,
    client: &Client,
    url: &str,
    model: &str,
    record: Option<WorkerRecord>,
) -> Result<FirstAnswer, ErrorDetail> {
    let request = TaskRequest {
        model: Some(model.to_owned()),
        messages: Some(vec![ChatMessage { role: "user".into(), content: QUESTION.into() }]),
        max_tokens: Some(MAX_TOKENS),
        temperature: Some(0.0),
        ..TaskRequest::default()
    };
    printer.note(format!("\n> {QUESTION}"));
    let began = Instant::now();
    let events = client.submit(request).await.map_err(Error::into_detail)?;
    let watched =
        watch::show(printer, client, events, Some(began), Telling::Nothing, OnInterrupt::Cancel).await?;
    Ok(FirstAnswer {
        url: url.to_owned(),
        openai_base_url: format!("{url}/v1"),
        model: model.to_owned(),
        answer: watched.text,
        seconds_to_first_token: watched.first_token.map(|span| span.as_secs_f64()),
        tokens_per_second: watched.end.as_ref().and_then(watch::rate),
        memory_predicted_bytes: record.as_ref().and_then(|record| record.predicted_bytes),
        memory_used_bytes: record.as_ref().and_then(|record| record.measured_bytes),
    })
}

impl FirstAnswer {
    /// Prints the figures and the lines to paste.
    pub fn print(&self, printer: &Printer) {
        if printer.is_json() {
            return printer.json(self);
        }
        let known = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), human_bytes);
        let number = |value: Option<f64>, unit: &str| {
            value.map_or_else(|| "unknown".to_owned(), |value| format!("{value:.2} {unit}"))
        };
        printer.line(format!(
            "\nfirst token  {}\nrate         {}\nmemory       {} predicted, {} used\nbase URL     {}\n",
            number(self.seconds_to_first_token, "s"),
            number(self.tokens_per_second, "tokens/s"),
            known(self.memory_predicted_bytes),
            known(self.memory_used_bytes),
            self.openai_base_url,
        ));
        self.lines_to_paste().iter().for_each(|(what, line)| printer.line(format!("# {what}\n{line}")));
    }

    fn lines_to_paste(&self) -> [(&'static str, String); 3] {
        let (base, model) = (&self.openai_base_url, &self.model);
        [
            (
                "curl",
                format!(
                    "curl -N {base}/chat/completions -d '{{\"model\":\"{model}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello!\"}}]}}'"
                ),
            ),
            (
                "OpenAI SDK",
                format!(
                    "python3 -c 'from openai import OpenAI; c = OpenAI(base_url=\"{base}\", api_key=\"unused\"); print(c.chat.completions.create(model=\"{model}\", messages=[{{\"role\": \"user\", \"content\": \"Hello!\"}}]).choices[0].message.content)'"
                ),
            ),
            (
                "a coding agent",
                format!("aider --openai-api-base {base} --openai-api-key unused --model openai/{model}"),
            ),
        ]
    }
}
