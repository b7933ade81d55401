from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from span_sparse.errors import ConfigError
from span_sparse.extract import PatchEncoder, StainTextureEncoder
from span_sparse.extract.encoders import load_encoder


def test_the_descriptor() -> None:
    assert load_encoder("stain-texture") == StainTextureEncoder()
    assert load_encoder("stain-texture", input_size_px=32, mpp=1.0, device="cuda") == StainTextureEncoder(32, 1.0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("conch_v15", {}, "not part of this package; load it as https://huggingface.co/MahmoodLab/conchv1_5 shows"),
        ("stain-texture", {"weights": Path("w")}, "--encoder-weights w: the encoder stain-texture has no weights"),
        ("stain-texture", {"precision": "float16"}, "--precision float16: the encoder stain-texture gives float32"),
        ("stain-texture", {"input_size_px": 30}, "--patch-size 30: .*multiple of 8"),
        ("uni_v1", {"input_size_px": 0}, "--patch-size 0: expected at least 1 px"),
        ("uni_v1", {"mpp": float("nan")}, "--target-mpp nan: expected positive"),
        ("uni_v1", {"device": "tpu"}, "--device tpu"),
        ("uni_v1", {"precision": "int8"}, "--precision int8"),
        ("uni_v3", {}, "--encoder uni_v3: there is no encoder of this name; did you mean uni_v[12]\\? `span encoders`"),
        ("zzz", {}, "--encoder zzz: there is no encoder of this name; `span encoders` lists them"),
    ],
)
def test_what_cannot_be_is_refused(name: str, settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_encoder(name, **settings)


def write_weights(spec, network, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "model.safetensors")
    return folder


def test_a_named_network_from_a_folder(small, random_weights, patches, tmp_path) -> None:
    spec = small("virchow2")
    folder = write_weights(spec, random_weights(spec), tmp_path / "virchow2")
    made = load_encoder("virchow2", weights=folder)
    assert isinstance(made, PatchEncoder)
    identity = made.identity
    assert (identity.name, identity.readout, identity.dimension) == ("virchow2", "cls+mean", 48)
    assert (identity.input_size_px, identity.mpp, identity.precision) == (72, 0.5, "float16")
    batch = patches(3, 72)
    found = pickle.loads(pickle.dumps(made))(batch)
    assert found.shape == (3, 48)
    assert np.isfinite(found).all()
    small("virchow2-cls")
    alone = load_encoder("virchow2-cls", weights=folder)
    np.testing.assert_allclose(alone(batch), found[:, :24], atol=1e-5)
    assert alone.identity.differences(identity)


def test_what_changes_vectors_changes_the_identity(small, random_weights, tmp_path) -> None:
    spec = small("uni_v1")
    folder = write_weights(spec, random_weights(spec), tmp_path / "a")
    other = write_weights(spec, random_weights(spec, seed=1), tmp_path / "b")
    identities = [
        load_encoder("uni_v1", weights=path, **settings).identity
        for path, settings in (
            (folder, {}),
            (other, {}),
            (folder, {"precision": "float32"}),
            (folder, {"precision": "bfloat16"}),
            (folder, {"input_size_px": 100}),
            (folder, {"mpp": 0.25}),
        )
    ]
    assert len({json.dumps(identity.as_dict()) for identity in identities}) == 6
    assert load_encoder("uni_v1", weights=folder / "model.safetensors", precision="float16").identity == identities[0]
    assert identities[3].precision == "float16"
    assert identities[3].revision == identities[0].revision + "+bfloat16"


def test_weights_that_do_not_fit_are_found_before_the_run(small, random_weights, tmp_path) -> None:
    spec = small("uni_v1")
    folder = write_weights(spec, random_weights(spec), tmp_path)
    small("hoptimus0")
    with pytest.raises(ConfigError, match="not the weights of hoptimus0"):
        load_encoder("hoptimus0", weights=folder / "model.safetensors")


def test_contradicting_configurations_are_found_before_the_run(small, random_weights, tmp_path) -> None:
    spec = small("uni_v1")
    folder = write_weights(spec, random_weights(spec), tmp_path)
    (folder / "config.json").write_text('{"pretrained_cfg": {"mean": [0, 0, 0]}}')
    with pytest.raises(ConfigError, match="its configuration says mean"):
        load_encoder("uni_v1", weights=folder)


PLUGIN = """
import numpy as np
from span_sparse.extract.stain_texture import StainTextureEncoder

def make(*, weights, device, precision, input_size_px, mpp):
    return StainTextureEncoder(input_size_px or 64, mpp or 0.25)

def fail(**settings):
    raise RuntimeError("first line\\nsecond line")

def refuse(**settings):
    from span_sparse.errors import ConfigError
    raise ConfigError("needs a GPU")

def nothing(**settings):
    return None
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed distribution that declares encoders."""
    (tmp_path / "own_encoders.py").write_text(PLUGIN, encoding="utf-8")
    info = tmp_path / "own_distribution-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-distribution\nVersion: 1.5\n", encoding="utf-8")
    names = ("make", "fail", "refuse", "nothing", "absent")
    entries = "\n".join(f"own-{name} = own_encoders:{name}" for name in names)
    (info / "entry_points.txt").write_text(
        f"[span_sparse.encoders]\n{entries}\nuni_v1 = own_encoders:make\nbroken = no_such_module:make\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("own_encoders", None)


def test_a_plug_in(plugin) -> None:
    made = load_encoder("own-make", input_size_px=32)
    assert (made.identity.input_size_px, made.identity.mpp) == (32, 0.25)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own-fail", "RuntimeError: first line"),
        ("own-refuse", "needs a GPU"),
        ("own-nothing", "expected a PatchEncoder with an EncoderIdentity, found NoneType"),
        ("own-absent", "AttributeError: module 'own_encoders' has no attribute 'absent'"),
        ("broken", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_errors_of_a_plug_in_name_its_distribution(name: str, message: str, plugin) -> None:
    with pytest.raises(ConfigError) as caught:
        load_encoder(name)
    assert str(caught.value) == f"encoder {name} of the distribution own-distribution 1.5: {message}"


def test_a_plug_in_cannot_take_a_known_name(plugin, tmp_path) -> None:
    with pytest.raises(ConfigError, match="uni_v1: no weights in"):
        load_encoder("uni_v1", weights=tmp_path)


def test_the_descriptor_does_not_load_torch() -> None:
    code = """
import sys
from span_sparse.extract.encoders import load_encoder
load_encoder("stain-texture")
print([name for name in ("torch", "timm", "huggingface_hub", "safetensors") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
