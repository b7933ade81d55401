"""`span convert-weights`: conversion into a checkpoint that evaluation opens, verification, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from span_sparse.cli import device_option
from span_sparse.cli.convert_weights import build_parser, run
from span_sparse.errors import CheckpointError, ConfigError
from span_sparse.grid import LatticeSpec
from span_sparse.models import SpanMil, SpanMilConfig, config_from_official, load_network, verify
from span_sparse.models.convert import our_name
from span_sparse.models.verify import verify_reference
from span_sparse.store import FeatureStore, SlideRecord
from span_sparse.training.checkpoint import load_model
from span_sparse.types import EncoderIdentity

CONFIG = {
    "model": {
        "slide_configs": 11,
        "embed_dim_div": 2,
        "channel_factor": 1,
        "input_projection": {
            "prenorm": False,
            "bias": False,
            "activation": None,
            "mlp_ratio": 0.5,
            "drop_first": False,
            "dropout": 0.05,
        },
        "trans_type": "long",
        "pos_emb": "rpb",
        "pos_std": 0.02,
        "window_size": 3,
        "share_qkv": False,
        "ff_ratio": 2,
        "enc_act": "ReLU",
        "econvs_type": "dwpatchconv",
        "kernel_size": 2,
        "stride": 2,
        "dilation": 1,
        "conv_bias": False,
        "conv_norm_position": "pre",
        "edge_mode": "count",
        "edge_eps": 1e-6,
        "token_init_types": ["lrn1e-4"],
        "global_strategy": "identity",
        "attn_drop": 0.05,
        "proj_drop": 0.0,
        "drop_path": 0.0,
    },
    "classification": {
        "aggr_method": "multi_addition",
        "head_norm": True,
        "head_act": "relu",
        "head_div": 4,
        "cls_drop": 0.05,
    },
}


def official_state_dict(model: SpanMil) -> dict[str, torch.Tensor]:
    """Our weights under the authors' names: the inverse of the conversion, by hand for this one model."""
    ours = model.state_dict()
    official = {}
    block, layer = "encoder.blocks.{}.modules_dict.", "trans_2.0.trans_block."
    names = {
        block.format(0) + "convs_0.0.conv_block.linear.0.weight": "encoder.input_projection.linear.weight",
        block.format(0) + "convs_0.0.identity_proj.weight": "encoder.token_transition.projection.weight",
        block.format(0) + "convs_0.0.identity_proj.bias": "encoder.token_transition.projection.bias",
        block.format(1) + "convs_0.0.conv_block.dwconv.weight": "encoder.stages.1.down.operator.convolution.weight",
        "encoder.learnable_tokens.0": "encoder.tokens.learned.0",
        "aggregator.module.norm.weight": "head.readout.norm.weight",
        "aggregator.module.norm.bias": "head.readout.norm.bias",
        "aggregator.module.fc.1.weight": "head.readout.linear.weight",
        "aggregator.module.fc.1.bias": "head.readout.linear.bias",
    }
    for kind in ("weight", "bias"):
        names[block.format(1) + f"convs_0.0.global_input_norm.{kind}"] = f"encoder.stages.1.down.tokens.norm.{kind}"
        names[block.format(1) + f"convs_0.0.conv_block.input_norm.{kind}"] = (
            f"encoder.stages.1.down.operator.input_norm.{kind}"
        )
        for stage in (0, 1):
            to = f"encoder.stages.{stage}.layers.0."
            for position, letter in enumerate("qkv"):
                names[block.format(stage) + layer + f"{letter}1.{kind}"] = to + f"window_qkv.{position}.{kind}"
                names[block.format(stage) + layer + f"{letter}2.{kind}"] = to + f"global_qkv.{position}.{kind}"
            for theirs, mine in (
                ("fc_out", "output"),
                ("ffn.0", "feed_forward.0"),
                ("ffn.3", "feed_forward.3"),
                ("norm1", "attention_norm"),
                ("norm2", "feed_forward_norm"),
            ):
                names[block.format(stage) + layer + f"{theirs}.{kind}"] = to + f"{mine}.{kind}"
    for stage in (0, 1):
        table = block.format(stage) + layer + "table_RPB.adjustment_tables"
        names[table] = f"encoder.stages.{stage}.layers.0.positions.table"
    assert set(names.values()) == set(ours)
    for theirs, mine in names.items():
        tensor = ours[mine]
        if theirs.endswith("dwconv.weight"):
            tensor = tensor.T.reshape(-1, 1, 2, 2)
        official[theirs] = tensor.unsqueeze(0) if "learnable" in theirs else tensor
    return official


