"""The quickstart of the README, run as a reader would: its file written, its commands called, its Python executed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.skipif(shutil.which("bash") is None, reason="the quickstart's commands need bash")
def test_quickstart(tmp_path):
    text = README.read_text(encoding="utf-8")
    quickstart = text[text.index("## Five-minute quickstart") : text.index("## Commands")]
    name, content = re.search(r"```yaml file=(\S+)\n(.*?)```", quickstart, re.S).groups()
    (tmp_path / name).write_text(content)
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", quickstart, re.S))
    python = "\n".join(re.findall(r"```python\n(.*?)```", quickstart, re.S))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", "-euc", shell], cwd=tmp_path, env=environment, check=True, timeout=200)
    result = subprocess.run(
        [sys.executable, "-c", python],
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=100,
        capture_output=True,
        text=True,
    )
    error = float(re.search(r"median T1 error ([+-][\d.]+) %", result.stdout).group(1))
    bound = float(re.search(r"CV at least ([\d.]+) %", result.stdout).group(1))
    assert abs(error) < 5
    assert 0 < bound < 10
    assert (tmp_path / "quick.html").stat().st_size > 10_000


def test_every_place_that_the_readme_names_exists():
    for place in re.findall(
        r"`((?:qsim|phantoms|generators|trainers|configs|docs|benchmarks)/[\w./]*)`", README.read_text()
    ):
        assert (README.parent / place).exists(), place
