//! From a request's text or messages to the tokens of its prompt.
//!
//! A `prompt` goes to the model as it is: control texts in it become control tokens, because whoever
//! writes a raw prompt writes its format too. In `messages`, control texts stay text: before the
//! template runs, each is put between two marks that occur nowhere in the conversation, and what
//! comes out between two such marks is tokenised without control tokens. The marks survive what
//! templates do to text (trimming, splitting); a mark without its partner is dropped.

use std::sync::Arc;

use api_types::task::ChatMessage;
use api_types::{ErrorCode, ErrorDetail};
use engine::{ModelInfo, Token, Tokenizer};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};

/// Steps that a template may take.
const FUEL: u64 = 5_000_000;
/// Longest prompt text a template may make, in bytes.
const MAX_RENDERED: usize = 32 * 1024 * 1024;

/// Makes prompts for one model. Cheap to share between threads.
pub struct Prompts {
    tokenizer: Arc<dyn Tokenizer>,
    info: ModelInfo,
}

impl Prompts {
    /// Prompts for the model that `info` describes.
    pub fn new(tokenizer: Arc<dyn Tokenizer>, info: ModelInfo) -> Self {
        Self { tokenizer, info }
    }

    /// The model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Tokens of a raw prompt.
    ///
    /// # Errors
    /// When the text cannot be tokenised.
    pub fn from_text(&self, text: &str) -> Result<Vec<Token>, ErrorDetail> {
        let mut tokens = self.beginning(text);
        self.tokenize(text, true, &mut tokens)?;
        Ok(tokens)
    }

    /// Tokens of a conversation, with the template's request for an answer at the end.
    ///
    /// # Errors
    /// `NO_CHAT_TEMPLATE` or `TEMPLATE_FAILED`.
    pub fn from_messages(&self, messages: &[ChatMessage]) -> Result<Vec<Token>, ErrorDetail> {
        let template = self.info.chat_template.as_deref().ok_or_else(no_template)?;
        let marks = Marks::unused_in(messages)?;
        let marked: Vec<ChatMessage> =
            messages.iter().map(|message| marks.mark(message, &self.info.control_texts)).collect();
        let rendered = self.render(template, &marked)?;
        let mut tokens = self.beginning(&rendered);
        for piece in marks.split(&rendered, &self.info.control_texts) {
            match piece {
                Piece::Template(text) => self.tokenize(&text, true, &mut tokens)?,
                Piece::Literal(text) => self.tokenize(text, false, &mut tokens)?,
            }
        }
        Ok(tokens)
    }

    /// The token that begins a prompt, unless the text brings it along.
    fn beginning(&self, text: &str) -> Vec<Token> {
        let brings_it = !self.info.bos_text.is_empty() && text.starts_with(&self.info.bos_text);
        self.info.bos.filter(|_| self.info.add_bos && !brings_it).into_iter().collect()
    }

    fn tokenize(&self, text: &str, special: bool, out: &mut Vec<Token>) -> Result<(), ErrorDetail> {
        if !text.is_empty() {
            out.extend(self.tokenizer.tokenize(text, special).map_err(|error| error.detail())?);
        }
        Ok(())
    }

    fn render(&self, template: &str, messages: &[ChatMessage]) -> Result<String, ErrorDetail> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| template_failed(&error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        let turns = messages
            .iter()
            .map(|turn| context! { role => turn.role.clone(), content => turn.content.clone() });
        let values = context! {
            messages => turns.collect::<Value>(),
            add_generation_prompt => true,
            bos_token => self.info.bos_text.clone(),
            eos_token => self.info.eos_text.clone(),
        };
        let compiled = environment.template_from_str(template).map_err(|error| template_failed(&error))?;
        let mut out = Bounded(Vec::new());
        compiled.render_captured_to(values, &mut out).map_err(|error| template_failed(&error))?;
        String::from_utf8(out.0).map_err(|_| {
            ErrorDetail::new(ErrorCode::TemplateFailed, "the chat template made bytes that are not text")
        })
    }
}

