//! A child process that is asked on its standard input and streams its answer.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use api_types::pool::RemoteRequest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::Sink;

/// How long standard error may stay open after the process has ended. An SSH connection that is
/// kept for the next command may hold it for as long as it lives.
const STRAY_STDERR: Duration = Duration::from_millis(300);

/// Starts `command`, writes `preamble` and the request as one line each, and passes output on
/// until the process has ended. Its standard input stays open meanwhile.
pub(super) async fn converse(
    mut command: Command,
    preamble: &str,
    request: &RemoteRequest,
    on_stdout: Sink<'_>,
    on_stderr: Sink<'_>,
) -> std::io::Result<ExitStatus> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(std::io::Error::other("the child process has no pipes"));
    };
    let mut asked = preamble.as_bytes().to_vec();
    serde_json::to_writer(&mut asked, request)?;
    asked.push(b'\n');

    let ask = async {
        // A process that ends at once closes the pipe; its exit status says why.
        let _ = stdin.write_all(&asked).await;
        let _ = stdin.flush().await;
    };
    let ended = async {
        let ((), read) = tokio::join!(ask, pump(stdout, on_stdout));
        read?;
        child.wait().await
    };
    beside(ended, pump(stderr, on_stderr)).await
}

/// Runs `errors` beside `ended` and, once that is done, for a short while longer.
async fn beside(
    ended: impl Future<Output = std::io::Result<ExitStatus>>,
    errors: impl Future<Output = std::io::Result<()>>,
) -> std::io::Result<ExitStatus> {
    let (mut ended, mut errors) = (std::pin::pin!(ended), std::pin::pin!(errors));
    let status = tokio::select! {
        status = &mut ended => status,
        _ = &mut errors => return ended.await,
    };
    let _ = tokio::time::timeout(STRAY_STDERR, errors).await;
    status
}

async fn pump(mut from: impl AsyncRead + Unpin, to: Sink<'_>) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        to(buffer.get(..count).unwrap_or_default());
    }
}
