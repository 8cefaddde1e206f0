"""A classifier on disk: a folder with card.json and the fitted classifier.skops.

skops is used instead of pickle because loading executes nothing: the file names its types, and only
those of scikit-learn and of TRUSTED are created. The card holds the file's sha256, the language
model's fingerprint, and everything the answers depend on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from packhorse.assess.prompting import PromptTemplate
from packhorse.config import EngineConfig
from packhorse.errors import InputError, ModelError
from packhorse.storage.atomic_files import atomic_file, make_folder, write_json
from packhorse.storage.json_files import decode, read_json, shown

FORMAT = 1
CARD = "card.json"
FITTED = "classifier.skops"
TRUSTED = frozenset(
    {"sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration"}
)
"""Types of a calibrated classifier that skops does not trust by default."""
_HINT = "save it again with packhorse assess"


@dataclass(frozen=True, slots=True)
class ClassicPart:
    """The classic classifier.

    Attributes:
        family: name; value: tuned setting.
        sees: "pieces" (the file takes texts) or "embeddings".
        embeddings: name of the sentence model; "" for none.
        sha256: of the file.
    """

    family: str
    value: float
    sees: str
    embeddings: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelPart:
    """The language model.

    Attributes:
        model: as given by the user.
        fingerprint: of its files.
        engine: as it ran; "auto" in cards of versions that saved what was asked for.
        prior: divided out of the label probabilities; None for none.
    """

    model: str
    fingerprint: str
    engine: EngineConfig
    answers: Literal["choice", "text"]
    prompting: PromptTemplate
    prior: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Card:
    """Description of a saved classifier.

    Attributes:
        kind: which parts answer.
        classes: sorted.
        threshold: of a cascade, see `packhorse.assess.cascade`.
        text_column: of the texts it was assessed on.
        verdict: of its assessment.
        facts: for display.
    """

    kind: Literal["classic", "model", "cascade"]
    title: str
    classes: tuple[str, ...]
    classic: ClassicPart | None = None
    model: ModelPart | None = None
    threshold: float | None = None
    text_column: str = ""
    verdict: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def write_fitted(folder: Path, fitted: Any) -> str:
    """Write the fitted classifier into `folder`, created if missing, and return its sha256."""
    import skops.io

    make_folder(folder)
    data = skops.io.dumps(fitted)
    with atomic_file(folder / FITTED) as file:
        file.write(data)
    return sha256(data).hexdigest()


def write_card(folder: Path, card: Card) -> None:
    """Write the card last, so that a folder with a card is complete."""
    make_folder(folder)
    write_json(folder / CARD, asdict(card))


def read_card(folder: Path) -> Card:
    """Read the card of a folder; raises InputError if there is no readable one."""
    path = folder / CARD
    try:
        document = read_json(path, error=InputError, hint=_HINT)
    except InputError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise InputError(
            f"{folder} holds no saved classifier: {CARD} cannot be read",
            "name the folder that packhorse assess wrote, for example assessment/winner",
        ) from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path} has format {shown(found)}, this version reads format {FORMAT}",
            "use the packhorse that wrote it, or save it again",
        )
    try:
        card: Card = decode(Card, document, "card")
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}", _HINT) from error
    parts = {"classic": (True, False), "model": (False, True), "cascade": (True, True)}
    if (card.classic is not None, card.model is not None) != parts[card.kind]:
        raise InputError(f"{path} is damaged: a {card.kind} lacks a part", _HINT)
    return card


def read_fitted(folder: Path, part: ClassicPart) -> Any:
    """Load the fitted classifier; nothing of the file is executed before it is checked.

    Raises:
        ModelError: the file is not the one on the card, holds a type that is not trusted, or is no
            classifier.
    """
    import skops.io

    path = folder / FITTED
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}", _HINT) from error
    if sha256(data).hexdigest() != part.sha256:
        raise ModelError(f"{path} is not the file its card names: it was changed", _HINT)
    try:
        strange = set(skops.io.get_untrusted_types(data=data)) - TRUSTED
        if strange:
            raise ModelError(
                f"{path} holds {', '.join(sorted(strange))}, which no saved classifier needs",
                "do not use a file you do not trust",
            )
        fitted = skops.io.loads(data, trusted=sorted(TRUSTED))
    except ModelError:
        raise
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(f"{path} cannot be read: {reason}", _HINT) from error
    if not hasattr(fitted, "predict_proba") or not hasattr(fitted, "classes_"):
        raise ModelError(f"{path} holds {type(fitted).__name__}, no classifier", _HINT)
    return fitted
