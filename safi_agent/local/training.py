"""Train a local judge from examples: vectors, fit, temperatures, confidences, card and folder.

A judge that is trained again starts from its weights under SAL, whose state is a part of the folder. No text of earlier
trainings is needed or kept.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from safi_agent.calibration.card import Agreement
from safi_agent.calibration.measurement import FEW, RESAMPLES, Judged, agreement_rows
from safi_agent.local import confidence
from safi_agent.local.card import CARD, PAGE, Data, Head, JudgeCard, read_card, to_markdown
from safi_agent.local.encoder import Encoder
from safi_agent.local.examples import Example, Part, data_sha256, part_of, question
from safi_agent.local.judge import (
    ENCODER,
    NOVELTY,
    STATE,
    WEIGHTS,
    Opinion,
    check_files,
    file_hashes,
    load_network,
    opinion,
)
from safi_agent.local.module import Fit, Module, Rows, Settings, as_rows, batches, fit, quiet
from safi_agent.local.network import Network, pair_features
from safi_agent.local.novelty import Novelty, threshold
from safi_agent.record import utc_now
from safi_agent.values import ValueSet, label
from sal_lightning import SALCallback

CHUNK = 64  # texts whose vectors are saved together
WORK = ".training"  # suffix of the folder in which an interrupted training is kept
Advance = Callable[[int, int], None]


class Previous(NamedTuple):
    """The judge from which a training starts."""

    folder: Path
    card: JudgeCard
    card_sha256: str

    @classmethod
    def read(cls, folder: str | Path) -> "Previous":
        """Read and check the folder of a judge.

        Raises:
            ValueError: it is not the folder of a judge, or differs from its card.
        """
        card, card_sha256 = read_card(folder)
        check_files(Path(folder), card)
        return cls(Path(folder), card, card_sha256)


def train_judge(
    examples: Sequence[Example],
    values: ValueSet,
    to: str | Path,
    *,
    encoder: str | Path | None = None,
    previous: str | Path | None = None,
    settings: Settings | None = None,
    progress: bool = False,
    advance: Advance = lambda done, total: None,
) -> JudgeCard:
    """Train a judge, and write its folder. The same call continues a training that was interrupted.

    Args:
        examples: of ``safi_agent.local.examples.combine``.
        values: the value set; values without examples get no head and are left to another judge.
        to: the folder to write, which must not exist.
        encoder: folder of the encoder, for a first training.
        previous: folder of the judge from which training starts, instead of ``encoder``. Its encoder and its seed are
            used, so that what was held out stays held out.
        settings: how to train.
        progress: whether to show Lightning's progress bar.
        advance: called with the number of texts that are encoded, and that of all texts.

    Returns:
        The card.

    Raises:
        ValueError: an argument is out of range, a part of the data has no example, a folder is not what it should be,
            or another training to the same folder was interrupted.
    """
    settings, to = settings or Settings(), Path(to)
    if (encoder is None) == (previous is None):
        raise ValueError("encoder: expected the folder of an encoder or that of a previous judge, and not both.")
    if to.exists():
        raise ValueError(f"to: expected a folder that does not exist, got {str(to)!r}.")
    before = None if previous is None else Previous.read(previous)
    if before is not None:
        settings = replace(settings, seed=before.card.seed, layers=before.card.layers)
    source = Path(encoder) if before is None else before.folder / ENCODER  # type: ignore[arg-type]
    parts = divide(examples, settings.seed, values)
    net = Encoder.load(source, settings.layers)
    work = begin(to, examples, settings, before, net)
    made = work / "judge"
    made.mkdir(exist_ok=True)
    if not settings.train_encoder:
        net.save(made / ENCODER)
        net.for_inference()
    known = vectors(net, texts_of(parts.values()), work / "vectors.pt", advance)
    with quiet():
        torch.manual_seed(settings.seed)
        network = Network(4 * net.width, 0) if before is None else load_network(before.folder, before.card)
        keys = add_heads(network, before, parts[Part.TRAIN])
    rows = {part: as_rows([one for one in given if one.value in keys], keys) for part, given in parts.items()}
    check_parts(rows)
    if before is None:
        network.fit_projection(features_of(rows[Part.TRAIN], known))
    callback = sal_callback(settings, before)
    ended = run(network, net, rows, known, settings, callback, work, progress)
    torch.save(ended.state, made / STATE)
    if settings.train_encoder:
        net.save(made / ENCODER)
        known = vectors(net.for_inference(), texts_of(parts.values()))
    save_file(network.state_dict(), made / WEIGHTS)
    card = measure(network, net, rows, known, keys, values, settings, before, ended, made)
    card = card.model_copy(
        update={"encoder": source.name if before is None else before.card.encoder, "files": file_hashes(made)}
    )
    (made / CARD).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (made / PAGE).write_text(to_markdown(card), encoding="utf-8")
    made.replace(to)
    shutil.rmtree(work)
    return card


def divide(examples: Sequence[Example], seed: int, values: ValueSet) -> dict[Part, list[Example]]:
    """The examples of each part, by prompt.

    Raises:
        ValueError: an example is of a value that the set does not have.
    """
    known = {value.key for value in values.values}
    if unknown := sorted({one.value for one in examples} - known):
        raise ValueError(f"examples: expected values of the set {values.name!r}, got {unknown}.")
    parts: dict[Part, list[Example]] = {part: [] for part in Part}
    for one in examples:
        parts[part_of(one.case.prompt, seed)].append(one)
    return parts


def check_parts(rows: Mapping[Part, Rows]) -> None:
    """Check that there is something to learn from and to measure on.

    Raises:
        ValueError: a part has no example.
    """
    counts = {part.value: len(given.examples) for part, given in rows.items()}
    if not all(counts.values()):
        raise ValueError(
            f"examples: expected some in each part of the data, which are divided by prompt, got {counts}; more "
            "prompts are needed."
        )


def begin(to: Path, examples: Sequence[Example], settings: Settings, before: Previous | None, encoder: Encoder) -> Path:
    """The folder of the training, new or as it was interrupted.

    Raises:
        ValueError: the interrupted training was another one.
    """
    work = to.with_name(to.name + WORK)
    first = next(encoder.net.parameters()).detach().double().sum().item()
    description = {
        "data": data_sha256(examples),
        "settings": {name: value for name, value in asdict(settings).items() if name != "sal"},
        "previous": before and before.card_sha256,
        "encoder": first,
    }
    file = work / "training.json"
    if file.is_file() and json.loads(file.read_text()) != description:
        raise ValueError(
            f"to: another training to {str(to)!r} was interrupted; remove {str(work)!r}, or name another folder."
        )
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(description))
    return work


def texts_of(parts: Iterable[Sequence[Example]]) -> list[str]:
    """All texts of some examples, once."""
    return list(dict.fromkeys(text for part in parts for one in part for text in (question(one.case), one.case.answer)))


def vectors(
    encoder: Encoder, texts: Sequence[str], file: Path | None = None, advance: Advance = lambda done, total: None
) -> dict[str, Tensor]:
    """The vector of each text; with a ``file`` those that it has are taken from it, and others added as they come."""
    known: dict[str, Tensor] = torch.load(file, weights_only=True) if file is not None and file.is_file() else {}
    names = {text: sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts}
    missing = [text for text, name in names.items() if name not in known]
    done = len(names) - len(missing)
    for start in range(0, len(missing), CHUNK):
        part = missing[start : start + CHUNK]
        found = encoder.encode(part).clone()  # a tensor made in inference mode cannot be trained on
        known |= {names[text]: vector for text, vector in zip(part, found, strict=True)}
        if file is not None:
            whole = file.with_suffix(".part")
            torch.save(known, whole)
            whole.replace(file)
        done += len(part)
        advance(done, len(names))
    return {text: known[name] for text, name in names.items()}


def features_of(rows: Rows, known: Mapping[str, Tensor]) -> Tensor:
    """The features of some rows, (n, features)."""
    questions = torch.stack([known[text] for text in rows.questions])
    return pair_features(questions, torch.stack([known[text] for text in rows.answers]))


def add_heads(network: Network, before: Previous | None, train: Sequence[Example]) -> list[str]:
    """Add heads for values that have none and are trained; returns the values of all heads, by normalized name."""
    keys = [] if before is None else [label(head.value) for head in before.card.heads]
    new = sorted({one.value for one in train} - set(keys))
    network.add_heads(len(new))
    return keys + new


def sal_callback(settings: Settings, before: Previous | None) -> SALCallback:
    """SAL, in the state in which the previous training ended.

    It consolidates when a new fit begins: a training of a judge often has too few steps, and the same texts under
    another policy too few new inputs, for a change to be detected.
    """
    callback = SALCallback(**{"field": None, "consolidate_on": "fit", **settings.sal})
    if before is not None:
        callback.load_state_dict(torch.load(before.folder / STATE, weights_only=True))
    return callback


def run(
    network: Network,
    encoder: Encoder,
    rows: Mapping[Part, Rows],
    known: Mapping[str, Tensor],
    settings: Settings,
    callback: SALCallback | None,
    work: Path,
    progress: bool = False,
) -> Fit:
    """Train the network, and the encoder if the settings say so."""
    inputs: dict[Part, Tensor | None] = dict.fromkeys(rows)
    if not settings.train_encoder:
        with torch.no_grad():
            inputs = {part: network.project(features_of(one, known)) for part, one in rows.items()}
    train, validation = (
        batches(rows[part], inputs[part], settings, shuffle=part is Part.TRAIN)
        for part in (Part.TRAIN, Part.VALIDATION)
    )
    module = Module(network, encoder if settings.train_encoder else None, settings)
    return fit(module, train, validation, callback, work, progress)


@torch.no_grad()
def logits_of(network: Network, rows: Rows, known: Mapping[str, Tensor]) -> Tensor:
    """The logits of each row's head, (n, 4)."""
    network.eval()
    logits: Tensor = network(network.project(features_of(rows, known)), rows.heads)
    return logits


