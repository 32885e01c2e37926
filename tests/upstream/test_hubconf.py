"""Entries with a registered checkpoint: from s3prl's cache, from an argument, or a message that helps."""

import hashlib
import shutil

import pytest
import requests
import torch
from s3prl_distiller.upstream.distiller.hubconf import (
    distilhubert,
    distilhubert_base,
    distiller,
    distiller_custom,
    distiller_local,
    distiller_url,
)

URL = "https://huggingface.co/leo19941227/distilhubert/resolve/main/distilhubert_ls960_4-8-12.ckpt"
CACHED = f"{hashlib.sha256(URL.encode()).hexdigest()}.distilhubert_ls960_4-8-12.ckpt"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """s3prl's cache folder, with a network that must not be asked."""
    from s3prl.util import download

    def asked(*args, **kwargs):
        raise AssertionError("asked the network")

    monkeypatch.setattr(download, "_download_dir", tmp_path)
    for name in ("_download_url_to_file", "_download_url_to_file_requests"):
        monkeypatch.setattr(download, name, asked)
    return tmp_path


@torch.no_grad()
def hidden_states(expert, wavs):
    return expert.eval()(wavs)["hidden_states"]


@pytest.mark.parametrize("entry", [distilhubert, distilhubert_base])
def test_registered_checkpoint_from_the_cache(entry, cache, student_file, waves):
    source = student_file()
    shutil.copy(source, cache / CACHED)
    # As S3PRLUpstream, run_downstream and a user call it.
    for arguments in ({}, {"refresh": False}, {"ckpt": None, "model_config": None, "refresh": False}):
        expert = entry(**arguments)
        for a, b in zip(hidden_states(expert, waves), hidden_states(distiller_local(source), waves), strict=True):
            assert torch.equal(a, b)


def test_the_address_is_s3prl_s(monkeypatch):
    """The checkpoint that s3prl's entry of the same name asks for."""
    from s3prl.upstream.distiller import hubconf as theirs

    seen = []
    monkeypatch.setattr(theirs, "_urls_to_filepaths", lambda url, refresh: seen.append(url) or "x")
    with pytest.raises(AssertionError):
        theirs.distilhubert()
    assert seen == [URL]


def test_ckpt_takes_the_place_of_the_registered_one(cache, student_file, waves):
    source = student_file()
    for entry in (distilhubert, distilhubert_base, distiller, distiller_custom):
        expert = entry(ckpt=str(source))
        assert len(hidden_states(expert, waves[:1])) == 6


def test_url_from_the_cache(cache, student_file, waves):
    url = "https://example.org/a/states.ckpt"
    shutil.copy(student_file(), cache / f"{hashlib.sha256(url.encode()).hexdigest()}.states.ckpt")
    for entry in (distiller_url, distiller_custom, distiller, distilhubert):
        assert len(hidden_states(entry(ckpt=url), waves[:1])) == 6


@pytest.mark.parametrize("refresh", [False, True])
def test_no_network(no_network, refresh):
    with pytest.raises(ValueError) as raised:
        distilhubert(refresh=refresh)
    message = str(raised.value)
    for part in (URL, str(no_network), CACHED, "ckpt=FILE"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.ConnectionError(),
        requests.exceptions.HTTPError("404"),
        TimeoutError("timed out"),
        KeyError("Content-Length"),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_ways_for_a_download_to_fail(no_network, monkeypatch, error):
    from s3prl.util import download

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(download, "_download", fail)
    with pytest.raises(ValueError, match="could not be downloaded into"):
        distiller_url("https://example.org/states.ckpt")


def test_a_failed_download_leaves_no_file(monkeypatch, tmp_path):
    """What broke off is not taken for a checkpoint the next time."""
    from s3prl.util import download

    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(download, "_download_dir", tmp_path)
    monkeypatch.setattr(download, "urlopen", refuse)
    monkeypatch.setattr(download.requests, "get", refuse)
    for _ in range(2):
        with pytest.raises(ValueError, match="could not be downloaded"):
            distilhubert()
    assert not (tmp_path / CACHED).exists()


def test_damaged_file_in_the_cache_is_named(cache):
    (cache / CACHED).write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=CACHED.replace(".", r"\.")):
        distilhubert()
