import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from sal_lightning import SALCallback
from tests.everywhere import models
from tests.everywhere.common import At

pytestmark = pytest.mark.slow

VOCABULARY = 50


@pytest.fixture(scope="module")
def language_model():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=2,
        n_positions=16,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
        attn_pdrop=0,
        embd_pdrop=0,
        resid_pdrop=0,
    )
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config)


def adapted(language_model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    modules = ["c_attn", "c_fc", "c_proj"]
    config = LoraConfig(r=4, lora_alpha=16, target_modules=modules, fan_in_fan_out=True, task_type="CAUSAL_LM")
    return get_peft_model(copy.deepcopy(language_model), config)


def sentences(task, i, n=16):
    """Each task counts in its own half of the vocabulary, by its own stride."""
    half = VOCABULARY // 2
    start = torch.randint(0, half, (n, 1), generator=torch.Generator().manual_seed(1000 * task + i))
    tokens = (start + (3 + 4 * task) * torch.arange(8)) % half + half * task
    return tokens, tokens


def next_token_loss(output, tokens):
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_of_a_language_model_remember_and_its_frozen_weights_stay(tmp_path, language_model):
    forgotten, learned = {}, {}
    (x, y), (z, w) = sentences(0, 999), sentences(1, 999)
    once = models.Net(adapted(language_model), lambda p: torch.optim.AdamW(p, lr=1e-2), next_token_loss)
    adapters = {name for name, p in once.named_parameters() if p.requires_grad}
    base = {name: p.detach().clone() for name, p in once.named_parameters() if name not in adapters}
    learner = SALCallback(consolidate_on=None, strength=4.0, pull=0)
    first = DataLoader([sentences(0, i) for i in range(60)], batch_size=None)
    second = DataLoader([sentences(1, i) for i in range(30)], batch_size=None)
    models.trainer(tmp_path, [learner]).fit(once, first)
    assert set(learner.coverage()) == adapters
    assert all("lora_" in name for name in adapters)
    for held in (False, True):
        model, callback = copy.deepcopy(once), copy.deepcopy(learner)
        before, unlearned = next_token_loss(model(x), y).item(), next_token_loss(model(z), w).item()
        helpers = [At(0, callback.consolidate)] if held else []
        models.trainer(tmp_path, [callback, *helpers]).fit(model, second)
        assert (callback.spectrum().protected > 0) == held
        forgotten[held] = next_token_loss(model(x), y).item() - before
        learned[held] = unlearned - next_token_loss(model(z), w).item()
        assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    assert forgotten[True] < 0.6 * forgotten[False]
    assert learned[True] > 0.1
