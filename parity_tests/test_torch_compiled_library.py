"""Where the compiled C++ comes from: compilers that fail in every way, and a cache that others have been at.

The compilers are shell scripts, most of which copy a library that has been compiled before.
"""

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adafactor_torch import Adafactor
from adafactor_torch._backends.cpp import build as _build
from adafactor_torch._backends.cpp import compiler as _compiler
from adafactor_torch._backends.cpp import library_cache as _cache

from .torch_runs import snapshot

Compiler = Callable[..., Path]
USER = 12345  # neither root nor who runs the tests


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of this machine, as its compiler makes it."""
    assert _build.library() is not None
    using, texts = _compiler.command(), _build._texts("whole")
    folder, key = _cache.folder(), _build._key("whole", using, texts)
    found = sorted(folder.glob(f"{key}-*.so")) if folder else []
    path: Path = tmp_path_factory.mktemp("real") / "step.so"
    path.write_bytes(found[0].read_bytes() if found else _compiler.compiled(using, "whole", texts))
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and no library that has been found before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_build, "warned", set())
    _build.found.cache_clear()
    yield tmp_path / "adafactor"
    _build.found.cache_clear()


@pytest.fixture
def compiler(tmp_path: Path, real: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Makes a script the compiler; its last command has to make the library `$out`. Every compilation is in `log`."""

    def make(body: str = f"cp {shlex.quote(str(real))} $out", asked: str = "echo a processor >&2") -> Path:
        script, log = tmp_path / "fake compiler", tmp_path / "log"
        script.write_text(
            f"""#!/bin/sh
case "$*" in *" -E "*) {asked}; exit ;; esac
echo "$@" >> {shlex.quote(str(log))}
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
{body}
"""
        )
        script.chmod(0o700)
        monkeypatch.setenv("CXX", shlex.quote(str(script)))
        return log

    return make


def again() -> tuple[Any, str]:
    """The library and the reason, as another process would find them."""
    _build.found.cache_clear()
    return _build.found("whole")


