"""The methods beside SAL, against slow twins and cases worked by hand."""

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.continual.baselines.base import Baseline
from experiments.continual.baselines.ewc import EWC, BatchGradientEWC, OnlineEWC, fisher
from experiments.continual.baselines.importance import moments
from experiments.continual.baselines.l2 import L2
from experiments.continual.baselines.lwf import LwF, imitation
from experiments.continual.baselines.mas import MAS
from experiments.continual.baselines.replay import AGEM, Replay
from experiments.continual.baselines.si import DAMPING, SI
from experiments.continual.batches import StreamData
from experiments.continual.model import MLP
from experiments.continual.protocol import quiet, trainer


def fit(baseline: Baseline, stream: str = "split-task", steps: int = 3, seed: int = 0) -> MLP:
    L.seed_everything(seed, verbose=False)
    data = StreamData(stream, "digits", steps=steps, batch=16, seed=seed)  # type: ignore[arg-type]
    model = MLP(data.inputs, data.outputs, width=8)
    with quiet():
        trainer([baseline], "cpu").fit(model, datamodule=data)
    return model


def samples(n: int = 12) -> tuple[MLP, Tensor]:
    torch.manual_seed(0)
    return MLP(5, 4, width=3), torch.randn(n, 5)


class TestImportance:
    @pytest.mark.parametrize("power", [1, 2])
    def test_moments_are_those_of_single_samples(self, power: int) -> None:
        model, x = samples()
        expected = [torch.zeros_like(p) for p in model.parameters()]
        for one in x:
            for score in model(one[None])[0]:
                grads = torch.autograd.grad(score, list(model.parameters()), retain_graph=True)
                expected = [e + g.abs() ** power / len(x) for e, g in zip(expected, grads, strict=True)]
        got = moments(model, x, lambda y: iter(y.unbind(1)), power)
        torch.testing.assert_close(got, expected)

    def test_fisher_is_expected_over_the_labels_the_model_would_give(self) -> None:
        task = StreamData("split-class", "digits").stream.tasks[0]
        task = type(task)(task.train_x[:9], task.train_y[:9], task.test_x, task.test_y, task.classes)
        torch.manual_seed(0)
        model = MLP(64, 10, width=3)
        expected = [torch.zeros_like(p) for p in model.parameters()]
        for x in task.train_x:
            log_p = model(x[None])[0].log_softmax(0)
            for label in range(10):
                grads = torch.autograd.grad(log_p[label], list(model.parameters()), retain_graph=True)
                p = log_p[label].detach().exp()
                expected = [e + p * g**2 / 9 for e, g in zip(expected, grads, strict=True)]
        torch.testing.assert_close(fisher(model, task), expected)


