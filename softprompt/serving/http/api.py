"""What goes over the wire: OpenAI's shapes where OpenAI has one, with `input_tokens`, `truncated` and `prompt_hash`."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from softprompt.answering import MAX_BEAMS, MAX_STOPS
from softprompt.base.names import nearest
from softprompt.serving.http.registry import MAX_MEMBERS

MAX_CHOICES = 16  # completions of one input at most; ours
MAX_TARGETS = 32  # of an alias; ours
MAX_ALTERNATIVES = 20  # most probable tokens told in each place at most; as OpenAI's chat and vLLM have it
Text = Annotated[str, Field(max_length=1_000_000)]
SOME: Any = Field(min_length=1, fail_fast=True)  # a list of which the first wrong item is told, not a million
Texts = Text | Annotated[list[Text], SOME] | None
Record = dict[str, Any]
Records = Record | Annotated[list[Record], SOME] | None
Id = Annotated[int, Field(ge=0)]
Ids = Annotated[list[Id], SOME]
MaxTokens = Annotated[int | None, Field(ge=0, le=100_000, description="the prompt's longest target if left out")]
NumAlternatives = Annotated[int | None, Field(ge=0, le=MAX_ALTERNATIVES)]


class Strict(BaseModel):
    """What a client sends. Unknown fields are refused, so that no wish is passed over in silence; null is no wish."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    NOT_HAD: ClassVar[dict[str, tuple[Any, ...] | None]] = {}
    """Fields of OpenAI's that are not had here, and the values that ask for nothing; None: whatever value."""

    @model_validator(mode="before")
    @classmethod
    def _wishes(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        wishes = {}
        for name, value in data.items():
            if name in cls.model_fields and value is not None:
                wishes[name] = value
            elif name in cls.NOT_HAD and value is not None:
                neutral = cls.NOT_HAD[name]
                if neutral is not None and value not in neutral:
                    taken = " or ".join(json.dumps(one) for one in neutral)
                    raise PydanticCustomError("not_had", "not had", {"name": name, "taken": taken, "value": value})
            elif name not in cls.model_fields and value is not None:
                hint, shown = nearest(name, cls.model_fields), name.encode("utf-8", "replace").decode()
                raise PydanticCustomError("unknown_field", "unknown", {"name": shown, "hint": hint})
        return wishes


class Question(Strict):
    """What every question may say."""

    model: str = Field(min_length=1, max_length=200, description="a name of GET /v1/models")
    user: str | None = Field(None, max_length=500, description="keeps this user on one side of an alias's split")
    timeout: float | None = Field(
        None, gt=0, description="seconds until a text ends as it is, or no answer comes; the server's limit at most"
    )
    finished: bool = Field(False, description="texts are read as they stand, and do not fill the prompt's template")
    show_input: bool = Field(False, description="the answer has `input_text`: what the model read")


class StreamOptions(Strict):
    """As OpenAI has it."""

    NOT_HAD: ClassVar[dict[str, tuple[Any, ...] | None]] = {"include_obfuscation": (False,)}

    include_usage: bool = False


class Writing(Question):
    """How text is chosen."""

    temperature: float = Field(0.0, ge=0, le=100, description="0: the most probable token")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES, description="answers for each input; more than 1 need a temperature")
    num_beams: int = Field(1, ge=1, le=MAX_BEAMS)
    length_penalty: float = Field(1.0, ge=-10, le=10)
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    NOT_HAD: ClassVar[dict[str, tuple[Any, ...] | None]] = {
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "logit_bias": ({},),
        "best_of": (1,),
        "suffix": ("",),
        "response_format": ({"type": "text"},),
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "parallel_tool_calls": (True, False),  # of none
        "modalities": (["text"],),
        "verbosity": ("medium",),
        "store": (False,),
        "service_tier": ("auto", "default"),
        "reasoning_effort": None,
        "metadata": None,
        "safety_identifier": None,
        "prompt_cache_key": None,
        "prompt_cache_retention": None,
    }


class CompletionRequest(Writing):
    """Text for texts (`prompt`), which fill the only field of the prompt's template, or for records (`fields`)."""

    prompt: Texts | Ids | Annotated[list[Ids], SOME] = None
    fields: Records = None
    max_tokens: MaxTokens = None
    logprobs: NumAlternatives = Field(None, description="log-probabilities of the tokens, and of so many most probable")
    echo: bool | None = Field(None, description="the input too, which is then read as it stands; decoder-only models")


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """A turn of a conversation."""

    NOT_HAD: ClassVar[dict[str, tuple[Any, ...] | None]] = {"tool_calls": ([],), "annotations": ([],)}

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], SOME]
    name: str | None = None

    @property
    def text(self) -> str:
        """Its text, all pieces joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Writing):
    """One input as a user's message; the bare model takes a whole conversation."""

    messages: list[Message] = Field(min_length=1, max_length=1_000)
    max_tokens: MaxTokens = None
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: NumAlternatives = Field(None, description="the most probable tokens in each place, with logprobs")


class TokenizeRequest(Strict):
    """A text to cut into tokens."""

    prompt: Text
    model: str | None = Field(None, description="all names share one tokenizer")
    add_special_tokens: bool = Field(True, description="with what the tokenizer itself puts around a text")
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """Token ids to join."""

    tokens: list[Id] = Field(fail_fast=True)
    model: str | None = None


class ClassifyRequest(Question):
    """Labels for texts (`input`), which fill the only field of the prompt's template, or for records (`fields`)."""

    input: Texts = None
    fields: Records = None
    labels: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=2, max_length=1_000, description="other labels than the prompt's own"
    )


