"""Training: a folder with a card, resumed, and trained further on a new value without the old data."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safi_agent.calibration.labels import Case
from safi_agent.local import training
from safi_agent.local.card import read_card, to_markdown
from safi_agent.local.encoder import Encoder
from safi_agent.local.examples import Example, part_of
from safi_agent.local.judge import LocalJudge
from safi_agent.local.network import Network, loss
from safi_agent.local.training import train_judge
from tests.safi_agent.local.judges import BAD, FAST, GOOD, VALUES, case, examples, files


def agreement(judge: LocalJudge, given: list[Example]) -> float:
    readings = judge.read([one.case for one in given])
    agrees = [(r.opinions[one.value].score < 0) == one.broken for r, one in zip(readings, given, strict=True)]
    return sum(agrees) / len(agrees)


def test_it_learns_and_its_card_says_how_well(judge: Path) -> None:
    card, card_sha256 = read_card(judge)
    assert [head.value for head in card.heads] == ["Care", "Truth"]
    assert (card.data.human, card.data.audits, card.data.prompts) == (160, 0, 40)
    assert card.data.train + card.data.validation + card.data.test == 160
    assert card.rows[0].accuracy == 1
    assert card.rows[0].labels == card.data.test
    assert "No examples for training, so another judge is asked about: Thrift." in card.warnings
    loaded = LocalJudge.load(judge)
    assert loaded.card_sha256 == card_sha256
    unseen = [one for one in examples(seed=5) if one.case not in {known.case for known in examples()}]
    assert agreement(loaded, unseen) > 0.95
    assert "# Local judge of three" in to_markdown(card)


def test_the_folder_has_no_text_of_the_data(judge: Path) -> None:
    assert files(judge) >= {"card.json", "card.md", "weights.safetensors", "novelty.pt", "sal.pt"}
    for name in files(judge):
        content = (judge / name).read_bytes()
        assert GOOD.encode() not in content, name
        assert b"opening hours" not in content, name
    assert not judge.with_name("first.training").exists()


def test_a_file_that_was_changed_is_refused(judge: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(judge, folder)
    (folder / "novelty.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected the files that its card names, got other or no novelty\.pt"):
        LocalJudge.load(folder)
    with pytest.raises(ValueError, match="expected a folder of a local judge"):
        LocalJudge.load(tmp_path)


def test_a_new_value_is_added_from_its_own_data_alone(judge: Path, tmp_path: Path) -> None:
    new = examples(("thrift",), about="prices", seed=3)
    card = train_judge(new, VALUES, tmp_path / "second", previous=judge, settings=replace(FAST, seed=9))
    before, before_sha256 = read_card(judge)
    assert card.previous == before_sha256
    assert card.seed == before.seed
    assert [head.value for head in card.heads] == ["Care", "Truth", "Thrift"]
    assert card.heads[:2] == before.heads
    assert {row.value for row in card.rows} == {"all values", "Truth", "Care", "Thrift"}
    assert "No new test examples, so the figures are of an earlier judge: Truth, Care." in card.warnings
    after = LocalJudge.load(tmp_path / "second")
    assert agreement(after, new) > 0.9
    assert agreement(after, examples()) > 0.9
    state = torch.load(tmp_path / "second" / "sal.pt", weights_only=True)
    assert state["layers"][0]["events"], "SAL consolidated by itself"


def test_an_interrupted_training_is_continued(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_judge(examples(), VALUES, tmp_path / "whole", encoder=encoder, settings=FAST)
    started: list[object] = []
    encode = Encoder.encode

    def counted(self: Encoder, texts: list[str]) -> torch.Tensor:
        started.extend(texts)
        return encode(self, texts)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "encode", counted)
    monkeypatch.setattr(training, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_judge(examples(), VALUES, tmp_path / "judge", encoder=encoder, settings=FAST)
    monkeypatch.undo()
    monkeypatch.setattr(Encoder, "encode", counted)
    count = len(started)
    assert not (tmp_path / "judge").exists()
    with pytest.raises(ValueError, match="another training to"):
        train_judge(examples(seed=1), VALUES, tmp_path / "judge", encoder=encoder, settings=FAST)
    again = train_judge(examples(), VALUES, tmp_path / "judge", encoder=encoder, settings=FAST)
    assert len(started) == count, "vectors were kept"
    assert again.best_epoch == whole.best_epoch
    assert again.rows == whole.rows
    assert not (tmp_path / "judge.training").exists()


def test_the_encoder_can_be_trained_too(encoder: Path, tmp_path: Path) -> None:
    settings = replace(FAST, train_encoder=True, epochs=2)
    card = train_judge(examples(count=20), VALUES, tmp_path / "judge", encoder=encoder, settings=settings)
    assert card.trained == "encoder"
    before, after = Encoder.load(encoder, 2), Encoder.load(tmp_path / "judge" / "encoder")
    pairs = zip(before.net.parameters(), after.net.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)
    assert LocalJudge.load(tmp_path / "judge").read([case(1, True)])[0].opinions["truth"].score == -1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder": None}, "expected the folder of an encoder or that of a previous judge"),
        ({"to": "."}, "expected a folder that does not exist"),
        ({"encoder": "nowhere"}, "expected a folder with a model of transformers"),
        ({"settings": replace(FAST, layers=4)}, "expected 1 to 3, those of the encoder, got 4"),
        ({"examples": examples(("other",))}, r"expected values of the set 'three', got \['other'\]"),
        ({"examples": examples(count=1)}, "expected some in each part of the data"),
    ],
    ids=["none", "there", "no encoder", "layers", "values", "few"],
)
def test_wrong_arguments_are_refused(
    given: dict[str, object], message: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"examples": examples(), "values": VALUES, "to": "judge", "encoder": encoder, "settings": FAST}
    with pytest.raises(ValueError, match=message):
        train_judge(**{**arguments, **given})  # type: ignore[arg-type]


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"target: expected a number in \(0.5, 1\], got 0.5"):
        replace(FAST, target=0.5)
    with pytest.raises(ValueError, match="epochs: expected at least 1, got 0"):
        replace(FAST, epochs=0)


def test_windows_cover_a_long_text_and_are_averaged_by_their_tokens(encoder: Path) -> None:
    net = Encoder.load(encoder, 2)
    text = "".join(chr(97 + i % 26) for i in range(300))
    windows = [ids for _, ids in net.windows([text])]
    assert [len(ids) for ids in windows] == [128, 128, 50]
    assert sum(len(ids) - 2 for ids in windows) == 300
    with torch.inference_mode():
        parts = [net._read([ids])[0] for ids in windows]
        mean = sum(part * len(ids) for part, ids in zip(parts, windows, strict=True)) / 306
        by_hand = torch.nn.functional.normalize(mean, dim=-1).flatten() * 32**0.5
    assert torch.allclose(net.encode([text, "short"])[0], by_hand, atol=1e-5)


def test_other_texts_of_a_batch_change_nothing(encoder: Path) -> None:
    net = Encoder.load(encoder, 2)
    texts = ["", "a", "some words", BAD * 30]
    together = net.encode(texts)
    alone = torch.cat([net.encode([text]) for text in texts])
    assert torch.allclose(together, alone, atol=1e-4)


def test_a_new_head_judges_as_the_shared_layer_and_only_heads_that_are_asked_have_gradients() -> None:
    torch.manual_seed(0)
    network = Network(8, 2, inputs=4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    network.add_heads(1)
    inputs, heads = torch.randn(5, 4), torch.tensor([0, 2, 0, 2, 2])
    logits = network(inputs, heads)
    assert torch.equal(logits[heads == 2], network.shared(inputs)[heads == 2])
    assert torch.allclose(logits, network.all_heads(inputs)[torch.arange(5), heads])
    logits.sum().backward()
    assert network.heads[1].weight.grad is None
    assert network.heads[0].weight.grad is not None


def test_the_loss_is_the_cross_entropy_with_less_weight_between_scores_that_do_not_break() -> None:
    draws = torch.Generator().manual_seed(0)
    logits, scores = torch.randn(12, 4, generator=draws), torch.arange(12) % 4
    weights = torch.rand(12, generator=draws)
    each = torch.nn.functional.cross_entropy(logits, scores, reduction="none")
    broken = logits.softmax(1)[:, 0]
    side = -torch.where(scores == 0, broken, 1 - broken).log()
    by_hand = side + 0.3 * (each - side)
    assert float(loss(logits, scores, weights)) == pytest.approx(float((by_hand * weights).sum() / weights.sum()))


def test_the_projection_is_the_principal_components_of_standard_features() -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3, 4, 5, 0])
    network = Network(6, 0, inputs=3)
    network.fit_projection(features)
    inputs = network.project(features)
    standard = (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1e-3)
    values, vectors = torch.linalg.eigh(standard.T @ standard)
    by_hand = standard @ vectors.flip(1)[:, :3]
    assert torch.allclose(inputs.abs(), by_hand.abs() / by_hand.square().mean().sqrt(), atol=1e-4)
    assert float(inputs.square().mean()) == pytest.approx(1)
    assert (values[-3:] > 0).all()
    few = Network(6, 0, inputs=5)
    few.fit_projection(features[:2])
    assert torch.count_nonzero(few.project(features[:2]).abs().sum(0) > 1e-3) <= 2


def test_prompts_of_another_kind_are_new(judge: Path) -> None:
    loaded = LocalJudge.load(judge)
    familiar = [one.case for one in examples(("truth",), seed=5)]
    strange = [Case(f"{'XYLOPHONE? ' * 3}{{}}[]#{i}", "", GOOD) for i in range(20)]
    assert sum(reading.new for reading in loaded.read(familiar)) <= 16
    assert all(reading.new for reading in loaded.read(strange))


def test_the_parts_are_by_prompt() -> None:
    divided = training.divide(examples(), 0, VALUES)
    for part, given in divided.items():
        assert {part_of(one.case.prompt, 0) for one in given} <= {part}
    assert sum(map(len, divided.values())) == 160


def test_the_card_is_json_that_a_reader_can_parse(judge: Path) -> None:
    card = json.loads((judge / "card.json").read_text())
    assert card["value_set"]["name"] == "three"
    assert set(card["files"]) == files(judge) - {"card.json", "card.md"}
