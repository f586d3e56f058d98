"""Uses the official OpenAI client as its users do: python openai_client.py BASE_URL MODEL TOKENIZE_URL."""

import json
import sys
import urllib.request

import openai

base_url, model, tokenize_url = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)
messages = [{"role": "user", "content": "Name one colour of the rainbow."}]


def count(body):
    request = urllib.request.Request(tokenize_url, json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request))["count"]


listed = [entry.id for entry in client.models.list()]
assert model in listed, listed
assert client.models.retrieve(model).id == model

whole = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=12)
choice = whole.choices[0]
assert choice.message.role == "assistant"
assert choice.finish_reason in ("stop", "length"), choice
assert whole.usage.prompt_tokens == count({"messages": messages}), whole.usage
assert 0 < whole.usage.completion_tokens <= 12, whole.usage
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
assert (choice.finish_reason == "length") == (whole.usage.completion_tokens == 12), whole

stream = client.chat.completions.create(
    model=model, messages=messages, temperature=0, max_tokens=12, stream=True,
    stream_options={"include_usage": True},
)
text, reasons, usage = "", [], None
for chunk in stream:
    if chunk.usage is not None:
        assert chunk.choices == []
        usage = chunk.usage
        continue
    delta = chunk.choices[0]
    text += delta.delta.content or ""
    if delta.finish_reason:
        reasons.append(delta.finish_reason)
assert text == choice.message.content, (text, choice.message.content)
assert reasons == [choice.finish_reason], reasons
counts = lambda usage: (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
assert counts(usage) == counts(whole.usage), (usage, whole.usage)
# The same prompt again: only its last token was processed.
assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1, usage

plain = client.completions.create(model=model, prompt="Once upon a time", temperature=0, max_tokens=6)
assert plain.usage.prompt_tokens == count({"text": "Once upon a time"}), plain.usage
assert plain.usage.completion_tokens == 6 and plain.choices[0].finish_reason == "length", plain
pieces = client.completions.create(model=model, prompt="Once upon a time", temperature=0, max_tokens=6, stream=True)
assert "".join(piece.choices[0].text for piece in pieces) == plain.choices[0].text

stop = plain.choices[0].text.strip()[-3:]
stopped = client.completions.create(model=model, prompt="Once upon a time", temperature=0, max_tokens=6, stop=[stop])
assert stop not in stopped.choices[0].text and stopped.choices[0].finish_reason == "stop", (stop, stopped)

try:
    client.chat.completions.create(model="no-such-model", messages=messages)
    raise AssertionError("an unknown model was accepted")
except openai.NotFoundError as error:
    assert error.body["code"] == "model_not_found", error.body

try:
    client.chat.completions.create(model=model, messages=messages, max_tokens=0)
    raise AssertionError("max_tokens 0 was accepted")
except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
    assert error.body["param"] == "max_tokens", error.body

try:
    client.completions.create(model=model, prompt="honey " * 4000, max_tokens=4)
    raise AssertionError("an over-long prompt was accepted")
except openai.APIStatusError as error:
    assert error.status_code in (400, 422) and "2048" in str(error.body), error.body

print("the official client is content")
