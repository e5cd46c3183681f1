"""Every command of the README exists, and the first one runs (shortened; the full one is slow)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from helpers import write_data

from samtune.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAIN = "python scripts/finetune_sam.py --config polyp.yaml"


def run_main(folder: Path, *overrides: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "finetune_sam.py"), "--config", "polyp.yaml", *overrides]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_main_command_is_the_first_one() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    assert blocks[0].strip() == f"pip install uv && uv run {MAIN}"
    assert blocks[1].strip() == "uv run pytest"


def test_the_main_command_runs_shortened(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    output = run_main(tmp_path, f"data.dir={data}", "train.steps=2", "eval.prompts=2", "track.mlflow=false")
    folder = Path(output.strip().splitlines()[-1])
    assert (tmp_path / folder / "merged.safetensors").is_file()
    assert (tmp_path / folder / "report.html").is_file()


@pytest.mark.slow
def test_the_main_command_improves_the_model(tmp_path: Path) -> None:
    output = run_main(tmp_path)
    before, after = re.search(r"mDice +([\d.]+) +([\d.]+)", output).groups()  # type: ignore[union-attr]
    assert float(after) > float(before) + 0.1


def test_commands_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"uv run samtune (data [a-z]+|[a-z]+)", README))
    root = typer.main.get_command(app)
    assert len(named) > 7
    for name in named:
        command = root
        for part in name.split():
            assert part in command.commands, name  # type: ignore[attr-defined]
            command = command.commands[part]  # type: ignore[attr-defined]


def test_files_that_the_readme_links_exist() -> None:
    links = [link for link in re.findall(r"\]\(([\w./-]+)\)", README) if "://" not in link]
    assert len(links) > 4
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_configs_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"--config ([\w.]+\.yaml)", README))
    assert len(named) >= 3
    assert all((ROOT / "configs" / name).is_file() for name in named)
