"""Files of weights: nothing in them runs, damage is named, and an old file survives until the new one is whole."""

import argparse
import collections
import os
import pathlib
import pickle
import stat
import subprocess
import sys
import types
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3prl_distiller import checkpoint
from s3prl_distiller.checkpoint import CheckpointError

FORMATS = {"zip": True, "legacy": False}


def touch(path):
    pathlib.Path(path).touch()


class Reduces:
    """Unpickles to a call of ``function``, as a malicious checkpoint does."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(marker):
    return {
        "os.system": Reduces(os.system, f"touch {marker}"),
        "subprocess.Popen": Reduces(subprocess.Popen, ["touch", str(marker)]),
        "builtins.eval": Reduces(eval, f"open({str(marker)!r}, 'w')"),
        "builtins.exec": Reduces(exec, f"open({str(marker)!r}, 'w')"),
        "builtins.getattr": Reduces(getattr, pathlib.Path(marker), "touch"),
        "builtins.open": Reduces(open, str(marker), "w"),
        "a function of the caller's": Reduces(touch, str(marker)),
        "a function below a name that is passed over": Reduces(pathlib.Path.touch, pathlib.PurePosixPath(marker)),
    }


@pytest.mark.parametrize("new_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("attack", attacks(""))
def test_nothing_in_a_checkpoint_is_run(tmp_path, attack, new_format):
    marker, path = tmp_path / "marker", tmp_path / "evil.ckpt"
    states = {"Distiller": {"weight": torch.ones(2)}, "Config": attacks(marker)[attack]}
    torch.save(states, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="evil.ckpt"):
        checkpoint.load_torch(path)
    assert not marker.exists()


def test_an_attack_works_on_plain_torch_load(tmp_path):
    """The test above could not fail if its files were harmless."""
    marker, path = tmp_path / "marker", tmp_path / "evil.ckpt"
    torch.save({"Config": attacks(marker)["os.system"]}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_refusal_names_what_would_have_run(tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save(attacks(tmp_path / "marker")["builtins.eval"], path)
    with pytest.raises(CheckpointError, match=r"builtins\.eval.*Nothing of it was run"):
        checkpoint.load_torch(path)


def test_a_plain_pickle_is_refused(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps(attacks(marker)["os.system"]))
    with pytest.raises(CheckpointError):
        checkpoint.load_torch(path)
    assert not marker.exists()


@pytest.fixture
def optimizers(monkeypatch):
    """A module ``optimizers`` as s3prl's trainer once had it, whose classes run a side effect."""
    calls = []

    class Schedule:
        def __init__(self):
            self.warmup = 0.1

        def __setstate__(self, state):
            calls.append(state)

    module = types.ModuleType("optimizers")
    Schedule.__module__, Schedule.__qualname__ = "optimizers", "Schedule"
    module.Schedule = Schedule
    monkeypatch.setitem(sys.modules, "optimizers", module)
    return module, calls


@pytest.mark.parametrize("new_format", FORMATS.values(), ids=FORMATS)
def test_what_a_trainer_leaves_beside_the_weights_is_passed_over(tmp_path, optimizers, new_format):
    module, calls = optimizers
    weight = torch.randn(3, 2)
    states = {
        "Distiller": {"weight": weight},
        "Args": argparse.Namespace(lr=1, path=pathlib.PurePosixPath("a")),
        "Optimizer": {"schedule": module.Schedule(), "lr": 0.1},
    }
    path = tmp_path / "states.ckpt"
    torch.save(states, path, _use_new_zipfile_serialization=new_format)
    loaded = checkpoint.load_torch(path)
    assert torch.equal(loaded["Distiller"]["weight"], weight)
    assert loaded["Optimizer"]["lr"] == 0.1
    assert not isinstance(loaded["Args"], argparse.Namespace)
    assert not calls


def other_objects():
    import numpy
    from omegaconf import OmegaConf

    return {
        "numpy scalar": numpy.float64(0.5),
        "numpy array": numpy.arange(3),
        "fairseq's config": OmegaConf.create({"model": {"layers": [1, {"width": 2}]}}),
        "paths": [pathlib.PurePosixPath("a/b")],
        "namespace in a namespace": argparse.Namespace(inner=argparse.Namespace(lr=1)),
        "counter": collections.Counter("aab"),
    }


@pytest.mark.parametrize("kind", other_objects())
def test_objects_of_other_libraries_are_passed_over(tmp_path, kind):
    path = tmp_path / "states.ckpt"
    torch.save({"before": 1, "object": other_objects()[kind], "weight": torch.ones(2)}, path)
    loaded = checkpoint.load_torch(path)
    assert loaded["before"] == 1
    assert torch.equal(loaded["weight"], torch.ones(2))