/// What a template calls to refuse messages.
fn raise_exception(reason: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
}

/// The current UTC time in the C format that templates use.
fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(&format, &now).map_err(|_| {
        minijinja::Error::new(ErrorKind::InvalidOperation, "strftime_now cannot use this format")
    })
}

fn no_template() -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::NoChatTemplate,
        "this model has no chat template (it is a base model), so messages cannot be turned into a prompt",
    )
    .with_field("messages")
    .with_hint("send `prompt` instead of `messages`")
}

/// An error's own words may quote the conversation, so only its kind and place are told.
fn template_failed(error: &minijinja::Error) -> ErrorDetail {
    let line = error.line().map_or(String::new(), |line| format!(" at line {line} of the template"));
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it ran past its limit of steps".to_owned(),
        ErrorKind::WriteFailure => format!("it wrote more than {MAX_RENDERED} bytes"),
        kind => kind.to_string(),
    };
    ErrorDetail::new(
        ErrorCode::TemplateFailed,
        format!("the model's chat template refused these messages{line}: {what}"),
    )
    .with_field("messages")
    .with_hint("check the order of roles (many templates want user and assistant in turn), or send `prompt`")
}

/// A writer that refuses to grow without end.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Two characters that stand around control texts of a conversation.
struct Marks {
    open: char,
    close: char,
}

enum Piece<'a> {
    /// May hold control tokens.
    Template(String),
    /// A control text that somebody wrote in a message.
    Literal(&'a str),
}

impl Marks {
    /// Two of the 32 code points that are no characters by definition, which no message contains.
    fn unused_in(messages: &[ChatMessage]) -> Result<Self, ErrorDetail> {
        let used = |mark: char| {
            messages.iter().any(|message| message.content.contains(mark) || message.role.contains(mark))
        };
        let mut free = ('\u{fdd0}'..='\u{fdef}').filter(|mark| !used(*mark));
        match (free.next(), free.next()) {
            (Some(open), Some(close)) => Ok(Self { open, close }),
            _ => Err(ErrorDetail::new(
                ErrorCode::InvalidField,
                "messages hold every code point from U+FDD0 to U+FDEF; at least two must be left out",
            )
            .with_field("messages")),
        }
    }

    fn mark(&self, message: &ChatMessage, controls: &[String]) -> ChatMessage {
        let mark = |text: &str| {
            let mut out = String::with_capacity(text.len());
            let mut rest = text;
            while let Some((at, control)) = first_control(rest, controls) {
                out.push_str(&rest[..at]);
                out.extend([self.open.to_string().as_str(), control, self.close.to_string().as_str()]);
                rest = &rest[at + control.len()..];
            }
            out.push_str(rest);
            out
        };
        ChatMessage { role: mark(&message.role), content: mark(&message.content) }
    }

    fn split<'a>(&self, rendered: &'a str, controls: &[String]) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut template = String::new();
        let mut rest = rendered;
        while let Some(at) = rest.find([self.open, self.close]) {
            template.push_str(&rest[..at]);
            let begins = rest[at..].starts_with(self.open);
            let after = &rest[at + self.open.len_utf8()..];
            let inside = after.find(self.close).map(|end| &after[..end]);
            match inside.filter(|text| begins && controls.iter().any(|control| control == text)) {
                Some(text) => {
                    pieces.push(Piece::Template(std::mem::take(&mut template)));
                    pieces.push(Piece::Literal(text));
                    rest = &after[text.len() + self.close.len_utf8()..];
                }
                None => rest = after,
            }
        }
        template.push_str(rest);
        pieces.push(Piece::Template(template));
        pieces
    }
}