def calibrated_heads(
    logits: Tensor, rows: Rows, keys: Sequence[str], names: Mapping[str, str], before: Previous | None, target: float
) -> list[Head]:
    """The heads with their temperatures and confidences, chosen on validation examples.

    One temperature and one confidence hold for all values with new data, since few examples of each are held out. A
    head without new data keeps its own.
    """
    now, new = utc_now(), set(rows.heads.tolist())
    old = {} if before is None else {label(head.value): head for head in before.card.heads}
    temperature = confidence.fit_temperature(logits, rows.broken, rows.weights)
    broken = confidence.broken_probability(logits, temperature)
    agrees = (broken >= 0.5) == rows.broken
    pairs = list(zip(confidence.confidence(broken).tolist(), agrees.tolist(), strict=True))
    chosen = confidence.choose_confidence(pairs, target)
    heads = []
    for i, key in enumerate(keys):
        if i in new or key not in old:
            heads.append(
                Head(value=names[key], temperature=temperature, confidence=chosen, held_out=len(pairs), created=now)
            )
        else:
            heads.append(old[key])
    return heads


def measure(
    network: Network,
    encoder: Encoder,
    rows: Mapping[Part, Rows],
    known: Mapping[str, Tensor],
    keys: Sequence[str],
    values: ValueSet,
    settings: Settings,
    before: Previous | None,
    ended: Fit,
    folder: Path,
) -> JudgeCard:
    """Calibrate on the validation examples, measure on the test examples, and write the field of novelty."""
    names = ({} if before is None else {label(head.value): head.value for head in before.card.heads}) | {
        value.key: value.name for value in values.values
    }
    validation, test = rows[Part.VALIDATION], rows[Part.TEST]
    heads = calibrated_heads(logits_of(network, validation, known), validation, keys, names, before, settings.target)
    logits = logits_of(network, test, known)
    opinions = [opinion(row, heads[i]) for row, i in zip(logits, test.heads.tolist(), strict=True)]
    agreeing = [(one.score < 0) == example.broken for one, example in zip(opinions, test.examples, strict=True)]
    sure = [agrees for one, agrees in zip(opinions, agreeing, strict=True) if one.sure]
    plain = confidence.broken_probability(logits)
    prompts = {part: sorted({question(one.case) for one in given.examples}) for part, given in rows.items()}
    states = {part: torch.stack([known[text] for text in texts])[:, -encoder.size :] for part, texts in prompts.items()}
    novelty, seen = field_of(states[Part.TRAIN], before)
    novelty.save(folder / NOVELTY)
    examples = [one for given in rows.values() for one in given.examples]
    found = agreements(test.examples, opinions, values, settings.seed)
    kept = [] if before is None else [row for row in before.card.rows if label(row.value) not in _valued(found)]
    return JudgeCard(
        created=utc_now(),
        version=_version(),
        encoder="",
        layers=encoder.layers,
        trained="encoder" if settings.train_encoder else "heads",
        value_set=values,
        heads=tuple(heads),
        previous="" if before is None else before.card_sha256,
        seed=settings.seed,
        target=settings.target,
        data=Data(
            sha256=data_sha256(sorted(examples, key=lambda one: (one.case, one.value))),
            human=sum(one.human for one in examples),
            audits=sum(not one.human for one in examples),
            prompts=len({one.case.prompt for one in examples}),
            **{part.value: len(given.examples) for part, given in rows.items()},
        ),
        epochs=ended.epochs,
        best_epoch=ended.best_epoch,
        novelty=threshold(novelty.measure(states[Part.VALIDATION])),
        prompts=seen,
        sure=len(sure) / len(opinions),
        sure_agreement=sum(sure) / len(sure) if sure else None,
        calibration_error=confidence.calibration_error(
            list(zip((one.confidence for one in opinions), agreeing, strict=True))
        ),
        uncalibrated_error=confidence.calibration_error(
            list(zip(confidence.confidence(plain).tolist(), agreeing, strict=True))
        ),
        rows=[*found, *kept],
        files={},
        warnings=list(cautions(rows, heads, values, found, kept)),
    )


