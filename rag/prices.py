"""What tokens cost, as an operator writes it down.

The file is TOML. Prices are per million tokens, in one currency; a model that is not named has the price of `*`, where
there is one, and otherwise none:

    currency = "EUR"

    [models."smollm2-135m"]
    prompt = 0.10        # prompt tokens that are computed
    cached = 0.01        # prompt tokens whose KV comes from the cache
    output = 0.40

    [models."*"]
    prompt = 0.20
    cached = 0.02
    output = 0.80
"""

import tomllib
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag.errors import ConfigurationError
from rag.ledger import Tokens

__all__ = ["Cost", "Price", "PriceBook"]

ANY_MODEL = "*"
MILLION = 1_000_000


class Price(BaseModel):
    """Price of a million tokens of each kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Decimal = Field(ge=0)
    cached: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What tokens cost, and what they would have cost had nothing come from the cache."""

    total: Decimal = Decimal(0)
    uncached: Decimal = Decimal(0)

    @property
    def saved(self) -> Decimal:
        """What the cache has saved."""
        return self.uncached - self.total

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.total + other.total, self.uncached + other.uncached)


class PriceBook(BaseModel):
    """Prices by model.

    Attributes:
        currency: for people, such as `EUR`.
        models: prices by the model's name; `*` is any other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    currency: str = Field(min_length=1)
    models: dict[str, Price]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a price book.

        Raises:
            ConfigurationError: the file cannot be read or is none; the message names the place.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text("utf-8"), parse_float=Decimal))
        except OSError as error:
            reason = error.strerror or str(error)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            reason = f"it is no TOML: {error}"
        except ValidationError as error:
            reason = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigurationError(f"the price book {path} cannot be used ({reason}); correct it, or do without it")

    def cost(self, model: str, tokens: Tokens) -> Cost | None:
        """Return what tokens of a model cost; None for one without a price."""
        price = self.models.get(model) or self.models.get(ANY_MODEL)
        if price is None:
            return None
        cached, computed = price.cached * tokens.cached, price.prompt * (tokens.prompt - tokens.cached)
        output = price.output * tokens.output
        total, uncached = cached + computed + output, price.prompt * tokens.prompt + output
        return Cost(total / MILLION, uncached / MILLION)
