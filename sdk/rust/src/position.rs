//! Where a reader stands in a job's stream, so that nothing is lost or doubled over reconnects.

use api_types::TaskEvent;

/// The last numbered event and the next token that a reader expects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) last_id: Option<u64>,
    next_token: Option<u32>,
}

/// What to do with an event that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the next one.
    Take,
    /// It was seen before.
    Drop,
    /// Something before it is missing.
    Gap(String),
}

impl Position {
    /// Behind the event `after`, or before the first.
    pub(crate) fn behind(after: Option<u64>) -> Self {
        // Only a reader from the start knows which token comes first.
        Self { last_id: after, next_token: after.is_none().then_some(0) }
    }

    /// Judges the id of an event; events without one are live only and never seen before.
    pub(crate) fn judge_id(&mut self, id: Option<u64>) -> Verdict {
        let (Some(id), expected) = (id, self.last_id.map_or(0, |last| last + 1)) else {
            return Verdict::Take;
        };
        if id < expected {
            return Verdict::Drop;
        }
        if id > expected {
            return Verdict::Gap(format!("event {id} came where event {expected} was due"));
        }
        self.last_id = Some(id);
        Verdict::Take
    }

    /// Judges a token's own index.
    pub(crate) fn judge_token(&mut self, event: &TaskEvent) -> Verdict {
        let TaskEvent::Token { i, .. } = event else {
            return Verdict::Take;
        };
        let expected = self.next_token.unwrap_or(*i);
        if *i != expected {
            return Verdict::Gap(format!("token {i} came where token {expected} was due"));
        }
        self.next_token = i.checked_add(1);
        Verdict::Take
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_taken_once_and_in_order() {
        let mut position = Position::behind(None);
        assert_eq!(position.judge_id(Some(0)), Verdict::Take);
        assert_eq!(position.judge_id(None), Verdict::Take);
        assert_eq!(position.judge_id(Some(0)), Verdict::Drop);
        assert_eq!(position.judge_id(Some(1)), Verdict::Take);
        assert!(matches!(position.judge_id(Some(3)), Verdict::Gap(_)));
    }

    #[test]
    fn a_token_that_is_missing_or_repeated_is_noticed() {
        let token = |i| TaskEvent::Token { t: String::new(), i, k: None };
        let mut position = Position::behind(None);
        assert_eq!(position.judge_token(&token(0)), Verdict::Take);
        assert!(matches!(position.judge_token(&token(2)), Verdict::Gap(_)));
        assert!(matches!(position.judge_token(&token(0)), Verdict::Gap(_)));
        let mut resumed = Position::behind(Some(9));
        assert_eq!(resumed.judge_token(&token(7)), Verdict::Take);
        assert!(matches!(resumed.judge_token(&token(9)), Verdict::Gap(_)));
    }
}
