"""The words around passages and question. Knows no tokenizer and no chat format."""

from pydantic import BaseModel, ConfigDict, field_validator

__all__ = ["QUESTION", "PromptTemplate", "check_question"]

QUESTION = "{question}"


def check_question(after: str) -> str:
    """Return what follows the passages.

    Raises:
        ValueError: it does not hold the question once.
    """
    if after.count(QUESTION) != 1:
        raise ValueError("it must hold {question} exactly once")
    return after


class PromptTemplate(BaseModel):
    """What the model is told; everything before the passages is the same for every question.

    Attributes:
        system: the system message.
        before: what comes between it and the first passage; may be empty.
        after: what follows the passages; holds `{question}` once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str = (
        "You answer questions from the passages that you are given. "
        "After each sentence, cite the label of its passage in brackets."
    )
    before: str = ""
    after: str = "Question: {question}\nAnswer in a few sentences, using the passages:"

    @field_validator("after")
    @classmethod
    def _holds_the_question(cls, after: str) -> str:
        return check_question(after)
