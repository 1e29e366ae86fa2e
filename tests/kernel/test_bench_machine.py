# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket bench scale --vm` on four virtual CPUs: more cores than the host may have."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from fastsocket.bench.machine import KIND, Machine
from fastsocket.bench.result import schema
from fastsocket.errors import MissingFeatureError

pytestmark = pytest.mark.kernel

LIMIT_S = 800


def test_four_cores_share_nothing(tmp_path: Path) -> None:
    try:
        Machine.find(4)
    except MissingFeatureError as error:
        pytest.skip(str(error))
    output = tmp_path / "vm.json"
    command = [sys.executable, "-c", "from fastsocket.cli.main import main; main()"]
    command += ["bench", "scale", "--vm", "4", "--cores", "4", "--modes", "stock,fastsocket"]
    command += ["--connections", "60", "--json", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert json.loads(output.read_text()) == document
    assert list(tmp_path.iterdir()) == [output]  # the parts are gone
    jsonschema.validate(document, schema())
    assert document["kind"] == KIND
    assert document["host"]["cpus"] == 4
    (point,) = document["points"]
    assert point["cores"] == 4
    assert not any("cps" in metrics for metrics in point["modes"].values())
    stock, fast = (
        {name: metric["median"] for name, metric in point["modes"][mode].items()}
        for mode in ("stock", "fastsocket")
    )
    assert stock["errors"] == fast["errors"] == 0
    assert fast["local_percent"] >= 99.5 > stock["local_percent"]
    assert fast["core_deviation_percent"] <= 5
    assert fast["own_resched_ipis_per_1k"] < stock["own_resched_ipis_per_1k"]