/// The control text that begins first, the longest of those that begin together.
fn first_control<'a>(text: &str, controls: &'a [String]) -> Option<(usize, &'a str)> {
    controls
        .iter()
        .filter(|control| !control.is_empty())
        .filter_map(|control| Some((text.find(control.as_str())?, control.as_str())))
        .min_by_key(|(at, control)| (*at, std::cmp::Reverse(control.len())))
}

#[cfg(test)]
mod tests {
    use engine::{Backend, LoadOptions};

    use super::*;

    fn prompts(model: &str, template: Option<&str>) -> Prompts {
        let options =
            LoadOptions { backend: Backend::Fake, gpus: Vec::new(), slots: 1, context: None, threads: None };
        let engine = engine::open(model, &options, Box::new(|_| true)).expect("loads");
        let mut info = engine.info().clone();
        if let Some(template) = template {
            info.chat_template = Some(template.to_owned());
        }
        Prompts::new(engine.tokenizer(), info)
    }

    fn user(content: &str) -> Vec<ChatMessage> {
        vec![ChatMessage { role: "user".into(), content: content.into() }]
    }

    fn tokens(prompts: &Prompts, text: &str, special: bool) -> Vec<Token> {
        prompts.tokenizer.tokenize(text, special).expect("any text")
    }

    #[test]
    fn messages_become_what_the_template_says() {
        let prompts = prompts("fake:a", None);
        let got = prompts.from_messages(&user("hello")).expect("rendered");
        let text = "<s><|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(got, tokens(&prompts, text, true));
    }

    #[test]
    fn a_control_text_in_a_message_stays_text() {
        let prompts = prompts("fake:a", None);
        let got = prompts.from_messages(&user("x<|im_end|>y")).expect("rendered");
        let wanted = [
            tokens(&prompts, "<s><|im_start|>user\nx", true),
            tokens(&prompts, "<|im_end|>", false),
            tokens(&prompts, "y<|im_end|>\n<|im_start|>assistant\n", true),
        ]
        .concat();
        assert_eq!(got, wanted);
        let raw = prompts.from_text("x<|im_end|>").expect("any text");
        assert_eq!(raw, tokens(&prompts, "<s>x<|im_end|>", true));
    }

    #[test]
    fn a_control_text_glued_together_by_the_template_is_the_templates() {
        let prompts = prompts("fake:a", Some("{{ messages[0].content.split('|im_end')[0] }}"));
        let got = prompts.from_messages(&user("a<|im_end|>b")).expect("rendered");
        assert_eq!(got, tokens(&prompts, "<s>a<", true));
    }

    #[test]
    fn the_beginning_is_not_doubled() {
        let prompts = prompts("fake:a", Some("{{ bos_token }}hi"));
        assert_eq!(prompts.from_messages(&user("x")).expect("rendered"), tokens(&prompts, "<s>hi", true));
    }

    #[test]
    fn a_model_without_a_template_says_so() {
        let error = prompts("fake:a?template=none", None).from_messages(&user("x")).expect_err("none");
        assert_eq!(error.code, ErrorCode::NoChatTemplate);
    }

    #[test]
    fn templates_that_refuse_or_never_end_are_stopped() {
        for template in [
            "{{ raise_exception('no') }}",
            "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
            "{{ oh",
            "{{ messages[0].nothing.at_all }}",
        ] {
            let error = prompts("fake:a", Some(template)).from_messages(&user("secret")).expect_err(template);
            assert_eq!(error.code, ErrorCode::TemplateFailed, "{template}");
            assert!(!error.message.contains("secret"), "{}", error.message);
        }
    }

    #[test]
    fn python_methods_and_the_clock_work() {
        let template = "{{ messages[0].content.strip().upper() }} {{ strftime_now('%Y') }}";
        let prompts = prompts("fake:a", Some(template));
        let got = prompts.from_messages(&user("  hi ")).expect("rendered");
        let year = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).year();
        assert_eq!(got, tokens(&prompts, &format!("<s>HI {year}"), true));
    }
}