def field_of(states: Tensor, before: Previous | None) -> tuple[Novelty, int]:
    """The field of novelty with these states of prompts, (n, size), and the number of all prompts in it."""
    if before is None:
        return Novelty.of(states), len(states)
    seen = before.card.prompts + len(states)
    novelty = Novelty.load(before.folder / NOVELTY)
    novelty.update(states, len(states) / seen)
    return novelty, seen


def agreements(
    examples: Sequence[Example], opinions: Sequence[Opinion], values: ValueSet, seed: int, resamples: int = RESAMPLES
) -> list[Agreement]:
    """The rows of a card: on all values, then on each."""
    judged = [
        (
            one.value,
            Judged(
                example.case.prompt,
                example.broken,
                one.score < 0,
                example.ratings,
                (example.score, one.score) if example.ratings else (),
            ),
        )
        for example, one in zip(examples, opinions, strict=True)
    ]
    return agreement_rows("conscience", judged, [], values, seed, resamples)


def _valued(rows: Iterable[Agreement]) -> set[str]:
    return {label(row.value) for row in rows}


def cautions(
    rows: Mapping[Part, Rows], heads: Sequence[Head], values: ValueSet, found: Sequence[Agreement], kept: Sequence[Any]
) -> Iterable[str]:
    """What a reader of the card should know."""
    headed = {label(head.value) for head in heads}
    if without := [value.name for value in values.values if value.key not in headed]:
        yield f"No examples for training, so another judge is asked about: {', '.join(without)}."
    if weak := [row.value for row in found if min(row.broken, row.labels - row.broken) < FEW]:
        yield f"Fewer than {FEW} test examples of a kind, so the figures are weak: {', '.join(weak)}."
    if kept:
        yield f"No new test examples, so the figures are of an earlier judge: {', '.join(row.value for row in kept)}."
    if any(head.confidence is None for head in heads):
        yield "No confidence reached the target on the validation examples, so no finding is sure."
    held_out = len(rows[Part.VALIDATION].examples)
    if held_out < 5 * FEW:
        yield f"Temperature and confidence were chosen on {held_out} examples only."


def _version() -> str:
    try:
        return version("sal-lightning")
    except PackageNotFoundError:
        return "unknown"
