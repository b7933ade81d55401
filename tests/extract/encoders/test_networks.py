from __future__ import annotations

import numpy as np
import pytest
import torch

from span_sparse.errors import ConfigError
from span_sparse.extract.encoders import catalogue, networks
from span_sparse.extract.encoders.catalogue import SPECS

PARAMETERS_M = {
    "uni_v1": 303,  # ViT-L
    "uni_v2": 681,  # huggingface.co/MahmoodLab/UNI2-h
    "conch_v1": 88,  # ViT-B and a pooling
    "virchow2": 631,  # arXiv 2408.00738: 632 M
    "virchow2-cls": 631,
    "hoptimus0": 1135,  # 1.1 billion
    "hoptimus1": 1135,
    "h0-mini": 86,
    "h0-mini-cls-mean": 86,
    "gigapath": 1135,
    "phikon_v2": 303,
    "ctranspath": 28,
    "resnet50": 9,  # without the fourth stage
    "resnet50-full": 24,
}


@pytest.mark.parametrize("name", SPECS)
def test_the_published_network_has_the_declared_dimension(name: str, timm) -> None:
    """Full size, on the device without numbers: constructor arguments, shapes and parameter counts are real."""
    spec = SPECS[name]
    with torch.device("meta"), torch.inference_mode():
        network = spec.build().eval()
        vectors = spec.read(network, torch.empty(2, 3, spec.transform.crop_px, spec.transform.crop_px))
    assert vectors.shape == (2, spec.dimension)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert round(millions) == PARAMETERS_M[name]


def test_the_table() -> None:
    typed = "uni_v1 uni_v2 conch_v1 virchow2 hoptimus0 hoptimus1 h0-mini gigapath phikon_v2 ctranspath resnet50"
    assert set(typed.split()) <= set(SPECS)
    identities = {(spec.name, spec.readout, spec.dimension) for spec in SPECS.values()}
    assert len(identities) == len(SPECS)
    for spec in SPECS.values():
        assert spec.transform.input_px(spec.input_size_px) == spec.transform.crop_px
        assert spec.source.startswith("https://")
        assert spec.files
        assert spec.mpp in (0.5, 1.0)


@pytest.mark.parametrize(
    ("name", "registers", "positions"),
    [
        ("uni_v1", 0, 197),
        ("uni_v2", 8, 256),
        ("virchow2", 4, 261),
        ("hoptimus0", 4, 256),
        ("hoptimus1", 4, 256),
        ("h0-mini", 4, 256),
        ("gigapath", 0, 197),
        ("phikon_v2", 0, 197),
        ("conch_v1", 0, 785),
    ],
)
def test_registers_and_positions_of_the_published_networks(name: str, registers: int, positions: int, timm) -> None:
    with torch.device("meta"):
        network = SPECS[name].build()
    trunk = getattr(network, "trunk", network)
    assert trunk.pos_embed.shape[1] == positions
    assert (0 if trunk.reg_token is None else trunk.reg_token.shape[1]) == registers


def test_normalisation_constants_are_those_of_timm(timm) -> None:
    from timm.data import constants

    assert catalogue.IMAGENET == {"mean": constants.IMAGENET_DEFAULT_MEAN, "std": constants.IMAGENET_DEFAULT_STD}
    assert catalogue.CLIP == {"mean": constants.OPENAI_CLIP_MEAN, "std": constants.OPENAI_CLIP_STD}


@pytest.mark.parametrize("name", ["uni_v1", "uni_v2", "hoptimus0", "hoptimus1", "gigapath", "phikon_v2"])
def test_the_class_token_is_what_timm_returns(name: str, small, random_weights) -> None:
    spec = small(name)
    network = random_weights(spec)
    inputs = torch.randn(3, 3, spec.transform.crop_px, spec.transform.crop_px)
    with torch.inference_mode():
        torch.testing.assert_close(spec.read(network, inputs), network(inputs))


@pytest.mark.parametrize(("both", "alone"), [("virchow2", "virchow2-cls"), ("h0-mini-cls-mean", "h0-mini")])
def test_two_readouts_of_one_network(both: str, alone: str, small, random_weights) -> None:
    """The card's tokens: 0 is the class, 1 to 4 are registers, the rest are patches."""
    spec = small(both)
    network = random_weights(spec)
    inputs = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        tokens = network(inputs)  # global_pool="": all tokens, after the norm
        assert tokens.shape[1] == 1 + 4 + 16
        expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], dim=1)
        torch.testing.assert_close(spec.read(network, inputs), expected)
        torch.testing.assert_close(small(alone).read(network, inputs), tokens[:, 0])


def test_resnet_is_cut_after_its_third_stage(small, random_weights) -> None:
    spec, full = small("resnet50"), small("resnet50-full")
    network = random_weights(full)
    cut = spec.build().eval()
    state = network.state_dict()
    cut.load_state_dict(spec.convert(state))
    inputs = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        values = network.maxpool(network.act1(network.bn1(network.conv1(inputs))))
        values = network.layer3(network.layer2(network.layer1(values)))
        torch.testing.assert_close(spec.read(cut, inputs), values.mean(dim=(2, 3)))
        torch.testing.assert_close(full.read(network, inputs), network.layer4(values).mean(dim=(2, 3)))


