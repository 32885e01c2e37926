"""Starts run_pretrain.py again and again, each time as a process of its own, importing torch and s3prl only once.

Run as a script. Each line of stdin is a request in JSON: ``argv``, ``cwd``, ``out``, ``err``, ``status`` (files to
write) and ``file_limit`` (bytes that a file may grow to, or null). The answer is the process id, in a line of stdout.
The command runs from the script's first line as the leader of its own session, and ends as any Python program does.
"""

import gc
import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def warm_up() -> None:
    """Import what a run imports, and load a teacher, so that what is imported late is there as well."""
    import lhotse.dataset.sampling  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import s3prl_distiller.downstream.core.run  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from s3prl_distiller.upstream.distiller.teacher import TeacherConfig, load_teacher

    load_teacher(TeacherConfig(model=str(ROOT / "s3prl_distiller" / "quickstart" / "hubert_nano")))


def serve() -> dict:
    """Fork for every request. Returns, in the new process, the request it is to serve."""
    for line in sys.stdin:
        if os.fork() > 0:
            continue
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return request
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        answer = Path(request["status"])
        answer.with_suffix(".part").write_text(str(os.waitstatus_to_exitcode(status)))
        answer.with_suffix(".part").rename(answer)
        os._exit(0)
    os._exit(0)


def become(request: dict) -> None:
    """Give this process the session, folder, files, limits and arguments of a command that a shell has started."""
    os.setsid()
    os.chdir(request["cwd"])
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, request["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        handle = os.open(path, flags, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    if request["file_limit"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], request["file_limit"]))
    sys.argv = [str(ROOT / request["script"]), *request["argv"]]


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    warm_up()
    gc.freeze()  # else the first collection of each command copies all memory that it shares with this process
    become(serve())
    runpy.run_path(sys.argv[0], run_name="__main__")
