"""A model that a script lends to a run comes back as it was."""

from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from mftcoder.models.loading.given import lent, take


def test_a_model_whose_config_has_no_cache_setting_comes_back_without_one() -> None:
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1)).train()
    with lent(model):
        take(model, attn_implementation="eager", device="cpu")
        assert not model.training
    assert model.training
    assert not hasattr(model.config, "use_cache")