def attention_by_hand(query: np.ndarray, keys: np.ndarray, values: np.ndarray, heads: int) -> np.ndarray:
    """One query `[channels]` over `[tokens, channels]`, a loop over heads."""
    width = query.size // heads
    pooled = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = keys[:, part] @ query[part] / np.sqrt(width)
        shares = np.exp(scores - scores.max())
        pooled.append((shares / shares.sum()) @ values[:, part])
    return np.concatenate(pooled)


def norm(values: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    centred = values - values.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def test_attention_pooling_by_hand(small, random_weights) -> None:
    spec = small("conch_v1")
    network = random_weights(spec)
    inputs = torch.randn(2, 3, 64, 64)
    pool = network.attn_pool_contrast
    with torch.inference_mode():
        found = spec.read(network, inputs).numpy()
        tokens = network.trunk.forward_features(inputs).numpy()
    state = {key: value.numpy() for key, value in pool.state_dict().items()}
    query = norm(state["query"][0], pool.ln_q)
    for vector, context in zip(found, norm(tokens, pool.ln_k), strict=True):
        bias = np.split(state["attn.in_proj_bias"], 3)
        query_in = state["attn.q_proj_weight"] @ query + bias[0]
        keys = context @ state["attn.k_proj_weight"].T + bias[1]
        values = context @ state["attn.v_proj_weight"].T + bias[2]
        pooled = attention_by_hand(query_in, keys, values, 2)
        pooled = state["attn.out_proj.weight"] @ pooled + state["attn.out_proj.bias"]
        np.testing.assert_allclose(vector, norm(pooled, network.ln_contrast), atol=2e-5)


def test_published_names_of_conch(small, random_weights) -> None:
    """Names of the weights on the hub: image tower below `visual.`, the rest is not needed."""
    spec = small("conch_v1")
    network = random_weights(spec)
    published = {f"visual.{name}": tensor for name, tensor in network.state_dict().items()}
    extra = ("visual.proj_contrast", "visual.attn_pool_caption.query", "visual.ln_caption.bias", "logit_scale")
    published |= dict.fromkeys((*extra, "text.cls_emb"), torch.zeros(1))
    assert spec.convert(published).keys() == network.state_dict().keys()
    with torch.device("meta"):
        full = {name for name, _ in SPECS["conch_v1"].build(img_size=448).named_parameters()}
    for name in (
        "attn_pool_contrast.attn.q_proj_weight",
        "attn_pool_contrast.attn.in_proj_bias",
        "attn_pool_contrast.ln_q.weight",
        "ln_contrast.bias",
        "trunk.blocks.1.attn.qkv.bias",
        "trunk.pos_embed",
    ):
        assert name in full


def test_weights_of_the_old_swin(small, random_weights) -> None:
    """CTransPath was saved with down-sampling at the end of a stage, and with tables that are computed now."""
    spec = small("ctranspath")
    network = random_weights(spec)
    old = {}
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        old[".".join(parts)] = tensor
    assert "layers.0.downsample.reduction.weight" in old
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(1)
    old["head.weight"] = torch.zeros(1)
    found = spec.convert(old)
    assert found.keys() == network.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())
    assert spec.convert(dict(found)).keys() == found.keys()  # saved by a present timm


def test_tables_of_the_swin_are_those_of_timm(timm) -> None:
    """They are computed, not loaded, and must not be left out with the initialisation of the weights."""
    ours, theirs = SPECS["ctranspath"].build(), timm.create_model("swin_tiny_patch4_window7_224")
    tables = {name: table for name, table in theirs.named_buffers() if "attn" in name}
    assert len(tables) > 12
    found = dict(ours.named_buffers())
    assert all(torch.equal(found[name], table) for name, table in tables.items())


def test_the_stem_of_ctranspath_by_hand() -> None:
    stem = networks.ConvolutionalStem(16, embed_dim=16, norm_layer=torch.nn.LayerNorm).eval()
    assert stem.grid_size == (4, 4)
    names = [f"proj.{index}" for index in (0, 1, 3, 4, 6)] + ["norm"]
    assert {name.rsplit(".", 1)[0] for name in stem.state_dict()} == set(names)
    shapes = {name: tuple(value.shape) for name, value in stem.state_dict().items() if value.dim() == 4}
    assert shapes == {
        "proj.0.weight": (2, 3, 3, 3),
        "proj.3.weight": (4, 2, 3, 3),
        "proj.6.weight": (16, 4, 1, 1),
    }
    assert stem(torch.zeros(2, 3, 16, 16)).shape == (2, 4, 4, 16)


@pytest.mark.parametrize("generation", ["2023", "installed"])
def test_phikon_equals_dinov2_of_transformers(generation: str, small) -> None:
    dinov2 = pytest.importorskip("transformers.models.dinov2.modeling_dinov2")
    spec = small("phikon_v2")
    torch.manual_seed(0)
    config = dinov2.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=16
    )
    theirs = dinov2.Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    state = theirs.state_dict()
    if generation == "2023":  # names of transformers 4, which the published file has
        pairs = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
        pairs |= {"o_proj": "output.dense"}
        for new, old in pairs.items():
            state = {name.replace(f"attention.{new}", f"attention.{old}"): value for name, value in state.items()}
        assert "encoder.layer.1.attention.attention.key.bias" in state
    ours = spec.build().eval()
    ours.load_state_dict(spec.convert(state))
    inputs = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(pixel_values=inputs).last_hidden_state[:, 0]
        torch.testing.assert_close(spec.read(ours, inputs), expected, atol=1e-4, rtol=1e-4)


def test_a_missing_library_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm .*: pip install 'span-sparse\[encoders\]'$"):
        SPECS["uni_v1"].build()