@pytest.fixture
def store(tmp_path: Path) -> Path:
    spec = LatticeSpec(patch_size_px=32, target_mpp=1.0)
    lattice = spec.on_slide(1.0)
    grid = np.array([[0, 0], [0, 1], [2, 1]], dtype=np.int32)
    record = SlideRecord(
        slide_id="a",
        case_id="a",
        features=np.ones((3, 128), dtype=np.float32),
        grid=grid,
        coords=lattice.to_px0(grid),
        lattice=lattice,
        mpp_source="cohort",
        encoder=EncoderIdentity("test", "1", "cls", 128, 32, 1.0, "float32"),
        slide_checksum="sha256:" + "0" * 64,
        width_px0=200,
        height_px0=200,
        provenance={},
    )
    FeatureStore.create(tmp_path / "store.zarr").write(record)
    return tmp_path / "store.zarr"


def options(**values: Any) -> list[str]:
    listed: list[str] = [str(values.pop("official"))] if "official" in values else []
    for name, value in values.items():
        listed += [f"--{name.replace('_', '-')}", *([value] if isinstance(value, str | Path) else value)]
    return [str(one) for one in listed]


def convert(**values: Any) -> int:
    return run(build_parser().parse_args(options(**values)))


@pytest.fixture
def official(tmp_path: Path) -> dict[str, Path]:
    model = SpanMil(SpanMilConfig(stages="11"), num_features=128, num_classes=2)
    torch.save({"state_dict": {f"module.{k}": v for k, v in official_state_dict(model).items()}}, tmp_path / "o.pt")
    torch.save(model.state_dict(), tmp_path / "ours.pt")
    (tmp_path / "o.yaml").write_text(json.dumps(CONFIG), encoding="utf-8")
    return {"official": tmp_path / "o.pt", "official_config": tmp_path / "o.yaml"}


