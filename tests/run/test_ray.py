"""fgvc predict --ray on a real Ray cluster: three nodes as processes of this machine, of which one is killed,
and the driver too."""

import csv
import os
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_predict_processes import SECONDS, start, wait_until

import fgvc_cli
from fgvc_cli import create_model
from fgvc_cli.config import Preprocess, TrainConfig
from fgvc_cli.engine.checkpoint import save_checkpoint
from fgvc_cli.errors import FgvcError
from fgvc_cli.run.cluster import RayCluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="signals and processes of POSIX"),
]
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster(monkeypatch):
    """A head without room for workers, and two nodes with room for one each."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'fgvc[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else they get nothing of a busy machine
    head = NODE | {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.doomed = [cluster.add_node(**NODE), cluster.add_node(**NODE)]
    yield cluster
    cluster.shutdown()


ROWS = 600
SMALL_PARTS = """
from fgvc_cli.cli import main
from fgvc_cli.run import cluster
cluster.PART_IMAGES = 40
main()
"""


@pytest.fixture
def photos(tmp_path):
    """Names of which some are broken; the others are links to one small image."""
    (tmp_path / "photos").mkdir()
    Image.effect_noise((48, 40), 60).convert("RGB").save(tmp_path / "one.png")
    for i in range(ROWS):
        path = tmp_path / "photos" / f"{i:05d}.png"
        if i % 100 == 7:
            path.write_text("broken")
        else:
            path.symlink_to("../one.png")
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path, name = tmp_path_factory.mktemp("weights") / "model.safetensors", "crasmra-resnet10t"
    config = TrainConfig(model=name, preprocess=Preprocess(input_px=32, resize_px=32))
    made = create_model(name, num_classes=3, input_px=32)
    save_checkpoint(path, made, config=config, classes=("a", "b", "c"), dataset="none", metrics={})
    return path


def predict(out, model, *arguments):
    return [sys.executable, "-c", SMALL_PARTS, "predict", "photos", "--weights", str(model), "--amp", "none",
            "--device", "cpu", "--batch-size", "8", "--workers", "1", "--out", out, *arguments]  # fmt: skip


def test_a_node_and_then_the_driver_are_killed_and_no_row_is_lost_or_doubled(cluster, photos, model):
    on_ray = predict("ray.csv", model, "--ray", cluster.address)
    alone = predict("alone.csv", model)
    process, parts = start(on_ray, photos), photos / "ray.csv.partial"
    wait_until(lambda: any(parts.glob("rows-*.npz*")), "the first part")
    cluster.remove_node(cluster.doomed[0], allow_graceful=False)
    wait_until(lambda: any(parts.glob("rows-*.npz")), "a completed part")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (photos / "ray.csv").exists()
    kept = len(list(parts.glob("rows-*.npz")))
    cluster.add_node(**NODE)
    again = start(on_ray, photos)
    told = again.communicate(timeout=4 * SECONDS)[1]
    assert again.returncode == 3, told
    assert kept and "Resuming after" in told
    plain = start(alone, photos)
    told = plain.communicate(timeout=4 * SECONDS)[1]
    assert plain.returncode == 3, told
    assert (photos / "ray.csv").read_bytes() == (photos / "alone.csv").read_bytes()
    with (photos / "ray.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [f"{i:05d}.png" for i in range(ROWS)]
    assert sum(row["status"] == "not_an_image" for row in rows) == 6
    assert not parts.exists()
    for path in (photos / "photos").glob("*07.png"):
        if not path.is_symlink():
            path.unlink()
            path.symlink_to("../one.png")
    retried = start([*on_ray, "--retry-failed"], photos)
    told = retried.communicate(timeout=2 * SECONDS)[1]
    assert retried.returncode == 0, told
    assert "600 images of an earlier run, 6 of them read again" in told
    assert b"not_an_image" not in (photos / "ray.csv").read_bytes()


def test_nodes_with_another_version_are_named(cluster, photos, model):
    command = predict("ray.csv", model, "--ray", cluster.address)
    command[2] = f"import fgvc_cli\nfgvc_cli.__version__ = '0.0.1'\n{SMALL_PARTS}"
    process = start(command, photos)
    told = process.communicate(timeout=2 * SECONDS)[1]
    assert process.returncode == 1
    assert f"has fgvc {fgvc_cli.__version__}, this process has 0.0.1. Install" in told
    assert "Traceback" not in told
    assert not list(photos.glob("ray.csv*"))


def test_no_cluster_is_one_line(monkeypatch):
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'fgvc[ray]'")
    for address, set_to in (("127.0.0.1:9", ""), ("auto", "127.0.0.1:9")):
        monkeypatch.setenv("RAY_ADDRESS", set_to)
        with pytest.raises(FgvcError, match="No Ray cluster answers at 127.0.0.1:9: Connection refused"):
            RayCluster(address, None, 1)
    with pytest.raises(FgvcError, match="expected auto or HOST:PORT"):
        RayCluster("nowhere", None, 1)
    monkeypatch.delenv("RAY_ADDRESS")

    def none(**_):
        # As Ray 2.60 does; on a machine where one runs, it would be found.
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", none)
    with pytest.raises(FgvcError, match="No Ray cluster answers here") as caught:
        RayCluster("auto", None, 1)
    assert "\n" not in str(caught.value) and "ray start --head" in caught.value.hint