def compilations(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def kept(home: Path) -> Path:
    """The one library in the cache."""
    (path,) = home.glob("*.so")
    return path


def stepped(**options: Any) -> Any:
    p = torch.nn.Parameter(torch.arange(12.0).reshape(4, 3))
    optimizer = Adafactor([p], **options)
    p.grad = torch.ones_like(p)
    optimizer.step()
    return snapshot(optimizer)[:2]


def test_a_library_is_compiled_once_and_found_by_the_next_process(home: Path, compiler: Compiler) -> None:
    log = compiler()
    assert again()[0] is not None and again()[0] is not None
    assert len(compilations(log)) == 1
    path = kept(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700 and stat.S_IMODE(path.stat().st_mode) == 0o644
    assert {x.name for x in home.iterdir()} == {path.name, path.name.rpartition("-")[0] + ".lock"}


def test_two_libraries_of_one_process_are_not_taken_for_each_other(home: Path, compiler: Compiler) -> None:
    """The loader knows a library by its name, and would give the first one again."""
    compiler()
    (one, _), (other, _) = again(), again()
    assert one is not other and one.adafactor_step is not None
    opened = [x for x in (one._name, other._name) if x.startswith("/proc")]
    assert len(set(opened)) == len(opened)


@pytest.mark.parametrize("damage", ["truncated", "empty", "a byte", "foreign", "folder", "link"])
def test_a_damaged_library_is_not_loaded_but_made_again(damage: str, home: Path, compiler: Compiler) -> None:
    log = compiler()
    assert again()[0] is not None
    path = kept(home)
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "a byte":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "foreign":
        other = b"not a library"
        path.with_name(path.name.replace(_cache.digest(content), _cache.digest(other))).write_bytes(other)
    elif damage == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    loaded, reason = again()
    assert loaded is not None, reason
    assert len(compilations(log)) == 2


@pytest.mark.parametrize("who", ["another user", "everybody", "a group"])
def test_a_library_that_others_can_have_written_is_not_loaded(
    who: str, home: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler()
    assert again()[0] is not None
    path = kept(home)
    home.chmod(0o777)
    if who == "everybody":
        path.chmod(0o646)
    elif who == "a group":
        path.chmod(0o664)
    elif os.geteuid() == 0:
        os.chown(path, USER, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: USER)
    reasons: list[str] = []
    assert _cache.loaded(home, path.name.rpartition("-")[0], reasons) is None
    assert "owned by another user" in reasons[0] if who == "another user" else "written by other users" in reasons[0]
    again()
    assert len(compilations(log)) == 2


def test_a_link_where_the_lock_should_be_is_not_followed(home: Path, compiler: Compiler, tmp_path: Path) -> None:
    compiler()
    assert again()[0] is not None
    path = kept(home)
    lock, victim = path.with_name(path.name.rpartition("-")[0] + ".lock"), tmp_path / "victim"
    lock.unlink()
    path.unlink()
    victim.write_text("of somebody")
    lock.symlink_to(victim)
    assert again()[0] is not None
    assert victim.read_text() == "of somebody" and lock.is_symlink()


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError(30, "Read-only file system")


def test_a_cache_that_cannot_be_written_is_read(
    home: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler()
    assert again()[0] is not None
    monkeypatch.setattr(_cache, "store", _refuse)
    monkeypatch.setattr(_cache, "one_at_a_time", _refuse)
    assert again()[0] is not None
    assert len(compilations(log)) == 1


def test_without_a_cache_nothing_is_left_behind(
    home: Path, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, temporary = compiler(), tmp_path / "temporary"
    temporary.mkdir()
    home.write_text("a file where the cache should be")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    loaded, reason = again()
    assert loaded is not None, reason
    assert len(compilations(log)) == 1 and not list(temporary.iterdir())


def test_without_a_home_there_is_a_library_all_the_same(
    home: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    loaded, reason = again()
    assert loaded is not None, reason


def test_a_compiler_may_have_options(home: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    log = compiler()
    monkeypatch.setenv("CXX", os.environ["CXX"] + " -O1 -DNAME='two words'")
    loaded, reason = again()
    assert loaded is not None, reason
    assert compilations(log)[0].startswith("-O1 -DNAME=two words -O3 ")


SLEEPS = "sleep 600 & sleep 600"
FAILURES: dict[str, tuple[str, str, str]] = {  # what makes the library, what says the processor, the reason
    "fails": ("echo 'no such header' >&2; exit 3", "true", "ended with status 3: no such header"),
    "fails when asked for the processor": ("true", "echo 'bad option' >&2; exit 1", "ended with status 1: bad option"),
    "says what is no UTF-8": (r"printf 'fehlgeschlagen: \344\377' >&2; exit 1", "true", "fehlgeschlagen: \ufffd\ufffd"),
    "says nothing": ("exit 1", "true", "status 1: it said nothing"),
    "writes nothing": ("true", "true", "has ended well and written no library"),
    "writes an empty library": (": > $out", "true", "has ended well and written no library"),
    "writes what is no library": ("echo text > $out", "true", "could not be loaded: .*"),
    "hangs": (SLEEPS, "true", "had not ended after 0.5 seconds"),
    "hangs when asked for the processor": ("true", SLEEPS, "had not ended after 0.5 seconds"),
    "is ended": ("kill -9 $$", "true", "ended with status -9"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_compiler_that_fails_is_said_once_and_steps_are_eager(
    how: str, home: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, asked, reason = FAILURES[how]
    compiler(body, asked)
    monkeypatch.setattr(_compiler, "LIMIT", 0.5 if "hangs" in how else _compiler.LIMIT)
    with pytest.warns(UserWarning, match=rf"(?s)^fused=True steps eagerly: .*{reason}.*name one in CXX") as said:
        fused = [stepped(fused=True) for _ in range(2)]
    assert fused == [stepped()] * 2
    assert len(said) == 1
    assert not [x for x in home.iterdir() if x.suffix != ".lock"]


@pytest.mark.parametrize("given", ["g++ 'unfinished", "no-such-compiler", "/dev/null", "."])
def test_a_compiler_that_is_none_is_said(given: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", given)
    loaded, reason = again()
    assert loaded is None
    assert "is no command" in reason if "'" in given else f"{given} could not be run" in reason


def test_a_library_of_something_else_is_refused(home: Path, compiler: Compiler) -> None:
    """It loads, and has not the functions of this one."""
    source = home.parent / "else.c"
    source.write_text("int something_else(void) { return 1; }")
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(home.parent / "else.so")], check=True)
    compiler(f"cp {shlex.quote(str(home.parent / 'else.so'))} $out")
    loaded, reason = again()
    assert loaded is None and "is not adafactor's" in reason


def test_where_warnings_are_errors_every_step_is_refused_and_none_has_happened(home: Path, compiler: Compiler) -> None:
    log = compiler("exit 1")
    p = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = Adafactor([p], fused=True)
    p.grad = torch.ones_like(p)
    before = snapshot(optimizer)
    for _ in range(2):
        with pytest.raises(UserWarning, match="fused=True steps eagerly"):  # warnings are errors in tests
            optimizer.step()
        assert snapshot(optimizer) == before
    assert len(compilations(log)) == 1


def test_another_process_that_holds_the_lock_is_not_waited_for_without_end(
    home: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler()
    assert again()[0] is not None
    lock = next(home.glob("*.lock"))
    kept(home).unlink()
    holds = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        monkeypatch.setattr(_cache, "_POLL", 0.01)
        monkeypatch.setattr(_compiler, "LIMIT", 2.0)
        assert again()[0] is not None
        other.kill()
    assert len(compilations(log)) == 2