def test_a_converted_checkpoint_is_opened_by_evaluation_and_alone(
    official: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.ckpt"
    assert convert(**official, store=store, class_names=["no", "yes"], output=output) == 0
    classifier = load_model(output)
    assert classifier.task is not None
    assert classifier.task.class_names == ("no", "yes")
    assert classifier.task.encoder.name == "test"
    alone = load_network(output)
    for name, tensor in torch.load(tmp_path / "ours.pt", weights_only=True).items():
        assert torch.equal(classifier.network.state_dict()[name], tensor)
        assert torch.equal(alone.state_dict()[name], tensor)


def test_what_does_not_fit_is_refused(official: dict[str, Path], store: Path, tmp_path: Path) -> None:
    rest: dict[str, Any] = {"store": store, "class_names": ["a", "b", "c"], "output": tmp_path / "out.ckpt"}
    with pytest.raises(CheckpointError, match="3 outputs"):
        convert(**official, **rest)
    with pytest.raises(ConfigError, match="--class-names, --output"):
        convert(**official, store=store)
    (tmp_path / "o.yaml").write_text("model: {slide_configs: 11}", encoding="utf-8")
    with pytest.raises(ConfigError, match="lacks the key"):
        convert(**official, **rest)
    assert not (tmp_path / "out.ckpt").exists()


def test_a_pickled_object_is_refused_and_not_executed(
    official: dict[str, Path], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Surprise:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": Surprise()}, official["official"])
    with pytest.raises(CheckpointError, match="refused"):
        convert(**official, store=store, class_names=["a", "b"], output=tmp_path / "out.ckpt")
    assert not (tmp_path / "executed").exists()


def test_verification_fails_on_a_wrong_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    config = config_from_official(CONFIG)
    assert isinstance(config, SpanMilConfig)
    model = SpanMil(config, num_features=128, num_classes=2).double().eval()
    weights = {name: tensor.float() for name, tensor in official_state_dict(model).items()}
    coords = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 3, 2], [0, 5, 5]], dtype=torch.int32)
    features = torch.randn(4, 128).double().requires_grad_()
    model.requires_grad_(True)
    model.encoder.keep_all_locals()
    output = model.run(features, coords, 1)
    logits = output.logits.flatten()
    (logits * torch.arange(2).double().cos()).sum().backward()
    assert features.grad is not None
    arrays: dict[str, Any] = {f"sd/{name}": tensor.numpy() for name, tensor in weights.items()}
    arrays |= {"coords": coords[:, 1:].numpy(), "feats": features.detach().numpy(), "out/logits": output.logits}
    arrays |= {"grad_feats_rownorm": features.grad.norm(dim=1).numpy()}
    for index, stage in enumerate(output.stages):
        arrays[f"enc{index}/coords"] = output.pyramid.levels[index].sites.coords[:, 1:].numpy()
        arrays[f"enc{index}/feats"] = stage.local_tokens.detach().numpy()
        arrays[f"enc{index}/global"] = stage.global_tokens[0].detach().numpy()
    for name in weights:
        ours, layout = our_name(name, config)
        gradient = dict(model.named_parameters())[str(ours)].grad
        flat = torch.zeros(1) if gradient is None else layout.theirs(gradient).flatten()
        arrays[f"gd/{name}"] = np.array([flat.norm(), (flat * torch.arange(len(flat)).double().cos()).sum()])
    arrays = {
        name: value.detach().numpy() if isinstance(value, torch.Tensor) else value for name, value in arrays.items()
    }
    (tmp_path / "case.json").write_text(json.dumps({"config": CONFIG}), encoding="utf-8")
    np.savez(tmp_path / "case.npz", **arrays)
    assert convert(verify=[tmp_path / "case.npz"]) == 0
    assert "0 of 2 runs above tolerance" in capsys.readouterr().out

    for name in ("out/logits", "enc1/feats", "gd/encoder.blocks.1.modules_dict.trans_2.0.trans_block.v2.weight"):
        np.savez(tmp_path / "case.npz", **{**arrays, name: arrays[name] * 1.001})
        assert convert(verify=[tmp_path / "case.npz"]) == 1
        printed = capsys.readouterr().out
        assert "2 of 2 runs above tolerance" in printed
        assert f"case float32 {name}" in printed


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "case.npz", nothing=np.zeros(1))
    with pytest.raises(CheckpointError, match=r"case\.json"):
        convert(verify=[tmp_path / "case.npz"])
    (tmp_path / "case.json").write_text(json.dumps({"config": CONFIG}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="lacks coords, feats"):
        convert(verify=[tmp_path / "case.npz"])


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    reference = next((Path(__file__).parents[1] / "reference").glob("*.npz"))
    with pytest.raises(ConfigError, match="--device cuda: no CUDA device is available here; use --device cpu"):
        convert(verify=[reference], device="cuda")
    with pytest.raises(ConfigError, match="--device 'meta': expected auto, cpu, cuda or cuda:N"):
        convert(verify=[reference], device="meta")


def test_on_cuda_float32_alone_is_run_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def noted(path: Path, dtype: torch.dtype, device: torch.device) -> list[verify.Comparison]:
        asked.append((path.stem, dtype, device.type))
        return [verify.Comparison("out/logits", dtype, 9e-5 if path.stem == "good" else 2e-4)]

    monkeypatch.setattr(verify, "verify_reference", noted)
    monkeypatch.setattr(device_option, "device_of", lambda name: name)
    assert convert(verify=[Path("good.npz"), Path("bad.npz")], device="cuda") == 1
    assert asked == [("good", torch.float32, "cuda"), ("bad", torch.float32, "cuda")]
    printed = capsys.readouterr().out
    assert "on cuda" in printed
    assert "float64 is not run on cuda: spconv has none there" in printed
    assert "bad float32 out/logits: 2.00e-04" in printed
    assert "2 files, 1 of 2 runs above tolerance" in printed
    with pytest.raises(ConfigError, match="float64 does not run on cuda"):
        verify_reference(Path("good.npz"), torch.float64, "cuda")