class EnsembleRequest(Strict):
    """Prompts that vote."""

    members: list[str] = Field(min_length=2, max_length=MAX_MEMBERS)


class AliasRequest(Strict):
    """Where a name's requests go, in percent."""

    targets: dict[str, Annotated[float, Field(gt=0, le=100)]] = Field(min_length=1, max_length=MAX_TARGETS)

    @field_validator("targets", mode="before")
    @classmethod
    def _few(cls, targets: Any) -> Any:
        """Before each of them is looked at."""
        if isinstance(targets, dict) and len(targets) > MAX_TARGETS:
            raise PydanticKnownError(
                "too_long", {"field_type": "Dictionary", "max_length": MAX_TARGETS, "actual_length": len(targets)}
            )
        return targets


class Usage(BaseModel):
    """Tokens, soft prompts not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Member(BaseModel):
    """What one prompt of an ensemble answered."""

    prompt_hash: str | None
    text: str
    log_prob: float


class Vote(BaseModel):
    """What one prompt of an ensemble scored."""

    prompt_hash: str | None
    label: str
    probabilities: dict[str, float]


class _Told(BaseModel):
    """What is said of the input beside every answer."""

    input_tokens: int
    truncated: bool
    prompt_hash: str | None = Field(description="None: the bare model; an ensemble's are with its members")
    input: int = Field(description="which of the inputs it belongs to")
    example: str | None = Field(None, description="the example's id, where a record holds several")
    seed: int | None = Field(None, description="what was drawn from, where a temperature was given")
    input_text: str | list[str] | None = Field(
        None, description="what the model read, if asked for; a list where prompts that vote read different texts"
    )


class LogProbs(BaseModel):
    """As OpenAI has it, a column for each; None for the first token of an input, before which nothing stands."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TokenLogProb(BaseModel):
    """A token in a chat's answer, as OpenAI has it."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogProb(TokenLogProb):
    """The one written, and the most probable in its place."""

    top_logprobs: list[TokenLogProb]


class ChatLogProbs(BaseModel):
    """Those of a chat's answer."""

    content: list[ChosenLogProb]
    refusal: None = None


class _Choice(_Told):
    """One answer's end."""

    index: int
    finish_reason: Literal["stop", "length"]
    members: list[Member] | None = None


class _Answered(BaseModel):
    """What every answer of a model begins with."""

    id: str
    created: int
    model: str
    usage: Usage


class CompletionChoice(_Choice):
    """One answer."""

    text: str
    logprobs: LogProbs | None = None


class Completion(_Answered):
    """The answer of /v1/completions."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class AssistantMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(_Choice):
    """One answer."""

    message: AssistantMessage
    logprobs: ChatLogProbs | None = None


class ChatCompletion(_Answered):
    """The answer of /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class ClassifyResult(_Told):
    """One input's label."""

    index: int
    label: str
    probabilities: dict[str, float] = Field(description="of the labels among themselves; an ensemble's mean")
    log_probs: dict[str, float] | None = Field(description="summed log-probability of each; None for an ensemble")
    votes: list[Vote] | None = None


class Classification(_Answered):
    """The answer of /v1/classify."""

    object: Literal["classification"] = "classification"
    results: list[ClassifyResult]


class Tokenized(BaseModel):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """The answer of /detokenize."""

    prompt: str


class Model(BaseModel):
    """A name that requests may give as `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["softprompt"] = "softprompt"
    kind: Literal["base", "prompt", "ensemble", "alias"]


class Models(BaseModel):
    """The answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]
    dtype: str = Field(description="the type the model computes in")
    batch_invariant: bool = Field(
        description="whether an answer is the same bits whatever else is asked meanwhile; else it is the same but for "
        "rounding: 1e-5 of a log-probability in float32; in a narrower type nearly tied answers may change places"
    )


class PromptVersion(BaseModel):
    """One content of a prompt name."""

    prompt_hash: str = Field(description="of everything that changes an answer: numbers, text format, labels, task, …")
    values_hash: str = Field(description="of the numbers alone, which other prompts may have, too")
    length: int
    task: str | None
    fields: list[str] = Field(description="what a record of it has, with ? behind one that may be missing")
    labels: list[str]
    dev_metrics: dict[str, Any]
    scoring: str


class PromptInfo(BaseModel):
    """A prompt name and its versions, the current one last."""

    name: str
    versions: list[PromptVersion]


class EnsembleInfo(BaseModel):
    """An ensemble."""

    name: str
    members: list[str]
    fields: list[str] = Field(description="what a record has for all of them; none where a member is gone")


class AliasInfo(BaseModel):
    """An alias and the shares of its targets, in percent."""

    name: str
    targets: dict[str, float]


class Prompts(BaseModel):
    """The answer of /v1/prompts."""

    base: str
    prompts: list[PromptInfo]
    ensembles: list[EnsembleInfo]
    aliases: list[AliasInfo]


class Deleted(BaseModel):
    """What went."""

    name: str
    prompt_hashes: list[str]


class NearestRow(BaseModel):
    """A prompt token and the vocabulary's nearest to it, by cosine."""

    position: int
    norm: float
    tokens: list[str]
    cosines: list[float]


class Nearest(BaseModel):
    """The answer of /v1/prompts/NAME/nearest."""

    name: str
    prompt_hash: str
    rows: list[NearestRow]


class ErrorBody(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    request_id: str


class Error(BaseModel):
    """Every answer that is not 2xx."""

    error: ErrorBody
