//! The way of the requests that come by the ten thousand: those that hand in jobs are met before the
//! router, which costs as much as all their checks. What the router would do for them is done here in
//! the same words; every other request goes to the router.

use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Method, Request};
use tower::ServiceExt;

use super::body::{Body as Json, Raw, parse};
use super::{ApiError, App, front_door, openai, tasks};

/// Answers the requests of a connection.
#[derive(Debug, Clone)]
pub struct Entrance {
    app: App,
    router: Router,
}

impl Entrance {
    /// All routes of this app.
    pub fn new(app: App) -> Self {
        Self { router: super::router(app.clone()), app }
    }

    /// Answers one request.
    pub async fn answer<B>(self, request: Request<B>) -> Response
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let is_post = request.method() == Method::POST;
        match request.uri().path() {
            "/v1/chat/completions" if is_post => {
                front_door::hot(self.app, "POST /v1/chat/completions", request, chat_completion).await
            }
            "/v2/tasks" if is_post => front_door::hot(self.app, "POST /v2/tasks", request, task).await,
            // On the heap, so that the others do not carry its room along.
            _ => match Box::pin(self.router.oneshot(request.map(Body::new))).await {
                Ok(answer) => answer,
                Err(never) => match never {},
            },
        }
    }
}

async fn chat_completion<B>(
    app: App,
    correlation_id: api_types::CorrelationId,
    request: Request<B>,
) -> Response
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let answer = async {
        let key = openai::IdempotencyKey::of(request.headers())?;
        let body = Raw::of(request, app.limits).await?;
        openai::chat::create_chat_completion(State(app), Extension(correlation_id), key, body).await
    };
    answer.await.unwrap_or_else(ApiError::into_response)
}

async fn task<B>(app: App, correlation_id: api_types::CorrelationId, request: Request<B>) -> Response
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let answer = async {
        let query = Query::try_from_uri(request.uri());
        let headers = request.headers().clone();
        let Raw(body) = Raw::of(request, app.limits).await?;
        let body = Json(parse(&body)?);
        tasks::submit_task(State(app), Extension(correlation_id), query, headers, body).await
    };
    answer.await.unwrap_or_else(ApiError::into_response)
}
