"""The methods beside SAL, against slow twins and cases worked by hand."""

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.continual.baselines.base import Baseline
from experiments.continual.baselines.ewc import EWC, BatchGradientEWC, OnlineEWC, fisher
from experiments.continual.baselines.gpm import GPM, extend, importance
from experiments.continual.baselines.importance import moments
from experiments.continual.baselines.l2 import L2
from experiments.continual.baselines.layers import gradient
from experiments.continual.baselines.lwf import LwF, imitation
from experiments.continual.baselines.mas import MAS
from experiments.continual.baselines.owm import CLIP, OWM, Schedule, shrink
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


def fit_with_sgd(baseline: Baseline) -> None:
    """Under SGD the step is the gradient, which these methods project."""
    L.seed_everything(0, verbose=False)
    data = StreamData("split-domain", "digits", steps=6, batch=16)
    with quiet():
        trainer([baseline], "cpu").fit(MLP(64, 2, width=8, optimizer="sgd", lr=0.1), datamodule=data)


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


class TestOWM:
    def test_the_projector_is_that_of_all_mean_inputs_at_once(self) -> None:
        A = torch.randn(7, 30, generator=torch.Generator().manual_seed(0), dtype=torch.double)
        P, alpha = torch.eye(7, dtype=torch.double), 0.3
        for mean in A.T:
            shrink(P, mean, alpha)
        torch.testing.assert_close(P, alpha * torch.linalg.inv(A @ A.T + alpha * torch.eye(7)))

    def test_alpha_falls_within_a_task_and_begins_anew_with_the_next(self) -> None:
        seen: list[float] = []

        class Seen(Schedule):
            def at(self, place: float) -> float:
                seen.append(super().at(place))
                return seen[-1]

        owm = OWM()
        owm.first = Seen(0.9, 0.001)
        fit(owm, steps=4)
        assert seen == pytest.approx([0.9 * 0.001 ** (i / 4) for i in range(4)] * 5)

    def test_each_layer_has_the_schedule_of_its_place(self) -> None:
        owm, model = OWM([(1.0,), (2.0,), (3.0,)]), MLP(5, 3, width=4)  # type: ignore[list-item]
        owm.start(model)
        x = torch.randn(6, 5)
        model(x).sum().backward()
        with torch.no_grad():
            owm.before_step()
        for layer, P, alpha in zip(owm.layers, owm.P, (1.0, 2.0, 3.0), strict=True):
            mean = torch.cat([owm.x[layer].mean(0), torch.ones(1)])
            torch.testing.assert_close(P, torch.eye(len(P)) - torch.outer(mean, mean) / (alpha + mean @ mean))

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("size", [1.0, 1e4])
    def test_the_gradient_is_projected_after_it_was_clipped(self, bias: bool, size: float) -> None:
        torch.manual_seed(0)
        owm, model = OWM(), MLP(5, 3, width=4, bias=bias)
        owm.start(model)
        (size * model(torch.randn(6, 5)).square().sum()).backward()
        before = [gradient(layer).clone() for layer in owm.layers]
        with torch.no_grad():
            owm.before_step()
        for layer, P, G in zip(owm.layers, owm.P, before, strict=True):
            torch.testing.assert_close(gradient(layer), G * min(1, CLIP / G.norm()) @ P, rtol=1e-4, atol=1e-5)
            assert layer.weight.grad is not None
            assert layer.weight.grad.shape == layer.weight.shape

    def test_measuring_changes_nothing(self) -> None:
        owm, model = OWM(), MLP(5, 3, width=4)
        owm.start(model)
        model(torch.randn(6, 5))
        kept = {layer: x.clone() for layer, x in owm.x.items()}
        with torch.no_grad():
            model(torch.randn(9, 5))
        assert all(torch.equal(owm.x[layer], x) for layer, x in kept.items())

    def test_all_that_is_kept_is_counted(self) -> None:
        owm = OWM()
        fit(owm)
        assert sum(t.numel() for t in owm.tensors()) == 65**2 + 9**2 + 9**2


class TestGPM:
    def test_the_basis_grows_by_the_fewest_directions_that_cover_the_share(self) -> None:
        g = torch.Generator().manual_seed(0)
        U = torch.linalg.qr(torch.randn(8, 8, generator=g)).Q
        first = torch.diag(torch.tensor([3.0, 2, 1])) @ U[:3]  # energies 9, 4, 1
        B = extend(torch.zeros(8, 0), first, 0.9)
        assert B.shape[1] == 2  # 13 of 14
        torch.testing.assert_close(B @ B.T, U[:2].T @ U[:2], atol=1e-5, rtol=0)
        second = torch.diag(torch.tensor([3.0, 2, 2])) @ U[[0, 4, 5]]  # energies 9, of which all is covered, 4, 4
        more = extend(B, second, 0.7)
        assert more.shape[1] == 3  # 13 of 17
        assert more[:, :2].equal(B)
        torch.testing.assert_close(more.T @ more, torch.eye(3), atol=1e-5, rtol=0)
        assert extend(B, second, 0.5).equal(B)  # 9 of 17

    def test_what_was_held_does_not_move_and_all_else_does(self) -> None:
        class Seen(GPM):
            def learned(self, tasks: object) -> None:
                super().learned(tasks)  # type: ignore[arg-type]
                self.then = [W.clone() for W in self.matrices()]
                self.held = [B.clone() for B in self.bases]

            def matrices(self) -> list[Tensor]:
                return [torch.cat([m.weight.detach(), m.bias.detach()[:, None]], 1) for m in self.layers]

        gpm = Seen()
        fit_with_sgd(gpm)
        for now, then, B in zip(gpm.matrices(), gpm.then, gpm.held, strict=True):
            assert 0 < B.shape[1] <= now.shape[1]
            moved = now - then
            assert (moved @ B).abs().max() < 1e-5
        assert (gpm.matrices()[0] - gpm.then[0]).abs().max() > 1e-3

    def test_scaled_importance_is_that_of_the_paper_and_adds_up_to_one(self) -> None:
        X = torch.tensor([[3.0, 0, 0], [0, 1.0, 0]])
        weight = importance(torch.eye(3)[:, :2], X, alpha=2.0)
        torch.testing.assert_close(weight, torch.tensor([9 / 9, 3 / 5]))
        gpm = GPM(scale=2.0)
        fit_with_sgd(gpm)
        for B, weights in zip(gpm.bases, gpm.weight, strict=True):
            assert len(weights) == B.shape[1]
            assert 0 < weights.min() <= weights.max() <= 1
            assert weights[0] == 1

    def test_its_own_look_at_the_data_changes_no_gradient(self) -> None:
        gpm, model = GPM(samples=20), MLP(64, 10, width=4, dropout=0.5)
        gpm.start(model)
        task = StreamData("split-class", "digits").stream.tasks[0]
        with torch.no_grad():
            assert [x.shape for x in gpm.inputs(task)] == [(20, 65), (20, 5), (20, 5)]
        assert model.training
        assert all(p.grad is None for p in model.parameters())


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