class TestPenalties:
    @pytest.mark.parametrize("kind", [EWC, OnlineEWC, SI, MAS, L2])
    def test_strength_zero_is_plain_training(self, kind: type[Baseline]) -> None:
        plain, other = fit(Baseline()), fit(kind(0.0))  # type: ignore[call-arg]
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))

    @pytest.mark.parametrize("kind", [OnlineEWC, SI, MAS, L2])
    def test_the_pull_is_the_gradient_of_the_penalty(self, kind: type[Baseline]) -> None:
        penalty = kind(3.0)  # type: ignore[call-arg]
        model = fit(penalty)
        penalty.F = [torch.rand_like(f) for f in penalty.F]  # type: ignore[attr-defined]
        terms = zip(penalty.F, model.parameters(), penalty.anchor, strict=True)  # type: ignore[attr-defined]
        loss = 3.0 / 2 * sum((f * (w - a) ** 2).sum() for f, w, a in terms)
        expected = torch.autograd.grad(loss, list(model.parameters()))  # type: ignore[arg-type]
        model.zero_grad()
        with torch.no_grad():
            penalty.before_step()
        torch.testing.assert_close(penalty.G, list(expected))

    def test_ewc_has_the_gradient_of_a_penalty_for_each_task(self) -> None:
        penalty, model = EWC(2.0), MLP(64, 10, width=4)
        penalty.start(model)
        tasks = StreamData("split-class", "digits").stream.tasks
        kept = []
        with torch.no_grad():
            for t in range(3):
                kept.append((fisher(model, tasks[t]), [p.clone() for p in model.parameters()]))
                penalty.learned(tasks[: t + 1])
                for p in model.parameters():
                    p += 0.1 * torch.randn_like(p)
            penalty.task = 3
            penalty.before_step()
        loss = sum(
            (f * (w - a) ** 2).sum() for F_t, W_t in kept for f, w, a in zip(F_t, model.parameters(), W_t, strict=True)
        )
        expected = torch.autograd.grad(2.0 / 2 * loss, list(model.parameters()))  # type: ignore[arg-type]
        torch.testing.assert_close(penalty.G, list(expected), atol=1e-6, rtol=1e-4)

    def test_without_data_the_fisher_information_is_that_of_the_batches_of_the_first_task(self) -> None:
        (model, x), penalty = samples(), BatchGradientEWC(2.0)
        penalty.start(model)
        squares, parameters = [], list(model.parameters())
        for rows in x.split(4):
            model.zero_grad()
            model(rows).square().mean().backward()
            squares.append([p.grad.square() for p in parameters if p.grad is not None])
            with torch.no_grad():
                penalty.before_step()
        penalty.end_task()
        F_ = [torch.stack(s).mean(0) for s in zip(*squares, strict=True)]
        torch.testing.assert_close(penalty.F, F_)
        model.zero_grad()
        with torch.no_grad():
            for p in parameters:
                p += 0.5
            penalty.before_step()
        torch.testing.assert_close([p.grad for p in parameters], F_)

    def test_all_that_is_kept_is_counted(self) -> None:
        for kind, copies in ((L2, 2), (OnlineEWC, 2), (SI, 4)):
            penalty = kind(1.0)
            size = sum(p.numel() for p in fit(penalty).parameters())
            assert sum(t.numel() for t in penalty.tensors()) == copies * size

    def test_si_shares_out_the_fall_of_the_loss(self) -> None:
        class Seen(SI):
            def after_step(self) -> None:
                w = self.W[0].detach().clone()
                self.by_hand = getattr(self, "by_hand", 0) - self.G[0].clone() * (w - self.last)
                self.last = w
                super().after_step()

            def begin(self) -> None:
                super().begin()
                self.first = self.last = self.W[0].detach().clone()

            def learned(self, tasks: object) -> None:
                super().learned(tasks)  # type: ignore[arg-type]
                if self.task == 1:
                    way = self.W[0].detach() - self.first
                    torch.testing.assert_close(self.F[0], self.by_hand / (way**2 + DAMPING))

        fit(Seen(1.0))

    @pytest.mark.slow
    def test_strong_pulls_hold_the_weights(self) -> None:
        class Anchored(L2):
            def learned(self, tasks: object) -> None:
                super().learned(tasks)  # type: ignore[arg-type]
                if self.task == 1:
                    self.first = [a.clone() for a in self.anchor]

        moved = []
        for strength in (0.0, 1e4):
            l2 = Anchored(strength)
            model = fit(l2, steps=20)
            moved.append(sum(float((w.detach() - a).norm()) for w, a in zip(model.parameters(), l2.first, strict=True)))
        assert moved[1] < 0.5 * moved[0]


