"""A wheel holds everything, and what it holds runs away from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The content of a wheel that was built from a copy of the checkout, which building would litter."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "result", "results", "tests", "build", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, folder / "source", ignore=lambda *a: ignored(*a) | {n for n in a[1] if n[0] == "."})
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    subprocess.run(build, cwd=folder / "source", check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_wheel_has_all_that_the_checkout_has(unpacked: Path):
    mapped = {"s3prl_distiller": "", "upstream": "upstream", "downstream": "downstream", "config": "config"}
    for top, inside in mapped.items():
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".yaml", ".jsonl", ".json", ".opus", ".safetensors", ".typed"):
                target = unpacked / "s3prl_distiller" / inside / path.relative_to(ROOT / top)
                assert target.is_file(), f"{path.relative_to(ROOT)} is missing in the wheel"
    assert {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")} == {"s3prl_distiller"}


def test_torch_and_torchaudio_are_a_pair(unpacked: Path):
    """torchaudio's own requirement has no upper bound: 2.11.1 does not load beside torch 2.11.0."""
    metadata = next(unpacked.glob("*.dist-info")).joinpath("METADATA").read_text()
    required = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if "Requires-Dist" in line]
    assert {"torch==2.11.0", "torchaudio==2.11.0"} <= set(required)


def test_wheel_runs_from_another_folder(unpacked: Path, tmp_path: Path):
    """The quick start's dry run, from the unpacked wheel: bundled teacher, speech and recipe are all found in it."""
    script = (
        "import sys, s3prl_distiller; from s3prl_distiller.cli.pretrain import main; "
        "print(s3prl_distiller.__file__); "
        "sys.exit(main(['-u', 'distiller', '--dry-run', '-o', 'task.sequence_length=8000,data.batch_size=2,"
        "data.num_workers=0,data.check=header']))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(unpacked),
        "OMP_NUM_THREADS": "1",
        "S3PRL_DISTILLER_CACHE": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(unpacked))
    assert "the whole run: 160 steps" in done.stdout
