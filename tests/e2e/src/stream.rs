//! Reading a job's events as a client would, ids included.

use api_types::TaskEvent;
use api_types::sse::{Frame, FrameDecoder};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

/// An open event stream.
pub struct Stream {
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    decoder: FrameDecoder,
}

/// What came out of a stream so far.
#[derive(Debug, Clone, Default)]
pub struct Received {
    /// The numbered events, in order.
    pub events: Vec<(u64, TaskEvent)>,
}

impl Received {
    /// The tokens' texts, joined.
    pub fn text(&self) -> String {
        self.tokens().iter().map(|(_, text)| text.as_str()).collect()
    }

    /// The tokens with their indices.
    pub fn tokens(&self) -> Vec<(u32, String)> {
        self.events
            .iter()
            .filter_map(|(_, event)| match event {
                TaskEvent::Token { t, i, .. } => Some((*i, t.clone())),
                _ => None,
            })
            .collect()
    }

    /// The last event.
    pub fn last(&self) -> Option<&TaskEvent> {
        self.events.last().map(|(_, event)| event)
    }

    /// The id a client would send as `Last-Event-ID`.
    pub fn last_id(&self) -> Option<u64> {
        self.events.last().map(|(id, _)| *id)
    }

    /// Fails unless ids and token indices count up from 0 without a gap and one last event ends it.
    pub fn assert_whole(&self) {
        for (at, (id, event)) in self.events.iter().enumerate() {
            assert_eq!(*id, at as u64, "ids have a gap before {event:?}: {self:#?}");
            assert_eq!(event.is_last(), at + 1 == self.events.len(), "the last event stands last: {self:#?}");
        }
        for (at, (i, _)) in self.tokens().iter().enumerate() {
            assert_eq!(*i, at as u32, "token indices have a gap");
        }
    }
}

impl Stream {
    /// The body of a successful answer.
    pub fn new(response: reqwest::Response) -> Self {
        Self { body: response.bytes_stream().boxed(), decoder: FrameDecoder::default() }
    }

    /// The next frame; `None` when the stream ended or broke.
    pub async fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("frames are short") {
                return Some(frame);
            }
            match self.body.next().await {
                Some(Ok(chunk)) => self.decoder.push(&chunk),
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// Reads numbered events into `received` until `enough` says so or the stream ends.
    pub async fn read_until(&mut self, received: &mut Received, mut enough: impl FnMut(&Received) -> bool) {
        while !enough(received) {
            let Some(frame) = self.next_frame().await else { return };
            if let Some(id) = frame.id {
                let event = frame.task_event().expect("the event is of the contract");
                assert_eq!(frame.event, event.name(), "the frame's name repeats the type");
                received.events.push((id, event));
            }
        }
    }

    /// Reads everything.
    pub async fn read_to_end(mut self) -> Received {
        let mut received = Received::default();
        self.read_until(&mut received, |_| false).await;
        received
    }
}