class TestLwF:
    def test_imitation_is_kullback_leibler_but_for_a_constant(self) -> None:
        torch.manual_seed(0)
        y, goal = torch.randn(2, 6, 3)
        p = (goal / 2).softmax(1)
        expected = F.kl_div((y / 2).log_softmax(1), p, reduction="batchmean") - (p * p.log()).sum(1).mean()
        torch.testing.assert_close(imitation(y, goal), expected)

    def test_every_position_of_a_sequence_counts_alike(self) -> None:
        torch.manual_seed(0)
        y, goal = torch.randn(2, 6, 4, 3)
        torch.testing.assert_close(imitation(y, goal), imitation(y.flatten(0, 1), goal.flatten(0, 1)))

    def test_without_known_tasks_all_outputs_are_imitated(self) -> None:
        (model, x), lwf = samples(), LwF()
        lwf.start(model)
        before = model(x).detach()
        lwf.end_task()
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1
        expected = (torch.tensor(3.0) + imitation(model(x), before)) / 2
        torch.testing.assert_close(model.objective(torch.tensor(3.0), (x, None), model(x)), expected)

    def test_the_teacher_is_the_network_of_the_last_boundary(self) -> None:
        class Seen(LwF):
            def learned(self, tasks: object) -> None:
                super().learned(tasks)  # type: ignore[arg-type]
                model, teacher = list(self.model.parameters()), list(self.teacher.parameters())
                assert all(torch.equal(a, b) and a is not b for a, b in zip(model, teacher, strict=True))
                assert len(self.heads) == self.task

        fit(Seen())


class TestReplay:
    def test_no_more_than_the_budget_is_kept_of_a_class(self) -> None:
        replay = Replay(budget=5)
        fit(replay, "split-class")
        assert [sorted(m.y.bincount()[m.y.unique()].tolist()) for m in replay.samples] == [[5, 5]] * 4

    def test_agem_projects_only_what_would_do_harm(self) -> None:
        agem = AGEM(budget=5)
        model = fit(agem, "split-domain")
        R = torch.autograd.grad(_replayed(agem), list(model.parameters()))
        for sign in (1.0, -1.0):
            for p, r in zip(model.parameters(), R, strict=True):
                p.grad = sign * r + 0.1
            before = [g.clone() for g in agem.G]
            agem.generator.manual_seed(3)
            with torch.no_grad():
                agem.before_step()
            along = sum((g * r).sum() for g, r in zip(agem.G, R, strict=True))
            if sign > 0:
                assert all(torch.equal(a, b) for a, b in zip(agem.G, before, strict=True))
            else:
                assert abs(float(along)) < 1e-5  # type: ignore[arg-type]

    def test_agem_lets_be_what_hardly_has_a_gradient_on_what_was_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        agem = AGEM(budget=5)
        model = fit(agem, "split-domain")
        # So small that its square is zero in single precision, as after a task that is learned for good.
        R = torch.autograd.grad(_replayed(agem), list(model.parameters()))
        loss = agem.loss_on_memory
        monkeypatch.setattr(agem, "loss_on_memory", lambda: 1e-30 * loss())
        for p, r in zip(model.parameters(), R, strict=True):
            p.grad = -r
        before = [g.clone() for g in agem.G]
        agem.generator.manual_seed(3)
        with torch.no_grad():
            agem.before_step()
        assert all(torch.equal(a, b) for a, b in zip(agem.G, before, strict=True))


def _replayed(agem: AGEM) -> Tensor:
    agem.generator.manual_seed(3)
    return agem.loss_on_memory()


def test_a_second_fit_goes_on_where_the_first_ended() -> None:
    l2 = L2(1.0)
    first = fit(l2)
    l2.on_train_start(None, MLP(64, 2, width=8))  # type: ignore[arg-type]
    assert (l2.model, l2.task) == (first, 4)


def test_joint_training_draws_from_all_tasks_at_every_step() -> None:
    data = StreamData("split-class", "digits", steps=2, batch=400, joint=True)
    assert len(next(iter(data.train_dataloader())).y.unique()) == 10
    heads = {
        batch.classes.start for batch in StreamData("split-task", "digits", steps=9, joint=True).train_dataloader()
    }
    assert heads == {0, 2, 4, 6, 8}