@pytest.mark.parametrize("new_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_truncated(tmp_path, kept, new_format):
    path = tmp_path / "states.ckpt"
    states = {"Distiller": {str(i): torch.randn(50, 50) for i in range(5)}, "Config": {"distiller": {}}}
    torch.save(states, path, _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match="states.ckpt"):
        checkpoint.load_torch(path)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    contents = {}
    states = {"Distiller": {"weight": torch.ones(4)}, "Config": {"distiller": {"dropout": 0.1, "pred": [4]}}, "Step": 1}
    for name, new_format in FORMATS.items():
        torch.save(states, folder / name, _use_new_zipfile_serialization=new_format)
        contents[name] = (folder / name).read_bytes()
    return contents


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_anywhere(tmp_path, intact, form, data):
    """Whatever bytes are changed, a file is read or refused in our own words."""
    content = bytearray(intact[form])
    # Most of a zip file is padding: half of the damage goes where the pickle is.
    middle = content.find(b"Distiller")
    for _ in range(data.draw(st.integers(1, 4))):
        place = st.integers(max(0, middle - 60), middle + 200) | st.integers(0, len(content) - 1)
        content[min(data.draw(place), len(content) - 1)] = data.draw(st.integers(0, 255))
    path = tmp_path / "states.ckpt"
    path.write_bytes(content)
    # torch warns of the pickle protocol, which is among the bytes changed.
    warnings.simplefilter("ignore")
    try:
        checkpoint.load_torch(path)
    except CheckpointError as error:
        assert "states.ckpt" in str(error)


@pytest.mark.parametrize("content", [b"", b"\x00", b"hello, this is a text\n" * 50, b"\x80\x02.", b"PK\x03\x04"])
def test_no_checkpoint_at_all(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="notes.txt cannot be read as a checkpoint"):
        checkpoint.load_torch(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint at .*none.ckpt"):
        checkpoint.load_torch(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError):
        checkpoint.load_torch(tmp_path)
    with pytest.raises(CheckpointError, match="there is no file .*none"):
        checkpoint.load_safetensors(tmp_path / "none")
    with pytest.raises(CheckpointError, match="there is no file .*none"):
        checkpoint.load_json(tmp_path / "none")


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 64])
def test_no_safetensors(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="model.safetensors"):
        checkpoint.load_safetensors(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"3", b"[" * 100_000])
def test_no_json_object(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="config.json"):
        checkpoint.load_json(path)


def test_weights_of_another_model_are_named():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    checkpoint.check_weights(model.state_dict(), model, "x.ckpt")
    weights = {
        "0.weight": torch.ones(3, 2),
        "0.bias": torch.ones(4),
        "1.weight": torch.ones(1, 3),
        "head": torch.ones(1),
    }
    with pytest.raises(CheckpointError) as raised:
        checkpoint.check_weights(weights, model, "x.ckpt")
    message = str(raised.value)
    for part in ("x.ckpt", "lacks 1.bias", "has head", "0.bias is (4,) and not (3,)"):
        assert part in message
    with pytest.raises(CheckpointError, match="and 1 more"):
        checkpoint.check_weights({}, model, "x.ckpt")


class Boom(Exception):
    pass


def test_replacing_leaves_the_old_file_where_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(Boom), checkpoint.replacing(path) as temporary:
        temporary.write_text("half of the ne")
        raise Boom
    assert path.read_text() == "old"
    with checkpoint.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_saving_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.save_torch({"function": lambda: None}, path)
    with pytest.raises(TypeError):
        checkpoint.save_json({"object": object()}, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_results_are_readable_as_the_umask_says(tmp_path, mask):
    before = os.umask(mask)
    try:
        checkpoint.save_json({"a": 1}, tmp_path / "a.json")
        checkpoint.save_torch({"a": 1}, tmp_path / "a.pt")
        checkpoint.save_folder(tmp_path / "folder", {"a.txt": lambda path: path.write_text("a")})
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    for name in ("a.json", "a.pt", "folder/a.txt", "folder/checksums.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask, name
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "student"
    writers = {
        "a.bin": lambda path: path.write_bytes(bytes(range(256))),
        "b.json": lambda p: checkpoint.save_json({}, p),
    }
    checkpoint.save_folder(path, writers)
    return path


def test_folder_is_whole(folder):
    assert sorted(os.listdir(folder)) == ["a.bin", "b.json", "checksums.json"]
    assert checkpoint.folder_damage(folder) is None
    assert os.listdir(folder.parent) == ["student"]


def test_damage_to_a_folder_is_named(folder):
    whole = (folder / "a.bin").read_bytes()
    for content in (whole[:100], whole[:100] + b"\xff" + whole[101:], whole + b"\x00", b""):
        (folder / "a.bin").write_bytes(content)
        assert "a.bin" in (checkpoint.folder_damage(folder) or "")
    (folder / "a.bin").unlink()
    assert "a.bin" in (checkpoint.folder_damage(folder) or "")
    (folder / "checksums.json").write_text("{")
    assert "checksums.json" in (checkpoint.folder_damage(folder) or "")
    (folder / "checksums.json").unlink()
    assert "checksums.json" in (checkpoint.folder_damage(folder) or "")
    assert checkpoint.folder_damage(folder / "none")


def test_a_folder_that_cannot_be_written_leaves_the_old_one(folder):
    def fail(path):
        path.write_bytes(b"half")
        raise Boom

    with pytest.raises(Boom):
        checkpoint.save_folder(folder, {"a.bin": lambda path: path.write_bytes(b"new"), "b.json": fail})
    assert checkpoint.folder_damage(folder) is None
    assert (folder / "a.bin").read_bytes() == bytes(range(256))
    assert os.listdir(folder.parent) == ["student"]


def test_a_folder_is_replaced_as_a_whole(folder):
    checkpoint.save_folder(folder, {"c.bin": lambda path: path.write_bytes(b"new")})
    assert sorted(os.listdir(folder)) == ["c.bin", "checksums.json"]
    assert checkpoint.folder_damage(folder) is None


@pytest.mark.parametrize("parent", ["a/b", "with space", "ünïcode"])
def test_folders_above_are_made(tmp_path, parent):
    checkpoint.save_json({"a": "ü"}, tmp_path / parent / "a.json")
    assert checkpoint.load_json(tmp_path / parent / "a.json") == {"a": "ü"}
